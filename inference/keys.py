"""API keys: who may ask what, how often, and how urgently.

The file is TOML; a key is given as itself or, better, as its SHA-256::

    [[key]]
    name = "web"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    requests_per_second = 20    # optional
    priority = "high"           # highest that it may ask for; "normal" if absent
    models = ["demo-lm"]        # optional; all

Keys are compared as SHA-256 digests, so neither a log nor the time of a comparison can tell one:
what can be learned from a look-up among digests is a digest, which nobody can choose. A plain digest
is enough for keys because they are long and random; this is no scheme for passwords.
"""

from __future__ import annotations

import hashlib
import secrets
import tomllib
from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from inference.errors import ForbiddenError, RateLimitedError, UnauthorizedError
from inference.queueing import Priority
from inference.rates import TokenBucket, retry_after

_log = structlog.get_logger(__name__)

_MOST_KEYS = 1000
# 128 random bits in hexadecimal; `python -c "import secrets; print(secrets.token_urlsafe(32))"`.
_SHORTEST_KEY = 32
_GROUP_OR_OTHERS = 0o077
_CHALLENGE = {"www-authenticate": "Bearer"}


class KeyFileError(ValueError):
    """The file of API keys cannot be used; names the file and what to correct."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    key: SecretStr | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    requests_per_second: float | None = Field(default=None, gt=0, le=1e6)
    priority: Priority = Priority.NORMAL
    models: tuple[str, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _priority_by_name(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("priority"), str):
            name = data["priority"].upper()
            if name not in Priority.__members__:
                raise ValueError("priority must be high, normal or low")
            return {**data, "priority": Priority[name]}
        return data

    @model_validator(mode="after")
    def _one_secret(self) -> _Entry:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give either key or sha256")
        if self.key is not None and len(self.key.get_secret_value()) < _SHORTEST_KEY:
            raise ValueError(f"key must have at least {_SHORTEST_KEY} characters")
        return self

    def digest(self) -> bytes:
        if self.key is not None:
            return _digest(self.key.get_secret_value())
        return bytes.fromhex(self.sha256 or "")


class Client:
    """A holder of a key; only its name may appear in logs and metrics."""

    def __init__(self, entry: _Entry, clock: Callable[[], float]) -> None:
        self.name = entry.name
        self.highest_priority = entry.priority
        self._models = entry.models
        self._rate = TokenBucket(entry.requests_per_second, clock)

    def check_rate(self) -> None:
        """Count a request.

        Raises:
            RateLimitedError: it is one too many.
        """
        wait = self._rate.take()
        if wait > 0.0:
            raise RateLimitedError(
                f"more than {self._rate.rate:g} requests per second with the key {self.name!r}",
                reason="key_rate_limit",
                retry_after_seconds=retry_after(wait),
            )

    def check_model(self, model: str) -> None:
        """Check that the key is for this model.

        Raises:
            ForbiddenError: it is not.
        """
        if self._models is not None and model not in self._models:
            raise ForbiddenError(
                f"the key {self.name!r} is not for the model {model!r}",
                reason="model_forbidden",
                param="model",
            )


class KeyRing:
    """All keys.

    Raises:
        KeyFileError: the file is missing, malformed, or names a key twice.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clients: dict[bytes, Client] = {}
        for entry in _read(path):
            digest = entry.digest()
            if digest in self._clients or entry.name in {c.name for c in self._clients.values()}:
                raise KeyFileError(f"{path}: the key {entry.name!r} is there twice")
            self._clients[digest] = Client(entry, clock)
        _log.info("api_keys_loaded", path=str(path), keys=len(self._clients))

    def authenticate(self, authorization: str) -> Client:
        """Return who holds the key of an ``Authorization`` header.

        Raises:
            UnauthorizedError: there is no key, or nobody holds it.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise UnauthorizedError(
                "an API key is needed: Authorization: Bearer <key>",
                reason="key_missing",
                headers=_CHALLENGE,
            )
        client = self._clients.get(_digest(token.strip()))
        if client is None:
            raise UnauthorizedError(
                "this API key is not known", reason="key_unknown", headers=_CHALLENGE
            )
        return client


def new_key() -> tuple[str, str]:
    """Return a new key and its SHA-256, for the file."""
    key = secrets.token_urlsafe(32)
    return key, _digest(key).hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _read(path: Path) -> list[_Entry]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
            mode = path.stat().st_mode
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}; see api_keys_file") from error
    except tomllib.TOMLDecodeError as error:
        raise KeyFileError(f"{path}: not TOML: {error}") from error
    entries = document.get("key")
    if set(document) != {"key"} or not isinstance(entries, list) or len(entries) > _MOST_KEYS:
        raise KeyFileError(f"{path}: must hold 1 to {_MOST_KEYS} tables [[key]] and nothing else")
    if mode & _GROUP_OR_OTHERS:
        _log.warning("api_keys_readable_by_others", path=str(path), fix=f"chmod 600 {path}")
    return [_entry(path, number, item) for number, item in enumerate(entries, start=1)]


def _entry(path: Path, number: int, item: object) -> _Entry:
    try:
        return _Entry.model_validate(item)
    except ValidationError as error:
        # Without the input: it may hold the key.
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise KeyFileError(f"{path}: key {number}: {where or 'entry'}: {first['msg']}") from None

"""Which requests are refused because they bring workers down, or may.

A request is known by a keyed hash of everything that decides what the engine computes; its text is
never kept, and the key never leaves the state directory, so that short texts cannot be guessed from
the file. *Suspected* requests are refused for a while, with 503; *quarantined* ones were shown to
bring a worker down and are refused with 422 until they expire or the model's version changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from inference.errors import EngineFailedError, QuarantinedError

_log = structlog.get_logger(__name__)

QUARANTINE_FILE = "quarantine.json"
_FORMAT = 1
_RETRY_AFTER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One request that is refused for good. Times are seconds since the epoch."""

    fingerprint: str
    model: str
    version: int
    effect: str
    """``crash`` or ``hang``."""
    group: int
    """How many requests did it together; 1 for one that needs no other."""
    since_seconds: float
    until_seconds: float


@dataclass(frozen=True, slots=True)
class _Suspicion:
    until_seconds: float
    effect: str


class Quarantine:
    """Fingerprints of suspects and culprits, bounded, with expiry; culprits outlive a restart.

    Raises:
        OSError: the state directory cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_entries: int,
        quarantine_seconds: float,
        suspicion_seconds: float,
        wall_clock: Callable[[], float],
    ) -> None:
        self._path = folder / QUARANTINE_FILE
        self._max_entries = max_entries
        self._quarantine_seconds = quarantine_seconds
        self._suspicion_seconds = suspicion_seconds
        self._wall_clock = wall_clock
        self._suspects: OrderedDict[str, _Suspicion] = OrderedDict()
        self._culprits: OrderedDict[str, Quarantined] = OrderedDict()
        self._key = secrets.token_bytes(32)
        self._read()

    @property
    def empty(self) -> bool:
        """Whether nothing is refused, so that nobody need compute a fingerprint."""
        return not self._suspects and not self._culprits

    def fingerprint(self, model: str, version: int, identity: Iterable[object]) -> str:
        """Return the keyed hash of a request."""
        digest = hashlib.blake2b(key=self._key, digest_size=20)
        for part in (model, version, *identity):
            data = part if isinstance(part, bytes) else repr(part).encode()
            digest.update(len(data).to_bytes(8, "big"))  # so that no two requests run together
            digest.update(data)
        return digest.hexdigest()

    def check(self, fingerprint: str) -> None:
        """Let a request pass.

        Raises:
            QuarantinedError: it was shown to bring a worker down.
            EngineFailedError: it was there when a worker went down, and is being tried.
        """
        now = self._wall_clock()
        culprit = self._culprits.get(fingerprint)
        if culprit is not None:
            if culprit.until_seconds > now:
                self._culprits.move_to_end(fingerprint)
                raise QuarantinedError(
                    f"this request is quarantined: it brought the engine down ({culprit.effect}); "
                    "sending it again will not help",
                )
            del self._culprits[fingerprint]
            self._write()
        suspicion = self._suspects.get(fingerprint)
        if suspicion is None:
            return
        if suspicion.until_seconds <= now:
            del self._suspects[fingerprint]
            return
        raise EngineFailedError(
            f"the engine went down ({suspicion.effect}) while it answered a request like this "
            "one, which is being looked into",
            reason="suspected",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )

    def suspend(self, fingerprints: Iterable[str], effect: str) -> None:
        """Refuse suspects for a while."""
        until = self._wall_clock() + self._suspicion_seconds
        for fingerprint in fingerprints:
            self._suspects[fingerprint] = _Suspicion(until, effect)
            self._suspects.move_to_end(fingerprint)
        while len(self._suspects) > self._max_entries:
            self._suspects.popitem(last=False)

    def clear(self, fingerprints: Iterable[str]) -> None:
        """Accept suspects again."""
        for fingerprint in fingerprints:
            self._suspects.pop(fingerprint, None)

    def condemn(
        self, model: str, version: int, fingerprints: Iterable[str], effect: str
    ) -> list[Quarantined]:
        """Refuse requests for good that brought a worker down, by themselves or together."""
        now = self._wall_clock()
        group = list(dict.fromkeys(fingerprints))
        self.clear(group)
        items = [
            Quarantined(
                fingerprint, model, version, effect, len(group), now, now + self._quarantine_seconds
            )
            for fingerprint in group
        ]
        for item in items:
            self._culprits[item.fingerprint] = item
            self._culprits.move_to_end(item.fingerprint)
        while len(self._culprits) > self._max_entries:
            self._culprits.popitem(last=False)
        self._write()
        return items

    def version_changed(self, model: str, version: int) -> None:
        """Forget what other versions of a model could not stand."""
        gone = [
            item.fingerprint
            for item in self._culprits.values()
            if item.model == model and item.version != version
        ]
        for fingerprint in gone:
            del self._culprits[fingerprint]
        if gone:
            self._write()
            _log.info("quarantine_outdated", model=model, version=version, forgotten=len(gone))

    def forget_all(self) -> int:
        """Accept everything again; return how many culprits there were."""
        count = len(self._culprits)
        self._culprits.clear()
        self._suspects.clear()
        self._write()
        return count

    def suspects(self) -> int:
        """Return how many requests are suspected now."""
        now = self._wall_clock()
        return sum(item.until_seconds > now for item in self._suspects.values())

    def culprits(self) -> list[Quarantined]:
        """Return what is quarantined now."""
        now = self._wall_clock()
        return [item for item in self._culprits.values() if item.until_seconds > now]

    def _read(self) -> None:
        """Take up what an earlier run has left; a damaged file is put aside, not obeyed."""
        try:
            table = json.loads(self._path.read_text(encoding="utf-8"))
            known = table["format"] == _FORMAT
            key = bytes.fromhex(table["key"]) if known else b""
            items = [Quarantined(**item) for item in table["quarantined"]] if known else []
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("quarantine_unreadable", path=str(self._path), error=repr(error))
            return
        if not known:
            _log.warning("quarantine_unreadable", path=str(self._path), error="another format")
            return
        self._key = key
        for item in items[-self._max_entries :]:
            self._culprits[item.fingerprint] = item

    def _write(self) -> None:
        table: dict[str, Any] = {
            "format": _FORMAT,
            "key": self._key.hex(),
            "quarantined": [asdict(item) for item in self._culprits.values()],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(table, file)
        new.replace(self._path)

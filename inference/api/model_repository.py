"""The model repository extension of the Open Inference Protocol.

The index is open like the rest of the protocol; load and unload need the administrator's bearer
token. The protocol's own clients send it as a header:
``client.load_model("m", headers={"authorization": "Bearer ..."})``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from inference.api.authority import check_admin_token
from inference.api.http import Exchange
from inference.errors import InvalidRequestError, UnsupportedError


class IndexBody(BaseModel):
    """``POST /v2/repository/index``."""

    model_config = ConfigDict(extra="ignore", strict=True)

    ready: bool = Field(default=False, description="Only versions that serve.")


class LoadParameters(BaseModel):
    """``parameters`` of a load; none is the newest version that is not quarantined."""

    model_config = ConfigDict(extra="allow", strict=True)

    version: int | None = Field(default=None, ge=0)


class LoadBody(BaseModel):
    """``POST /v2/repository/models/{model}/load``."""

    model_config = ConfigDict(extra="ignore")

    parameters: LoadParameters = LoadParameters()


class UnloadBody(BaseModel):
    """``POST /v2/repository/models/{model}/unload``; its parameters are ignored."""

    model_config = ConfigDict(extra="ignore")

    parameters: dict[str, Any] = {}


Body = TypeVar("Body", bound=BaseModel)


async def index(exchange: Exchange) -> None:
    """Answer ``POST /v2/repository/index``."""
    body = await _optional_body(exchange, IndexBody)
    entries = await exchange.service.catalogue.index(ready_only=body.ready)
    await exchange.send_json(200, [asdict(entry) for entry in entries])


async def load(exchange: Exchange) -> None:
    """Answer ``POST /v2/repository/models/{model}/load``, with a version in the path or not."""
    check_admin_token(exchange.header("authorization"), exchange.service)
    parameters = (await _optional_body(exchange, LoadBody)).parameters
    for name in parameters.model_extra or {}:
        if name == "config" or name.startswith("file:"):
            raise UnsupportedError(
                f"parameters.{name}: models are loaded from the repository as they are",
                param=f"parameters.{name}",
            )
    wanted = _version_of(exchange)
    if wanted is None:
        wanted = parameters.version
    elif parameters.version not in {None, wanted}:
        raise InvalidRequestError(
            f"the path names version {wanted}, the body {parameters.version}",
            param="parameters.version",
        )
    model = exchange.params["model"]
    version = await exchange.service.catalogue.load(model, wanted)
    await exchange.send_json(200, {"name": model, "version": str(version), "state": "READY"})


async def unload(exchange: Exchange) -> None:
    """Answer ``POST /v2/repository/models/{model}/unload``, with a version in the path or not."""
    check_admin_token(exchange.header("authorization"), exchange.service)
    await _optional_body(exchange, UnloadBody)
    model = exchange.params["model"]
    await exchange.service.catalogue.unload(model, _version_of(exchange))
    await exchange.send_json(200, {"name": model, "state": "UNAVAILABLE"})


async def _optional_body(exchange: Exchange, kind: type[Body]) -> Body:
    """Read a body that may be left out."""
    declared = exchange.header("content-length")
    if declared == "0" or (not declared and not exchange.header("transfer-encoding")):
        return kind()
    return await exchange.body(kind)


def _version_of(exchange: Exchange) -> int | None:
    """Return the version of the path.

    Raises:
        InvalidRequestError: it is not a number.
    """
    text = exchange.params.get("version")
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidRequestError(f"a version is a whole number, not {text!r}", param="version")
    return int(text)

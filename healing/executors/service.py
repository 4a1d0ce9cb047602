"""Acts on inference services through their admin API, as ``docs/architecture.md`` describes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import structlog

from collectors.contract import Support
from collectors.entities import ancestors
from healing.errors import ExecutionError
from healing.executors.contract import Command, ExecutionResult, Outcome
from healing.settings import ServiceTarget

log = structlog.get_logger(__name__)

_MOST_BYTES = 1 << 20
_LIMITS = ("max_queue", "max_slots", "requests_per_second")

# Answers that say that nothing was done. Any other failure may have had an effect.
_REFUSED = frozenset({httpx.codes.NOT_IMPLEMENTED, httpx.codes.SERVICE_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class _Request:
    """One call of the admin API."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    idempotency_key: str = ""


class _UnclearError(Exception):
    """The request was sent; whether it had an effect is not known."""


class ServiceExecutor:
    """Restarts engines, reloads models, sets degradation levels, limits and draining.

    A value that somebody else has changed since is left alone by :meth:`undo`: the newest will of a
    person counts for more than restoring the past.
    """

    name = "service"
    operations = frozenset(
        {
            "restart_engine",
            "reload_model",
            "rollback_model",
            "set_degradation_level",
            "set_limits",
            "clear_cache",
            "set_drain",
        }
    )

    def __init__(
        self,
        targets: Sequence[ServiceTarget],
        *,
        transport: httpx.BaseTransport | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets = {target.entity: target for target in targets}
        self._monotonic = monotonic
        # Admin calls carry a token: they go straight to the target, through no proxy, and follow no
        # redirect.
        self._client = httpx.Client(transport=transport, trust_env=False, follow_redirects=False)

    @property
    def entities(self) -> Sequence[str]:
        """The configured services."""
        return tuple(self._targets)

    def is_supported(self) -> Support:
        """Say whether there is a service to act on."""
        if self._targets:
            return Support(supported=True)
        return Support(
            supported=False,
            reason="no service is configured for healing",
            fix="Add one to healing.services with its url and admin token.",
        )

    def controls(self, entity: str) -> str | None:
        """Return the configured service that an entity is or belongs to."""
        return next((e for e in (entity, *ancestors(entity)) if e in self._targets), None)

    def snapshot(self, command: Command, deadline_seconds: float) -> Mapping[str, Any]:
        """Read the level, limits, drain flag or model version that the command is about to change.

        Raises:
            ExecutionError: when the service does not tell.
        """
        if command.operation not in _READERS:
            return {}
        target = self._target(command)
        end = self._monotonic() + deadline_seconds
        state = self._read_state(target, end)
        if command.operation == "rollback_model":
            model = self._model(target, end)
            return {"model": model, "version": _version(state, model)}
        return _READERS[command.operation](state)

    def execute(self, command: Command, deadline_seconds: float) -> ExecutionResult:
        """Call the admin API once; it is never repeated, since the effect is verified instead."""
        end = self._monotonic() + deadline_seconds
        try:
            target = self._target(command)
            if command.operation == "set_degradation_level":
                present = _level(self._read_state(target, end))
                if present >= int(command.parameters["level"]):
                    return ExecutionResult(
                        Outcome.NOT_DONE,
                        f"{target.entity} is at degradation level {present} already",
                    )
            request = self._request(command, target, end)
        except ExecutionError as error:
            return ExecutionResult(Outcome.NOT_DONE, _told(error))
        return self._perform(target, request, end)

    def undo(
        self, command: Command, undo: Mapping[str, Any], deadline_seconds: float
    ) -> ExecutionResult:
        """Restore what was before, unless somebody has changed it since the command."""
        end = self._monotonic() + deadline_seconds
        try:
            target = self._target(command)
            if command.operation in _COMPARED:
                present = _READERS[command.operation](self._read_state(target, end))
                asked = command.parameters
                if any(present.get(key) != asked[key] for key in asked if key in present):
                    return ExecutionResult(
                        Outcome.DONE, "somebody has changed it since; it was left as it is"
                    )
            request = _undo_request(command, undo)
        except ExecutionError as error:
            return ExecutionResult(Outcome.NOT_DONE, _told(error))
        return self._perform(target, request, end)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _target(self, command: Command) -> ServiceTarget:
        entity = self.controls(command.entity)
        if entity is None:
            raise ExecutionError(
                f"{command.entity} is no configured service", fix="Add it to healing.services."
            )
        return self._targets[entity]

    def _request(self, command: Command, target: ServiceTarget, end: float) -> _Request:
        given, reason = command.parameters, command.reason[:500]
        body: Mapping[str, Any]
        match command.operation:
            case "restart_engine":
                method, path, body = "POST", "/admin/engine/restart", {"reason": reason}
            case "reload_model" | "rollback_model":
                verb = command.operation.removesuffix("_model")
                path = f"/admin/models/{quote(self._model(target, end), safe='')}/{verb}"
                method, body = "POST", {key: given[key] for key in ("version",) if key in given}
            case "set_degradation_level":
                method, path = "PUT", "/admin/degradation"
                body = {"level": int(given["level"]), "reason": reason}
            case "set_limits":
                method, path = "PUT", "/admin/limits"
                body = {key: given[key] for key in _LIMITS if key in given}
            case "clear_cache":
                method, path, body = "POST", "/admin/cache/clear", {}
            case "set_drain":
                method, path, body = "PUT", "/admin/drain", {"drain": bool(given["drain"])}
            case unknown:
                raise ExecutionError(f"the service executor has no operation {unknown!r}")
        return _Request(method, path, body, command.idempotency_key)

    def _perform(self, target: ServiceTarget, request: _Request, end: float) -> ExecutionResult:
        try:
            status, answer = self._call(target, request, end)
        except ExecutionError as error:
            return ExecutionResult(Outcome.NOT_DONE, _told(error))
        except _UnclearError as error:
            return ExecutionResult(Outcome.UNKNOWN, str(error))
        if httpx.codes.is_success(status):
            return ExecutionResult(Outcome.DONE)
        refused = httpx.codes.is_client_error(status) or status in _REFUSED
        outcome = Outcome.NOT_DONE if refused else Outcome.UNKNOWN
        return ExecutionResult(outcome, _refusal(request, status, answer))

    def _read_state(self, target: ServiceTarget, end: float) -> Mapping[str, Any]:
        return self._read(target, "/admin/state", end)

    def _model(self, target: ServiceTarget, end: float) -> str:
        if target.model is not None:
            return target.model
        models = self._read(target, "/v1/models", end).get("data")
        try:
            return str(models[0]["id"])  # type: ignore[index]
        except (KeyError, IndexError, TypeError) as error:
            raise ExecutionError(
                f"{target.url}/v1/models names no model",
                fix="Name it in healing.services: model = ...",
            ) from error

    def _read(self, target: ServiceTarget, path: str, end: float) -> Mapping[str, Any]:
        request = _Request("GET", path)
        try:
            status, answer = self._call(target, request, end)
        except _UnclearError as error:
            raise ExecutionError(str(error), retryable=True) from error
        if not httpx.codes.is_success(status):
            raise ExecutionError(_refusal(request, status, answer))
        try:
            decoded = orjson.loads(answer)
        except orjson.JSONDecodeError as error:
            raise ExecutionError(f"{target.url}{path} did not answer with JSON") from error
        if not isinstance(decoded, dict):
            raise ExecutionError(f"{target.url}{path} did not answer with a JSON object")
        return decoded

    def _call(self, target: ServiceTarget, request: _Request, end: float) -> tuple[int, bytes]:
        """Send one request and read the whole answer before ``end``, however it drips."""
        left = end - self._monotonic()
        where = f"{request.method} {target.url.rstrip('/')}{request.path}"
        if left <= 0:
            raise ExecutionError(f"{where}: no time was left to ask", retryable=True)
        headers = _headers(target, request)
        body = None if request.body is None else orjson.dumps(dict(request.body))
        try:
            with self._client.stream(
                request.method,
                target.url.rstrip("/") + request.path,
                content=body,
                headers=headers,
                timeout=httpx.Timeout(left),
            ) as response:
                answer = bytearray()
                for chunk in response.iter_bytes():
                    answer += chunk
                    if len(answer) > _MOST_BYTES:
                        raise _UnclearError(f"{where}: the answer is longer than 1 MiB")
                    if self._monotonic() > end:
                        raise _UnclearError(f"{where}: the answer took too long")
                return response.status_code, bytes(answer)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ExecutionError(
                f"{where}: cannot connect: {error}", retryable=True, fix="Is the service running?"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            log.warning("admin_call_unclear", target=target.entity, path=request.path)
            raise _UnclearError(f"{where}: no clear answer ({type(error).__name__})") from error


def _headers(target: ServiceTarget, request: _Request) -> dict[str, str]:
    headers = {"content-type": "application/json"} if request.body is not None else {}
    if request.idempotency_key:
        headers["idempotency-key"] = request.idempotency_key
    if target.token is not None:
        headers["authorization"] = f"Bearer {target.token.get_secret_value()}"
    elif target.token_file is not None:
        try:
            token = target.token_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ExecutionError(
                f"the admin token of {target.entity} cannot be read from {target.token_file}",
                fix="Check healing.services: token_file.",
            ) from error
        headers["authorization"] = f"Bearer {token}"
    return headers


def _refusal(request: _Request, status: int, answer: bytes) -> str:
    words = " ".join(answer[:300].decode("utf-8", "replace").split())
    hint = " (check the admin token)" if status in {401, 403} else ""
    return f"{request.method} {request.path} answered {status}{hint}: {words}"


def _told(error: ExecutionError) -> str:
    return f"{error} {error.fix}".strip()


def _undo_request(command: Command, undo: Mapping[str, Any]) -> _Request:
    key = f"{command.idempotency_key}/undo"
    try:
        match command.operation:
            case "set_degradation_level":
                body = {"level": int(undo["level"]), "reason": "no longer needed"}
                return _Request("PUT", "/admin/degradation", body, key)
            case "set_limits":
                body = {name: undo[name] for name in _LIMITS if name in command.parameters}
                return _Request("PUT", "/admin/limits", body, key)
            case "set_drain":
                return _Request("PUT", "/admin/drain", {"drain": bool(undo["drain"])}, key)
            case "rollback_model":
                path = f"/admin/models/{quote(str(undo['model']), safe='')}/reload"
                return _Request("POST", path, {"version": undo["version"]}, key)
    except KeyError as error:
        raise ExecutionError(f"what to restore was not written down: {error}") from error
    raise ExecutionError(f"{command.operation} cannot be taken back")


def _level(state: Mapping[str, Any]) -> int:
    degradation = state.get("degradation")
    level = degradation.get("level") if isinstance(degradation, Mapping) else None
    if not isinstance(level, int):
        raise ExecutionError("/admin/state does not tell the degradation level")
    return level


def _limits(state: Mapping[str, Any]) -> Mapping[str, Any]:
    limits = state.get("limits")
    if not isinstance(limits, Mapping):
        raise ExecutionError("/admin/state does not tell the limits")
    return {name: limits.get(name) for name in _LIMITS}


def _drain(state: Mapping[str, Any]) -> bool:
    draining = state.get("draining")
    if not isinstance(draining, bool):
        raise ExecutionError("/admin/state does not tell whether the service drains")
    return draining


def _version(state: Mapping[str, Any], model: str) -> int:
    models = state.get("models")
    row = models.get(model) if isinstance(models, Mapping) else None
    version = row.get("version") if isinstance(row, Mapping) else None
    if not isinstance(version, int):
        raise ExecutionError(f"/admin/state does not tell the version of {model!r}")
    return version


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "set_degradation_level": lambda state: {"level": _level(state)},
    "set_limits": _limits,
    "set_drain": lambda state: {"drain": _drain(state)},
    "rollback_model": lambda state: state,
}

_COMPARED = frozenset({"set_degradation_level", "set_limits", "set_drain"})

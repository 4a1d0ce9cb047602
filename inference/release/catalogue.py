"""Models in and out of service at run time: the index, load and unload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from inference.engine_host import EngineHost
from inference.errors import ConflictError, NotFoundError, UnavailableError
from inference.release.manager import Releases
from inference.repository import ModelRepository
from inference.settings import InferenceSettings
from inference.worker.supervisor import SupervisorState

_log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.02
UNLOADED = "was unloaded"


class VersionState(StrEnum):
    """The field ``state`` of the index."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of the index."""

    name: str
    version: str
    state: VersionState
    reason: str = ""


class Home(Protocol):
    """Where models live: the service."""

    hosts: dict[str, EngineHost]

    def adopt(self, model: str) -> EngineHost:
        """Make a model's host, canary and supervisor; its worker is not started yet."""
        ...

    def release(self, model: str) -> None:
        """Let go of a model whose worker has ended."""
        ...

    async def proves(self, model: str) -> str:
        """Ask a golden example; return what was wrong, or nothing."""
        ...


class Catalogue:
    """Loads and unloads models; belongs to the event loop."""

    def __init__(
        self,
        home: Home,
        releases: Releases,
        repository: ModelRepository,
        settings: InferenceSettings,
        clock: Callable[[], float],
    ) -> None:
        self._home = home
        self._releases = releases
        self._repository = repository
        self._settings = settings
        self._clock = clock
        self._loading: dict[str, int] = {}
        self._unloading: set[str] = set()
        self._busy: set[str] = set()
        self._failures: dict[str, str] = {}
        """Why the newest load of a model failed; forgotten when one succeeds."""

    # --- the index

    async def index(self, *, ready_only: bool) -> list[IndexEntry]:
        """Return every version in the repository with its state, served or not."""
        damaged = await asyncio.to_thread(self._damage)
        entries = []
        for model, problems in damaged.items():
            numbers = [str(info.version) for info in self._repository.describe(model)]
            others = [name for name in problems if name not in numbers]
            entries += [self._entry(model, name, problems) for name in (*numbers, *others)]
        if ready_only:
            return [entry for entry in entries if entry.state is VersionState.READY]
        return entries

    def _damage(self) -> dict[str, dict[str, str]]:
        found = {}
        for model in self._repository.models():
            try:
                found[model] = self._repository.problems(model)
            except OSError as error:
                _log.warning("model_folder_unreadable", model=model, error=str(error))
        return found

    def _entry(self, model: str, name: str, problems: dict[str, str]) -> IndexEntry:
        state, reason = self._state(model, name)
        if state is VersionState.UNAVAILABLE:
            reason = problems.get(name, reason)
        return IndexEntry(model, name, state, reason)

    def _state(self, model: str, name: str) -> tuple[VersionState, str]:
        host = self._home.hosts.get(model)
        if str(self._loading.get(model)) == name:
            return VersionState.LOADING, ""
        quarantined = self._repository.quarantined(model).get(name)
        if quarantined is not None:
            return VersionState.UNAVAILABLE, f"quarantined: {quarantined}"
        if host is None or host.closed == UNLOADED:
            return VersionState.UNAVAILABLE, self._failures.get(model, "not loaded")
        if str(host.version) != name:
            return VersionState.UNAVAILABLE, f"version {host.version} serves"
        if model in self._unloading:
            return VersionState.UNLOADING, "its last requests are answered"
        return self._serving_state(host)

    def _serving_state(self, host: EngineHost) -> tuple[VersionState, str]:
        if host.up:
            return VersionState.READY, ""
        status = host.supervisor.status
        if status.state is SupervisorState.STARTING:
            return VersionState.LOADING, status.reason
        return VersionState.UNAVAILABLE, status.reason

    # --- load

    async def load(self, model: str, version: int | None = None) -> int:
        """Take a model into service, or another version of one that serves; return the version.

        A model that serves keeps serving until the new version is proven beside it, and if that
        fails. Without a version it is the newest usable one; if that one serves, nothing happens.

        Raises:
            NotFoundError: the repository has no such model or version.
            ConflictError: it cannot be loaded, or another load or unload is under way.
            UnavailableError: it did not load in time, or its worker went away.
        """
        wanted = (
            self._repository.newest(model)
            if version is None
            else self._repository.require(model, version)
        )
        with self._alone(model):
            self._loading[model] = wanted
            try:
                await self._load(model, wanted)
            except (ConflictError, UnavailableError) as error:
                self._failures[model] = f"loading version {wanted} failed: {error.message}"
                raise
            finally:
                del self._loading[model]
            self._failures.pop(model, None)
        return wanted

    async def _load(self, model: str, wanted: int) -> None:
        host = self._home.hosts.get(model)
        if host is not None and host.up and not host.closed:
            if host.version != wanted:
                await self._releases.reload(model, wanted)
            return
        if host is not None and not host.closed:
            raise ConflictError(
                f"the engine of {model} is {host.state().value}: restart it or wait, then load"
            )
        if host is None and len(self._home.hosts) >= self._settings.max_loaded_models:
            raise ConflictError(
                f"{len(self._home.hosts)} models are loaded, which is the limit "
                "(max_loaded_models): unload one"
            )
        await self._start(model, wanted)

    async def _start(self, model: str, wanted: int) -> None:
        """Start a worker on a version; nothing is left of it if that fails."""
        before = self._repository.choice(model)
        self._repository.activate(model, wanted)
        host = self._home.hosts.get(model) or self._home.adopt(model)
        host.closed = "is being loaded"
        host.start(f"load version {wanted}")
        problem = await self._wait_until_proven(host)
        if not problem:
            host.closed = ""
            _log.info("model_loaded", model=model, version=wanted)
            return
        await self._close(host)
        self._repository.restore(model, before)
        self._repository.quarantine(model, wanted, problem)
        _log.warning("model_load_failed", model=model, version=wanted, reason=problem)
        raise ConflictError(
            f"version {wanted} was not taken into service: {problem}", reason="load_failed"
        )

    async def _wait_until_proven(self, host: EngineHost) -> str:
        """Wait for the model and one golden answer; return why there is none, or nothing."""
        deadline = self._clock() + self._settings.load_budget_seconds
        while not host.up:
            status = host.supervisor.status
            if status.load_failures or status.state is SupervisorState.FAILED:
                return status.reason
            if self._clock() > deadline:
                return f"it did not load within {self._settings.load_budget_seconds:g} s"
            await asyncio.sleep(_POLL_SECONDS)
        return await self._home.proves(host.model)

    # --- unload

    async def unload(self, model: str, version: int | None = None) -> None:
        """Refuse new requests, answer the accepted ones, and end the worker.

        Requests that are not answered within ``drain_seconds`` end with the worker.

        Raises:
            NotFoundError: the model is not loaded, or another version of it is.
            ConflictError: a load or unload of it is under way.
        """
        host = self._home.hosts.get(model)
        if host is None or host.closed == UNLOADED:
            raise NotFoundError(f"the model {model!r} is not loaded", reason="model_not_found")
        if version is not None and version != host.version:
            raise NotFoundError(
                f"model {model!r} serves version {host.version}, not {version}",
                reason="version_not_found",
            )
        with self._alone(model):
            self._unloading.add(model)
            host.closed = "is being unloaded"
            try:
                await self._drain(host)
                await self._close(host)
            finally:
                self._unloading.discard(model)
        _log.info("model_unloaded", model=model)

    async def _drain(self, host: EngineHost) -> None:
        deadline = self._clock() + self._settings.drain_seconds
        while not host.dispatcher.idle and self._clock() < deadline:  # noqa: ASYNC110 - seldom
            await asyncio.sleep(_POLL_SECONDS)

    async def _close(self, host: EngineHost) -> None:
        """End a worker and let go of models that configuration does not name."""
        host.closed = UNLOADED
        host.stop("the model was unloaded")
        limit = self._clock() + 2 * self._settings.terminate_grace_seconds + 5.0
        while host.supervisor.status.state is not SupervisorState.STOPPED:
            if self._clock() > limit:
                raise UnavailableError(f"the worker of {host.model} does not end")
            await asyncio.sleep(_POLL_SECONDS)
        self._releases.forget(host.model)
        if host.model not in self._settings.models:
            self._home.release(host.model)

    @contextmanager
    def _alone(self, model: str) -> Iterator[None]:
        """Hold off other loads and unloads of the same model."""
        if model in self._busy:
            raise ConflictError(f"{model} is being loaded or unloaded already")
        self._busy.add(model)
        try:
            yield
        finally:
            self._busy.discard(model)

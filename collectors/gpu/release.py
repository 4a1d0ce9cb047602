"""Letting go of the GPUs for a reset: who resets asks, who reads lets go, and time ends it.

NVIDIA refuses to reset a GPU while any process has it open, be it only for monitoring. Whoever is about
to reset one writes a request with an expiry into a file; the NVML collector ends its child, writes
beside it that it has, and reads nothing until the request has ended or expired. A crash of either side
leaves nothing held: the request runs out by itself.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from collectors.gpu.shared_file import locked, replace_text

log = structlog.get_logger(__name__)

RELEASE_FILE = "gpu_release.json"
"""Name of the request's file in the state directory."""

LONGEST_RELEASE_SECONDS = 900.0
"""A request that would last longer is not followed: the clock has jumped, or the file is not ours."""
_ANSWER_SECONDS = 5.0
"""How long to wait for the collector: a few polls, and the end of its child."""
_LOOK_SECONDS = 0.05


class ReleaseError(Exception):
    """The GPUs cannot be released now; the message says why."""


class Release(BaseModel):
    """One request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str = Field(min_length=1, max_length=64)
    gpu: str = Field(max_length=128, description="UUID of the GPU that is reset")
    reason: str = Field("", max_length=300)
    asked_seconds: float
    until_seconds: float
    ended_seconds: float | None = None
    reset: bool = False
    """The reset was done; only meant once it has ended."""

    def stands(self, now_seconds: float) -> bool:
        """Say whether nobody may have the GPUs open now."""
        left = self.until_seconds - now_seconds
        return self.ended_seconds is None and 0 < left <= LONGEST_RELEASE_SECONDS


class GpuRelease:
    """Both sides of a release, which may be in different processes.

    Args:
        path: the request's file; the answer is beside it.
        clock: the wall clock; both sides have to have the same.
        sleep: waits for the other side.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._answer = path.with_name(f"{path.name}.answer")
        self._clock = clock
        self._sleep = sleep

    def read(self) -> Release | None:
        """Return the newest request, standing or not; None where there is none that can be read."""
        try:
            return Release.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            # A damaged request must not blind the collector for ever.
            log.warning("gpu_release_unreadable", file=str(self._path), reason=str(error)[:200])
            return None

    def acknowledge(self, release: Release) -> None:
        """Say, as the reader, that nothing of it has a GPU open."""
        if not self.is_acknowledged(release):
            replace_text(self._answer, release.token)

    def is_acknowledged(self, release: Release) -> bool:
        """Say whether the reader has let go."""
        try:
            return self._answer.read_text("utf-8") == release.token
        except OSError:
            return False

    def forget(self, release: Release) -> None:
        """Remove a request that is over, unless there is a newer one."""
        with locked(self._path):
            current = self.read()
            if current is not None and current.token == release.token:
                self._path.unlink(missing_ok=True)
                self._answer.unlink(missing_ok=True)

    @contextmanager
    def held(self, gpu: str, seconds: float, reason: str = "") -> Iterator[bool]:
        """Ask for the release of all GPUs while the body resets one of them.

        Args:
            gpu: UUID of the one that is reset.
            seconds: how long the body may take; it has to keep to that itself.
            reason: for people who wonder.

        Yields:
            Whether a collector said that it has let go. Where none reads GPUs nobody does.

        Raises:
            ReleaseError: when another reset is under way, or the file cannot be written.
        """
        release = self._ask(gpu, seconds + _ANSWER_SECONDS, reason)
        done = False
        try:
            yield self._wait(release)
            done = True
        finally:
            self._end(release, reset=done)

    def _ask(self, gpu: str, seconds: float, reason: str) -> Release:
        now = self._clock()
        asked = Release(
            token=uuid.uuid4().hex,
            gpu=gpu,
            reason=reason[:300],
            asked_seconds=now,
            until_seconds=now + min(seconds, LONGEST_RELEASE_SECONDS),
        )
        try:
            with locked(self._path):
                other = self.read()
                if other is not None and other.stands(now):
                    raise ReleaseError(f"the reset of {other.gpu} is under way")
                replace_text(self._path, asked.model_dump_json())
        except OSError as error:
            raise ReleaseError(f"{self._path} cannot be written: {error}") from error
        return asked

    def _wait(self, release: Release) -> bool:
        deadline = self._clock() + _ANSWER_SECONDS
        while not self.is_acknowledged(release):
            if not release.asked_seconds <= self._clock() < deadline:
                return False
            self._sleep(_LOOK_SECONDS)
        return True

    def _end(self, release: Release, *, reset: bool) -> None:
        ended = release.model_copy(update={"ended_seconds": self._clock(), "reset": reset})
        try:
            with locked(self._path):
                current = self.read()
                if current is not None and current.token == release.token:
                    replace_text(self._path, ended.model_dump_json())
        except OSError as error:  # it expires all the same
            log.warning("gpu_release_not_ended", file=str(self._path), reason=str(error))

"""NVIDIA GPUs through NVML, asked in a child process that can be killed when the driver hangs."""

from __future__ import annotations

import ctypes
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity
from collectors.gpu.killable import KILL_SECONDS, KillableChild, TooSlow
from collectors.gpu.numbering import Device, Numbering, Seen
from collectors.gpu.nvml_calls import NO_GPU
from collectors.gpu.release import GpuRelease, Release
from collectors.gpu.states import DriverState, GpuState, driver_state_of, fix_of
from collectors.gpu.xid import RESET_ACTION, pci_address
from collectors.gpu.xid_ledger import WatchedGpu

log = structlog.get_logger(__name__)

CHILD_COMMAND = (sys.executable, "-m", "collectors.gpu.nvml_child")
_LIBRARY = "libnvidia-ml.so.1"
# The first question also starts an interpreter and NVML, which takes seconds on a cold machine with
# many GPUs.
_START_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 30.0
_FIRST_QUARANTINE_SECONDS = 60.0
_LONGEST_QUARANTINE_SECONDS = 600.0
_AVAILABLE = {
    GpuState.OK: 1.0,
    GpuState.RESET_REQUIRED: 0.0,
    GpuState.LOST: 0.0,
    GpuState.GONE: 0.0,
    GpuState.UNREADABLE: 0.0,
    GpuState.HUNG: 0.0,
}
"""``gpu_available`` by state; of a device that is unread nobody knows."""

Values = Mapping[str, float]


class XidSink(Protocol):
    """Takes XIDs that NVML reports."""

    def device(self, gpu: WatchedGpu, now_seconds: float) -> None:
        """Learn a GPU, at every reading."""

    def from_nvml(self, uuid: str, pci: str, code: int, now_seconds: float) -> None:
        """Take one XID."""

    def was_reset(self, uuid: str, time_seconds: float) -> None:
        """Learn that a GPU was reset."""


@dataclass(slots=True)
class _Trouble:
    """The driver as a whole does not answer, since when and why."""

    state: DriverState
    message: str
    culprit: int = NO_GPU


@dataclass(slots=True)
class _Quarantine:
    """A device at which the driver hung."""

    until: float
    seconds: float


class NvmlCollector:
    """Every GPU of this machine, on ``host/<host>/gpu/<number>``, MIG instances below it.

    A field that a device does not support is absent. A device without an answer has a ``gpu_state``
    and ``gpu_available`` 0, and nothing else. ``gpu_count`` on the host counts those that answer. When
    the driver as a whole is silent, the error carries ``gpu_driver_state`` and the state of every
    device that was known.

    A device at which the driver hung is left out for a minute, then two, up to ten, so that one sick
    device does not hide the others.

    Args:
        host: the host's name.
        deadline_seconds: the longest that one probe may take; a child that is slower is killed.
        command: the child's command line; it must take ``--progress FD``.
        library_present: whether NVML can be loaded here.
        monotonic: the clock that the probe is timed with.
        xids: takes the XIDs that NVML reports.
        release: who resets a GPU asks here that it be let go of; None where nobody does.
    """

    def __init__(
        self,
        host: str,
        *,
        deadline_seconds: float = 0.7,
        command: Sequence[str] = CHILD_COMMAND,
        library_present: Callable[[], bool] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        xids: XidSink | None = None,
        release: GpuRelease | None = None,
    ) -> None:
        self._host = host
        self._deadline_seconds = deadline_seconds
        self._child = KillableChild(command, noted=True)
        self._library_present = library_present or nvml_library_present
        self._monotonic = monotonic
        self._xids = xids
        self._release = release
        self._released = ""
        self._uuids: Mapping[str, str] = {}
        self._child_gaps = 0
        self._earlier_gaps = 0
        self._watching = False
        self._numbering = Numbering()
        self._states: dict[int, GpuState] = {}
        self._trouble: _Trouble | None = None
        self._quarantined: dict[int, _Quarantine] = {}
        self._pause_seconds = 0.0
        self._paused_until = -math.inf

    @property
    def name(self) -> str:
        """``gpu-nvml``."""
        return "gpu-nvml"

    @property
    def deadline_seconds(self) -> float:
        """The longest that one call may take; longer for the first, which starts the child."""
        return self._probe_seconds + 2 * KILL_SECONDS

    @property
    def _probe_seconds(self) -> float:
        return self._deadline_seconds if self._child.warm else _START_SECONDS

    @property
    def uuids(self) -> Mapping[str, str]:
        """The UUID of every GPU that has been seen and told one, by entity. Any thread may ask."""
        return self._uuids

    def is_supported(self) -> Support:
        """Say whether the driver's NVML library is there."""
        if self._library_present():
            return Support(supported=True)
        return Support(
            supported=False,
            reason=f"{_LIBRARY} cannot be loaded, so there is no NVIDIA driver here",
            fix='install the NVIDIA driver, or set gpu_mode = "simulated" or "none" in [collectors]',
        )

    def collect(self, now_seconds: float) -> Collection:
        """Ask the child once.

        After a failure the next child is started only after a pause that doubles up to half a minute:
        starting one every second would cost more than all other collecting together.

        Raises:
            CollectorError: when NVML does not answer in time, or answers with an error, or not one
                device can be read; it carries the states as samples.
        """
        release = self._standing_release(now_seconds)
        if release is not None:
            return self._let_go(release, now_seconds)
        started = self._monotonic()
        if self._trouble is not None and started < self._paused_until:
            wait = self._paused_until - started
            raise self._failure(f"{self._trouble.message}; next try in {wait:.0f} s", now_seconds)
        try:
            self._note_new_child()
            answer = self._answer(self._child.ask(self._question(started), self._probe_seconds))
        except CollectorError as error:
            raise self._fail(error, now_seconds) from error
        samples = self._samples(answer, now_seconds, self._monotonic() - started)
        if self._states and all(state is GpuState.HUNG for state in self._states.values()):
            self._trouble = _Trouble(DriverState.HUNG, "the driver hangs at every GPU")
            raise self._failure(self._trouble.message, now_seconds)
        self._pause_seconds, self._trouble = 0.0, None
        return Collection(samples=samples)

    def close(self) -> None:
        """End the child."""
        self._child.kill()

    def _standing_release(self, now_seconds: float) -> Release | None:
        """Return the request to let go that stands; take note of one that has ended."""
        release = self._release.read() if self._release is not None else None
        if release is None or self._release is None:
            self._released = ""
            return None
        if release.stands(now_seconds):
            return release
        if release.ended_seconds is not None and release.reset:
            # What was wrong before the reset says nothing of the device after it.
            self._quarantined.clear()
            if self._xids is not None:
                self._xids.was_reset(release.gpu, release.ended_seconds)
        log.info("gpus_read_again", host=self._host, reset=release.reset, gpu=release.gpu)
        self._release.forget(release)
        self._released = ""
        return None

    def _let_go(self, release: Release, now_seconds: float) -> Collection:
        """End the child, say so to whoever asked, and give the states that follow."""
        self._child.kill()
        self._trouble, self._pause_seconds = None, 0.0
        gone = self._child.gone
        if gone and self._release is not None:
            self._release.acknowledge(release)
        if self._released != release.token:
            self._released = release.token
            left = release.until_seconds - now_seconds
            log.info("gpus_released", host=self._host, gpu=release.gpu, at_most_seconds=left)
        reason = f"released for a reset of {release.gpu}"
        if not gone:
            reason += "; the process that reads it is stuck in the driver and cannot be ended"
        samples = [self._driver_sample(now_seconds, DriverState.RELEASED)]
        samples += [
            self._state_sample(now_seconds, device, GpuState.RELEASED, reason)
            for device in self._numbering.devices
        ]
        return Collection(samples=samples, notes=(reason,))

    def _note_new_child(self) -> None:
        """Count a gap in NVML's events when a child has to be started after one that watched them."""
        if not self._child.warm and self._watching:
            self._earlier_gaps += 1 + self._child_gaps
            self._child_gaps, self._watching = 0, False

    def _question(self, now: float) -> bytes:
        skip = [index for index, one in self._quarantined.items() if now < one.until]
        return json.dumps({"skip": sorted(skip)}).encode()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            document = json.loads(line)
            if "error" not in document and isinstance(document["devices"], list):
                return dict(document)
            message, code = str(document["error"]), document.get("code")
        except (ValueError, KeyError, TypeError) as error:
            self._child.kill()
            raise CollectorError(f"the NVML process answered {line[:120]!r}") from error
        self._child.kill()
        state = driver_state_of(code)
        self._trouble = _Trouble(state, f"NVML: {message}")
        raise CollectorError(self._trouble.message, fix=fix_of(state))

    def _fail(self, error: CollectorError, now_seconds: float) -> CollectorError:
        """Note what went wrong, and when to try again."""
        now = self._monotonic()
        self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, max(1.0, 2 * self._pause_seconds))
        self._paused_until = now + self._pause_seconds
        message = str(error)
        if isinstance(error, TooSlow):
            self._trouble = _Trouble(DriverState.HUNG, message, error.gpu)
            if error.gpu != NO_GPU:
                self._quarantine(error.gpu, now)
        elif self._trouble is None or self._trouble.message != message:
            self._trouble = _Trouble(DriverState.FAILED, message)
        return self._failure(message, now_seconds)

    def _quarantine(self, index: int, now: float) -> None:
        known = self._quarantined.get(index)
        seconds = _FIRST_QUARANTINE_SECONDS
        if known is not None:
            seconds = min(_LONGEST_QUARANTINE_SECONDS, 2 * known.seconds)
        self._quarantined[index] = _Quarantine(now + seconds, seconds)
        log.warning("gpu_hangs", host=self._host, index=index, left_out_seconds=seconds)

    def _failure(self, message: str, now_seconds: float) -> CollectorError:
        trouble = self._trouble or _Trouble(DriverState.FAILED, message)
        samples = [self._driver_sample(now_seconds, trouble.state)]
        for device in self._numbering.devices:
            hung = device.index == trouble.culprit or device.index in self._quarantined
            state = GpuState.HUNG if hung else GpuState.UNREAD
            samples.append(self._state_sample(now_seconds, device, state, trouble.message))
        return CollectorError(message, fix=fix_of(trouble.state), samples=samples)

    def _samples(self, answer: dict[str, Any], now_seconds: float, seconds: float) -> list[Sample]:
        samples = [
            self._driver_sample(now_seconds, DriverState.OK),
            *self._versions(answer.get("driver") or {}, now_seconds),
        ]
        states: dict[int, GpuState] = {}
        readings = answer["devices"]
        seen = [
            Seen(int(one["index"]), one["uuid"], one["name"], one.get("pci", ""))
            for one in readings
        ]
        listed = {pci_address(name) for name in answer.get("listed", ())}
        for device, reading in zip(self._numbering.take(seen, listed), readings, strict=True):
            state = states[device.number] = GpuState(reading.get("state", GpuState.OK))
            samples += self._device_samples(now_seconds, device, state, reading, seconds)
        for device in self._numbering.devices:
            if not device.present:
                states[device.number] = GpuState.GONE
                samples += self._device_samples(now_seconds, device, GpuState.GONE, {}, seconds)
        self._report_changes(states)
        self._uuids = {
            self._entity(device): device.uuid
            for device in self._numbering.devices
            if device.uuid_is_known
        }
        self._hand_over_xids(answer, now_seconds)
        answering = sum(state is GpuState.OK for state in states.values())
        samples.append(self._host_sample(now_seconds, "gpu_count", answering))
        if any(reading.get("xids_watched") for reading in readings):
            self._watching = True
            gaps = self._earlier_gaps + self._child_gaps
            samples.append(self._host_sample(now_seconds, "gpu_xid_event_gaps_total", gaps))
        return samples

    def _device_samples(
        self,
        now_seconds: float,
        device: Device,
        state: GpuState,
        reading: Mapping[str, Any],
        seconds: float,
    ) -> Iterator[Sample]:
        name, labels = self._entity(device), _labels(device)
        if self._xids is not None and device.pci:
            watched = bool(reading.get("xids_watched"))
            recovery = reading.get("signals", {}).get("gpu_recovery_action")
            if state is GpuState.RESET_REQUIRED:
                # A driver that refuses the device until its reset has said what it asks for.
                recovery = RESET_ACTION
            self._xids.device(
                WatchedGpu(name, device.pci, device.uuid, watched, recovery), now_seconds
            )
        yield self._state_sample(now_seconds, device, state, reading.get("reason", ""))
        if state in _AVAILABLE:
            yield Sample(now_seconds, name, "gpu_available", _AVAILABLE[state], labels)
        if state is not GpuState.OK:
            return
        self._quarantined.pop(device.index, None)
        signals: Values = reading["signals"] | {"gpu_driver_call_seconds": seconds}
        for signal, value in signals.items():
            yield Sample(now_seconds, name, signal, value, labels)
        for mig in reading.get("migs", ()):
            place = entity("host", self._host, "gpu", str(device.number), "mig", mig["id"])
            for signal, value in mig["signals"].items():
                labels = {"uuid": mig["uuid"], "gpu_uuid": device.uuid}
                yield Sample(now_seconds, place, signal, value, labels)

    def _versions(self, driver: Mapping[str, Any], now_seconds: float) -> Iterator[Sample]:
        version = version_number(driver.get("version") or "")
        if version is not None:
            yield self._host_sample(
                now_seconds,
                "gpu_driver_version",
                version,
                {"version": driver["version"], "library": driver.get("library") or ""},
            )
        if driver.get("cuda"):
            yield self._host_sample(now_seconds, "gpu_cuda_driver_version", driver["cuda"])
        module, on_disk = driver.get("module"), driver.get("on_disk")
        if module and on_disk:
            yield self._host_sample(
                now_seconds,
                "gpu_driver_library_mismatch",
                module != on_disk,
                {"module": module, "library": on_disk},
            )

    def _hand_over_xids(self, answer: dict[str, Any], now_seconds: float) -> None:
        self._child_gaps = int(answer.get("xid_gaps", 0))
        if self._xids is None:
            return
        for event in answer.get("xids", ()):
            self._xids.from_nvml(
                event.get("uuid", ""), event.get("pci", ""), event["code"], now_seconds
            )

    def _report_changes(self, states: dict[int, GpuState]) -> None:
        for number in sorted(states.keys() | self._states.keys()):
            before, after = self._states.get(number), states.get(number)
            if before is None and self._states and after is not None:
                log.info("gpu_appeared", host=self._host, gpu=number, state=after.name)
            elif after is not None and before is not None and after is not before:
                log.warning("gpu_state", host=self._host, gpu=number, state=after.name)
        self._states = states

    def _entity(self, device: Device) -> str:
        return entity("host", self._host, "gpu", str(device.number))

    def _state_sample(
        self, now_seconds: float, device: Device, state: GpuState, reason: str
    ) -> Sample:
        labels = _labels(device) | {"state": state.name.lower()}
        if reason:
            labels["reason"] = reason
        return Sample(now_seconds, self._entity(device), "gpu_state", float(state), labels)

    def _driver_sample(self, now_seconds: float, state: DriverState) -> Sample:
        labels = {"state": state.name.lower()}
        return self._host_sample(now_seconds, "gpu_driver_state", state, labels)

    def _host_sample(
        self,
        now_seconds: float,
        signal: str,
        value: float,
        labels: Mapping[str, str] | None = None,
    ) -> Sample:
        return Sample(now_seconds, entity("host", self._host), signal, float(value), labels or {})


def _labels(device: Device) -> dict[str, str]:
    named = {"uuid": device.uuid, "name": device.name, "pci": device.pci}
    return {label: text for label, text in named.items() if text}


def version_number(version: str) -> float | None:
    """Return a driver's version as one number that grows with it: 580.65.06 is 580.065006.

    Returns:
        None for what is no version.
    """
    parts = re.fullmatch(r"(\d{1,4})(?:\.(\d{1,3}))?(?:\.(\d{1,3}))?", version)
    if parts is None:
        return None
    major, minor, patch = (int(part or 0) for part in parts.groups())
    return major + minor / 1000 + patch / 1_000_000


def nvml_library_present() -> bool:
    """Say whether the NVML library of the NVIDIA driver can be loaded. Calls nothing in it."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True

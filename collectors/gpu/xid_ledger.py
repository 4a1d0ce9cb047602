"""What is known of XIDs: reports from the kernel log and from NVML, merged to events, and judged.

One fault is reported up to many times: by both sources, and by the driver again and again. Reports of
one code on one GPU within a window are one event. Memory is bounded whatever comes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from collectors.entities import entity
from collectors.gpu.xid import (
    RECOVERY_ACTION_CHANGED,
    BurstRule,
    RecommendedAction,
    Severity,
    Xid,
    XidReport,
    XidSource,
    burst_rules,
    describe_xid,
    driver_verdict,
    pci_address,
    recovery_action,
)

_MOST_DEVICES = 128
_MOST_CODES = 64
_MOST_BURSTS = 64
_LONGEST_MESSAGE = 300
_SEVERITIES = tuple(Severity)
_ACTIONS = tuple(RecommendedAction)
_NVML_SECONDS = 15.0


@dataclass(slots=True)
class XidEvent:
    """Reports of one code on one GPU that belong together."""

    code: int
    source: XidSource
    first_seconds: float
    last_seconds: float
    severity: Severity
    action: RecommendedAction
    title: str
    note: str
    reports: int = 1
    seen_by: set[str] = field(default_factory=set)
    process_id: int | None = None
    process_name: str = ""
    message: str = ""
    """From the driver and from names of processes: never render it as markup."""
    escalated: bool = False
    """A burst rule has replaced severity and action."""
    withdrawn: bool = False
    """The driver took its request back: the report says that nothing is wrong any more."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What a GPU needs, and who says so."""

    action: RecommendedAction
    source: str
    """``driver``, ``catalogue``, ``burst``, or ``none`` when there is nothing to advise."""
    code: int = 0
    note: str = ""


class WatchedGpu(NamedTuple):
    """A GPU as the NVML collector knows it."""

    name: str
    pci: str
    uuid: str
    watched: bool
    """NVML reports its XIDs."""
    recovery: float | None
    """The driver's recovery action as a number (nvml.h, ``nvmlDeviceGpuRecoveryAction_t``)."""


@dataclass(slots=True)
class _Device:
    """One GPU or NVSwitch."""

    name: str
    gpu: WatchedGpu | None = None
    """What NVML told of it last, and when."""
    told_seconds: float = float("-inf")
    events: OrderedDict[int, XidEvent] = field(default_factory=OrderedDict)
    bursts: dict[int, deque[float]] = field(default_factory=dict)
    total: int = 0
    verdict: tuple[float, RecommendedAction] | None = None
    reset_seconds: float = float("-inf")
    """What was reported before counts for bursts alone."""

    def current(self, now_seconds: float) -> WatchedGpu | None:
        """Return what NVML says of it now; what it said long ago says nothing of a lost GPU."""
        return self.gpu if now_seconds - self.told_seconds < _NVML_SECONDS else None


@dataclass(frozen=True, slots=True)
class DeviceXids:
    """What is known of one device."""

    name: str
    is_switch: bool
    watched: bool
    """NVML reports its XIDs."""
    standing: XidEvent | None
    """The worst event that was reported within the hold time."""
    total: int
    advice: Advice


class XidLedger:
    """Takes reports and answers what stands. Any thread may call it.

    The driver's own verdict on a GPU (code 154, or the field for the recovery action) beats the
    catalogue: an action that it asks for is the advice, and when it takes its request back, advice from
    before is void. Where it asks for nothing, the catalogue decides, since the driver knows nothing of
    a process that has to restart.

    Args:
        host: the host's name.
        overrides: entries that replace the bundled catalogue's, by code.
        rules: what a code means when it comes again, by code.
        merge_seconds: reports of one code less than this apart are one event, unless its rule says
            more.
        hold_seconds: an event stands for this long after its last report, so that no tick misses it.
        advice_seconds: the catalogue's advice stands for this long after the last report.
    """

    def __init__(
        self,
        host: str,
        *,
        overrides: Mapping[int, Xid] | None = None,
        rules: Mapping[int, BurstRule] | None = None,
        merge_seconds: float = 10.0,
        hold_seconds: float = 30.0,
        advice_seconds: float = 600.0,
    ) -> None:
        self._host = host
        self._overrides = dict(overrides or {})
        self._rules = burst_rules() if rules is None else rules
        self._merge_seconds = merge_seconds
        self._hold_seconds = hold_seconds
        self._advice_seconds = advice_seconds
        self._lock = threading.Lock()
        self._devices: OrderedDict[tuple[XidSource, str], _Device] = OrderedDict()
        self._fresh: deque[tuple[str, XidEvent]] = deque(maxlen=256)

    def device(self, gpu: WatchedGpu, now_seconds: float) -> None:
        """Learn a GPU: which entity it is, whether its XIDs are seen, and the driver's verdict."""
        with self._lock:
            key = (XidSource.GPU, pci_address(gpu.pci) or gpu.uuid)
            found = self._device(*key)
            if found.name != gpu.name:
                self._take_name(gpu.name)
            found.name, found.gpu, found.told_seconds = gpu.name, gpu, now_seconds

    def was_reset(self, uuid: str, time_seconds: float) -> None:
        """Learn that a GPU was reset: codes, advice and verdicts from before are void."""
        with self._lock:
            for device in self._devices.values():
                if device.gpu is None or device.gpu.uuid != uuid:
                    continue
                device.reset_seconds = max(device.reset_seconds, time_seconds)
                device.gpu = device.gpu._replace(recovery=None)
                if device.verdict is not None and device.verdict[0] <= time_seconds:
                    device.verdict = None

    def from_nvml(self, uuid: str, pci: str, code: int, now_seconds: float) -> None:
        """Take a code that NVML reports."""
        with self._lock:
            device = self._device(XidSource.GPU, pci_address(pci) or uuid or "unknown")
            report = XidReport(XidSource.GPU, code, pci, None, "", "")
            self._report(device, report, now_seconds, "nvml")

    def from_kernel(self, report: XidReport, time_seconds: float) -> None:
        """Take a report of the kernel log."""
        with self._lock:
            device = self._device(report.source, pci_address(report.pci) or report.pci)
            event = self._report(device, report, time_seconds, "kernel")
            event.message = event.message or report.message[:_LONGEST_MESSAGE]
            event.process_id = event.process_id or report.process_id
            event.process_name = event.process_name or report.process_name[:64]
            verdict = driver_verdict(report)
            if verdict is not None and (
                device.verdict is None or device.verdict[0] <= time_seconds
            ):
                device.verdict = (time_seconds, verdict)
                event.withdrawn = verdict is RecommendedAction.IGNORE

    def take_fresh(self) -> list[tuple[str, XidEvent]]:
        """Return the events that began, or were escalated, since the last call, with their devices."""
        with self._lock:
            fresh = list(self._fresh)
            self._fresh.clear()
        return fresh

    def devices(self, now_seconds: float) -> list[DeviceXids]:
        """Return what is known of every device.

        One that only the kernel log knows by its address is there while something stands or is
        advised.
        """
        with self._lock:
            return list(self._known(now_seconds))

    def _take_name(self, name: str) -> None:
        """Give the device that had a name its address for one: the GPU has moved to another slot."""
        for (_, key), device in self._devices.items():
            if device.name == name:
                device.name, device.gpu = entity("host", self._host, "gpu", key), None

    def _known(self, now_seconds: float) -> Iterator[DeviceXids]:
        for (source, _), device in self._devices.items():
            standing = self._standing(device, now_seconds)
            advice = self._advice(device, now_seconds)
            gpu = device.current(now_seconds)
            told = (
                standing is not None
                or advice.source != "none"
                or self._is_withdrawn(device, now_seconds)
            )
            if device.gpu is not None or told:
                yield DeviceXids(
                    name=device.name,
                    is_switch=source is XidSource.NVSWITCH,
                    watched=gpu is not None and gpu.watched,
                    standing=standing,
                    total=device.total,
                    advice=advice,
                )

    def _is_withdrawn(self, device: _Device, now_seconds: float) -> bool:
        """Say whether the driver took a request back a moment ago: that is news, too."""
        event = device.events.get(RECOVERY_ACTION_CHANGED)
        return (
            event is not None
            and event.withdrawn
            and now_seconds - event.last_seconds < self._hold_seconds
        )

    def _standing(self, device: _Device, now_seconds: float) -> XidEvent | None:
        recent = [
            event
            for event in device.events.values()
            if now_seconds - event.last_seconds < self._hold_seconds
            and event.last_seconds > device.reset_seconds
            and not event.withdrawn
        ]
        worst = max(
            recent,
            key=lambda event: (_SEVERITIES.index(event.severity), event.last_seconds),
            default=None,
        )
        return None if worst is None else replace(worst)

    def _advice(self, device: _Device, now_seconds: float) -> Advice:
        gpu = device.current(now_seconds)
        recovery = None if gpu is None else gpu.recovery
        if recovery is not None and recovery != 0:
            return Advice(
                recovery_action(int(recovery)), "driver", note="the driver's recovery action"
            )
        since = max(now_seconds - self._advice_seconds, device.reset_seconds)
        if device.verdict is not None:
            told, action = device.verdict
            if action is RecommendedAction.IGNORE:
                since = max(since, told)
            elif recovery is None:
                return Advice(
                    action, "driver", RECOVERY_ACTION_CHANGED, "the driver's recovery action"
                )
        heard = device.verdict is not None or recovery is not None
        chosen = [
            event
            for event in device.events.values()
            if event.last_seconds >= since
            and event.action is not RecommendedAction.IGNORE
            and not (heard and event.code == RECOVERY_ACTION_CHANGED)
        ]
        if not chosen:
            return Advice(RecommendedAction.IGNORE, "none")
        worst = max(
            chosen,
            key=lambda event: (_SEVERITIES.index(event.severity), _ACTIONS.index(event.action)),
        )
        source = "burst" if worst.escalated else "catalogue"
        return Advice(worst.action, source, worst.code, worst.note or worst.title)

    def _device(self, source: XidSource, key: str) -> _Device:
        place = (source, key)
        found = self._devices.get(place)
        if found is None:
            if len(self._devices) >= _MOST_DEVICES:
                # Addresses that only the log knows go first; there are never this many real GPUs.
                old = next((k for k, d in self._devices.items() if d.gpu is None), None)
                del self._devices[old or next(iter(self._devices))]
            kind = "gpu" if source is XidSource.GPU else "nvswitch"
            name = entity("host", self._host, kind, key or "unknown")
            found = self._devices[place] = _Device(name)
        return found

    def _report(
        self, device: _Device, report: XidReport, time_seconds: float, seen_by: str
    ) -> XidEvent:
        code = report.code
        rule = self._rules.get(code) if report.source is XidSource.GPU else None
        window = (
            self._merge_seconds if rule is None else max(rule.burst_seconds, self._merge_seconds)
        )
        event = device.events.get(code)
        fresh_start = (
            event is not None and event.last_seconds <= device.reset_seconds < time_seconds
        )
        if event is not None and not fresh_start and _near(event, time_seconds, window):
            event.reports += 1
            event.first_seconds = min(event.first_seconds, time_seconds)
            event.last_seconds = max(event.last_seconds, time_seconds)
            event.seen_by.add(seen_by)
            device.events.move_to_end(code)
            return event
        event = self._new_event(report, time_seconds)
        event.seen_by.add(seen_by)
        self._escalate(device, event, rule)
        newest = device.events.get(code)
        if newest is None or newest.last_seconds <= time_seconds:
            device.events[code] = event
            device.events.move_to_end(code)
        while len(device.events) > _MOST_CODES:
            gone, _ = device.events.popitem(last=False)
            device.bursts.pop(gone, None)
        device.total += 1
        self._fresh.append((device.name, event))
        return event

    def _new_event(self, report: XidReport, time_seconds: float) -> XidEvent:
        code = report.code
        if report.source is XidSource.NVSWITCH:
            # The line itself says whether it is fatal; there is no public table of these codes.
            fatal = report.message.lower().startswith("fatal")
            known = Xid(
                code,
                f"SXID {code}",
                Severity.CRITICAL if fatal else Severity.WARNING,
                RecommendedAction.CONTACT_SUPPORT,
            )
        else:
            known = self._overrides.get(code) or describe_xid(code)
        return XidEvent(
            code=code,
            source=report.source,
            first_seconds=time_seconds,
            last_seconds=time_seconds,
            severity=known.severity,
            action=known.action,
            title=known.name,
            note=known.note,
        )

    def _escalate(self, device: _Device, event: XidEvent, rule: BurstRule | None) -> None:
        if rule is None or rule.count == 0 or event.code in self._overrides:
            return
        starts = device.bursts.setdefault(event.code, deque(maxlen=_MOST_BURSTS))
        starts.append(event.first_seconds)
        since = event.first_seconds - rule.within_seconds
        if sum(start >= since for start in starts) >= rule.count:
            event.severity, event.action, event.note = rule.severity, rule.action, rule.note
            event.escalated = True


def _near(event: XidEvent, time_seconds: float, window_seconds: float) -> bool:
    return (
        event.first_seconds - window_seconds <= time_seconds <= event.last_seconds + window_seconds
    )

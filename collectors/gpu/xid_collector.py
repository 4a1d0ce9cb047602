"""XIDs as signals: reads the kernel log, adds what NVML reports, and tells what stands."""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity
from collectors.gpu.kernel_log import LogError, LogReader
from collectors.gpu.xid import RecommendedAction, parse_kernel_line
from collectors.gpu.xid_ledger import DeviceXids, XidEvent, XidLedger

log = structlog.get_logger(__name__)

_ACTIONS = tuple(RecommendedAction)
_MOST_LOGGED = 20
_LONGEST_LOGGED_AGE_SECONDS = 600.0


class XidCollector:
    """``gpu_xid`` and what it asks for, on every GPU that is known.

    A GPU has ``gpu_xid`` 0 only when a source that would have told of a code can be read: the kernel
    log, or NVML's events of that GPU. Else it has none.

    Args:
        host: the host's name.
        ledger: where reports are merged; the NVML collector gives it those of NVML.
        reader: follows the kernel log; None where there is none that this process may read.
        deadline_seconds: the longest that one call may take.
    """

    def __init__(
        self,
        host: str,
        ledger: XidLedger,
        reader: LogReader | None,
        *,
        deadline_seconds: float = 1.0,
    ) -> None:
        self._host = host
        self._ledger = ledger
        self._reader = reader
        self._deadline_seconds = deadline_seconds
        self._lost = 0
        self._said = ""

    @property
    def name(self) -> str:
        """``gpu-xid``."""
        return "gpu-xid"

    @property
    def deadline_seconds(self) -> float:
        """The longest that one call may take."""
        return self._deadline_seconds

    def is_supported(self) -> Support:
        """Say whether there is a kernel log to read; without one only NVML's events are seen."""
        if self._reader is not None:
            return Support(supported=True)
        return Support(
            supported=False,
            reason="no kernel log can be read, so XIDs come from NVML's events alone, which miss some",
            fix="give this process /dev/kmsg (CAP_SYSLOG) or the group systemd-journal, or set "
            "xid.source in [collectors] to a log file",
        )

    def collect(self, now_seconds: float) -> Collection:
        """Read what has come and tell what stands.

        Raises:
            CollectorError: when neither the kernel log can be read nor NVML reports XIDs.
        """
        problem = self._read_log(now_seconds)
        self._report_fresh(now_seconds)
        devices = self._ledger.devices(now_seconds)
        sources = int(not problem) + int(any(device.watched for device in devices))
        samples = [
            Sample(now_seconds, entity("host", self._host), "gpu_xid_sources", float(sources)),
            Sample(
                now_seconds,
                entity("host", self._host),
                "gpu_xid_lines_lost_total",
                float(self._lost),
            ),
        ]
        for device in devices:
            samples += self._samples(device, now_seconds, log_readable=not problem)
        if not sources:
            raise CollectorError(problem, fix=self.is_supported().fix, samples=samples)
        return Collection(samples=samples, notes=(problem,) if problem else ())

    def close(self) -> None:
        """Close the log."""
        if self._reader is not None:
            self._reader.close()

    def _read_log(self, now_seconds: float) -> str:
        """Take the lines that have come; return what is wrong, or nothing."""
        if self._reader is None:
            return self.is_supported().reason
        try:
            batch = self._reader.read()
        except LogError as error:
            problem = str(error)
            if problem != self._said:
                log.warning("kernel_log_unreadable", reason=problem)
            self._said = problem
            return problem
        self._said = ""
        self._lost += batch.lost
        for line in batch.lines:
            report = parse_kernel_line(line.text)
            if report is not None:
                told = now_seconds if line.time_seconds is None else line.time_seconds
                # A clock that was set back would make a code stand for a long time.
                self._ledger.from_kernel(report, min(told, now_seconds))
        return ""

    def _report_fresh(self, now_seconds: float) -> None:
        fresh = [
            (name, event)
            for name, event in self._ledger.take_fresh()
            if now_seconds - event.last_seconds < _LONGEST_LOGGED_AGE_SECONDS
        ]
        for name, event in fresh[:_MOST_LOGGED]:
            log.warning("gpu_xid", gpu=name, **_words(event))
        if len(fresh) > _MOST_LOGGED:
            log.warning("gpu_xid_flood", events=len(fresh), shown=_MOST_LOGGED)

    def _samples(
        self, device: DeviceXids, now_seconds: float, *, log_readable: bool
    ) -> Iterator[Sample]:
        def sample(signal: str, value: float, **labels: str) -> Sample:
            return Sample(now_seconds, device.name, signal, value, labels)

        standing = device.standing
        if standing is not None:
            labels = {"severity": str(standing.severity), "title": standing.title}
            signal = "gpu_sxid" if device.is_switch else "gpu_xid"
            yield sample(signal, float(standing.code), **labels)
        elif not device.is_switch and (log_readable or device.watched):
            yield sample("gpu_xid", 0.0)
        if device.total or log_readable or device.watched:
            yield sample("gpu_xid_events_total", float(device.total))
        advice = device.advice
        if advice.source != "none" or log_readable or device.watched:
            yield sample(
                "gpu_recommended_action",
                float(_ACTIONS.index(advice.action)),
                action=str(advice.action),
                source=advice.source,
                xid=str(advice.code),
                note=advice.note,
            )


def _words(event: XidEvent) -> dict[str, object]:
    return {
        "code": event.code,
        "kind": str(event.source),
        "title": event.title,
        "severity": str(event.severity),
        "action": str(event.action),
        "note": event.note,
        "seen_by": sorted(event.seen_by),
        "process_id": event.process_id,
        "process_name": event.process_name,
        "message": event.message,
    }

"""The machine itself, read with psutil and from ``/proc``."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity

Values = Iterator[tuple[str, float]]

_PRESSURE_SOME = re.compile(r"^some .*\btotal=(\d+)", re.MULTILINE)
_OOM_KILLS = re.compile(r"^oom_kill (\d+)", re.MULTILINE)


class HostCollector:
    """CPU, memory, disk, network and clock of this machine, on ``host/<hostname>``.

    What needs two readings (CPU shares, rates, pressure) is absent from the first collection. What the
    machine does not offer (pressure on an old kernel, steal outside a virtual machine) is absent.

    Args:
        disk_path: a path on the file system to watch; its nearest existing parent is read.
        hostname: the name of the entity; by default what the system calls itself.
        deadline_seconds: the longest that one reading may take.
        proc: where the proc file system is mounted.
        monotonic: a clock that never goes back; rates are taken over its time.
        wall: the clock of the day; its drift against ``monotonic`` is ``host_clock_offset_seconds``.
    """

    def __init__(
        self,
        disk_path: Path | str = ".",
        *,
        hostname: str | None = None,
        deadline_seconds: float = 0.5,
        proc: Path = Path("/proc"),
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._entity = entity("host", hostname or socket.gethostname())
        self._disk_path = Path(disk_path)
        self._deadline_seconds = deadline_seconds
        self._proc = proc
        self._monotonic = monotonic
        self._wall = wall
        self._epoch: float | None = None
        self._before: dict[str, tuple[float, float]] = {}
        self._cpu_before: dict[str, float] | None = None

    @property
    def name(self) -> str:
        """``host``."""
        return "host"

    @property
    def deadline_seconds(self) -> float:
        """The longest that one reading may take."""
        return self._deadline_seconds

    def is_supported(self) -> Support:
        """Always: psutil knows every system that Galen runs on."""
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        """Read everything once; what cannot be read is left out and noted.

        Raises:
            CollectorError: when nothing at all can be read.
        """
        samples: list[Sample] = []
        notes: list[str] = []
        for part in (self._cpu, self._memory, self._disk, self._network, self._clock):
            try:
                for signal, value in part():
                    samples.append(Sample(now_seconds, self._entity, signal, value))
            except (OSError, psutil.Error, RuntimeError, ValueError) as error:
                notes.append(f"{part.__name__.strip('_')}: {error}")
        if not samples:
            raise CollectorError(f"nothing of this machine can be read: {'; '.join(notes)}")
        return Collection(samples=samples, notes=notes)

    def close(self) -> None:
        """Nothing is held."""

    def _cpu(self) -> Values:
        times = psutil.cpu_times()._asdict()
        # The kernel counts a guest's time in `user` too.
        spent = {name: value for name, value in times.items() if not name.startswith("guest")}
        before, self._cpu_before = self._cpu_before, spent
        yield "host_load", psutil.getloadavg()[0] / (psutil.cpu_count() or 1)
        if before is None:
            return
        passed = {name: max(0.0, value - before.get(name, value)) for name, value in spent.items()}
        total = sum(passed.values())
        if total <= 0:
            return
        idle = passed.get("idle", 0.0) + passed.get("iowait", 0.0)
        yield "host_cpu_percent", 100 * (total - idle) / total
        for part in ("iowait", "steal"):
            if part in passed:
                yield f"host_cpu_{part}_percent", 100 * passed[part] / total

    def _memory(self) -> Values:
        memory = psutil.virtual_memory()
        yield "host_memory_available_bytes", float(memory.available)
        yield "host_memory_used_ratio", 1 - memory.available / memory.total
        yield "host_swap_used_bytes", float(psutil.swap_memory().used)
        kills = self._match(self._proc / "vmstat", _OOM_KILLS)
        if kills is not None:
            yield "host_oom_kills_total", kills
        stalled = self._match(self._proc / "pressure" / "memory", _PRESSURE_SOME)
        if stalled is not None:
            # Microseconds in which at least one task waited for memory (kernel: accounting/psi.rst).
            share = self._rate("pressure", stalled / 1e6)
            if share is not None:
                yield "host_memory_pressure_ratio", min(1.0, share)

    def _disk(self) -> Values:
        path = self._disk_path.absolute()
        while not path.exists():
            path = path.parent
        usage = psutil.disk_usage(str(path))
        yield "host_disk_free_bytes", float(usage.free)
        yield "host_disk_used_ratio", usage.percent / 100

    def _network(self) -> Values:
        counters = psutil.net_io_counters()
        if counters is None:  # no interface at all, in some containers
            return
        rate = self._rate("network", counters.bytes_sent + counters.bytes_recv)
        if rate is not None:
            yield "host_network_throughput_bytes", rate
        troubles = counters.errin + counters.errout + counters.dropin + counters.dropout
        yield "host_network_errors_total", float(troubles)

    def _clock(self) -> Values:
        epoch = self._wall() - self._monotonic()
        if self._epoch is None:
            self._epoch = epoch
        yield "host_clock_offset_seconds", epoch - self._epoch

    def _rate(self, counter: str, value: float) -> float | None:
        now = self._monotonic()
        before = self._before.get(counter)
        self._before[counter] = (now, value)
        if before is None or now <= before[0] or value < before[1]:
            return None
        return (value - before[1]) / (now - before[0])

    @staticmethod
    def _match(path: Path, pattern: re.Pattern[str]) -> float | None:
        try:
            found = pattern.search(path.read_text("ascii"))
        except OSError:  # an old kernel, or not Linux
            return None
        return float(found[1]) if found else None

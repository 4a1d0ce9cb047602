from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from collectors.contract import Collector, CollectorError
from collectors.host import HostCollector
from collectors.signals import catalogue


def _values(collector: HostCollector) -> dict[str, float]:
    collection = collector.collect(1000.0)
    assert {sample.entity for sample in collection.samples} == {"host/box"}
    return {sample.signal: sample.value for sample in collection.samples}


def test_this_machine_within_the_limits_of_the_catalogue(tmp_path: Path) -> None:
    collector = HostCollector(tmp_path / "not" / "yet", hostname="box")
    assert isinstance(collector, Collector)
    _values(collector)
    values = _values(collector)
    assert {"host_load", "host_memory_available_bytes", "host_disk_free_bytes"} <= set(values)
    for signal, value in values.items():
        known = catalogue()[signal]
        assert known.low is None or value >= known.low, signal
        assert known.high is None or value <= known.high, signal


def test_shares_of_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times(SimpleNamespace):
        def _asdict(self) -> dict[str, float]:
            return vars(self)

    readings = iter(
        [
            Times(user=10.0, idle=10.0, iowait=0.0, steal=0.0, guest=5.0),
            Times(user=14.0, idle=13.0, iowait=2.0, steal=1.0, guest=9.0),
        ]
    )
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(readings))
    collector = HostCollector(hostname="box")
    assert "host_cpu_percent" not in _values(collector)
    values = _values(collector)
    assert values["host_cpu_percent"] == pytest.approx(50.0)
    assert values["host_cpu_iowait_percent"] == pytest.approx(20.0)
    assert values["host_cpu_steal_percent"] == pytest.approx(10.0)


def test_pressure_is_the_share_of_time_that_something_waited(tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    pressure = tmp_path / "pressure" / "memory"
    seconds = itertools.count(0.0, 0.5)
    collector = HostCollector(
        hostname="box", proc=tmp_path, monotonic=lambda: float(int(next(seconds)))
    )
    line = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 total=0\n"
    pressure.write_text(line.format(1_000_000))
    first = _values(collector)
    assert "host_memory_pressure_ratio" not in first
    assert "host_oom_kills_total" not in first
    pressure.write_text(line.format(1_250_000))
    assert 0 < _values(collector)["host_memory_pressure_ratio"] <= 0.25


def test_a_clock_that_was_set_shows_as_an_offset() -> None:
    wall = iter([1000.0, 1001.0, 1032.0])
    monotonic = itertools.count(0.0, 0.0)
    times = {"now": 0.0}
    collector = HostCollector(
        hostname="box", monotonic=lambda: times["now"] + next(monotonic), wall=lambda: next(wall)
    )
    offsets = []
    for second in range(3):
        times["now"] = float(second)
        offsets.append(_values(collector)["host_clock_offset_seconds"])
    assert offsets == [0.0, 0.0, 30.0]


def _fail() -> None:
    raise PermissionError("not for you")


def test_a_part_that_cannot_be_read_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", _fail)
    collection = HostCollector(hostname="box").collect(1000.0)
    assert list(collection.notes) == ["memory: not for you"]
    assert "host_load" in {sample.signal for sample in collection.samples}


def test_a_machine_that_cannot_be_read_is_an_error() -> None:
    def broken() -> float:
        raise OSError("no clock")

    collector = HostCollector(hostname="box", wall=broken)
    for part in ("_cpu", "_memory", "_disk", "_network"):
        broken.__name__ = part
        setattr(collector, part, broken)
    with pytest.raises(CollectorError, match="no clock"):
        collector.collect(1000.0)

"""XIDs from both sources as signals, with the real NVML child and a real log file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from collectors.contract import Collector, CollectorError
from collectors.gpu.kernel_log import FileReader, LogBatch, LogError, LogLine
from collectors.gpu.nvml import NvmlCollector
from collectors.gpu.xid_collector import XidCollector
from collectors.gpu.xid_ledger import WatchedGpu, XidLedger
from collectors.registry import build_collectors
from collectors.settings import CollectorsSettings
from collectors.signals import catalogue
from tests.collectors.gpu.fake_nvml import FakeNvml

NOW = 1_000_000.0
GPU = "host/box/gpu/0"
XID = "NVRM: Xid (PCI:0000:18:00): "


class Lines:
    """A log that gives what a test puts in."""

    name = "lines"

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.error = ""
        self.lost = 0

    def put(self, text: str, time_seconds: float | None = NOW) -> None:
        self.lines.append(LogLine(text, time_seconds))

    def read(self) -> LogBatch:
        if self.error:
            raise LogError(self.error)
        batch, self.lines = LogBatch(self.lines, self.lost), []
        return batch

    def close(self) -> None:
        self.lines.clear()


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def ledger() -> XidLedger:
    made = XidLedger("box")
    made.device(WatchedGpu(GPU, "0000:18:00", "GPU-0", watched=True, recovery=None), NOW)
    return made


def _values(collector: XidCollector, now: float = NOW) -> dict[tuple[str, str], float]:
    samples = collector.collect(now).samples
    assert {sample.signal for sample in samples} <= set(catalogue())
    assert len({(s.entity, s.signal) for s in samples}) == len(samples)
    return {(sample.entity, sample.signal): sample.value for sample in samples}


def test_a_quiet_gpu_has_a_zero_that_somebody_vouches_for(lines: Lines, ledger: XidLedger) -> None:
    collector = XidCollector("box", ledger, lines)
    assert isinstance(collector, Collector)
    assert collector.is_supported().supported
    assert _values(collector) == {
        ("host/box", "gpu_xid_sources"): 2.0,
        ("host/box", "gpu_xid_lines_lost_total"): 0.0,
        (GPU, "gpu_xid"): 0.0,
        (GPU, "gpu_xid_events_total"): 0.0,
        (GPU, "gpu_recommended_action"): 0.0,
    }


def test_a_code_and_what_it_asks_for(lines: Lines, ledger: XidLedger) -> None:
    collector = XidCollector("box", ledger, lines)
    lines.put(f"{XID}48, pid=1, DBE")
    samples = {(s.entity, s.signal): s for s in collector.collect(NOW).samples}
    assert samples[GPU, "gpu_xid"].value == 48
    assert samples[GPU, "gpu_xid"].labels["severity"] == "fatal"
    assert samples[GPU, "gpu_recommended_action"].value == 3
    labels = samples[GPU, "gpu_recommended_action"].labels
    assert (labels["action"], labels["source"], labels["xid"]) == ("reset_gpu", "catalogue", "48")


def test_without_a_source_there_is_no_zero(lines: Lines) -> None:
    ledger = XidLedger("box")
    ledger.device(WatchedGpu(GPU, "0000:18:00", "GPU-0", watched=False, recovery=None), NOW)
    collector = XidCollector("box", ledger, lines)
    lines.error = "lines: gone"
    with pytest.raises(CollectorError, match="lines: gone") as caught:
        collector.collect(NOW)
    assert "CAP_SYSLOG" not in str(caught.value)
    assert {(s.entity, s.signal, s.value) for s in caught.value.samples} == {
        ("host/box", "gpu_xid_sources", 0.0),
        ("host/box", "gpu_xid_lines_lost_total", 0.0),
    }


def test_with_nvml_alone_it_works_and_says_what_is_missing(lines: Lines, ledger: XidLedger) -> None:
    lines.error = "lines: gone"
    collection = XidCollector("box", ledger, lines).collect(NOW)
    assert collection.notes == ("lines: gone",)
    bare = XidCollector("box", ledger, None)
    assert "CAP_SYSLOG" in bare.is_supported().fix
    assert _values(bare)["host/box", "gpu_xid_sources"] == 1.0
    with pytest.raises(CollectorError, match="no kernel log"):
        bare.collect(NOW + 60)  # and NVML has been silent, too


def test_lost_lines_are_counted(lines: Lines, ledger: XidLedger) -> None:
    collector = XidCollector("box", ledger, lines)
    lines.lost = 3
    _values(collector)
    assert _values(collector)["host/box", "gpu_xid_lines_lost_total"] == 6.0


def test_a_line_from_the_future_does_not_stand_for_ever(lines: Lines, ledger: XidLedger) -> None:
    collector = XidCollector("box", ledger, lines)
    lines.put(f"{XID}79", NOW + 1e6)
    lines.put(f"{XID}13", None)
    assert _values(collector)[GPU, "gpu_xid"] == 79
    assert _values(collector, NOW + 31)[GPU, "gpu_xid"] == 0


def test_a_switch(lines: Lines, ledger: XidLedger) -> None:
    lines.put("nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 24007, Fatal, Link 28")
    values = _values(XidCollector("box", ledger, lines))
    assert values["host/box/nvswitch/0000_c3_00", "gpu_sxid"] == 24007


def test_a_flood_logs_little(
    lines: Lines, ledger: XidLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in range(1, 200):
        lines.put(f"{XID}{code}")
    _values(XidCollector("box", ledger, lines))
    said = capsys.readouterr()
    assert len((said.out + said.err).splitlines()) <= 21


def test_a_log_file_and_nvml_tell_of_one_event(
    fake: FakeNvml, make_collector: Callable[..., NvmlCollector], tmp_path: Path
) -> None:
    path = tmp_path / "kern.log"
    path.touch()
    ledger = XidLedger("box")
    nvml = make_collector(xids=ledger)
    collector = XidCollector("box", ledger, FileReader(path))
    nvml.collect(NOW)
    _values(collector)
    fake.xid(94, gpu=1)
    fake.gpu(1).field(230, 1)
    path.write_text("NVRM: Xid (PCI:0000:19:00): 94, pid=7, name=python3, Contained\n")
    nvml.collect(NOW + 1)
    values = _values(collector, NOW + 2)
    assert values["host/box/gpu/1", "gpu_xid"] == 94
    assert values["host/box/gpu/1", "gpu_xid_events_total"] == 1
    assert (
        values["host/box/gpu/1", "gpu_recommended_action"] == 3
    )  # the driver's field, not 94's row
    assert values[GPU, "gpu_xid"] == 0
    collector.close()


def test_when_the_driver_hangs_the_log_still_tells(
    fake: FakeNvml, make_collector: Callable[..., NvmlCollector], lines: Lines
) -> None:
    ledger = XidLedger("box")
    nvml = make_collector(xids=ledger)
    nvml.collect(NOW)
    nvml._deadline_seconds = 1.5
    fake.hang("nvmlDeviceGetCount_v2")
    with pytest.raises(CollectorError):
        nvml.collect(NOW + 1)
    lines.put(f"{XID}119, pid=1, name=x, Timeout after 6s of waiting for RPC response", NOW + 1)
    assert _values(XidCollector("box", ledger, lines), NOW + 2)[GPU, "gpu_xid"] == 119


def test_the_configuration_builds_both(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    log.touch()
    settings = CollectorsSettings.model_validate(
        {
            "gpu_mode": "nvml",
            "host_enabled": False,
            "host_name": "box",
            "xid": {
                "source": str(log),
                "overrides": {"31": {"severity": "fatal", "action": "reboot_node"}},
            },
        }
    )
    nvml, xid = build_collectors(settings, state_dir=tmp_path, nvml_present=lambda: True)
    xid.collect(NOW)
    log.write_text(f"{XID}31, pid=1, name=x, MMU Fault\n")
    found = {s.signal: s for s in xid.collect(NOW).samples}
    assert found["gpu_xid"].labels["severity"] == "fatal"
    assert found["gpu_recommended_action"].labels["action"] == "reboot_node"
    for collector in (nvml, xid):
        collector.close()

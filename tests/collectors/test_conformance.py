"""What every collector promises, checked against each implementation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from collectors.canary import CanaryCollector, GoldenPrompt
from collectors.contract import Collector, CollectorError, Paced
from collectors.entities import entity
from collectors.gpu.kernel_log import FileReader
from collectors.gpu.nvml import NvmlCollector
from collectors.gpu.simulated import SimulatedGpuCollector
from collectors.gpu.xid_collector import XidCollector
from collectors.gpu.xid_ledger import WatchedGpu, XidLedger
from collectors.host import HostCollector
from collectors.prometheus import PrometheusCollector
from collectors.scraping.build import scrape_collector
from collectors.service import ServiceCollector
from collectors.settings import CollectorsSettings
from collectors.signals import catalogue

NVML = json.dumps(
    {
        "devices": [
            {"index": 0, "uuid": "u", "name": "n", "signals": {"gpu_temperature_celsius": 40}}
        ]
    }
)
ECHO = (sys.executable, "-c", f"import sys\nfor line in sys.stdin: print({NVML!r}, flush=True)")
METRICS = "llm_queue_depth 1\nengine_up 1\n"
NOW = 1_700_000_000.0


def _http(text: str) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, text=text)))


def _broken() -> httpx.Client:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    return httpx.Client(transport=httpx.MockTransport(refuse))


def _ledger() -> XidLedger:
    ledger = XidLedger("box")
    ledger.device(WatchedGpu("host/box/gpu/0", "0000:18:00", "u", True, None), NOW)
    return ledger


def _log(folder: Path) -> FileReader:
    path = folder / "kern.log"
    path.write_text("2023-11-14T22:13:00Z NVRM: Xid (PCI:0000:18:00): 79, pid=1\n")
    return FileReader(path)


Make = Callable[[Path], Collector]
WORKING: dict[str, Make] = {
    "host": HostCollector,
    "simulated": lambda path: SimulatedGpuCollector("box", lambda: 0.5, path / "control.json"),
    "nvml": lambda _: NvmlCollector("box", command=ECHO, library_present=lambda: True),
    "xid": lambda path: XidCollector("box", _ledger(), _log(path)),
    "scrape": lambda _: scrape_collector(
        CollectorsSettings.model_validate({"scrape": ["http://127.0.0.1:9"]})
    ),
    "service": lambda _: ServiceCollector("llm", "http://x", _http(METRICS)),
    "canary": lambda _: CanaryCollector(
        "llm", "http://x", _http('{"choices": [{"text": "y"}]}'), GoldenPrompt("x", "y")
    ),
}
BROKEN: dict[str, Make] = {
    "nvml": lambda _: NvmlCollector("box", command=("false",)),
    "xid": lambda path: XidCollector("box", XidLedger("box"), FileReader(path / "absent")),
    "service": lambda _: ServiceCollector("llm", "http://x", _broken()),
    "service text": lambda _: ServiceCollector("llm", "http://x", _http("<html>")),
    "prometheus": lambda _: PrometheusCollector("p", "http://127.0.0.1:9"),
}


@pytest.mark.parametrize("make", WORKING.values(), ids=WORKING)
def test_a_working_source_gives_canonical_samples(make: Make, tmp_path: Path) -> None:
    collector = make(tmp_path)
    assert isinstance(collector, Collector)
    assert collector.is_supported().supported
    assert collector.deadline_seconds > 0
    assert not isinstance(collector, Paced) or collector.every_seconds > 0
    assert entity("collector", collector.name) == f"collector/{collector.name}"
    samples = collector.collect(NOW).samples
    collector.close()
    assert samples
    assert {sample.time_seconds for sample in samples} == {NOW}
    assert {sample.signal for sample in samples} <= set(catalogue())
    for sample in samples:
        assert entity(*sample.entity.split("/")) == sample.entity
    assert len({(sample.entity, sample.signal) for sample in samples}) == len(samples)


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_broken_source_is_a_collector_error(make: Make, tmp_path: Path) -> None:
    collector = make(tmp_path)
    with pytest.raises(CollectorError):
        collector.collect(NOW)
    collector.close()

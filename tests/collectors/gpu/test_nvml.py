from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from collectors.contract import Collector, CollectorError
from collectors.gpu.nvml import NvmlCollector, nvml_library_present
from collectors.gpu.nvml_child import serve
from collectors.gpu.nvml_reader import XID_HOLD_SECONDS, NvmlReader
from collectors.signals import catalogue

ONE_GPU = json.dumps(
    {
        "devices": [
            {
                "index": 0,
                "uuid": "GPU-1",
                "name": "NVIDIA L4",
                "signals": {"gpu_available": 1.0, "gpu_temperature_celsius": 40.0},
            }
        ]
    }
)


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


class FakeNvml:
    """The shape of ``pynvml``, with two devices of which the test can break parts."""

    NVMLError = NVMLError
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_RESET_REQUIRED = 16
    NVML_TEMPERATURE_GPU = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1
    NVML_CLOCK_SM = 1
    NVML_MEMORY_ERROR_TYPE_CORRECTED = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    nvmlEventTypeXidCriticalError = 8  # noqa: N815  # the name in pynvml

    def __init__(self) -> None:
        self.errors: dict[str, int] = {"nvmlDeviceGetFanSpeed": 3}
        self.events: list[Any] = []
        self.started = 0

    def nvmlInit(self) -> None:  # noqa: N802  # the name in pynvml
        self.started += 1

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetIndex": lambda handle: handle,
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetName": lambda _: b"NVIDIA L4",
            "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=73, memory=20),
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(
                used=6 * 1024**3, total=24 * 1024**3
            ),
            "nvmlDeviceGetTemperature": lambda *_: 61,
            "nvmlDeviceGetMarginTemperature": lambda _: 24,
            "nvmlDeviceGetTemperatureThreshold": lambda *_: 90,
            "nvmlDeviceGetFanSpeed": lambda _: 30,
            "nvmlDeviceGetPowerUsage": lambda _: 71_500,
            "nvmlDeviceGetEnforcedPowerLimit": lambda _: 72_000,
            "nvmlDeviceGetClockInfo": lambda *_: 1770,
            "nvmlDeviceGetMaxClockInfo": lambda *_: 2040,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 0x24,
            "nvmlDeviceGetTotalEccErrors": lambda _handle, kind, _counter: 2 if kind else 5,
            "nvmlDeviceGetRemappedRows": lambda _: (1, 0, 1, 0),
            "nvmlDeviceGetCurrPcieLinkWidth": lambda _: 16,
            "nvmlDeviceGetPcieReplayCounter": lambda _: 4,
            "nvmlEventSetCreate": lambda: "set",
            "nvmlDeviceRegisterEvents": lambda *_: None,
            "nvmlEventSetWait_v2": self._next_event,
        }
        if name not in answers:
            raise AttributeError(name)
        if name in self.errors:
            return lambda *_: self._fail(name)
        return answers[name]

    def _fail(self, name: str) -> None:
        raise NVMLError(self.errors[name])

    def _next_event(self, _set: str, _timeout: int) -> Any:
        if not self.events:
            raise NVMLError(10)
        return self.events.pop(0)


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


def test_a_device_reads_in_the_units_of_the_catalogue(nvml: FakeNvml) -> None:
    first, second = NvmlReader(nvml).read()
    assert (first["index"], first["uuid"], first["name"]) == (0, "GPU-0", "NVIDIA L4")
    assert first["signals"] == second["signals"]
    assert first["signals"] == {
        "gpu_available": 1.0,
        "gpu_xid": 0.0,
        "gpu_utilization_percent": 73.0,
        "gpu_memory_used_bytes": 6.0 * 1024**3,
        "gpu_memory_total_bytes": 24.0 * 1024**3,
        "gpu_memory_used_ratio": 0.25,
        "gpu_temperature_celsius": 61.0,
        "gpu_temperature_margin_celsius": 24.0,
        "gpu_power_usage_watts": 71.5,
        "gpu_power_limit_watts": 72.0,
        "gpu_sm_clock_mhz": 1770.0,
        "gpu_sm_clock_max_mhz": 2040.0,
        "gpu_throttle_reason": 36.0,
        "gpu_throttle_thermal": 1.0,
        "gpu_throttle_power": 1.0,
        "gpu_throttle_power_brake": 0.0,
        "gpu_ecc_uncorrectable_total": 2.0,
        "gpu_ecc_correctable_total": 5.0,
        "gpu_row_remap_pending": 1.0,
        "gpu_pcie_link_width": 16.0,
        "gpu_pcie_replay_total": 4.0,
    }
    assert set(first["signals"]) <= set(catalogue())


def test_an_old_driver_gives_the_margin_by_its_slowdown_threshold(nvml: FakeNvml) -> None:
    nvml.errors["nvmlDeviceGetMarginTemperature"] = 13
    assert NvmlReader(nvml).read()[0]["signals"]["gpu_temperature_margin_celsius"] == 29.0


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetTemperature"])
@pytest.mark.parametrize("code", [15, 16])
def test_a_lost_device_gives_only_that(nvml: FakeNvml, function: str, code: int) -> None:
    nvml.errors[function] = code
    assert NvmlReader(nvml).read()[0]["signals"] == {"gpu_available": 0.0, "gpu_xid": 0.0}


def test_an_xid_is_shown_for_a_while(nvml: FakeNvml) -> None:
    now = [0.0]
    reader = NvmlReader(nvml, monotonic=lambda: now[0])
    nvml.events.append(SimpleNamespace(device=1, eventData=94))
    assert [device["signals"]["gpu_xid"] for device in reader.read()] == [0.0, 94.0]
    now[0] = XID_HOLD_SECONDS - 1
    assert reader.read()[1]["signals"]["gpu_xid"] == 94.0
    now[0] = XID_HOLD_SECONDS + 1
    assert reader.read()[1]["signals"]["gpu_xid"] == 0.0


def test_the_child_answers_until_its_input_ends(nvml: FakeNvml) -> None:
    answers = io.StringIO()
    assert serve(["\n", "\n"], answers, lambda: nvml) == 0
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [len(line["devices"]) for line in lines] == [2, 2]
    assert nvml.started == 1


def test_the_child_reports_an_error_and_ends(nvml: FakeNvml) -> None:
    nvml.errors["nvmlDeviceGetCount"] = 999
    answers = io.StringIO()
    assert serve(["\n", "\n"], answers, lambda: nvml) == 1
    assert json.loads(answers.getvalue()) == {"error": "NVMLError: error 999"}


def _child(body: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys, time\nfor line in sys.stdin:\n {body}")


@pytest.fixture
def collectors() -> Iterator[list[NvmlCollector]]:
    made: list[NvmlCollector] = []
    yield made
    for collector in made:
        collector.close()


def test_the_collector_reads_through_a_real_child(collectors: list[NvmlCollector]) -> None:
    collector = NvmlCollector("box", command=_child(f"print({ONE_GPU!r}, flush=True)"))
    collectors.append(collector)
    assert isinstance(collector, Collector)
    for _ in range(3):
        samples = collector.collect(1000.0).samples
    values = {(sample.entity, sample.signal): sample for sample in samples}
    assert values["host/box/gpu/0", "gpu_temperature_celsius"].value == 40.0
    assert values["host/box/gpu/0", "gpu_temperature_celsius"].labels["uuid"] == "GPU-1"
    assert values["host/box", "gpu_count"].value == 1
    assert ("host/box/gpu/0", "gpu_driver_call_seconds") in values


def test_a_child_that_hangs_is_killed_and_the_next_call_starts_another(
    collectors: list[NvmlCollector], tmp_path: Any
) -> None:
    hung = tmp_path / "hung"
    body = (
        f"\n import pathlib\n if not pathlib.Path({str(hung)!r}).exists():\n"
        f"  pathlib.Path({str(hung)!r}).touch(); time.sleep(600)\n print({ONE_GPU!r}, flush=True)"
    )
    collector = NvmlCollector("box", command=_child(body))
    collectors.append(collector)
    child = collector._child
    with pytest.raises(CollectorError, match="driver may hang"):
        child.ask(deadline_seconds=3.0)
    assert child._process is None
    assert len(collector.collect(1000.0).samples) == 4


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("sys.exit(3)", "ended with status"),
        ("print('what?', flush=True)", "answered"),
        ('print(\'{"error": "NVMLError_DriverNotLoaded"}\', flush=True)', "DriverNotLoaded"),
        ("print('x' * 3_000_000, flush=True)", "no end"),
    ],
)
def test_a_broken_child_is_a_collector_error(
    collectors: list[NvmlCollector], body: str, says: str
) -> None:
    collector = NvmlCollector("box", command=_child(body))
    collectors.append(collector)
    with pytest.raises(CollectorError, match=says):
        collector.collect(1000.0)


def test_failures_are_retried_after_a_pause_that_grows(
    collectors: list[NvmlCollector], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    collector = NvmlCollector("box", monotonic=lambda: now[0])
    collectors.append(collector)
    asked: list[float] = []

    def ask(deadline_seconds: float) -> bytes:
        asked.append(now[0])
        if now[0] < 60:
            raise CollectorError("no driver")
        return ONE_GPU.encode()

    monkeypatch.setattr(collector._child, "ask", ask)
    for second in range(100):
        now[0] = float(second)
        try:
            collector.collect(now[0])
        except CollectorError:
            continue
    assert asked[:6] == [0, 1, 3, 7, 15, 31]
    assert asked[6:] == [float(second) for second in range(61, 100)]


def test_a_device_that_is_gone_is_not_available(collectors: list[NvmlCollector]) -> None:
    empty = json.dumps({"devices": []})
    body = f"\n n = globals().get('n', 0) + 1\n print({ONE_GPU!r} if n == 1 else {empty!r}, flush=True)"
    collector = NvmlCollector("box", command=_child(body))
    collectors.append(collector)
    collector.collect(1000.0)
    samples = collector.collect(1001.0).samples
    assert [(s.entity, s.signal, s.value) for s in samples] == [
        ("host/box/gpu/0", "gpu_available", 0.0),
        ("host/box", "gpu_count", 0.0),
    ]


def test_without_a_driver_it_says_so() -> None:
    support = NvmlCollector("box", library_present=lambda: False).is_supported()
    assert not support.supported
    assert "libnvidia-ml" in support.reason
    assert "simulated" in support.fix


@pytest.mark.skipif(nvml_library_present(), reason="this machine has an NVIDIA driver")
def test_the_real_child_reports_the_missing_driver(collectors: list[NvmlCollector]) -> None:
    collector = NvmlCollector("box")
    collectors.append(collector)
    assert not collector.is_supported().supported
    with pytest.raises(CollectorError, match="NVML: NVMLError"):
        collector.collect(1000.0)

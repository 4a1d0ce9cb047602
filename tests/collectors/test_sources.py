from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from collectors.contract import CollectorError
from collectors.gpu.nvml import nvml_library_present
from collectors.sources import SourceReading, collect_source


def _values(reading: SourceReading) -> dict[str, float]:
    return {sample.signal: sample.value for sample in reading.samples}


def test_units_of_the_exporter_become_units_of_the_catalogue(expositions: Path) -> None:
    reading = collect_source(str(expositions / "triton_2019_sample.txt"), host="box", service="t")
    values = {(sample.entity, sample.signal): sample for sample in reading.samples}
    assert values["service/t", "llm_request_latency_seconds"].value < 1
    assert values["service/t", "llm_request_latency_seconds"].labels["window"] == "lifetime"
    assert all(entity.startswith(("service/t", "host/box/gpu/GPU-")) for entity, _ in values)
    assert "nv_inference_load_ratio" in reading.unrecognised


def test_a_counter_stays_a_counter_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "metrics.txt"
    file.write_text(
        "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total 41\n"
    )
    reading = collect_source(str(file))
    (sample,) = reading.samples
    assert (sample.signal, sample.value, sample.unit) == ("llm_tokens_per_second", 41, "tokens")
    assert sample.labels["cumulative"] == "true"
    assert "counts since the process started" in reading.notes[0]


def test_blank_values_are_absent_and_noted(tmp_path: Path) -> None:
    file = tmp_path / "metrics.txt"
    file.write_text(
        'DCGM_FI_DEV_GPU_TEMP{gpu="0"} 9223372036854775794\nDCGM_FI_DEV_GPU_UTIL{gpu="0"} 5\n'
        'DCGM_FI_DEV_CLOCKS_EVENT_REASONS{gpu="0"} 128\n'
    )
    reading = collect_source(str(file), host="box")
    values = _values(reading)
    assert "gpu_temperature_celsius" not in values
    assert values["gpu_throttle_power_brake"] == 1
    assert {sample.entity for sample in reading.samples} == {"host/box/gpu/0"}
    assert any("DCGM_FI_DEV_GPU_TEMP" in note for note in reading.notes)


def test_models_of_one_service_are_summed(tmp_path: Path) -> None:
    file = tmp_path / "metrics.txt"
    file.write_text(
        'vllm:num_requests_waiting{model_name="a"} 1\nvllm:num_requests_waiting{model_name="b"} 2\n'
        'vllm:kv_cache_usage_perc{model_name="a"} 0.4\nvllm:kv_cache_usage_perc{model_name="b"} 0.9\n'
    )
    reading = collect_source(str(file), service="llm")
    assert _values(reading) == {"llm_queue_depth": 3, "llm_kv_cache_usage_ratio": 0.9}


def test_a_url_without_a_path_means_its_metrics() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/metrics"
        return httpx.Response(200, text="llm_queue_depth 4\n")

    client = httpx.Client(transport=httpx.MockTransport(respond))
    reading = collect_source("http://box7:8000", client=client)
    assert [(s.entity, s.signal, s.value) for s in reading.samples] == [
        ("service/box7", "llm_queue_depth", 4.0)
    ]


def test_this_machine() -> None:
    reading = collect_source("host", host="box")
    assert {"host_cpu_percent", "host_memory_used_ratio"} <= set(_values(reading))
    assert all(sample.unit for sample in reading.samples)


@pytest.mark.skipif(nvml_library_present(), reason="this machine has an NVIDIA driver")
def test_no_driver_says_what_to_do() -> None:
    with pytest.raises(CollectorError, match="libnvidia-ml") as caught:
        collect_source("nvml")
    assert caught.value.fix


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot read"), ("<html>\n", "line 1"), ("a 1\nb\n", "line 2")]
)
def test_what_cannot_be_read_says_where(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "source.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CollectorError, match=says) as caught:
        collect_source(str(file))
    assert caught.value.fix
    assert "source.txt" in str(caught.value)

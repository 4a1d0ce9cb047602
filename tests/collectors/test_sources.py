from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from collectors.contract import CollectorError
from collectors.gpu.nvml import nvml_library_present
from collectors.signals import catalogue
from collectors.sources import SourceReading, collect_source

CORE = {"engine_resident_memory_bytes", "engine_open_fds"}
KSERVE = {"llm_request_latency_seconds", "llm_requests_per_second", *CORE}
# What each real scrape must give; a new name in the catalogue adds to its line.
GOLDEN = {
    "dcgm_exporter_L4_kops.txt": {
        "gpu_utilization_percent",
        "gpu_memory_bandwidth_percent",
        "gpu_memory_used_bytes",
        "gpu_temperature_celsius",
        "gpu_power_usage_watts",
        "gpu_sm_clock_mhz",
        "gpu_pcie_replay_total",
        "gpu_pcie_throughput_bytes",
        "gpu_memory_clock_mhz",
        "gpu_energy_joules_total",
        "gpu_row_remap_correctable_total",
        "gpu_row_remap_uncorrectable_total",
        "gpu_row_remap_failed",
    },
    "kserve_0.21.0_live_local.txt": KSERVE,
    "kserve_python_custom_server_2022.txt": KSERVE,
    "node_exporter_e2e_output.txt": {
        "host_cpu_percent",
        "host_cpu_iowait_percent",
        "host_cpu_steal_percent",
        "host_load",
        "host_oom_kills_total",
        "host_disk_latency_seconds",
        "host_network_errors_total",
        "host_tcp_retransmit_ratio",
    },
    "tgi_datadog_fixture_PARTIAL.txt": {
        "llm_request_latency_seconds",
        "llm_queue_depth",
        "llm_batch_size",
        "llm_requests_per_second",
        "llm_error_ratio",
        "llm_prompt_tokens_mean",
    },
    "triton_2019_sample.txt": {
        "llm_request_latency_seconds",
        "llm_queue_wait_seconds",
        "llm_batch_size",
        "llm_requests_per_second",
        "gpu_utilization_percent",
        "gpu_memory_used_bytes",
        "gpu_memory_total_bytes",
        "gpu_memory_used_ratio",
        "gpu_power_usage_watts",
        "gpu_power_limit_watts",
    },
    "triton_docs_metrics_excerpt.txt": {
        "llm_time_to_first_token_seconds",
        "llm_queue_wait_seconds",
        "llm_requests_per_second",
    },
    "triton_tensorrtllm_backend_readme.txt": {
        "llm_queue_depth",
        "llm_active_requests",
        "llm_requests_per_second",
        "llm_kv_cache_usage_ratio",
    },
    "triton_vllm_backend_readme.txt": {
        "llm_request_latency_seconds",
        "llm_time_to_first_token_seconds",
        "llm_time_per_output_token_seconds",
        "llm_tokens_per_second",
        "llm_prompt_tokens_mean",
        "llm_output_tokens_mean",
    },
    "vllm_v1_qwen2.5-0.5b_kops.txt": {
        "llm_queue_depth",
        "llm_active_requests",
        "llm_requests_per_second",
        "llm_tokens_per_second",
        "llm_kv_cache_usage_ratio",
        "llm_preemptions_per_second",
        *CORE,
    },
}


def _values(reading: SourceReading) -> dict[str, float]:
    return {sample.signal: sample.value for sample in reading.samples}


def test_there_is_a_golden_list_for_every_real_scrape(expositions: Path) -> None:
    assert {file.name for file in expositions.glob("*.txt")} == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_real_scrape_gives_its_signals(expositions: Path, name: str) -> None:
    reading = collect_source(str(expositions / name))
    assert set(_values(reading)) == GOLDEN[name]
    for sample in reading.samples:
        known = catalogue()[sample.signal]
        assert known.low is None or sample.value >= known.low
        assert known.high is None or sample.value <= known.high or "cumulative" in sample.labels
    identities = [(sample.entity, sample.signal) for sample in reading.samples]
    assert len(set(identities)) == len(identities)


def test_units_of_the_exporter_become_units_of_the_catalogue(expositions: Path) -> None:
    reading = collect_source(str(expositions / "triton_2019_sample.txt"), host="box", service="t")
    values = {(sample.entity, sample.signal): sample for sample in reading.samples}
    assert values["service/t", "llm_request_latency_seconds"].value < 1
    assert values["service/t", "llm_request_latency_seconds"].labels["window"] == "lifetime"
    assert all(entity.startswith(("service/t", "host/box/gpu/GPU-")) for entity, _ in values)
    assert "nv_energy_consumption" in reading.unrecognised


def test_a_counter_stays_a_counter_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "metrics.txt"
    file.write_text(
        "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total 41\n"
    )
    reading = collect_source(str(file))
    (sample,) = reading.samples
    assert (sample.signal, sample.value, sample.unit) == ("llm_tokens_per_second", 41, "tokens")
    assert sample.labels["cumulative"] == "true"
    assert "count since the process started" in reading.notes[0]


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

from __future__ import annotations

from analysis.topology import Topology

ONE = Topology(
    [
        "service/llm",
        "host/a",
        "host/a/gpu/0",
        "host/a/gpu/1",
        "collector/service-llm",
        "collector/canary-llm",
        "collector/gpu-nvml",
        "collector/gpu-xid",
        "collector/host",
        "collector/prometheus-far",
    ]
)
TWO = Topology(
    ["service/x", "service/y", "host/a", "host/b", "host/a/gpu/0"], {"service/x": "host/a"}
)

SIMULATED = Topology(["host/a", "host/a/gpu/0", "collector/gpu-simulated"])
FLEET = Topology(["host/a", "host/b", "host/b/gpu/0", "collector/gpu-nvml"])


def test_on_one_machine_everything_is_one_stack() -> None:
    assert {ONE.stack_of(name) for name in ONE.entities} == {"host/a"}
    assert ONE.members("host/a") == ONE.entities


def test_with_several_hosts_a_link_says_where_a_service_runs() -> None:
    assert TWO.stack_of("service/x") == "host/a"
    assert TWO.stack_of("service/y") == "service/y"
    assert TWO.members("host/b") == {"host/b"}


def test_a_gpu_is_no_relative_of_its_sibling() -> None:
    related = ONE.related("host/a/gpu/0")
    assert {"host/a", "service/llm", "collector/gpu-nvml"} <= related
    assert "host/a/gpu/1" not in related


def test_the_canary_collector_is_no_relative_of_the_service() -> None:
    assert "collector/service-llm" in ONE.related("service/llm")
    assert "collector/canary-llm" not in ONE.related("service/llm")
    assert ONE.related("collector/service-llm") == {"service/llm"}


def test_who_delivers_a_series() -> None:
    assert ONE.source_of("service/llm", "engine_up") == "collector/service-llm"
    assert ONE.source_of("service/llm", "canary_success") == "collector/canary-llm"
    assert ONE.source_of("host/a/gpu/0", "gpu_xid") == "collector/gpu-xid"
    assert ONE.source_of("host/a/gpu/0", "gpu_state") == "collector/gpu-nvml"
    assert ONE.source_of("host/a/gpu/0/mig/1.0", "gpu_memory_used_bytes") == "collector/gpu-nvml"
    assert SIMULATED.source_of("host/a/gpu/0", "gpu_xid") == "collector/gpu-simulated"
    assert FLEET.source_of("host/b/gpu/0", "gpu_state") is None
    assert ONE.source_of("host/a", "host_load") == "collector/host"
    assert ONE.source_of("collector/gpu-nvml", "scrape_success") is None
    assert TWO.source_of("service/x", "engine_up") is None

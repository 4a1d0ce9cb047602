from __future__ import annotations

from collections.abc import Mapping

from collectors.links import Link, Relation
from collectors.reading import TargetReader

GPU = "host/node1/gpu/0"
REPLICA = "service/llm/replica/llm-0"


def _links(reader: TargetReader, text: str, at: float = 0.0) -> list[Link]:
    return list(reader.take(text, 1_700_000_000.0 + at, at).links)


def _dcgm(**labels: str) -> str:
    given: Mapping[str, str] = {"gpu": "0", "UUID": "GPU-1", "Hostname": "node1", **labels}
    inside = ",".join(f'{name}="{value}"' for name, value in given.items())
    return f"DCGM_FI_DEV_GPU_TEMP{{{inside}}} 40\nDCGM_FI_DEV_POWER_USAGE{{{inside}}} 100\n"


def test_a_gpu_serves_the_pod_that_its_series_name_now() -> None:
    reader = TargetReader({"instance": "node1:9400", "pod": "dcgm-exporter-x7", "namespace": "gpu"})
    one = Link("pod/prod.llm-0", Relation.RUNS_ON, GPU)
    other = Link("pod/prod.llm-1", Relation.RUNS_ON, GPU)
    assert _links(reader, _dcgm()) == []
    assert _links(reader, _dcgm(pod="llm-0", namespace="prod"), 1) == [one]
    assert _links(reader, _dcgm(pod="llm-1", namespace="prod"), 2) == [other]
    assert _links(reader, _dcgm(pod="llm-0", namespace="prod"), 3) == [one]
    assert _links(reader, _dcgm(), 4) == []


def test_the_pod_that_prometheus_renamed_is_the_one_that_is_meant() -> None:
    labels = {"pod": "dcgm-exporter-x7", "namespace": "gpu"}
    text = _dcgm(exported_pod="llm-0", exported_namespace="prod", **labels)
    (link,) = _links(TargetReader({"instance": "node1:9400"}), text)
    assert link.source == "pod/prod.llm-0"


def test_a_replica_runs_where_its_target_says() -> None:
    reader = TargetReader(
        {"instance": "10.0.0.1:8000", "pod": "llm-0", "namespace": "prod", "service": "llm"}
    )
    text = (
        'vllm:num_requests_running{model_name="m"} 1\nvllm:num_requests_waiting{model_name="m"} 0\n'
    )
    assert _links(reader, text) == [
        Link(REPLICA, Relation.RUNS_ON, "pod/prod.llm-0"),
        Link(REPLICA, Relation.RUNS_ON, "host/10.0.0.1"),
    ]

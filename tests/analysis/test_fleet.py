"""Several hosts: who is blamed, and what belongs together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from analysis.analyst import Analyst
from analysis.detection.contract import Detections
from analysis.diagnosis.causes import catalogue
from analysis.diagnosis.memory import EvidenceMemory
from analysis.diagnosis.ranking import Diagnoser
from analysis.diagnosis.settings import DiagnosisSettings, MemorySettings
from analysis.findings import Incident
from analysis.history import History
from analysis.incidents import IncidentTracker
from analysis.journal import Journal
from analysis.linkbook import LinkBook
from analysis.settings import AnalysisSettings, IncidentSettings
from analysis.topology import Topology
from collectors.contract import Sample
from collectors.links import Link, Relation, links_of
from collectors.reading import TargetReader

Normal = Mapping[str, Mapping[str, tuple[float, float, float]]]

SERVICE = "service/llm"
A, B = "service/llm/replica/pod-a", "service/llm/replica/pod-b"
GPUS = [f"host/{host}/gpu/{number}" for host in ("a", "b") for number in (0, 1)]
LINKS = [
    # As a dcgm-exporter and the targets of a vLLM say it: nobody names a host of a replica.
    *links_of("host/a/gpu/0", {"pod": "pod-a", "namespace": "prod", "Hostname": "a"}),
    *links_of("host/b/gpu/1", {"pod": "pod-b", "namespace": "prod", "Hostname": "b"}),
    *links_of(A, {"pod": "pod-a", "namespace": "prod"}),
    *links_of(B, {"pod": "pod-b", "namespace": "prod"}),
    *(
        Link(f"collector/scrape-{name.replace('/', '-')}", Relation.READS, name)
        for name in (*GPUS, A, B)
    ),
]

Fleet = Callable[[], Any]


@pytest.fixture
def fleet(world: Any, normal: Normal) -> Fleet:
    """Two hosts with two GPUs each, and one service with a replica on each host."""
    service, gpu, host = normal["service/llm"], normal["host/box1/gpu/0"], normal["host/box1"]
    readers = {link.source for link in LINKS if link.relation is Relation.READS}
    entities: Normal = {
        SERVICE: service,
        A: service,
        B: service,
        "host/a": host,
        "host/b": host,
        **dict.fromkeys(GPUS, gpu),
        **{name: {"scrape_success": (1, 1, 1)} for name in readers},
    }
    return lambda: world.__class__(normal=entities)


def _play(world: Any, before: Any, *, links: list[Link], ticks: int = 12) -> list[Incident]:
    book = LinkBook()
    book.note(1000.0, links)
    tracker = IncidentTracker(
        IncidentSettings(),
        Diagnoser(DiagnosisSettings(), links=book),
        EvidenceMemory(MemorySettings(), catalogue()),
    )
    for tick in range(3):
        tracker.tick(before.detections(980.0 + tick))
    for tick in range(ticks):
        tracker.tick(world.detections(1000.0 + tick))
    return list(tracker.open_incidents)


def _hot(world: Any, gpu: str) -> Any:
    return world.set(
        990.0,
        gpu,
        gpu_temperature_celsius=92,
        gpu_temperature_margin_celsius=0,
        gpu_throttle_thermal=1,
        gpu_throttle_reason=0x20,
        gpu_sm_clock_mhz=1200,
    )


def _slow(world: Any, name: str) -> Any:
    return world.set(
        991.0,
        name,
        engine_step_seconds=0.08,
        llm_time_per_output_token_seconds=0.09,
        llm_request_latency_seconds=4,
        llm_time_to_first_token_seconds=0.6,
    )


@pytest.mark.parametrize(("gpu", "replica"), [("host/a/gpu/0", A), ("host/b/gpu/1", B)])
def test_of_two_hosts_the_one_with_the_fault_is_blamed(
    fleet: Fleet, gpu: str, replica: str
) -> None:
    sick = _slow(_slow(_hot(fleet(), gpu), replica), SERVICE)
    (incident,) = _play(sick, fleet(), links=LINKS)
    assert incident.leading is not None
    assert (incident.leading.cause, incident.entity) == ("gpu_thermal_throttle", gpu)
    assert {SERVICE, replica, gpu} <= {each.entity for each in incident.anomalies}


def test_without_links_the_service_is_told_apart_from_the_gpu(fleet: Fleet) -> None:
    """What the links are for: without them nobody can know that the two are one fault."""
    sick = _slow(_slow(_hot(fleet(), "host/a/gpu/0"), A), SERVICE)
    assert len(_play(sick, fleet(), links=[])) == 2


def test_faults_on_both_hosts_are_two_incidents(fleet: Fleet) -> None:
    sick = fleet()
    for gpu in ("host/a/gpu/0", "host/b/gpu/1"):
        _hot(sick, gpu)
    found = _play(_slow(sick, SERVICE), fleet(), links=LINKS)
    assert sorted(each.entity for each in found) == ["host/a/gpu/0", "host/b/gpu/1"]


def test_a_replica_that_crashes_is_named_and_its_sibling_is_not(fleet: Fleet) -> None:
    sick = fleet().set(990.0, B, engine_crashes=1, engine_up=0, engine_state=5, llm_error_ratio=0.4)
    (incident,) = _play(sick, fleet(), links=LINKS)
    assert incident.leading is not None
    assert (incident.leading.cause, incident.entity) == ("engine_crash", B)


def test_an_old_trouble_of_a_host_does_not_swallow_the_service(fleet: Fleet) -> None:
    sick = fleet().set(500.0, "host/a", host_disk_used_ratio=0.99, host_disk_free_bytes=1e8)
    sick.set(
        990.0,
        SERVICE,
        engine_step_age_seconds=6,
        engine_state=4,
        engine_steps_per_second=0,
        llm_tokens_per_second=0,
        llm_queue_depth=31,
        canary_success=0,
        health_engine_ok=0,
    )
    found = {each.entity: each for each in _play(sick, fleet(), links=LINKS)}
    assert set(found) == {"host/a", SERVICE}
    assert found["host/a"].leading is not None
    assert found["host/a"].leading.cause == "disk_full"
    assert found[SERVICE].leading is not None
    assert found[SERVICE].leading.cause == "engine_hang"


def test_links_reach_diagnosis_through_the_analyst(fleet: Fleet, tmp_path: Any) -> None:
    world = fleet()

    class Played:
        def tick(self, now_seconds: float, row: Any) -> Detections:
            return world.detections(now_seconds)  # type: ignore[no-any-return]

        def close(self) -> None:
            return

    journal = Journal(tmp_path / "journal.sqlite")
    analyst = Analyst(AnalysisSettings(), journal, History(), pipeline=Played())  # type: ignore[arg-type]
    _slow(_slow(_hot(world, "host/a/gpu/0"), A), SERVICE)
    for tick in range(8):
        sample = Sample(1000.0 + tick, "host/a", "host_load", 1.0)
        found = analyst.tick(1000.0 + tick, [sample], LINKS if tick == 0 else ())
    assert [each.entity for each in found.incidents] == ["host/a/gpu/0"]
    journal.close()


def test_scrapes_of_two_hosts_give_the_topology() -> None:
    """What dcgm-exporters and vLLM servers say by themselves is enough to tie them together."""
    samples, links = [], []
    for host in ("a", "b"):
        pod = f'pod="llm-{host}",namespace="prod"'
        dcgm = "".join(
            f'DCGM_FI_DEV_GPU_TEMP{{gpu="{gpu}",UUID="GPU-{host}{gpu}",Hostname="{host}",'
            f"{pod if gpu == 0 else ''}}} 40\n"
            for gpu in (0, 1)
        )
        target = {"instance": f"10.0.0.{ord(host)}:8000", "pod": f"llm-{host}", "namespace": "prod"}
        for labels, text in (
            ({"instance": f"{host}:9400", "pod": "dcgm-exporter"}, dcgm),
            (target, 'vllm:num_requests_running{model_name="llm"} 3\n'),
        ):
            found = TargetReader(labels).take(text, 1_700_000_000.0, 0.0)
            samples += found.samples
            links += found.links
    topology = Topology({sample.entity for sample in samples}, links=links)
    one, other = (f"service/llm/replica/llm-{host}" for host in "ab")
    assert topology.stack_of(one) == "host/a"
    assert topology.stack_of(other) == "host/b"
    assert topology.hosts_of("service/llm") == ("host/a", "host/b")
    assert one in topology.related("host/a/gpu/0")
    assert not {one, other} & topology.related("host/a/gpu/1")

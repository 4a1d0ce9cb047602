from __future__ import annotations

from analysis.linkbook import LinkBook
from analysis.topology import Topology
from collectors.links import Link, Relation, links_of

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


GPU_A, GPU_B, SPARE = "host/a/gpu/0", "host/b/gpu/0", "host/a/gpu/1"
REPLICA_A, REPLICA_B = "service/llm/replica/p1", "service/llm/replica/10.0.0.2_8000"
SEVERAL = Topology(
    [
        "service/llm",
        REPLICA_A,
        REPLICA_B,
        "service/far",
        "service/bare",
        "host/a",
        "host/b",
        "host/10.0.0.3",
        GPU_A,
        GPU_B,
        SPARE,
        "collector/scrape-dcgm-a",
        "collector/scrape-vllm-p1",
    ],
    links=[
        *links_of(GPU_A, {"pod": "p1", "namespace": "prod"}),
        *links_of(REPLICA_A, {"pod": "p1", "namespace": "prod", "instance": "10.0.0.1:8000"}),
        *links_of(REPLICA_B, {"node": "b"}),
        *links_of("service/far", {"instance": "192.0.2.1:8000"}),
        *links_of("service/bare", {"instance": "10.0.0.3:8000"}),
        Link("collector/scrape-dcgm-a", Relation.READS, GPU_A),
        Link("collector/scrape-vllm-p1", Relation.READS, REPLICA_A),
    ],
)


def test_a_pod_joins_a_replica_to_its_gpu() -> None:
    assert SEVERAL.hosts_of(REPLICA_A) == ("host/a",)
    assert GPU_A in SEVERAL.related(REPLICA_A)
    assert REPLICA_A in SEVERAL.related(GPU_A)
    assert SPARE not in SEVERAL.related(REPLICA_A)
    assert REPLICA_A not in SEVERAL.related(SPARE)


def test_a_node_joins_a_replica_to_all_of_its_host() -> None:
    assert SEVERAL.stack_of(REPLICA_B) == "host/b"
    assert {"host/b", GPU_B} <= SEVERAL.related(REPLICA_B)


def test_an_instance_joins_a_service_to_a_host_of_that_address() -> None:
    assert SEVERAL.stack_of("service/bare") == "host/10.0.0.3"


def test_a_service_runs_where_its_replicas_do_and_is_a_stack_of_its_own() -> None:
    assert SEVERAL.hosts_of("service/llm") == ("host/a", "host/b")
    assert SEVERAL.stack_of("service/llm") == "service/llm"
    assert SEVERAL.stack_of(REPLICA_A) == "host/a"
    assert SEVERAL.members("service/llm") == {"service/llm"}
    assert {GPU_A, GPU_B, SPARE, REPLICA_A} <= SEVERAL.reach("service/llm")
    assert SEVERAL.reach("host/b") == SEVERAL.members("host/b")


def test_what_runs_on_no_watched_host_is_tied_to_none() -> None:
    assert SEVERAL.hosts_of("service/far") == ()
    one = Topology(
        ["host/a", "service/far"], links=links_of("service/far", {"instance": "192.0.2.1:1"})
    )
    assert one.stack_of("service/far") == "service/far"


def test_the_machine_itself_is_no_place() -> None:
    for here in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "[::1]"):
        assert not list(links_of("service/llm", {"instance": here}))


def test_who_delivers_a_series_is_read_from_links() -> None:
    assert SEVERAL.source_of(GPU_A, "gpu_xid") == "collector/scrape-dcgm-a"
    assert SEVERAL.source_of(REPLICA_A, "engine_up") == "collector/scrape-vllm-p1"
    assert SEVERAL.stack_of("collector/scrape-vllm-p1") == "host/a"
    assert SEVERAL.related("collector/scrape-vllm-p1") == {REPLICA_A}


def test_a_person_overrides_what_labels_say() -> None:
    told = Topology(
        ["host/a", "host/b", "service/x"],
        {"service/x": "host/b"},
        links_of("service/x", {"node": "a"}),
    )
    assert told.stack_of("service/x") == "host/b"


def test_links_in_a_circle_are_followed_once() -> None:
    round_about = [
        Link("service/x", Relation.RUNS_ON, "pod/a"),
        Link("pod/a", Relation.RUNS_ON, "pod/b"),
        Link("pod/b", Relation.RUNS_ON, "pod/a"),
        Link("pod/b", Relation.RUNS_ON, "host/b"),
    ]
    assert Topology(["host/b", "service/x"], links=round_about).hosts_of("service/x") == ("host/b",)


def test_a_link_is_forgotten_when_nobody_says_it_any_more() -> None:
    book = LinkBook(keep_seconds=100.0)
    old, new = (Link("pod/x", Relation.RUNS_ON, f"host/{name}/gpu/0") for name in "ab")
    book.note(0.0, [old])
    before = book.links
    book.note(50.0, [old])
    assert book.links is before
    book.note(90.0, [new])
    assert book.links == {old, new}
    book.note(151.0, [new])
    assert book.links == {new}

from __future__ import annotations

import pytest

from collectors.links import Link, Relation, host_of_instance, links_of


@pytest.mark.parametrize(
    ("instance", "host"),
    [
        ("node1:9400", "node1"),
        ("node1", "node1"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("[fe80::1]:9400", "[fe80::1]"),
        ("[fe80::1]", "[fe80::1]"),
        (":9400", ":9400"),
        ("", ""),
    ],
)
def test_the_host_of_an_instance(instance: str, host: str) -> None:
    assert host_of_instance(instance) == host


def test_a_gpu_that_names_a_pod_serves_it() -> None:
    labels = {"gpu": "0", "Hostname": "a", "pod": "llm-0", "namespace": "prod"}
    expected = [Link("pod/prod.llm-0", Relation.RUNS_ON, "host/a/gpu/0")]
    assert list(links_of("host/a/gpu/0", labels)) == expected
    (link,) = links_of("host/a/gpu/0/mig/1", labels)
    assert link.target == "host/a/gpu/0/mig/1"


def test_a_gpu_that_nothing_uses_has_no_link() -> None:
    assert not list(links_of("host/a/gpu/0", {"pod": "", "namespace": "", "Hostname": "a"}))


def test_a_replica_runs_in_its_pod_and_on_its_node() -> None:
    name = "service/llm/replica/0"
    labels = {"pod": "llm-0", "namespace": "prod", "node": "a", "instance": "10.0.0.1:8000"}
    assert list(links_of(name, labels)) == [
        Link(name, Relation.RUNS_ON, "pod/prod.llm-0"),
        Link(name, Relation.RUNS_ON, "host/a"),
    ]


def test_names_from_labels_cannot_break_out_of_their_place() -> None:
    (link,) = links_of("service/llm", {"pod": "../host/a", "namespace": "x/y"})
    assert link.target == "pod/x_y..._host_a"


@pytest.mark.parametrize("name", ["host/a", "collector/x", "fleet"])
def test_nothing_follows_for_others(name: str) -> None:
    assert not list(links_of(name, {"pod": "p", "node": "n"}))

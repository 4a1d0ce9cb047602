from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collectors.contract import CollectorError
from collectors.links import Link, Relation
from collectors.prometheus_links import PrometheusLinks

GPU = {"gpu": "0", "Hostname": "a", "exported_pod": "llm-0", "exported_namespace": "prod"}
REPLICA = {"model_name": "llm", "pod": "llm-0", "namespace": "prod", "instance": "10.0.0.1:8000"}
LINKS = [
    Link("pod/prod.llm-0", Relation.RUNS_ON, "host/a/gpu/0"),
    Link("service/llm/replica/llm-0", Relation.RUNS_ON, "pod/prod.llm-0"),
    Link("service/llm/replica/llm-0", Relation.RUNS_ON, "host/10.0.0.1"),
]


class Server:
    """Answers the two queries; counts them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken = False
        self.services: list[Mapping[str, str]] = [REPLICA]

    def __call__(self, promql: str) -> Any:
        self.asked.append(promql)
        if self.broken:
            raise CollectorError("away")
        found = [GPU] if "DCGM_FI_DEV_GPU_TEMP" in promql else self.services
        return [(labels, [(0.0, 1.0)]) for labels in found]


def test_links_are_asked_for_once_a_minute() -> None:
    now = [0.0]
    server, links = Server(), PrometheusLinks("x", ("dcgm", "vllm"), monotonic=lambda: now[0])
    assert links.read(server) == LINKS
    now[0] = 59.0
    assert links.read(server) == LINKS
    assert len(server.asked) == 2
    now[0] = 60.0
    server.services = []
    assert links.read(server) == LINKS[:1]


def test_what_cannot_be_had_stays_as_it_was() -> None:
    now = [0.0]
    server, links = Server(), PrometheusLinks("x", ("dcgm", "vllm"), monotonic=lambda: now[0])
    links.read(server)
    now[0], server.broken = 60.0, True
    assert links.read(server) == LINKS


def test_a_service_that_nothing_tells_apart_is_its_own_replica() -> None:
    server = Server()
    server.services = [{"service": "llm", "node": "a"}]
    links = PrometheusLinks("x", ("dcgm", "vllm"), monotonic=lambda: 0.0)
    assert Link("service/llm", Relation.RUNS_ON, "host/a") in links.read(server)

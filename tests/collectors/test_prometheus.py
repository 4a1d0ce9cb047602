from __future__ import annotations

import itertools
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from collectors.access import HttpAccess
from collectors.contract import Collector, CollectorError, Paced, Sample, SeriesKey
from collectors.exporter import make_exporter_server
from collectors.fleet_reader import PrometheusQuery
from collectors.links import Link, Relation
from collectors.promapi import PrometheusClient
from collectors.prometheus import PrometheusCollector, default_queries
from collectors.signals import catalogue
from collectors.sources import collect_source
from collectors.store.contract import SeriesReader
from collectors.store.prometheus import PrometheusSeriesReader
from collectors.store.sqlite import SqliteSeriesStore

GPU = 'gpu="0",UUID="GPU-1",Hostname="box1",exported_pod="m-0",exported_namespace="prod",pod="dcgm"'
TEXT = f"""\
# TYPE DCGM_FI_DEV_GPU_TEMP gauge
DCGM_FI_DEV_GPU_TEMP{{{GPU}}} 71
# TYPE DCGM_FI_DEV_FB_USED gauge
DCGM_FI_DEV_FB_USED{{{GPU}}} 1024
# TYPE DCGM_FI_DEV_CLOCKS_EVENT_REASONS gauge
DCGM_FI_DEV_CLOCKS_EVENT_REASONS{{{GPU}}} 32
# TYPE DCGM_FI_DEV_XID_ERRORS gauge
DCGM_FI_DEV_XID_ERRORS{{{GPU}}} 79
DCGM_FI_DEV_FB_USED{{{GPU},GPU_I_ID="2"}} 8
# TYPE vllm:request_success_total counter
vllm:request_success_total{{model_name="m",finished_reason="stop"}} {{ticks}}
# TYPE node_load1 gauge
node_load1 3
# TYPE node_cpu_seconds_total counter
node_cpu_seconds_total{{cpu="0",mode="idle"}} {{ticks}}
node_cpu_seconds_total{{cpu="0",mode="user"}} {{ticks}}
node_cpu_seconds_total{{cpu="1",mode="idle"}} {{ticks}}
node_cpu_seconds_total{{cpu="1",mode="user"}} {{ticks}}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{model_name="m",engine="0",pod="m-0",namespace="prod"}} 2
vllm:num_requests_waiting{{model_name="m",engine="1",pod="m-1",namespace="prod"}} 3
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_bucket{{model_name="m",le="1"}} {{ticks}}
vllm:e2e_request_latency_seconds_bucket{{model_name="m",le="2"}} {{ticks}}
vllm:e2e_request_latency_seconds_bucket{{model_name="m",le="+Inf"}} {{ticks}}
"""


class Stack(SimpleNamespace):
    url: str
    process: subprocess.Popen[bytes]

    def collect(self, collector: PrometheusCollector) -> dict[tuple[str, str], float]:
        # Rates need two scrapes that differ, so the target moves with every look at it.
        self.ticks += 10
        self.target.text = (
            TEXT.replace("{ticks}", str(self.ticks)).replace("{{", "{").replace("}}", "}")
        )
        try:
            samples = collector.collect(1000.0).samples
        except CollectorError:
            return {}
        return {(sample.entity, sample.signal): sample.value for sample in samples}


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, live: SimpleNamespace, kind: str
) -> Iterator[Stack]:
    target = live.Target()
    with live.running(kind, tmp_path_factory.mktemp(kind), target.port) as server:
        yield Stack(target=target, url=server.url, process=server.process, ticks=0, kind=kind)


@pytest.mark.integration
def test_a_fleet_reads_as_canonical_signals(stack: Stack, live: SimpleNamespace) -> None:
    collector = PrometheusCollector("fleet", stack.url, longest_backoff_seconds=0.1)
    wanted = {
        ("service/m", "llm_request_latency_seconds"),
        ("service/m", "llm_error_ratio"),
        ("host/127.0.0.1", "host_cpu_percent"),
    }
    seen: dict[tuple[str, str], float] = live.eventually(
        lambda: s if wanted <= set(s := stack.collect(collector)) else None, stack.process
    )
    gpu = "host/box1/gpu/0"
    assert seen[gpu, "gpu_temperature_celsius"] == 71
    assert seen[gpu, "gpu_memory_used_bytes"] == 1024 * 1024**2
    assert seen[gpu, "gpu_throttle_thermal"] == 1
    assert seen["host/127.0.0.1", "host_load"] == 1.5
    assert seen["host/127.0.0.1", "host_cpu_percent"] == pytest.approx(50)
    # An event that the exporter repeats for ever is over; one that never happened is zero.
    assert seen[gpu, "gpu_xid"] == 0
    assert seen["service/m", "llm_error_ratio"] == 0
    assert seen[f"{gpu}/mig/2", "gpu_memory_used_bytes"] == 8 * 1024**2
    skew = seen["collector/prometheus-fleet", "prometheus_clock_skew_seconds"]
    assert abs(skew) < 5
    assert seen["service/m", "llm_queue_depth"] == 5
    assert seen["service/m", "llm_request_latency_seconds"] == pytest.approx(0.95)
    collector.close()


@pytest.mark.integration
def test_where_replicas_run_is_read_with_their_numbers(stack: Stack, live: SimpleNamespace) -> None:
    expected = {
        Link("pod/prod.m-0", Relation.RUNS_ON, "host/box1/gpu/0"),
        Link("service/m/replica/m-0", Relation.RUNS_ON, "pod/prod.m-0"),
        Link("service/m/replica/m-1", Relation.RUNS_ON, "pod/prod.m-1"),
    }

    def found() -> bool:
        collector = PrometheusCollector("places", stack.url)
        stack.collect(collector)
        with closing(PrometheusCollector("places", stack.url)) as asked:
            links = {*asked.collect(1000.0).links}
        collector.close()
        return expected <= links

    live.eventually(found, stack.process)


@pytest.mark.integration
def test_a_query_of_ones_own_may_fix_the_entity(stack: Stack, live: SimpleNamespace) -> None:
    collector = PrometheusCollector(
        "own", stack.url, [PrometheusQuery("llm_slots", "vector(8)", "service/llm")]
    )
    seen = live.eventually(lambda: stack.collect(collector), stack.process)
    assert seen["service/llm", "llm_slots"] == 8.0


@pytest.mark.integration
def test_a_wrong_query_is_told_from_an_absent_server(stack: Stack, live: SimpleNamespace) -> None:
    client = PrometheusClient(stack.url)
    live.eventually(lambda: _answers(client), stack.process)
    with pytest.raises(CollectorError, match="pars") as caught:
        client.query("sum(")
    assert not caught.value.retryable
    assert abs(client.clock_skew_seconds()) < 5
    assert collect_source("prometheus:nothing_of_this_name", prometheus_url=stack.url).samples == []


@pytest.mark.integration
def test_a_series_that_vanishes_is_gone_before_it_is_old(
    stack: Stack, live: SimpleNamespace
) -> None:
    key = ("host/box1/gpu/0", "gpu_temperature_celsius")
    collector = PrometheusCollector(
        "stale", stack.url, max_age_seconds=3000, longest_backoff_seconds=0.1
    )
    live.eventually(lambda: key in stack.collect(collector), stack.process)
    stack.target.text = "node_load1 3\n"

    def gone() -> bool:
        found = {(sample.entity, sample.signal) for sample in collector.collect(0.0).samples}
        return bool(found) and key not in found

    live.eventually(gone, stack.process)  # the marker, since 3000 s have not gone by


def _answers(client: PrometheusClient) -> list[Any]:
    try:
        return client.query("vector(1)")
    except CollectorError:
        return []


@pytest.mark.integration
def test_a_query_by_hand_gives_canonical_and_raw_names(stack: Stack, live: SimpleNamespace) -> None:
    key = ("host/box1/gpu/0", "gpu_temperature_celsius")
    collector = PrometheusCollector("hand", stack.url)
    live.eventually(lambda: key in stack.collect(collector), stack.process)
    reading = collect_source(
        'prometheus:{__name__=~"DCGM_FI_DEV_GPU_TEMP|scrape_series_added"}',
        prometheus_url=stack.url,
    )
    by_signal = {sample.signal: sample for sample in reading.samples}
    assert by_signal["gpu_temperature_celsius"].entity == "host/box1/gpu/0"
    assert "scrape_series_added" in by_signal
    assert reading.unrecognised == ["scrape_series_added"]


@pytest.mark.integration
def test_what_galen_exports_reads_back(tmp_path: Path, live: SimpleNamespace, kind: str) -> None:
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    gpu = "host/box/gpu/0"
    server = make_exporter_server(store, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with live.running(kind, tmp_path, server.server_port) as running:
        url, process = running.url, running.process
        reader = PrometheusSeriesReader(url)
        assert isinstance(reader, SeriesReader)
        client = PrometheusClient(url)

        def exported() -> list[Any]:
            now = time.time()
            store.write([Sample(now, gpu, "gpu_temperature_celsius", 61.5, {"simulated": "true"})])
            return _answers(client) and list(reader.series())

        (info,) = live.eventually(exported, process)
        assert info.key == SeriesKey(gpu, "gpu_temperature_celsius")
        assert info.last_value == 61.5
        assert info.labels["simulated"] == "true"

        def stored() -> Any:
            # Steps before the first scrape are empty, so the newest may still be missing.
            now = time.time()
            frame = reader.read(start_seconds=now - 60, end_seconds=now, entities=[gpu])
            return [frame] if len(frame) else []

        (frame,) = live.eventually(stored, process)
        now = time.time()
        assert set(frame["value"]) == {61.5}
        assert frame["time"].between(now - 90, now).all()
        assert reader.read(start_seconds=now - 60, end_seconds=now, entities=["host/other"]).empty
        samples = PrometheusCollector("galens", url).collect(now).samples
        assert Sample(now, gpu, "gpu_temperature_celsius", 61.5, {"simulated": "true"}) in samples
    server.shutdown()


def test_an_absent_server_is_a_collector_error_without_the_token() -> None:
    collector = PrometheusCollector(
        "away", "http://127.0.0.1:9", access=HttpAccess(token=SecretStr("s3cret"))
    )
    assert isinstance(collector, Collector)
    assert isinstance(collector, Paced)
    with pytest.raises(CollectorError, match="cannot ask http://127") as caught:
        collector.collect(1000.0)
    assert caught.value.retryable
    assert "s3cret" not in str(caught.value)


def test_every_name_of_the_catalogue_becomes_a_query() -> None:
    queries = default_queries()
    assert {query.signal for query in queries} <= set(catalogue())
    # The first name is the preferred one.
    by_signal = {query.signal: query.promql for query in reversed(queries)}
    assert by_signal["host_disk_free_bytes"].endswith(
        '(node_filesystem_avail_bytes{mountpoint="/"})'
    )
    assert "[60000ms]" in by_signal["llm_tokens_per_second"]


def test_a_failing_server_is_left_alone_for_longer_and_longer() -> None:
    now = [0.0]
    collector = PrometheusCollector(
        "away",
        "http://127.0.0.1:9",
        every_seconds=15,
        longest_backoff_seconds=60,
        monotonic=lambda: now[0],
        rng=random.Random(1),
    )
    asked: list[float] = []
    for _ in range(300):
        with pytest.raises(CollectorError) as caught:
            collector.collect(now[0])
        assert "cannot ask" in str(caught.value)  # why it is left alone is said each time
        if "not asked for" not in str(caught.value):
            asked.append(now[0])
        now[0] += 1.0
    pauses = [later - sooner for sooner, later in itertools.pairwise(asked)]
    assert 7 <= pauses[0] <= 15
    assert all(30 <= pause <= 61 for pause in pauses[2:])


@pytest.mark.integration
def test_a_gpu_that_a_fleet_reads_can_be_told_by_its_uuid(
    stack: Stack, live: SimpleNamespace
) -> None:
    collector = PrometheusCollector("uuid", stack.url)

    def labels() -> dict[str, str] | None:
        stack.collect(collector)
        samples = collector.collect(1000.0).samples
        named = [one for one in samples if one.signal == "gpu_temperature_celsius"]
        return dict(named[0].labels) if named else None

    assert live.eventually(labels, stack.process) == {"uuid": "GPU-1", "exporter": "dcgm"}
    collector.close()

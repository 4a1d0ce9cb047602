"""One line of configuration watches each kind of exporter, itself or through a Prometheus."""

from __future__ import annotations

import contextlib
import json
import threading
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from collectors.contract import Collector, CollectorError, Sample
from collectors.registry import build_collectors
from collectors.settings import CollectorsSettings

GOLDEN = Path(__file__).parent / "golden"
SCRAPES = {
    "dcgm": "dcgm_exporter_L4_kops",
    "node": "node_exporter_e2e_output",
    "vllm": "vllm_v1_qwen2.5-0.5b_kops",
    "triton": "triton_2019_sample",
    "tgi": "tgi_datadog_fixture_PARTIAL",
    "kserve": "kserve_0.21.0_live_local",
}
READY_TRIES = 300
SECRET = "s3cr3t-t0ken"


def _gauges(name: str) -> dict[str, float]:
    """What one scrape alone tells; ages depend on the clock."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    return {
        signal: value
        for _, signal, value, _, labels in golden["samples"]
        if not {"cumulative", "window"} & set(labels) and "uptime" not in signal
    }


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Any]:
    built: list[Collector] = []

    def watch(line: str) -> Collector:
        text = f'host_enabled = false\ngpu_mode = "none"\n{line}\n'
        settings = CollectorsSettings.model_validate(tomllib.loads(text))
        built.extend(build_collectors(settings, state_dir=tmp_path))
        (collector,) = built
        return collector

    yield watch
    for collector in built:
        collector.close()


def _collected(collector: Collector, wanted: Mapping[str, float]) -> dict[str, Sample]:
    """Call a collector as the poller does until it has given what is wanted."""
    found: dict[str, Sample] = {}
    pause = threading.Event()
    for tick in range(READY_TRIES):
        with contextlib.suppress(CollectorError):  # the server has only just started
            found |= {one.signal: one for one in collector.collect(1e9 + tick).samples}
        if wanted.keys() <= found.keys():
            return found
        pause.wait(0.1)
    raise AssertionError(f"never came: {sorted(wanted.keys() - found.keys())}")


@pytest.mark.parametrize("exporter", SCRAPES)
def test_one_line_watches_an_exporter(
    expositions: Path, live: SimpleNamespace, watching: Any, exporter: str
) -> None:
    target = live.Target()
    target.text = (expositions / f"{SCRAPES[exporter]}.txt").read_text("utf-8")
    address = f"http://127.0.0.1:{target.port}"
    collector = watching(
        f'scrape = [{{ targets = ["{address}"], interval_seconds = 1, deadline_seconds = 1 }}]'
    )
    wanted = _gauges(SCRAPES[exporter])
    found = _collected(collector, wanted)
    assert {signal: found[signal].value for signal in wanted} == pytest.approx(wanted)
    assert found["scrape_success"].value == 1
    target.server.shutdown()
    target.server.server_close()


@pytest.mark.parametrize("text", ["up 1\n", "<html>\n"])
def test_a_scrape_tells_nobody_the_secrets_of_its_url(
    live: SimpleNamespace, watching: Any, text: str
) -> None:
    target = live.Target()
    target.text = text
    address = f"http://127.0.0.1:{target.port}/metrics?token={SECRET}"
    told: list[object] = []
    with capture_logs() as logs:
        collector = watching(
            f'scrape = [{{ targets = ["{address}"], interval_seconds = 1, deadline_seconds = 1, '
            f'token = "{SECRET}" }}]'
        )
        pause = threading.Event()
        for tick in range(READY_TRIES):
            collection = collector.collect(1e9 + tick)
            told.append(collection)
            if any(one.signal == "scrape_success" for one in collection.samples):
                break
            pause.wait(0.1)
    assert "scrape_success" in repr(told)
    assert SECRET not in repr(told)
    assert SECRET not in repr(logs)
    target.server.shutdown()
    target.server.server_close()


def test_a_plain_address_is_enough() -> None:
    settings = CollectorsSettings.model_validate({"scrape": ["http://gpu1:9400", "gpu2:9400"]})
    (job,) = settings.scrape
    assert list(job.targets) == ["http://gpu1:9400", "gpu2:9400"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("exporter", "server"),
    [*((exporter, "prometheus") for exporter in SCRAPES), ("dcgm", "victoria-metrics")],
)
def test_one_line_watches_them_through_a_server_that_scrapes_them(
    expositions: Path,
    live: SimpleNamespace,
    watching: Any,
    tmp_path: Path,
    exporter: str,
    server: str,
) -> None:
    target = live.Target()
    target.text = (expositions / f"{SCRAPES[exporter]}.txt").read_text("utf-8")
    # What a process says of itself is told from an exporter's only by what else the target has.
    wanted = {
        name: value for name, value in _gauges(SCRAPES[exporter]).items() if "engine_" not in name
    }
    with live.running(server, tmp_path, target.port) as running:
        collector = watching(f'prometheus = [{{ name = "fleet", url = "{running.url}" }}]')
        found = _collected(collector, wanted)
    assert {signal: found[signal].value for signal in wanted} == pytest.approx(wanted)
    target.server.shutdown()
    target.server.server_close()

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from wsgiref.util import setup_testing_defaults

from collectors.contract import Sample
from collectors.exporter import make_exporter_app, make_exporter_server
from collectors.exposition import Exposition, parse_exposition
from collectors.store.contract import StoreError
from collectors.store.sqlite import SqliteSeriesStore

NOW = 1_700_000_000.0


def _scrape(reader: Any, now: float = NOW) -> Exposition:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    got: list[str] = []
    app = make_exporter_app(reader, lambda: now, max_age_seconds=15)
    body = b"".join(app(environ, lambda status, _headers: got.append(status)))
    assert got == ["200 OK"]
    return parse_exposition(body.decode())


def _store(tmp_path: Path, samples: Sequence[Sample]) -> SqliteSeriesStore:
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    store.write(samples)
    return store


def test_the_entity_is_spread_over_the_labels(tmp_path: Path) -> None:
    exposition = _scrape(
        _store(
            tmp_path,
            [
                Sample(
                    NOW, "host/box/gpu/0", "gpu_temperature_celsius", 61.5, {"simulated": "true"}
                ),
                Sample(NOW, "service/llm", "llm_queue_depth", 3.0),
            ],
        )
    )
    (gpu,) = exposition.named("gpu_temperature_celsius")
    assert gpu.value == 61.5
    assert gpu.labels == {
        "entity": "host/box/gpu/0",
        "host": "box",
        "gpu_id": "0",
        "service": "",
        "collector": "",
        "simulated": "true",
    }
    (queue,) = exposition.named("llm_queue_depth")
    assert (queue.labels["service"], queue.labels["simulated"]) == ("llm", "")
    family = exposition.families["gpu_temperature_celsius"]
    assert family.kind == "gauge"
    assert family.help.endswith("(celsius)")
    assert exposition.named("galen_store_readable")[0].value == 1


def test_old_samples_are_absent(tmp_path: Path) -> None:
    store = _store(tmp_path, [Sample(NOW - 20, "host/a", "host_load", 1.0)])
    assert _scrape(store).named("host_load") == []
    assert _scrape(store).named("galen_store_newest_timestamp_seconds")[0].value == NOW - 20
    assert _scrape(store, NOW - 10).named("host_load")[0].value == 1


def test_a_store_that_cannot_be_read_shows() -> None:
    def broken() -> None:
        raise StoreError("gone")

    exposition = _scrape(SimpleNamespace(series=broken))
    assert exposition.named("galen_store_readable")[0].value == 0


def test_it_serves_over_http(tmp_path: Path) -> None:
    store = _store(tmp_path, [Sample(NOW, "host/a", "host_load", 1.0)])
    server = make_exporter_server(store, port=0, clock=lambda: NOW)
    Thread(target=server.serve_forever, daemon=True).start()
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.server_port}/metrics", timeout=10
    ) as answer:
        assert b"host_load{" in answer.read()
    server.shutdown()
    server.server_close()

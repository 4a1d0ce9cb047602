from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from collectors.backfill import Backfill, Checkpoint
from collectors.backoff import Backoff
from collectors.contract import CollectorError, Sample
from collectors.fleet_reader import FleetReader, PrometheusQuery
from collectors.promapi import Matrix, PrometheusClient, PrometheusError
from collectors.remote_write import RemoteWriteClient, encode_write_request
from collectors.store.sqlite import SqliteSeriesStore

T0 = 1_700_000_000.0
LOAD = PrometheusQuery("host_load", "up", "host/a")


class Server:
    """Answers ranges with their own times as values, after what a test wants it to do first."""

    place = "http://fake.test"

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []
        self.errors: list[PrometheusError] = []
        self.warnings: list[str] = []

    def query_range(self, promql: str, **given: float) -> Matrix:
        start, end, step = (given[f"{name}_seconds"] for name in ("start", "end", "step"))
        self.asked.append((start, end))
        if self.errors:
            raise self.errors.pop(0)
        count = int((end - start) // step) + 1
        points = [(start + place * step, start + place * step - T0) for place in range(count)]
        return [({"galen_rank": "0", "instance": "a:1"}, points)]

    def take_warnings(self) -> list[str]:
        told, self.warnings = self.warnings, []
        return told


def _run(
    server: Server,
    folder: Path,
    stored: list[Sample],
    *,
    queries: Sequence[PrometheusQuery] = (LOAD,),
) -> Backfill:
    def write(samples: Sequence[Sample]) -> int:
        stored.extend(samples)
        return len(samples)

    return Backfill(
        server,  # type: ignore[arg-type]
        queries,
        exported=False,
        write=write,
        checkpoint=Checkpoint(folder / "backfill.json", ["here"]),
        step_seconds=10,
        backoff=Backoff(1e-6, 1e-6),
    )


def test_every_step_comes_once_and_a_second_run_adds_what_is_new(tmp_path: Path) -> None:
    server, stored = Server(), list[Sample]()
    start = T0 - T0 % 10
    first = _run(server, tmp_path, stored).run(start - 5, start + 25_000)
    assert first.resumed_from_seconds is None
    assert [sample.time_seconds for sample in stored] == [start + at for at in range(0, 25_000, 10)]
    assert {sample.entity for sample in stored} == {"host/a"}
    assert len(server.asked) == 3  # a thousand steps a piece
    again = _run(server, tmp_path, stored).run(start, start + 25_100)
    assert again.resumed_from_seconds == start + 25_000
    assert again.samples == 10
    # What began later than what is asked for now does not count as done.
    assert _run(server, tmp_path, stored).run(start - 1000, start).resumed_from_seconds is None


def test_a_run_that_stops_goes_on_where_it_was(tmp_path: Path) -> None:
    server, stored = Server(), list[Sample]()
    stop, told = threading.Event(), list[float]()

    def progress(share: float) -> None:
        told.append(share)
        stop.set()

    done = _run(server, tmp_path, stored).run(T0, T0 + 30_000, progress=progress, stop=stop)
    assert done.done_until_seconds == T0 + 10_000
    assert told == [pytest.approx(1 / 3)]
    _run(server, tmp_path, stored).run(T0, T0 + 30_000)
    assert [sample.time_seconds for sample in stored] == [T0 + at for at in range(0, 30_000, 10)]


def test_a_failing_server_is_asked_again_and_in_the_end_given_up(tmp_path: Path) -> None:
    server, stored = Server(), list[Sample]()
    server.errors = [PrometheusError("busy", fix="", status=503)] * 3
    _run(server, tmp_path, stored).run(T0, T0 + 100)
    assert len(stored) == 10
    server.errors = [PrometheusError("busy", fix="", status=503)] * 50
    with pytest.raises(PrometheusError, match="busy"):
        _run(server, tmp_path, stored).run(T0, T0 + 200)
    assert len(server.errors) == 45


def test_a_partial_answer_is_stored_told_and_asked_for_again(tmp_path: Path) -> None:
    server, stored = Server(), list[Sample]()
    server.warnings = ["a partial answer"]
    done = _run(server, tmp_path, stored).run(T0, T0 + 25_000)
    assert (len(stored), done.notes, done.done_until_seconds) == (2500, ["a partial answer"], T0)
    assert _run(server, tmp_path, stored).run(T0, T0 + 25_000).samples == 2500


def test_a_refused_query_takes_no_other_with_it() -> None:
    good = [PrometheusQuery(f"signal_{number}", f"good{number}", "host/a") for number in range(20)]
    bad = PrometheusQuery("signal_bad", "sum(", "host/a")
    now = [0.0]
    asked: list[str] = []

    def fetch(promql: str) -> Matrix:
        asked.append(promql)
        if "sum(," in promql:
            raise PrometheusError("parse error", fix="", status=400, retryable=False)
        ranks = range(promql.count("label_replace"))
        return [({"galen_rank": str(rank)}, [(T0, 1.0)]) for rank in ranks]

    reader = FleetReader("test", [*good, bad], exported=False, monotonic=lambda: now[0])
    assert len(reader.read(fetch)) == 20
    assert "signal_bad" in reader.notes()[0]
    asked.clear()
    assert len(reader.read(fetch)) == 20
    assert len(asked) == 2  # the refused one is left alone
    now[0] = 601.0
    reader.read(fetch)
    assert any("sum(" in promql for promql in asked)
    lonely = FleetReader("test", [bad], exported=False)
    with pytest.raises(CollectorError, match="every query"):
        lonely.read(fetch)


def test_queries_are_short_enough_for_every_server() -> None:
    long = [PrometheusQuery("s", "x" * 5000 + str(number), "host/a") for number in range(20)]
    lengths: list[int] = []

    def fetch(promql: str) -> Matrix:
        lengths.append(len(promql))
        return []

    FleetReader("test", long).read(fetch)
    assert max(lengths) < 16_384  # VictoriaMetrics' -search.maxQueryLen


@pytest.mark.integration
def test_history_of_a_real_server_fills_the_store(
    tmp_path: Path, live: SimpleNamespace, kind: str
) -> None:
    with live.running(kind, tmp_path) as server, httpx.Client(trust_env=False) as http:
        writer = RemoteWriteClient(server.write_url, http)
        span = 4 * 3600
        samples = [Sample(T0 + at, "host/a", "host_load", at / 60) for at in range(0, span, 15)]
        assert writer.send(encode_write_request(samples, {"job": "x"})).reason == ""
        server.flush()
        store = SqliteSeriesStore(tmp_path / "series.sqlite")
        run = Backfill(
            PrometheusClient(server.url, deadline_seconds=20),
            [PrometheusQuery("host_swap_used_bytes", "host_load * 2", "host/b")],
            exported=True,
            write=store.write,
            checkpoint=Checkpoint(tmp_path / "backfill.json", [server.url]),
            step_seconds=15,
        )
        done = run.run(T0, T0 + span)
        start = -(-T0 // 15) * 15
        frame = store.read(start_seconds=0, end_seconds=1e12, entities=["host/a"])
        assert (frame["time"].iloc[0], len(frame)) == (start, len(samples))
        # Each step has the newest sample before it: those of this writer lie 5 s before the grid.
        behind = (frame["time"] - T0) / 60 - frame["value"]
        assert behind.between(0, 15 / 60).all()
        doubled = store.read(start_seconds=0, end_seconds=1e12, entities=["host/b"])
        assert list(doubled["value"]) == pytest.approx(list(frame["value"] * 2))
        assert (done.samples, done.notes) == (2 * len(samples), [])
        store.close()

from __future__ import annotations

from pathlib import Path

import structlog

from collectors.cardinality import MOST_NAMED, Refusal, SeriesLimit
from collectors.contract import Collection, Sample, SeriesKey, Support
from collectors.poller import Poller
from collectors.store.sqlite import SqliteSeriesStore
from collectors.store.upkeep import Retention, StoreUpkeep

NOW = 1_700_000_000.0


def pods(first: int, last: int, signal: str = "llm_queue_depth") -> list[Sample]:
    return [Sample(NOW, f"service/llm/pod/p{n}", signal, 1.0) for n in range(first, last)]


def test_known_series_go_on_and_new_ones_stop_at_the_limit() -> None:
    limit = SeriesLimit(per_source=5, overall=100)
    assert len(limit.admit("a", pods(0, 3))) == 3
    assert [sample.entity[-2:] for sample in limit.admit("a", pods(1, 10))] == [
        "p1", "p2", "p3", "p4",
    ]  # fmt: skip
    assert len(limit.admit("a", pods(0, 10))) == 5
    assert limit.refusal("a") == Refusal(5, "llm_queue_depth", "pod", 5)
    assert limit.refusal("b") == Refusal(0)


def test_one_source_takes_no_room_from_another_but_all_share_one_limit() -> None:
    limit = SeriesLimit(per_source=10, overall=15)
    assert len(limit.admit("a", pods(0, 50))) == 10
    assert len(limit.admit("b", pods(100, 150))) == 5
    assert len(limit.admit("c", pods(200, 201))) == 0
    assert len(limit.admit("a", pods(0, 10))) == 10


def test_what_the_store_has_is_admitted_whoever_comes_first_after_a_restart() -> None:
    known = [SeriesKey(f"service/llm/pod/p{n}", "llm_queue_depth") for n in range(5)]
    limit = SeriesLimit(per_source=5, overall=100, known=known)
    assert len(limit.admit("a", pods(50, 53))) == 3
    assert len(limit.admit("a", pods(0, 5))) == 5
    assert len(limit.admit("a", pods(60, 61))) == 0


def test_the_offender_is_named_once_and_the_count_is_bounded() -> None:
    limit = SeriesLimit(per_source=1, overall=10**9)
    with structlog.testing.capture_logs() as logs:
        limit.admit("bomb", [*pods(0, 3, "gpu_power_usage_watts"), *pods(0, MOST_NAMED + 500)])
        limit.admit("bomb", pods(0, MOST_NAMED + 500))
    (told,) = logs
    assert (told["event"], told["source"]) == ("series_refused", "bomb")
    assert (told["signal"], told["exploding"]) == ("llm_queue_depth", "pod")
    assert "most_series_per_source" in told["fix"]
    assert limit.refusal("bomb").series == MOST_NAMED
    sample = limit.sample(NOW, "bomb")
    assert (sample.entity, sample.signal) == ("collector/bomb", "scrape_series_refused")
    assert sample.labels == {"signal": "llm_queue_depth", "exploding": "pod"}


def test_room_comes_back_with_what_the_store_forgets() -> None:
    limit = SeriesLimit(per_source=5, overall=100)
    limit.admit("a", pods(0, 10))
    limit.recount([SeriesKey("service/llm/pod/p4", "llm_queue_depth")])
    assert limit.refusal("a") == Refusal(0)
    assert limit.sample(NOW, "a").labels == {}
    assert len(limit.admit("a", pods(4, 20))) == 5


class Bomb:
    """A source that has new pods at every call."""

    name = "bomb"
    deadline_seconds = 5.0
    calls = 0

    def is_supported(self) -> Support:
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        self.calls += 1
        return Collection(pods(0, 5) + pods(self.calls * 100, self.calls * 100 + 50))

    def close(self) -> None: ...


def test_a_label_bomb_fills_the_store_to_the_limit_and_no_further(tmp_path: Path) -> None:
    store = SqliteSeriesStore(tmp_path / "series.sqlite")
    limit = SeriesLimit(per_source=80, overall=1000)
    upkeep = StoreUpkeep(store, Retention(3600.0, 3600.0, 3600.0), limit=limit)
    poller = Poller([Bomb()], budget_seconds=5.0, limit=limit)
    for tick in range(10):
        store.write(poller.tick(NOW + tick).samples)
    of_pods = [info for info in store.series() if info.key.entity.startswith("service/")]
    assert len(of_pods) == 80
    (told,) = (info for info in store.series() if info.key.signal == "scrape_series_refused")
    assert told.last_value == 10 * 50 - 75
    assert dict(told.labels) == {"signal": "llm_queue_depth", "exploding": "pod"}
    for _, duty in upkeep.due(NOW + 100_000):
        duty()
    poller.close()
    store.close()

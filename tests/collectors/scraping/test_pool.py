from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from collectors.contract import Collection, CollectorError, Sample
from collectors.links import Link, Relation
from collectors.scraping import watched
from collectors.scraping.buffer import SampleBuffer
from collectors.scraping.collector import ENTITY, ScrapeCollector
from collectors.scraping.discovery import Discovery, FileDiscovery, StaticDiscovery
from collectors.scraping.jobs import Reader, ScrapeJob
from collectors.scraping.pool import ScrapePool
from collectors.scraping.targets import ScrapeTarget, target_of

Until = Callable[[Callable[[], Any]], Any]


class Counted:
    """Reads a text as one sample: how many lines it has."""

    def __init__(self, target: ScrapeTarget) -> None:
        self.entity = f"host/{target.instance.replace(':', '_')}"
        self.calls: list[tuple[float, float]] = []
        self.threads: set[str] = set()

    def take(
        self, text: str, now_seconds: float, at_seconds: float, *, open_metrics: bool | None = None
    ) -> Collection:
        self.calls.append((now_seconds, at_seconds))
        self.threads.add(threading.current_thread().name)
        if "more" in text and self.entity.endswith("zipped"):
            raise RuntimeError("a reader's own fault")
        if open_metrics:
            raise CollectorError("line 1: not a sample")
        lines = float(text.count("\n"))
        return Collection([Sample(now_seconds, self.entity, "host_load", lines)])


class Changing:
    """A list of targets that a test changes."""

    def __init__(self, *targets: ScrapeTarget) -> None:
        self.now: Sequence[ScrapeTarget] = targets

    def targets(self) -> Sequence[ScrapeTarget]:
        return self.now

    def problems(self) -> Sequence[str]:
        return ()


class Running:
    """A pool of one job over a site, and what it has given."""

    def __init__(self, discoveries: Sequence[Discovery], **options: Any) -> None:
        self.readers: dict[str, Counted] = {}
        self.buffer = SampleBuffer(max_samples=options.pop("max_samples", 10_000))
        pool_options = {name: options.pop(name) for name in ("wall",) if name in options}
        job = ScrapeJob(
            "test",
            discoveries,
            self._reader,
            interval_seconds=options.pop("interval_seconds", 0.1),
            deadline_seconds=options.pop("deadline_seconds", 0.1),
            **options,
        )
        self.pool = ScrapePool([job], self.buffer, refresh_seconds=0.05, **pool_options)
        self.collector = ScrapeCollector(self.pool, self.buffer)
        self.samples: list[Sample] = []
        self.links: set[Link] = set()

    def _reader(self, target: ScrapeTarget) -> Reader:
        return self.readers.setdefault(target.name, Counted(target))

    def collect(self) -> Mapping[tuple[str, str], float]:
        """Collect once more and return the newest value of every series so far."""
        found = self.collector.collect(1.0)
        self.samples += found.samples
        self.links |= set(found.links)
        return {(sample.entity, sample.signal): sample.value for sample in self.samples}


@pytest.fixture
def run(site: Any) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(*paths: str, **options: Any) -> Running:
        targets = [target_of("test", site.url(path), {"instance": path}) for path in paths]
        discoveries = options.pop("discoveries", [Changing(*targets)])
        made.append(Running(discoveries, **options))
        return made[-1]

    yield start
    for each in made:
        each.collector.close()


def _health(running: Running, path: str) -> dict[str, float]:
    name = target_of("test", "http://x", {"instance": path}).entity
    return {signal: value for (about, signal), value in running.collect().items() if about == name}


def test_every_target_gives_samples_its_health_and_who_reads_it(
    run: Callable[..., Running], until: Until
) -> None:
    running = run("/ok", "/broken")
    until(lambda: _health(running, "/ok") and _health(running, "/broken"))
    assert running.collect()["host//ok", "host_load"] == 2.0
    good, bad = _health(running, "/ok"), _health(running, "/broken")
    assert (good["scrape_success"], good["scrape_samples"]) == (1.0, 1.0)
    assert (bad["scrape_success"], bad["scrape_samples"], bad["scrape_success_ratio"]) == (0, 0, 0)
    reader = target_of("test", "http://x", {"instance": "/ok"}).entity
    assert Link(reader, Relation.READS, "host//ok") in running.links
    assert running.collect()[ENTITY, "scrape_targets"] == 2.0
    assert running.collect()[ENTITY, "scrape_targets_failing"] == 1.0
    assert "/broken: answers 503" in "\n".join(running.collector.collect(1.0).notes)


def test_targets_that_hang_flood_or_lie_cost_only_themselves(
    run: Callable[..., Running], until: Until
) -> None:
    bad = ["/hang", "/drip", "/endless", "/bomb", "/half", "/nonsense", "/cut", "/html"]
    running = run("/ok", *bad, max_bytes=100_000)
    until(lambda: all(_health(running, path) for path in bad))
    calls = len(running.readers["scrape-test-/ok"].calls)
    until(lambda: len(running.readers["scrape-test-/ok"].calls) >= calls + 5)
    assert _health(running, "/ok")["scrape_success_ratio"] == 1.0
    for path in bad:
        assert _health(running, path)["scrape_success"] == 0.0
        assert not running.readers[f"scrape-test-{path}"].calls


def test_a_hanging_target_misses_its_turns_and_is_never_asked_twice_at_once(
    run: Callable[..., Running], until: Until, site: Any
) -> None:
    running = run("/hang", deadline_seconds=0.35)
    running.collect()
    until(lambda: running.pool.state().missed >= 4)
    assert site.requests["/hang"] <= site.connections
    assert _health(running, "/hang")["scrape_age_seconds"] > 0.3


def test_a_reader_that_breaks_is_its_targets_own_fault(
    run: Callable[..., Running], until: Until
) -> None:
    running = run("/open", "/zipped", "/ok")
    with capture_logs() as logged:
        for path in ("/open", "/zipped"):
            until(lambda path=path: len(running.collect()) and running.readers and len(
                running.readers[f"scrape-test-{path}"].calls) >= 3)  # fmt: skip
    failed = {row["target"]: row["error"] for row in logged if row["event"] == "target_failed"}
    assert failed == {
        "scrape-test-/open": "line 1: not a sample",
        "scrape-test-/zipped": "RuntimeError: a reader's own fault",
    }
    assert [row["event"] for row in logged].count("target_failed") == 2
    assert _health(running, "/zipped")["scrape_success_ratio"] == 0.0
    assert _health(running, "/ok")["scrape_success"] == 1.0


def test_targets_come_and_go_while_the_others_go_on(
    run: Callable[..., Running], until: Until, site: Any
) -> None:
    one, two = (target_of("test", site.url("/ok"), {"instance": name}) for name in "ab")
    listed = Changing(one)
    running = run(discoveries=[listed])
    until(lambda: ("host/a", "host_load") in running.collect())
    listed.now = [one, two]
    until(lambda: ("host/b", "host_load") in running.collect())
    listed.now = [two]
    until(lambda: running.pool.state().targets == 1)
    before = len(running.readers["scrape-test-a"].calls)
    after = len(running.readers["scrape-test-b"].calls)
    until(lambda: len(running.readers["scrape-test-b"].calls) >= after + 3)
    assert len(running.readers["scrape-test-a"].calls) <= before + 1


def test_targets_of_a_file(
    run: Callable[..., Running], until: Until, site: Any, tmp_path: Any
) -> None:
    path = tmp_path / "targets.json"
    running = run(discoveries=[FileDiscovery("test", [str(path)])])
    until(lambda: any("no file matches" in note for note in running.collector.collect(1.0).notes))
    path.write_text(f'[{{"targets": ["{site.url("/ok")}"], "labels": {{"instance": "x"}}}}]')
    until(lambda: ("host/x", "host_load") in running.collect())
    path.write_text("not a list")
    until(lambda: any("are kept" in note for note in running.collector.collect(1.0).notes))
    assert running.pool.state().targets == 1


def test_two_addresses_of_one_name_are_refused_and_said(
    run: Callable[..., Running], until: Until, site: Any
) -> None:
    twins = StaticDiscovery("test", [site.url("/ok"), site.url("/open")], {"instance": "same"})
    running = run(discoveries=[twins, StaticDiscovery("test", [site.url("/zipped")])])
    running.collect()
    until(lambda: running.pool.state().targets == 1)
    (problem,) = running.pool.state().problems
    assert "2 addresses are called scrape-test-same" in problem


def test_a_slow_store_drops_the_oldest_and_says_so(
    run: Callable[..., Running], until: Until
) -> None:
    running = run("/ok", max_samples=20)
    with capture_logs() as logged:
        running.collect()
        until(lambda: running.buffer.dropped > 30)
    assert [row["event"] for row in logged].count("scraped_samples_dropped") == 1
    assert running.collect()[ENTITY, "scrape_dropped_samples_total"] > 30


def test_a_clock_of_the_day_that_jumps_moves_no_turn(
    run: Callable[..., Running], until: Until
) -> None:
    days = iter([1e9, 5.0, -1e9, 3e9] * 1000)
    running = run("/ok", wall=lambda: next(days))
    running.collect()
    reader = until(lambda: running.readers.get("scrape-test-/ok"))
    until(lambda: len(reader.calls) >= 8)
    dated, at = zip(*reader.calls, strict=True)
    assert set(dated) <= {1e9, 5.0, -1e9, 3e9}
    steps = [later - earlier for earlier, later in pairwise(at)]
    assert min(steps) > 0


def test_a_large_answer_is_read_beside_the_loop(
    run: Callable[..., Running], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "LARGE_BYTES", 10)
    running = run("/ok")
    running.collect()
    reader = until(lambda: running.readers.get("scrape-test-/ok"))
    until(lambda: reader.calls)
    assert reader.threads == {"scrape-large_0"}


def test_what_two_targets_claim_goes_to_the_first_until_that_is_gone(
    run: Callable[..., Running], until: Until, site: Any
) -> None:
    ok = target_of("test", site.url("/ok"), {"instance": "ok"})
    other = target_of("test", site.url("/zipped"), {"instance": "other"})
    listed = Changing(ok)
    running = run(discoveries=[listed])
    running._reader(ok).entity = running._reader(other).entity = "host/same"
    until(lambda: running.collect().get(("host/same", "host_load")) == 2.0)
    listed.now = [ok, other]
    until(lambda: running.readers["scrape-test-other"].calls)
    until(lambda: any("gives host/same" in problem for problem in running.pool.state().problems))
    assert running.collect()["host/same", "host_load"] == 2.0
    listed.now = [other]
    until(lambda: running.collect()["host/same", "host_load"] == 3.0)


def test_closing_waits_for_no_target(run: Callable[..., Running], until: Until, site: Any) -> None:
    running = run("/hang", deadline_seconds=1000.0)
    running.collect()
    until(lambda: site.requests["/hang"])
    running.collector.close()
    assert not running.pool.running


def test_a_pool_that_ended_is_started_again_and_that_is_a_failure(
    run: Callable[..., Running], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = run("/ok")

    async def broken(_: ScrapePool) -> None:
        raise RuntimeError("the loop broke")

    with monkeypatch.context() as patched, capture_logs() as logged:
        patched.setattr(ScrapePool, "_run", broken)
        running.collect()
        until(lambda: not running.pool.running)
    assert [row["event"] for row in logged] == ["scrape_pool_broke"]
    with pytest.raises(CollectorError, match="started again"):
        running.collect()
    until(lambda: ("host//ok", "host_load") in running.collect())


def test_more_targets_than_open_files_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from collectors.scraping import pool  # noqa: PLC0415

    limits = [(100, 300)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    with capture_logs() as logged:
        pool._allow_files(10)
        pool._allow_files(1000)
    assert limits == [(100, 300), (266, 300), (300, 300)]
    assert [row["event"] for row in logged] == ["too_few_open_files_allowed"]

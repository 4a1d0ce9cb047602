from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore
from reporting.reports import figures
from reporting.reports.series import SeriesSource

SERVICE = "service/llm"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteSeriesStore]:
    opened = SqliteSeriesStore(tmp_path / "series.sqlite")
    yield opened
    opened.close()


def write(store: SqliteSeriesStore, count: int = 100, **signals: float) -> None:
    store.write(
        [
            Sample(1000.0 + tick, SERVICE, signal, value)
            for tick in range(count)
            for signal, value in signals.items()
        ]
    )


def service(store: SqliteSeriesStore) -> figures.ServiceFigures:
    return figures.service(SeriesSource(store), SERVICE, 1000.0, 1100.0)


def test_requests_and_tokens_are_rates_times_time(store: SqliteSeriesStore) -> None:
    write(store, llm_requests_per_second=5.0, llm_tokens_per_second=40.0)
    found = service(store)
    assert found.requests == pytest.approx(500.0)
    assert found.output_tokens == pytest.approx(4000.0)
    assert found.availability_low is None  # no ratio is known: not 100 %


def test_availability_leaves_invalid_requests_out(store: SqliteSeriesStore) -> None:
    write(
        store,
        llm_requests_per_second=5.0,
        llm_error_ratio=0.08,
        llm_rejected_ratio=0.0,
        llm_client_error_ratio=0.1,
        llm_cancelled_ratio=0.1,
    )
    found = service(store)
    assert found.availability_low == found.availability_high == pytest.approx(0.72 / 0.8)


def test_what_may_be_counted_twice_makes_a_range(store: SqliteSeriesStore) -> None:
    write(store, llm_requests_per_second=5.0, llm_error_ratio=0.3, llm_rejected_ratio=0.2)
    found = service(store)
    assert found.availability_low == pytest.approx(0.5)
    assert found.availability_high == pytest.approx(0.7)


def test_a_busy_failure_weighs_more_than_a_quiet_one(store: SqliteSeriesStore) -> None:
    for tick in range(100):
        busy = tick < 50
        store.write(
            [
                Sample(1000.0 + tick, SERVICE, "llm_requests_per_second", 9.0 if busy else 1.0),
                Sample(1000.0 + tick, SERVICE, "llm_error_ratio", 1.0 if busy else 0.0),
            ]
        )
    assert service(store).availability_low == pytest.approx(0.1, abs=0.01)


def test_without_requests_there_is_no_availability(store: SqliteSeriesStore) -> None:
    write(store, llm_requests_per_second=0.0, llm_error_ratio=0.0)
    assert service(store).availability_low is None


def test_minutes_without_success_are_gaps(store: SqliteSeriesStore) -> None:
    samples = []
    for second in range(0, 3600, 10):
        minute = second // 60
        up = not 10 <= minute < 25
        if minute != 40:
            samples.append(Sample(float(second), "collector/a", "scrape_success", float(up)))
        if minute < 12:
            samples.append(Sample(float(second), "collector/b", "scrape_success", 1.0))
    store.write(samples)
    source = SeriesSource(store)
    found, observed = figures.gaps(source, source.list(), 0.0, 3600.0)
    assert [(gap.collector, gap.missing_minutes, gap.longest_minutes) for gap in found] == [
        ("a", 16, 15),
        ("b", 48, 48),
    ]
    assert found[0].longest_start_seconds == 600.0
    assert observed == 60 - 13 - 1


def test_energy_is_power_times_time(store: SqliteSeriesStore) -> None:
    gpu = "host/a/gpu/0"
    store.write(
        [
            Sample(float(second), gpu, "gpu_power_usage_watts", 360.0, {"simulated": "true"})
            for second in range(1000)
        ]
    )
    source = SeriesSource(store)
    (found,) = figures.gpus(source, source.list(), 0.0, 1000.0)
    assert found.energy_kwh == pytest.approx(0.1)
    assert found.simulated
    assert found.utilization_mean_percent is None
    assert found.ecc_uncorrectable is None

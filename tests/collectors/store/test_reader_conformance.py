"""What every reader of series promises, checked against each of them over real servers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collectors.contract import Sample, SeriesKey
from collectors.remote_write import RemoteWriteClient, Verdict, encode_write_request
from collectors.store.contract import SeriesReader
from collectors.store.prometheus import PrometheusSeriesReader
from collectors.store.sqlite import SqliteSeriesStore

T0 = 1_700_000_000.0
LONG = 20 * 366 * 86400.0
COLUMNS = ["time", "entity", "signal", "value"]


class _Remote:
    """Writes to a server by remote write and reads back what one test wrote."""

    def __init__(self, server: SimpleNamespace, case: str, step_seconds: float | None) -> None:
        self._server = server
        self._labels = {"case": case}
        self._http = httpx.Client(trust_env=False)
        self.reader = PrometheusSeriesReader(
            server.url,
            matchers=self._labels,
            step_seconds=step_seconds,
            lookback_seconds=LONG,
            history_seconds=LONG,
        )

    def write(self, samples: Sequence[Sample]) -> None:
        client = RemoteWriteClient(self._server.write_url, self._http, deadline_seconds=10)
        if samples:
            delivery = client.send(encode_write_request(samples, self._labels))
            assert delivery.verdict is Verdict.DELIVERED, delivery.reason
            self._server.flush()

    def close(self) -> None:
        self.reader.close()
        self._http.close()


class _Embedded:
    def __init__(self, path: Path) -> None:
        self.reader = SqliteSeriesStore(path)
        self.write = self.reader.write
        self.close = self.reader.close


@pytest.fixture(
    scope="module",
    params=[
        "sqlite",
        pytest.param("prometheus", marks=pytest.mark.integration),
        pytest.param("victoria-metrics", marks=pytest.mark.integration),
    ],
)
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    live: SimpleNamespace,
) -> Iterator[SimpleNamespace | None]:
    if request.param == "sqlite":
        yield None
        return
    with live.running(request.param, tmp_path_factory.mktemp("server")) as running:
        yield running


_CASES = itertools.count()


@pytest.fixture
def make(server: SimpleNamespace | None, tmp_path: Path) -> Iterator[object]:
    made: list[_Remote | _Embedded] = []

    def new() -> _Remote | _Embedded:
        case = f"case-{next(_CASES)}"
        store = _Remote(server, case, None) if server else _Embedded(tmp_path / f"{case}.sqlite")
        made.append(store)
        return store

    yield new
    for store in made:
        store.close()


def test_it_is_a_reader_and_nothing_is_an_empty_table(make) -> None:
    store = make()
    assert isinstance(store.reader, SeriesReader)
    frame = store.reader.read(start_seconds=0, end_seconds=1e12)
    assert list(frame.columns) == COLUMNS
    assert frame.empty
    assert list(store.reader.series()) == []


def test_the_span_is_half_open_and_rows_are_sorted(make) -> None:
    store = make()
    store.write([Sample(T0 + offset, "host/a", "host_load", offset) for offset in (3, 1, 2, 0)])
    frame = store.reader.read(start_seconds=T0 + 1, end_seconds=T0 + 3)
    assert list(frame["time"]) == [T0 + 1, T0 + 2]
    assert list(frame["value"]) == [1.0, 2.0]


def test_entities_and_signals_filter_together(make) -> None:
    store = make()
    store.write(
        [
            Sample(T0, entity, signal, 1.0)
            for entity in ("host/a", "host/b-1.x@y+z")
            for signal in ("host_load", "host_cpu_percent")
        ]
    )
    frame = store.reader.read(
        start_seconds=T0,
        end_seconds=T0 + 1,
        entities={"host/b-1.x@y+z"},
        signals=["host_load", "other"],
    )
    assert frame[["entity", "signal"]].to_numpy().tolist() == [["host/b-1.x@y+z", "host_load"]]
    assert store.reader.read(start_seconds=T0, end_seconds=T0 + 1, entities=[]).empty


def test_values_that_are_not_finite_are_left_out(make) -> None:
    store = make()
    values = [math.nan, math.inf, -math.inf, 1.5]
    store.write([Sample(T0 + i, "host/a", "host_load", v) for i, v in enumerate(values)])
    assert list(store.reader.read(start_seconds=0, end_seconds=1e12)["value"]) == [1.5]


def test_a_series_tells_its_first_and_newest(make) -> None:
    store = make()
    store.write(
        [
            Sample(T0 + offset, "host/a", "host_load", float(offset), {"simulated": "true"})
            for offset in range(5)
        ]
    )
    (info,) = store.reader.series()
    assert info.key == SeriesKey("host/a", "host_load")
    assert (info.first_seconds, info.last_seconds, info.last_value) == (T0, T0 + 4, 4.0)
    assert info.labels["simulated"] == "true"


def test_an_unbounded_span_reads_everything(make) -> None:
    store = make()
    store.write([Sample(T0, "host/a", "host_load", 1.0)])
    assert len(store.reader.read(start_seconds=-math.inf, end_seconds=math.inf)) == 1


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.tuples(
            st.integers(0, 10_000_000),
            st.sampled_from(["host/a", "host/b/gpu/0"]),
            st.sampled_from(["host_load", "gpu_temperature_celsius"]),
        ),
        st.floats(allow_nan=False, allow_infinity=False, width=32),
        max_size=60,
    )
)
def test_what_goes_in_comes_out(make, rows: dict[tuple[int, str, str], float]) -> None:
    store = make()
    store.write([Sample(T0 + ms / 1000, entity, name, v) for (ms, entity, name), v in rows.items()])
    frame = store.reader.read(start_seconds=T0, end_seconds=T0 + 20_000)
    got = {
        (round((row.time - T0) * 1000), row.entity, row.signal): row.value
        for row in frame.itertuples()
    }
    assert set(got) == set(rows)
    # VictoriaMetrics keeps a block of samples as integers of one power of ten: 18 digits for all of it.
    least = 1e-17 * max((abs(value) for value in rows.values()), default=0.0)
    assert got == {key: pytest.approx(value, rel=1e-12, abs=least) for key, value in rows.items()}
    assert frame["time"].is_monotonic_increasing


@pytest.mark.integration
def test_a_step_reads_coarser_in_pieces_that_the_server_allows(
    live: SimpleNamespace, tmp_path: Path
) -> None:
    with live.running("prometheus", tmp_path) as running:
        store = _Remote(running, "steps", 1.0)
        times = range(0, 40_000, 10)
        store.write([Sample(T0 + at, "host/a", "host_load", float(at)) for at in times])
        # 40,000 points of one second are four times what Prometheus gives at once.
        frame = store.reader.read(start_seconds=T0, end_seconds=T0 + 40_000)
        assert len(frame) == 40_000
        assert list(frame["value"][:12]) == [0.0] * 10 + [10.0] * 2
        assert frame["time"].is_unique
        store.close()

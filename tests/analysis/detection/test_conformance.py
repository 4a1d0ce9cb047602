"""Every detector keeps the contract, and the checks find one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.detection.absence import Absence, DropToZero
from analysis.detection.contract import Detector, FloatArray, Scores
from analysis.detection.exhaustion import Exhaustion
from analysis.detection.flat_line import FlatLine
from analysis.detection.forest import ForestVote, SameThreadExecutor
from analysis.detection.fusion import BITS, LEADERS
from analysis.detection.limits import Limits
from analysis.detection.mahalanobis import MahalanobisVote
from analysis.detection.peers import Peers
from analysis.detection.seasonal import SeasonalBaseline
from analysis.detection.settings import DetectionSettings, ForestSettings
from analysis.detection.trend import Trend
from collectors.contract import SeriesKey

SETTINGS = DetectionSettings()
FOREST = ForestSettings(first_rows=60, refit_seconds=40, row_seconds=1, rows=128, trees=40)

KEYS = [
    SeriesKey("service/llm", "llm_request_latency_seconds"),
    SeriesKey("service/llm", "llm_requests_per_second"),
    SeriesKey("service/llm", "llm_tokens_per_second"),
    SeriesKey("service/llm", "engine_resident_memory_bytes"),
    SeriesKey("service/llm", "engine_crashes"),
    SeriesKey("service/llm", "health_engine_ok"),
    SeriesKey("host/box1/gpu/0", "gpu_temperature_celsius"),
    SeriesKey("host/box1/gpu/0", "gpu_ecc_uncorrectable_total"),
    SeriesKey("host/box1", "host_disk_used_ratio"),
    SeriesKey("host/box1", "not_in_the_catalogue"),
    *(SeriesKey(f"host/box1/gpu/{n}", "gpu_temperature_celsius") for n in range(1, 5)),
    *(SeriesKey(f"host/box1/gpu/{n}", "gpu_utilization_percent") for n in range(5)),
    SeriesKey("host/box1", "host_memory_available_bytes"),
]
USUAL = np.array([0.2, 20, 800, 4e8, 0, 1, 60, 2, 0.5, 7, *[60] * 4, *[90] * 5, 6e10])
SPREAD = np.array([0.02, 2, 60, 1e6, 0, 0, 1, 0, 0, 0.3, *[1] * 4, *[2] * 5, 1e7])

FACTORIES: dict[str, Callable[[], Detector]] = {
    "baseline": lambda: SeasonalBaseline(SETTINGS.baseline),
    "limit": Limits,
    "absence": lambda: Absence(SETTINGS.absence),
    "drop_to_zero": lambda: DropToZero(SETTINGS.drop),
    "trend": lambda: Trend(SETTINGS.trend),
    "exhaustion": lambda: Exhaustion(SETTINGS.exhaustion),
    "peers": lambda: Peers(SETTINGS.peers),
    "flat_line": lambda: FlatLine(SETTINGS.flat_line),
    "mahalanobis": lambda: MahalanobisVote(SETTINGS.covariance),
    "forest": lambda: ForestVote(FOREST, SameThreadExecutor()),
}


@pytest.fixture(params=sorted(FACTORIES))
def factory(request: pytest.FixtureRequest) -> Callable[[], Detector]:
    return FACTORIES[request.param]


def stream(ticks: int, seed: int = 3, missing: float = 0.05) -> FloatArray:
    random = np.random.default_rng(seed)
    values = USUAL + SPREAD * random.normal(size=(ticks, len(USUAL)))
    values[ticks // 2 : ticks // 2 + 8, [0, 5]] = 5.0, 0.0
    values[ticks * 3 // 4 :, 3] += 30e6 * np.arange(ticks - ticks * 3 // 4)
    values[random.random(values.shape) < missing] = np.nan
    return values


def play(
    detector: Detector,
    values: FloatArray,
    *,
    start: int = 0,
    learn: NDArray[np.bool_] | None = None,
) -> FloatArray:
    allowed = np.ones(values.shape[1], dtype=bool) if learn is None else learn
    rows = [
        detector.score(float(start + tick), row.copy(), allowed).score
        for tick, row in enumerate(values)
    ]
    return np.array(rows)


def started(factory: Callable[[], Detector], keys: Sequence[SeriesKey] = KEYS) -> Detector:
    detector = factory()
    detector.grow(keys)
    return detector


def _jump(values: FloatArray) -> None:
    values[:, 0] *= 20


def _broken(values: FloatArray) -> None:
    values[:, 5] = 0.0


def _silent(values: FloatArray) -> None:
    values[:, 8] = np.nan


def _zero(values: FloatArray) -> None:
    values[:, [1, 2]] = 0.0


def _leak(values: FloatArray) -> None:
    values[:, 3] += 50e6 * np.arange(len(values))


def _run_out(values: FloatArray) -> None:
    values[:, 19] -= 9e7 * np.arange(len(values))


def _hot(values: FloatArray) -> None:
    values[:, 12] += 25.0


def _stuck(values: FloatArray) -> None:
    values[:, 9] = values[0, 9]


def _unlike(values: FloatArray) -> None:
    values[:, :3] = USUAL[:3] * [5, 0.2, 5]


FAULTS: dict[str, tuple[Callable[[FloatArray], None], int]] = {
    "baseline": (_jump, 0),
    "limit": (_broken, 5),
    "absence": (_silent, 8),
    "drop_to_zero": (_zero, 1),
    "trend": (_leak, 3),
    "exhaustion": (_run_out, 19),
    "peers": (_hot, 12),
    "flat_line": (_stuck, 9),
    "mahalanobis": (_unlike, 0),
    "forest": (_unlike, 0),
}
"""What each detector is there to find, and the series in which it has to."""


def test_a_score_above_one_means_what_the_detector_is_for_and_nothing_else(
    factory: Callable[[], Detector],
) -> None:
    random = np.random.default_rng(11)
    values = USUAL + SPREAD * random.normal(size=(900, len(USUAL)))
    detector = factory()
    fault, column = FAULTS[detector.name]
    fault(values[400:])
    scores = np.nan_to_num(play(started(factory), values))
    assert (scores[400:, column] > 1.0).any()
    # Alone a vote raises nothing, and a baseline is calibrated to be above 1 now and then.
    calibrated = detector.name in {"baseline", "mahalanobis", "forest"}
    assert (scores[200:400] > 1.0).mean() <= (0.02 if calibrated else 0.0)


def test_every_detector_of_the_pipeline_is_held_to_the_contract() -> None:
    assert set(FACTORIES) == set(BITS) == set(FAULTS)
    assert set(LEADERS) < set(BITS)


def test_it_is_a_detector_with_a_name(factory: Callable[[], Detector]) -> None:
    detector = factory()
    assert isinstance(detector, Detector)
    assert FACTORIES[detector.name]


def test_scores_have_one_column_a_series_and_are_never_negative(
    factory: Callable[[], Detector],
) -> None:
    detector = started(factory)
    for tick, row in enumerate(stream(150)):
        scores = detector.score(float(tick), row, np.ones(len(KEYS), dtype=bool))
        for array in (scores.score, scores.expected, scores.low, scores.high):
            assert array.shape == (len(KEYS),)
        assert not (scores.score < 0).any()
        assert not np.isinf(scores.score).any()


def test_the_score_of_a_tick_does_not_change_with_what_follows(
    factory: Callable[[], Detector],
) -> None:
    values = stream(240)
    whole = play(started(factory), values)
    other = values.copy()
    other[160:] = other[160:][::-1] * 3.0
    np.testing.assert_array_equal(whole[:160], play(started(factory), other)[:160])


def test_the_same_input_gives_the_same_scores(factory: Callable[[], Detector]) -> None:
    values = stream(200)
    np.testing.assert_array_equal(
        play(started(factory), values), play(started(factory), values.copy())
    )


def test_inputs_are_left_as_they_are(factory: Callable[[], Detector]) -> None:
    detector = started(factory)
    values, learn = stream(80), np.ones(len(KEYS), dtype=bool)
    for tick, row in enumerate(values.copy()):
        detector.score(float(tick), row, learn)
        np.testing.assert_array_equal(row, values[tick])
    assert learn.all()


def test_missing_values_leave_the_others_finite(factory: Callable[[], Detector]) -> None:
    detector = started(factory)
    values = stream(200)
    values[50:60] = np.nan
    values[:, 2] = np.nan
    whole = play(detector, values)
    assert np.isfinite(whole[199]).any()
    state = detector.state()
    assert all(not np.isinf(a).any() for a in state.values() if a.dtype.kind == "f" and a.size > 3)


def test_a_series_that_never_moves_is_quiet(factory: Callable[[], Detector]) -> None:
    constant = np.tile(USUAL, (400, 1))
    scores = play(started(factory), constant)
    assert np.nan_to_num(scores).max() <= 1.0


def test_a_state_goes_on_bit_for_bit(factory: Callable[[], Detector]) -> None:
    values = stream(260)
    whole = started(factory)
    play(whole, values[:137])
    resumed = started(factory)
    resumed.restore({name: array.copy() for name, array in whole.state().items()})
    np.testing.assert_array_equal(
        play(whole, values[137:], start=137), play(resumed, values[137:], start=137)
    )


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    factory: Callable[[], Detector],
) -> None:
    values = stream(200)
    other = started(factory, KEYS[:4])
    play(other, values[:50, :4])
    detector = started(factory)
    play(detector, values[:100])
    with pytest.raises(ValueError, match=r"."):
        detector.restore(other.state())
    untouched = started(factory)
    play(untouched, values[:100])
    np.testing.assert_array_equal(
        play(detector, values[100:], start=100), play(untouched, values[100:], start=100)
    )


def test_growing_keeps_what_is_known_of_the_others(factory: Callable[[], Detector]) -> None:
    # The new series belong to entities of their own: within one entity a new series may change
    # what a row of it looks like.
    values = stream(220)
    extra = [SeriesKey(f"service/new{n}", "llm_queue_depth") for n in range(150)]
    alone = play(started(factory), values)
    detector = started(factory)
    before = play(detector, values[:90])
    detector.grow(extra)
    wide = np.hstack((values[90:], np.ones((130, 150))))
    after = play(detector, wide, start=90)
    np.testing.assert_allclose(np.vstack((before, after[:, : len(KEYS)])), alone, rtol=1e-12)


def test_forgetting_series_leaves_the_others_as_they_were(
    factory: Callable[[], Detector],
) -> None:
    # The forgotten lie before, between and behind the others, and are of entities of their own.
    values = stream(240)
    extra = [SeriesKey(f"service/old{n}", "llm_queue_depth") for n in range(150)]
    keys = [*extra[:70], *KEYS[:5], *extra[70:90], *KEYS[5:], *extra[90:]]
    kept = np.array([key in set(KEYS) for key in keys])
    wide = np.ones((240, len(keys)))
    wide[:, kept] = values
    detector = started(factory, keys)
    before = play(detector, wide[:130])[:, kept]
    detector.keep(kept)
    after = play(detector, values[130:], start=130)
    alone = play(started(factory), values)
    np.testing.assert_allclose(np.vstack((before, after)), alone, rtol=1e-9)


def test_a_series_that_comes_back_is_a_new_one(factory: Callable[[], Detector]) -> None:
    values = stream(200)
    kept = np.array([key.signal != "llm_request_latency_seconds" for key in KEYS])
    detector = started(factory)
    play(detector, values[:120])
    detector.keep(kept)
    detector.grow([KEYS[0]])
    moved = np.hstack((values[120:, kept], values[120:, :1]))
    first = detector.score(120.0, moved[0], np.ones(len(KEYS), dtype=bool))
    assert not first.score[-1] > 1
    assert np.isfinite(play(detector, moved[1:], start=121)[-1]).any()


def test_a_state_fits_after_series_were_forgotten(factory: Callable[[], Detector]) -> None:
    values = stream(260)
    kept = np.ones(len(KEYS), dtype=bool)
    kept[[1, 6]] = False
    whole = started(factory)
    play(whole, values[:130])
    whole.keep(kept)
    play(whole, values[130:150, kept], start=130)
    resumed = started(factory, [key for key, stays in zip(KEYS, kept, strict=True) if stays])
    resumed.restore({name: array.copy() for name, array in whole.state().items()})
    np.testing.assert_array_equal(
        play(whole, values[150:, kept], start=150), play(resumed, values[150:, kept], start=150)
    )


class Peeking:
    """A detector that breaks the contract: it scores by the highest value of all calls so far."""

    name = "peeking"
    highest = 0.0

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        pass

    def keep(self, kept: NDArray[np.bool_]) -> None:
        pass

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:
        Peeking.highest = max(Peeking.highest, float(np.nanmax(values)))
        score = values / Peeking.highest
        return Scores(score, score, score, score)

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        return {}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        pass


def test_the_checks_find_a_detector_that_keeps_state_elsewhere() -> None:
    with pytest.raises(AssertionError):
        test_the_same_input_gives_the_same_scores(Peeking)

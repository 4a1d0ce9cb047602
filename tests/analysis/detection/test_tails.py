"""P-values are as rare as they say, for every kind of noise, off line and live."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.signal import lfilter

from analysis.detection.calibration import TailTracker
from analysis.detection.streaming_tail import StreamingTail
from analysis.detection.tails import ParetoTail, exceeds, fit_pareto, fit_tail, tail_length

Noise = Callable[[np.random.Generator, int], np.ndarray]


def _autocorrelated(random: np.random.Generator, count: int) -> np.ndarray:
    """AR(1) with coefficient .8: runs of about ten values."""
    return np.abs(lfilter([0.6], [1.0, -0.8], random.normal(size=count)))


NOISES: dict[str, Noise] = {
    "normal": lambda random, count: np.abs(random.normal(size=count)),
    "heavy": lambda random, count: np.abs(random.standard_t(3, size=count)),
    "skewed": lambda random, count: random.lognormal(0.0, 1.0, size=count),
    "bounded": lambda random, count: random.random(count),
    "autocorrelated": _autocorrelated,
}


@pytest.fixture(params=sorted(NOISES))
def noise(request: pytest.FixtureRequest) -> Noise:
    return NOISES[request.param]


def least(noise: Noise, rate: float) -> float:
    """Return the least realised rate that will do: a bounded score may never reach a rare threshold."""
    return 0.0 if noise is NOISES["bounded"] and rate < 0.05 else 0.4 * rate


@pytest.mark.parametrize("shape", [-0.25, 0.0, 0.3, 0.8])
def test_the_fit_finds_the_law_that_the_excesses_have(shape: float) -> None:
    excesses = stats.genpareto.rvs(shape, scale=2.0, size=(4000, 3), random_state=1)
    fitted = fit_pareto(excesses)
    np.testing.assert_allclose(fitted.shape, shape, atol=0.09)
    np.testing.assert_allclose(fitted.scale, 2.0, rtol=0.12)
    far = np.full(3, 12.0)
    np.testing.assert_allclose(
        ParetoTail(np.full(3, shape), np.full(3, 2.0)).survival(far),
        stats.genpareto.sf(far, shape, scale=2.0),
        rtol=1e-9,
    )


def test_series_with_fewer_excesses_do_not_disturb_the_others() -> None:
    excesses = np.random.default_rng(0).exponential(size=(60, 4))
    alone = fit_pareto(excesses[:, :1])
    excesses[40:, 1] = np.nan
    excesses[3:, 2] = np.nan
    excesses[:, 3] = np.nan
    fitted = fit_pareto(excesses)
    assert fitted.shape[0] == pytest.approx(alone.shape[0], rel=1e-9)
    assert fitted.scale[0] == pytest.approx(alone.scale[0], rel=1e-9)
    assert fitted.scale[2] == pytest.approx(np.mean(excesses[:3, 2]))
    assert np.isnan(fitted.scale[3])
    assert fitted.survival(np.full(4, 1e9))[3] == 1.0


@settings(deadline=None)
@given(
    st.floats(-0.5, 1.5),
    st.floats(1e-3, 1e3),
    st.floats(1e-8, 1.0),
)
def test_a_quantile_is_exceeded_at_its_rate(shape: float, scale: float, rate: float) -> None:
    tail = ParetoTail(np.array([shape]), np.array([scale]))
    again = tail.survival(tail.quantile(np.array([rate])))
    assert again[0] == pytest.approx(rate, rel=1e-4)


@settings(deadline=None)
@given(arrays(float, st.integers(1, 120), elements=st.floats(0, 1e6)))
def test_p_values_fall_as_scores_rise_and_lie_between_nought_and_one(scores: np.ndarray) -> None:
    tail = fit_tail(scores)
    asked = np.sort(np.concatenate((scores, [0.0, tail.start, 2e6, np.inf])))
    p_values = tail.p_values(asked)
    assert (np.diff(p_values) <= 1e-12).all()
    assert (p_values > 0).all()
    assert (p_values <= 1).all()
    # In the sample itself no rate is exceeded: the conformal guarantee.
    for rate in (tail.share, 0.5, 0.9):
        assert rate < tail.share or exceeds(tail.p_values(scores), rate).mean() <= rate


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.001])
def test_the_realised_rate_is_the_nominal_one_for_all_noise(noise: Noise, rate: float) -> None:
    realised = []
    for seed in range(40):
        values = noise(np.random.default_rng(seed), 22_000)
        tail = fit_tail(values[:2000])
        realised.append(exceeds(tail.p_values(values[2000:]), rate).mean())
        assert (values[2000:] > tail.threshold(rate)).mean() == pytest.approx(
            realised[-1], abs=0.001
        )
    assert least(noise, rate) <= np.mean(realised) < 1.6 * rate


def test_a_tail_needs_a_score_and_a_rate() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fit_tail(np.array([np.nan, np.inf]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit_tail(np.ones(5)).threshold(1.0)
    same = fit_tail(np.ones(50))
    assert same.threshold(0.01) == 1.0
    assert same.p_values(np.array([0.5, 1.0, np.nan]))[:2].tolist() == [1.0, 1.0]
    assert same.p_values(np.array([2.0]))[0] <= 1 / 51


def stream(noise: Noise, series: int, ticks: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([noise(random, ticks) for _ in range(series)], axis=1)


def follow(tail: StreamingTail, scores: np.ndarray) -> np.ndarray:
    learn = np.ones(scores.shape[1], dtype=bool)
    rows = []
    for row in scores:
        rows.append(tail.p_values(row))
        tail.update(row, learn)
    return np.array(rows)


def streaming(series: int) -> StreamingTail:
    tail = StreamingTail()
    tail.grow(series)
    return tail


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.001])
def test_live_the_realised_rate_is_the_nominal_one(noise: Noise, rate: float) -> None:
    p_values = follow(streaming(50), stream(noise, 50, 6000))
    realised = exceeds(p_values[1500:], rate).mean()
    # Far out several laws together are as careful as the heaviest of them.
    assert 0.25 * least(noise, rate) <= realised < 1.3 * rate


def test_the_limit_that_alarms_are_decided_by_holds_its_rate_on_every_noise(noise: Noise) -> None:
    scores = stream(noise, 20, 12_000)
    # It works between 1 and 3: scores are put where their quantile lies there.
    scores *= 1.6 / np.quantile(scores, 0.99, axis=0)
    tracker = TailTracker(0.01)
    tracker.grow(20)
    for row in scores:
        tracker.update(row, np.ones(20, dtype=bool))
    np.testing.assert_allclose(tracker.realised_rate(), 0.01, rtol=0.25)


def test_live_a_series_says_nothing_in_its_first_values_and_is_conformal_then() -> None:
    p_values = follow(streaming(4), stream(NOISES["normal"], 4, 120))
    assert np.isnan(p_values[:20]).all()
    counts = np.arange(20, 120)[:, None]
    assert (p_values[20:] >= 0.999 / (counts + 1)).all()
    tail = streaming(1)
    follow(tail, np.arange(100.0)[:, None])
    asked = [tail.p_values(np.array([score]))[0] for score in (200.0, 90.0, 50.0, 0.0)]
    assert asked == pytest.approx([1 / 101, 11 / 101, 51 / 101, 1.0])


def test_live_nothing_is_rarer_than_a_short_block_can_tell() -> None:
    tail = streaming(4)
    follow(tail, stream(NOISES["normal"], 4, 128 + 256 + 300))
    far = np.full(4, 50.0)
    assert tail.p_values(far) == pytest.approx(1 / 257)
    follow(tail, stream(NOISES["normal"], 4, 300, seed=1))
    assert (tail.p_values(far) < 1e-6).all()


def test_live_a_law_that_changes_is_followed_within_two_blocks() -> None:
    scores = stream(NOISES["normal"], 30, 12_000)
    scores[4000:8000] *= 5.0
    tail = streaming(30)
    p_values = follow(tail, scores)
    late = slice(6500, 8000)
    assert 0.004 < exceeds(p_values[late], 0.01).mean() < 0.016
    # Back again, it stays careful until the blocks in which it was wide are forgotten.
    assert exceeds(p_values[10_500:], 0.01).mean() < 0.01
    calm = follow(tail, stream(NOISES["normal"], 30, 10_000, seed=5))
    assert 0.004 < exceeds(calm[7000:], 0.01).mean() < 0.016


def test_live_a_series_that_rests_and_moves_again_is_not_rare() -> None:
    """One in four blocks moves; a law of the newest block alone would call each beginning rare."""
    scores = 1e-6 * stream(NOISES["normal"], 20, 24_000)
    moving = np.arange(24_000) % 4096 < 1024
    scores[moving] *= 1e6
    p_values = follow(streaming(20), scores)[9000:]
    assert exceeds(p_values, 0.001).mean() < 0.003
    assert exceeds(p_values, 0.01).mean() < 0.02


def test_live_what_is_not_learned_leaves_no_trace() -> None:
    tail, other = streaming(3), streaming(3)
    scores = stream(NOISES["normal"], 3, 700)
    follow(tail, scores)
    for number, row in enumerate(scores):
        other.update(row, np.ones(3, dtype=bool))
        if number % 3 == 0:
            other.update(np.full(3, 1e6), np.zeros(3, dtype=bool))
            other.update(np.full(3, np.nan), np.ones(3, dtype=bool))
    for name, array in tail.state().items():
        np.testing.assert_array_equal(array, other.state()[name], err_msg=name)


def test_live_one_fault_does_not_make_the_tail_heavy() -> None:
    scores = stream(NOISES["normal"], 20, 4000)
    scores[3000] = 500.0  # the gate of learning lets one value in before it shuts
    tail = streaming(20)
    follow(tail, scores)
    asked = np.full(20, 6.0)
    assert np.median(tail.p_values(asked)) < 1e-4
    assert tail.p_values(asked).max() < 1e-3


def test_live_series_that_start_together_are_not_fitted_together() -> None:
    tail = streaming(100)
    follow(tail, stream(NOISES["normal"], 100, 128))
    assert np.isfinite(tail.threshold(0.001)).sum() == 8
    follow(tail, stream(NOISES["normal"], 100, 20, seed=1))
    assert np.isfinite(tail.threshold(0.001)).all()


def test_live_a_state_goes_on_bit_for_bit() -> None:
    scores = stream(NOISES["heavy"], 70, 900)
    tail = streaming(70)
    follow(tail, scores[:413])
    resumed = streaming(70)
    resumed.restore(tail.state())
    np.testing.assert_array_equal(follow(tail, scores[413:]), follow(resumed, scores[413:]))
    with pytest.raises(ValueError, match="shape"):
        streaming(69).restore(tail.state())
    with pytest.raises(ValueError, match="largest"):
        streaming(70).restore(
            {name: array for name, array in tail.state().items() if name != "largest"}
        )


def test_live_scores_that_never_move_are_usual_and_any_other_is_not() -> None:
    tail = streaming(2)
    follow(tail, np.zeros((3000, 2)))
    usual, other = tail.p_values(np.array([0.0, 0.3]))
    assert usual == 1.0
    assert 1 / 1025 <= other < 1 / 129


def test_live_values_that_repeat_are_not_rare_by_rounding() -> None:
    steps = np.array([0.1, 0.2, 0.3])
    scores = np.random.default_rng(0).choice(steps, size=(3000, 5))
    p_values = follow(streaming(5), scores)[1500:]
    assert p_values[scores[1500:] == 0.3].min() > 0.05  # a third of the values


def test_the_tail_is_a_small_part_of_a_long_sample() -> None:
    assert tail_length(100) == 20
    assert tail_length(10_000) == 300

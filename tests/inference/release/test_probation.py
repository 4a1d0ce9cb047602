import numpy as np
import pytest

from inference.release.probation import (
    RECORD_LENGTH,
    Observation,
    Probation,
    ProbationRules,
    Record,
    RollbackReason,
)

RULES = ProbationRules(
    seconds=60.0, minimum_requests=20, latency_ratio=1.25, false_alarm_share=0.01
)


def stream(random, count, *, errors=0.01, slow=1.0):
    """Requests of two kinds at two levels of concurrency, with gamma times."""
    failed = random.random(count) < errors
    task = random.integers(0, 2, count)
    crowd = random.integers(1, 3, count)
    times = slow * random.gamma(8.0, 0.001, count) * (1 + task) * crowd
    return [
        Observation(bool(bad), (int(kind), int(beside)), None if bad else float(seconds))
        for bad, kind, beside, seconds in zip(failed, task, crowd, times, strict=True)
    ]


def watch(random, *, old, new, requests=1500, per_second=10.0):
    """Run a probation; return its verdict and the requests that it took."""
    baseline = Record(stream(random, old.pop("requests", 300), **old))
    probation = Probation(2, 1, baseline, RULES, now=0.0)
    for number, observation in enumerate(stream(random, requests, **new), start=1):
        probation.observe(observation)
        verdict = probation.judge(number / per_second)
        if verdict is not None:
            return verdict, number
    raise AssertionError("no verdict")


@pytest.mark.parametrize("errors", [0.0, 0.01, 0.2])
def test_false_alarms_stay_below_the_promised_share(errors):
    """600 good versions, looked at after every request: 1% may be sent back."""
    alarms = 0
    for seed in range(600):
        random = np.random.default_rng([seed, int(100 * errors)])
        verdict, requests = watch(random, old={"errors": errors}, new={"errors": errors})
        alarms += not verdict.passed
        assert verdict.reason or requests == 600, "a minute at ten a second"
    # Binomial(600, 0.01) is above 14 once in 1,600 times.
    assert alarms <= 14


def test_even_a_version_as_slow_as_allowed_is_seldom_sent_back():
    alarms = sum(
        not watch(np.random.default_rng(seed), old={}, new={"slow": 1.25})[0].passed
        for seed in range(300)
    )
    assert alarms <= 9


@pytest.mark.parametrize(
    ("new", "reason", "typical"),
    [
        ({"errors": 1.0}, RollbackReason.ERRORS, 20),
        ({"errors": 0.3}, RollbackReason.ERRORS, 45),
        ({"slow": 2.0}, RollbackReason.LATENCY, 45),
        ({"slow": 1.6}, RollbackReason.LATENCY, 45),
    ],
)
def test_bad_versions_are_found_and_soon(new, reason, typical):
    found = [watch(np.random.default_rng(seed), old={}, new=dict(new)) for seed in range(100)]
    assert sum(verdict.reason is reason for verdict, _ in found) >= 98
    assert np.median([requests for _, requests in found]) <= typical


def test_a_faster_and_more_reliable_version_passes():
    verdict, _ = watch(
        np.random.default_rng(1), old={"errors": 0.3}, new={"errors": 0.0, "slow": 0.2}
    )
    assert verdict.passed


def test_without_a_baseline_errors_are_judged_and_times_are_not():
    random = np.random.default_rng(2)
    assert watch(random, old={"requests": 0}, new={"slow": 9.0})[0].passed
    verdict, requests = watch(random, old={"requests": 0}, new={"errors": 0.5})
    assert (verdict.reason, requests) == (RollbackReason.ERRORS, 20)
    assert "tolerated" in verdict.message


def test_a_canary_that_fails_ends_it():
    probation = Probation(2, 1, Record(), RULES, now=100.0)
    probation.observe_canary(99.0, "wrong answer")
    assert probation.judge(100.5) is None, "it was asked before the swap"
    probation.observe_canary(101.0, "")
    assert probation.judge(101.5) is None
    probation.observe_canary(103.0, "wrong answer")
    verdict = probation.judge(103.5)
    assert verdict.reason is RollbackReason.CANARY
    assert "wrong answer" in verdict.message


def test_an_engine_that_is_given_up_ends_it():
    probation = Probation(2, 1, Record(), RULES, now=0.0)
    probation.observe_engine(1, "loading failed 3 times")
    assert probation.judge(1.0).reason is RollbackReason.ENGINE


def test_losing_the_worker_twice_ends_it():
    probation = Probation(2, 1, Record(), RULES, now=0.0)
    probation.observe_engine(1)
    assert probation.judge(1.0) is None
    probation.observe_engine(2)
    verdict = probation.judge(2.0)
    assert verdict.reason is RollbackReason.ENGINE
    assert "2 times" in verdict.message


def test_a_probation_waits_for_requests_but_not_for_ever():
    probation = Probation(2, 1, Record(), RULES, now=0.0)
    for observation in stream(np.random.default_rng(1), 19, errors=0.0):
        probation.observe(observation)
    assert probation.judge(61.0) is None
    verdict = probation.judge(600.0)
    assert verdict.passed
    assert "too few" in verdict.message
    probation.observe(Observation(failed=False))
    assert "no worse" in probation.judge(61.0).message


def test_the_record_is_bounded():
    record = Record(stream(np.random.default_rng(1), RECORD_LENGTH + 500))
    assert len(record) == RECORD_LENGTH

"""The detection pipeline: one tick of values in, the state of every series and the anomalies out.

Two channels lead to an anomaly. The hard channel holds what needs no statistics of the value: limits,
absence, drops to zero and leaks. The statistical channel holds the baseline, which votes of the
multivariate detectors can lift but never replace. Each channel has its own alert policy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from analysis.detection.absence import Absence, DropToZero
from analysis.detection.alert_policy import AlertPolicy
from analysis.detection.columns import Columns
from analysis.detection.contract import (
    Detections,
    Detector,
    FloatArray,
    Realised,
    Scores,
    SignalState,
)
from analysis.detection.forest import ForestVote
from analysis.detection.limits import LimitRule, Limits
from analysis.detection.mahalanobis import MahalanobisVote
from analysis.detection.maintenance import Maintenance
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.rarity import Rarity
from analysis.detection.seasonal import SeasonalBaseline
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.settings import DetectionSettings
from analysis.detection.state_file import Parts, read_state, write_state
from analysis.detection.states import (
    ABSENT,
    DOWN,
    EVENT,
    NORMAL,
    UP,
    States,
    TickArrays,
)
from analysis.detection.trend import Trend
from analysis.findings import Anomaly
from analysis.history import History
from collectors.contract import SeriesKey
from collectors.signals import unit_of

_log = structlog.get_logger(__name__)

_LEADERS = ("baseline", "limit", "absence", "drop_to_zero", "trend")
"""Detectors whose score can be that of a series; the order breaks ties."""
_NAMES = (*_LEADERS, "mahalanobis", "forest")
_BOUNDS = ("expected", "low", "high")
_SHOWN = (*_BOUNDS, "observed", "score", "direction", "detectors", "p_value")


@dataclass(frozen=True, slots=True)
class _Moment:
    """What one tick's values look like, each array ``[series]``."""

    seconds: float
    given: NDArray[np.bool_]
    stale: NDArray[np.bool_]
    """The newest value is older than the series' own cadence explains."""
    age: FloatArray
    direction: NDArray[np.int8]
    """On which side of the baseline the value is."""
    mute: NDArray[np.bool_]
    """Nothing is raised: the series is under maintenance, or switched off."""
    p_value: FloatArray


class DetectionPipeline:
    """Runs all detectors over each tick. Not thread-safe: one loop calls it."""

    def __init__(
        self,
        settings: DetectionSettings,
        history: History,
        *,
        executor: Executor | None = None,
        limits: Mapping[str, LimitRule] | None = None,
    ) -> None:
        """Start without a baseline.

        Args:
            settings: of detection.
            history: where names and labels of the series come from; only read.
            executor: where forests are fitted; by default one thread of its own.
            limits: rules by signal in place of the bundled ones.
        """
        self._settings = settings
        self._history = history
        self._limit_rules = limits
        self._own_executor = ThreadPoolExecutor(1, "forest-fit") if executor is None else None
        self._executor = executor or self._own_executor
        self._keys: list[SeriesKey] = []
        self._index: dict[SeriesKey, int] = {}
        self._place: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._build()

    def _build(self) -> None:
        own = self._settings
        self._profiles = SeriesProfiles(own.overrides)
        self._maintenance = Maintenance(own.maintenance)
        self._baseline = SeasonalBaseline(own.baseline, own.overrides)
        self._limits = Limits(self._limit_rules)
        self._absence = Absence(own.absence)
        self._leaders: tuple[Detector, ...] = (
            self._baseline,
            self._limits,
            self._absence,
            DropToZero(own.drop),
            Trend(own.trend),
        )
        self._rarity = Rarity()
        self._votes: list[MahalanobisVote | ForestVote] = []
        if own.covariance.enabled:
            self._votes.append(MahalanobisVote(own.covariance))
        if own.forest.enabled and self._executor is not None:
            largest = own.covariance.largest_entity
            self._votes.append(ForestVote(own.forest, self._executor, largest=largest))
        self._statistical = AlertPolicy(own.alerts)
        self._hard = AlertPolicy(own.alerts)
        self._seen = Columns(value=np.nan, seconds=np.nan, onset=np.nan)
        self._last = _shown_columns()
        self._held = _shown_columns()

    @property
    def realised_tail_rate(self) -> Mapping[SeriesKey, float]:
        """The share of normal values of each series whose baseline score was above 1."""
        rates = self._baseline.tail.realised_rate()
        return {key: float(rates[column]) for key, column in self._index.items()}

    def tick(self, now_seconds: float, row: FloatArray) -> Detections:
        """Score one tick.

        Args:
            now_seconds: the time of the tick, later than that of the call before.
            row: ``[series]`` as :meth:`History.append` returned it.
        """
        values = self._align(row)
        given = np.isfinite(values)
        increments = self._note(now_seconds, values, given)
        excused = self._maintenance.covered(now_seconds, len(values))
        learn = ~(self._statistical.deviating | self._hard.active | excused)
        leaders = [
            detector.score(now_seconds, self._input_of(detector, values, increments), learn)
            for detector in self._leaders
        ]
        votes = [detector.score(now_seconds, increments, learn) for detector in self._votes]
        age = now_seconds - self._seen["seconds"]
        stale = age > self._absence.age_of_observation
        self._lift(leaders, votes)
        direction = self._direction_of_baseline(leaders[0], increments)
        mute = excused | ~self._profiles["raised"]
        p_value = self._rarity.judge(self._baseline.deviation, self._baseline.normal)
        moment = _Moment(now_seconds, given, stale, age, direction, mute, p_value)
        counted = self._update_policies(moment, leaders)
        arrays = self._fuse(moment, leaders, votes, counted)
        anomalies = self._anomalies(now_seconds, arrays)
        self._absorb(now_seconds)
        states = States(self._index, arrays, _NAMES)
        return Detections(now_seconds, anomalies, states, self._realised())

    def adopt_shapes(self, shapes: Mapping[SeriesKey, SeasonalShape]) -> None:
        """Use seasonal shapes that were fitted on stored history."""
        self._grow([key for key in shapes if key not in self._index])
        for key, shape in shapes.items():
            self._baseline.adopt(self._index[key], shape)

    def save(self, path: Path) -> None:
        """Write everything that has to be kept over a restart, atomically."""
        write_state(path, self._keys, {name: part.state() for name, part in self._parts().items()})

    def load(self, path: Path) -> bool:
        """Take up a saved state; return False where there is no file.

        A part that does not fit, such as after a change of the settings, starts anew, which the log
        says; the others go on.

        Raises:
            DetectionStateError: when the file is damaged or of a newer version. It is set aside then,
                and detection starts without a baseline.
        """
        if not path.exists():
            return False
        self._take_up(*read_state(path))
        return True

    def continue_from(self, other: DetectionPipeline) -> None:
        """Go on from where another pipeline is, which may have other settings and is left as it is.

        A part whose arrays depend on settings that differ starts anew, which the log says.
        """
        parts = {name: dict(part.state()) for name, part in other._parts().items()}
        self._take_up(list(other._keys), parts)

    def _take_up(self, keys: Sequence[SeriesKey], parts: Parts) -> None:
        """Begin with these series and the parts that fit."""
        misfits: dict[str, str] = {}
        while (found := self._restore_but(keys, parts, misfits)) is not None:
            misfits.update([found])
        for name, reason in misfits.items():
            _log.warning("detection_part_starts_anew", part=name, reason=reason)
        for name in sorted(set(parts) - set(self._parts())):
            _log.warning("detection_part_dropped", part=name, reason="nothing here has that name")

    def _restore_but(
        self, keys: Sequence[SeriesKey], parts: Parts, misfits: Collection[str]
    ) -> tuple[str, str] | None:
        """Start over and restore all parts but the misfits; return the first that does not fit."""
        self._keys, self._index = [], {}
        self._place = np.empty(0, dtype=np.int64)
        self._build()
        self._grow(keys)
        for name, part in self._parts().items():
            if name in misfits:
                continue
            if name not in parts:
                return name, "the state has none; it is new"
            try:
                part.restore(parts[name])
            # Arrays of another version or of a damaged file can be wrong in any of these ways.
            except (ValueError, KeyError, TypeError, IndexError) as error:
                return name, str(error)
        return None

    def close(self) -> None:
        """Stop the thread that fits forests."""
        if self._own_executor is not None:
            self._own_executor.shutdown(wait=False, cancel_futures=True)

    def _realised(self) -> tuple[Realised, ...]:
        votes = (vote.realised() for vote in self._votes)
        return (self._baseline.realised(), *votes, self._rarity.realised(self._keys))

    def _parts(self) -> dict[str, Detector | AlertPolicy | Columns | Rarity]:
        detectors = {detector.name: detector for detector in (*self._leaders, *self._votes)}
        return {
            **detectors,
            self._rarity.name: self._rarity,
            "statistical_policy": self._statistical,
            "hard_policy": self._hard,
            "seen": self._seen,
            "last": self._last,
            "held": self._held,
        }

    def _align(self, row: FloatArray) -> FloatArray:
        """Bring a row of the history into the columns of the detectors, which may be older."""
        if len(row) > len(self._place):
            keys = self._history.keys[: len(row)]
            self._grow([key for key in keys if key not in self._index])
            self._place = np.array([self._index[key] for key in keys], dtype=np.int64)
        values = np.full(len(self._keys), np.nan)
        values[self._place[: len(row)]] = row
        values[np.isinf(values)] = np.nan
        return values

    def _grow(self, keys: Sequence[SeriesKey]) -> None:
        if not keys:
            return
        for key in keys:
            self._index[key] = len(self._keys)
            self._keys.append(key)
        self._profiles.grow(keys)
        self._maintenance.grow(keys)
        for detector in (*self._leaders, *self._votes):
            detector.grow(keys)
        sized = (self._statistical, self._hard, self._rarity, self._seen, self._last, self._held)
        for each in sized:
            each.grow(len(keys))

    def _note(self, now_seconds: float, values: FloatArray, given: NDArray[np.bool_]) -> FloatArray:
        """Remember the newest values; return them with counters as increases since the last."""
        seen = self._seen
        increase = values - seen["value"]
        # A counter that fell was reset: what it counted since is unknown, and no deviation.
        increase = np.where(increase < 0, 0.0, increase)
        result = np.where(self._profiles["counter"], increase, values)
        seen["value"][given] = values[given]
        seen["seconds"][given] = now_seconds
        return np.asarray(result)

    def _input_of(
        self, detector: Detector, values: FloatArray, increments: FloatArray
    ) -> FloatArray:
        return increments if detector is self._baseline else values

    def _lift(self, leaders: list[Scores], votes: Sequence[Scores]) -> None:
        """Raise the baseline score of series that lead a vote above 1."""
        if not votes:
            return
        lead = np.zeros(len(self._keys), dtype=bool)
        for vote in votes:
            lead |= np.nan_to_num(vote.score) > 1.0
        baseline = leaders[0]
        lifted = np.where(lead, self._settings.vote_lift * baseline.score, baseline.score)
        leaders[0] = Scores(lifted, baseline.expected, baseline.low, baseline.high)

    def _direction_of_baseline(self, baseline: Scores, values: FloatArray) -> NDArray[np.int8]:
        direction = np.where(values > baseline.expected, UP, DOWN).astype(np.int8)
        return np.where(np.isfinite(values - baseline.expected), direction, NORMAL).astype(np.int8)

    def _update_policies(self, moment: _Moment, leaders: Sequence[Scores]) -> NDArray[np.bool_]:
        """Give both channels their scores; return which series deviate in a way that counts."""
        profiles = self._profiles
        direction, given, stale = moment.direction, moment.given, moment.stale
        bad = (profiles["bad_up"] & (direction == UP)) | (
            profiles["bad_down"] & (direction == DOWN)
        )
        statistical = np.where(bad, leaders[0].score, np.where(given, 0.0, np.nan))
        # What a series no longer says neither raises nor holds an anomaly of its value.
        statistical = np.where((stale & ~given) | moment.mute, 0.0, statistical)
        self._statistical.update(
            moment.seconds,
            statistical,
            minimum_values=profiles["minimum_values"],
            minimum_seconds=profiles["minimum_seconds"],
            hold_seconds=0.0,
        )
        self._baseline.dismiss(self._statistical.dismissed)
        _, limit, absence, drop, trend = (scores.score for scores in leaders)
        # An old absence is a series that is gone, not news.
        silent = ~profiles["conditional"] & (moment.age <= self._settings.alerts.absorb_seconds)
        over = np.where(stale, 0.0, np.nan)
        absence = np.where(silent, absence, over)
        harmless = ~(profiles["bad_up"] | profiles["bad_down"])
        values, seconds, hold = self._limits.durations
        # Without a bad direction only a rule of its own raises a signal, such as a state.
        others = np.where(harmless, over, np.fmax(absence, np.fmax(drop, trend)))
        hard = np.where(moment.mute, 0.0, np.fmax(limit, others))
        self._hard.update(
            moment.seconds,
            hard,
            minimum_values=values,
            minimum_seconds=seconds,
            hold_seconds=hold,
        )
        return np.asarray((np.nan_to_num(statistical) > 1.0) | (np.nan_to_num(hard) > 1.0))

    def _fuse(
        self,
        moment: _Moment,
        leaders: Sequence[Scores],
        votes: Sequence[Scores],
        counted: NDArray[np.bool_],
    ) -> TickArrays:
        stacked = np.nan_to_num(np.vstack([scores.score for scores in leaders]), nan=-1.0)
        leader = np.argmax(stacked, axis=0)
        score = np.maximum(stacked[leader, np.arange(len(leader))], 0.0)
        deviating = score > 1.0
        now = {
            "observed": self._seen["value"],
            "score": score,
            "direction": self._directions(leader, moment.direction, deviating),
            "detectors": _bits((*leaders, *votes)),
            "p_value": moment.p_value,
            **{name: _led(leaders, leader, name, deviating) for name in _BOUNDS},
        }
        # Between the values of a slow series what was said of its last value stands.
        fresh = moment.given | moment.stale | (stacked[2] > 1.0)
        for name in _SHOWN:
            self._last[name][fresh] = now[name][fresh]
        last = {name: self._last[name].copy() for name in _SHOWN}
        active = self._statistical.active | self._hard.active
        self._hold(last, counted & (last["score"] > 1.0), active)
        event = self._profiles["event"]
        held = active & ((last["score"] <= 1.0) | event)
        shown = {name: np.where(held, self._held[name], last[name]) for name in _SHOWN}
        gone = moment.stale & ~moment.given & ~(held & event)
        observed = np.where(held & event, self._held["observed"], last["observed"])
        return TickArrays(
            observed=np.where(gone, np.nan, observed),
            age_seconds=moment.age,
            expected=shown["expected"],
            low=shown["low"],
            high=shown["high"],
            score=shown["score"],
            direction=shown["direction"].astype(np.int8),
            onset_seconds=self._note_onset(),
            active=active,
            warmed_up=self._baseline.warmed_up,
            detectors=shown["detectors"],
            p_value=shown["p_value"],
        )

    def _note_onset(self) -> FloatArray:
        """Return the onset of each deviation: the first of both channels while either lasts."""
        onset = self._seen["onset"]
        first = np.fmin(self._statistical.onset_seconds, self._hard.onset_seconds)
        onset[:] = np.where(np.isnan(first), np.nan, np.fmin(onset, first))
        return np.array(onset)

    def _directions(
        self,
        leader: NDArray[np.int64],
        of_baseline: NDArray[np.int8],
        deviating: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        below = self._seen["value"] < self._limits.below
        by_leader = np.choose(
            leader,
            [of_baseline, np.where(below, DOWN, UP), np.full_like(leader, ABSENT), DOWN, UP],
        )
        by_leader = np.where(self._profiles["event"] & (leader == 1), EVENT, by_leader)
        return np.where(deviating, by_leader, NORMAL)

    def _hold(
        self,
        now: Mapping[str, NDArray[np.generic]],
        deviating: NDArray[np.bool_],
        active: NDArray[np.bool_],
    ) -> None:
        """Keep what the newest deviating value looked like, for as long as its anomaly is held."""
        held = self._held
        for name in _SHOWN:
            if name == "detectors":
                before = np.where(active, held[name], 0)
                held[name][deviating] = (before | now[name].astype(np.int64))[deviating]
            else:
                held[name][deviating] = now[name][deviating]

    def _anomalies(self, now_seconds: float, arrays: TickArrays) -> tuple[Anomaly, ...]:
        """Return what is active, as its newest deviating value showed it."""
        held = self._held
        shown = TickArrays(
            observed=np.where(self._profiles["event"], held["observed"], arrays.observed),
            age_seconds=arrays.age_seconds,
            expected=held["expected"],
            low=held["low"],
            high=held["high"],
            score=held["score"],
            direction=held["direction"].astype(np.int8),
            onset_seconds=arrays.onset_seconds,
            active=arrays.active,
            warmed_up=arrays.warmed_up,
            detectors=held["detectors"],
            p_value=held["p_value"],
        )
        states = States(self._index, shown, _NAMES)
        columns = np.flatnonzero(arrays.active)
        return tuple(self._anomaly(now_seconds, states[self._keys[column]]) for column in columns)

    def _anomaly(self, now_seconds: float, state: SignalState) -> Anomaly:
        onset = now_seconds if state.onset_seconds is None else state.onset_seconds
        return Anomaly(
            entity=state.key.entity,
            signal=state.key.signal,
            unit=unit_of(state.key.signal),
            time_seconds=now_seconds,
            onset_seconds=onset,
            score=state.score,
            direction=state.direction,
            observed=state.observed,
            expected=state.expected,
            low=state.low,
            high=state.high,
            detectors=state.detectors,
            simulated=self._history.labels(state.key).get("simulated") == "true",
            p_value=state.p_value,
        )

    def _absorb(self, now_seconds: float) -> None:
        """Take a level that has lasted for the new normal: it has been told of once."""
        raised = self._statistical.raised_seconds
        old = now_seconds - raised >= self._settings.alerts.absorb_seconds
        if old.any():
            self._baseline.rebase(old)
            self._statistical.drop(old)


def _shown_columns() -> Columns:
    """Return columns for what is shown of a series; direction and detectors are small numbers."""
    return Columns(
        observed=np.nan,
        expected=np.nan,
        low=np.nan,
        high=np.nan,
        score=0.0,
        direction=NORMAL,
        detectors=0,
        p_value=np.nan,
    )


def _led(
    leaders: Sequence[Scores], leader: NDArray[np.int64], name: str, deviating: NDArray[np.bool_]
) -> FloatArray:
    """Return a bound of the leading detector where it deviates and has one, else the baseline's."""
    stacked = np.vstack([getattr(scores, name) for scores in leaders])
    chosen = stacked[leader, np.arange(stacked.shape[1])]
    return np.asarray(np.where(deviating & np.isfinite(chosen), chosen, stacked[0]))


def _bits(all_scores: Sequence[Scores]) -> NDArray[np.int64]:
    """Return, for each series, a bit for every detector that scores above 1."""
    bits = np.zeros(len(all_scores[0].score), dtype=np.int64)
    for bit, scores in enumerate(all_scores):
        bits |= (np.nan_to_num(scores.score) > 1.0).astype(np.int64) << bit
    return bits

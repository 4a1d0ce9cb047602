"""The detection pipeline: one tick of values in, the state of every series and the anomalies out.

Every detector scores every series; votes of the multivariate ones lift the baseline but never replace
it. :mod:`analysis.detection.channels` says what is raised, :mod:`analysis.detection.level_shift` what
has become the new normal, and :mod:`analysis.detection.fusion` what is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from analysis.detection.absence import Absence, DropToZero
from analysis.detection.alert_policy import AlertPolicy
from analysis.detection.channels import Channels, Moment
from analysis.detection.columns import Columns
from analysis.detection.contract import Detections, Detector, FloatArray, Realised, Scores
from analysis.detection.exhaustion import Exhaustion
from analysis.detection.flat_line import FlatLine
from analysis.detection.footprint import array_bytes
from analysis.detection.forest import ForestVote
from analysis.detection.fusion import BITS, Fusion, lifted, tick_arrays
from analysis.detection.level_shift import LevelShifts
from analysis.detection.limits import LimitRule, Limits
from analysis.detection.mahalanobis import MahalanobisVote
from analysis.detection.maintenance import Maintenance
from analysis.detection.naming import SignalNaming, anomalies_of
from analysis.detection.peers import Peers
from analysis.detection.profiles import SeriesProfiles
from analysis.detection.rarity import Rarity
from analysis.detection.retirement import Retirement
from analysis.detection.seasonal import SeasonalBaseline
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.settings import DetectionSettings
from analysis.detection.state_file import Parts, read_state, write_state
from analysis.detection.states import DOWN, NORMAL, UP, States, TickArrays
from analysis.detection.trend import Trend
from analysis.findings import Anomaly
from collectors.contract import SeriesKey

_log = structlog.get_logger(__name__)

_WEIGH_SECONDS = 60.0

_COUNTING = ("baseline", "peers")
"""Detectors that judge a counter by its increase."""


class SeriesNames(Protocol):
    """Where the names and labels of a row's series come from; :class:`History` is one."""

    @property
    def keys(self) -> Sequence[SeriesKey]:
        """Every series seen; the position is the column."""

    @property
    def layout(self) -> int:
        """A number that changes when columns mean other series than before."""

    def labels(self, key: SeriesKey, /) -> Mapping[str, str]:
        """Return the labels of a series' newest sample."""


class DetectionPipeline:
    """Runs all detectors over each tick. Not thread-safe: one loop calls it."""

    def __init__(
        self,
        settings: DetectionSettings,
        history: SeriesNames,
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
        self._weighed_seconds = -np.inf
        self._bytes = self._told_bytes = 0
        self._build()

    def _build(self) -> None:
        own = self._settings
        self._profiles = SeriesProfiles(own.overrides)
        self._maintenance = Maintenance(own.maintenance)
        self._baseline = SeasonalBaseline(own.baseline, own.overrides)
        self._limits = Limits(self._limit_rules)
        self._absence = Absence(own.absence)
        self._exhaustion = Exhaustion(own.exhaustion)
        self._leaders: tuple[Detector, ...] = (
            self._baseline,
            self._limits,
            self._absence,
            DropToZero(own.drop),
            Trend(own.trend),
            self._exhaustion,
            Peers(own.peers, self._history.labels),
            FlatLine(own.flat_line),
        )
        self._rarity = Rarity()
        self._votes: list[MahalanobisVote | ForestVote] = []
        if own.covariance.enabled:
            self._votes.append(MahalanobisVote(own.covariance))
        if own.forest.enabled and self._executor is not None:
            largest = own.covariance.largest_entity
            self._votes.append(ForestVote(own.forest, self._executor, largest=largest))
        self._channels = Channels(own.alerts, self._profiles)
        self._shifts = LevelShifts(own, self._profiles)
        self._seen = Columns(value=np.nan, seconds=np.nan, onset=np.nan)
        self._fusion = Fusion(self._profiles, self._limits, self._seen)
        self._naming = SignalNaming()
        self._retirement = Retirement(own.retire_after_seconds)
        self._history_layout = self._history.layout

    @property
    def last_seconds(self) -> float | None:
        """The time of the newest tick with a value; None before the first."""
        seconds = self._seen["seconds"]
        return float(np.nanmax(seconds)) if np.isfinite(seconds).any() else None

    @property
    def realised_tail_rate(self) -> Mapping[SeriesKey, float]:
        """The share of normal values of each series whose baseline score was above 1."""
        rates = self._baseline.tail.realised_rate()
        return {key: float(rates[column]) for key, column in self._index.items()}

    @property
    def keys(self) -> Sequence[SeriesKey]:
        """The series of the columns; another object once series were retired."""
        return self._keys

    @property
    def channels(self) -> Channels:
        """What the alert policy was given at the newest tick, for trials of other policies."""
        return self._channels

    def share_with_least(self, factor: float) -> FloatArray:
        """Return the share ``[series]`` of the newest baseline scores that larger deadbands leave."""
        return self._baseline.share_with_least(factor)

    @property
    def fitted_forests(self) -> int:
        """How many entities have an isolation forest."""
        return sum(vote.fitted for vote in self._votes if isinstance(vote, ForestVote))

    @property
    def nbytes(self) -> int:
        """How many bytes the arrays of all detectors take, with the room that they keep to grow."""
        others = (self._profiles, self._maintenance, self._naming, self._place)
        return array_bytes(*self._parts().values(), *others)

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
        learn = ~(self._channels.busy | excused)
        scores = {
            detector.name: detector.score(
                now_seconds, increments if detector.name in _COUNTING else values, learn
            )
            for detector in self._leaders
        }
        votes = {
            detector.name: detector.score(now_seconds, increments, learn)
            for detector in self._votes
        }
        baseline = lifted(scores["baseline"], list(votes.values()), self._settings.vote_lift)
        scores |= {"baseline": baseline, **votes}
        moment = self._moment(now_seconds, increments, given, excused, baseline)
        counted = self._channels.update(moment, scores, self._limits)
        self._baseline.dismiss(self._channels.statistical.dismissed)
        shown = self._fusion.fuse(moment, scores, counted, self._channels)
        share = self._naming.shares(
            np.asarray(shown["score"]), self._channels.active, votes.get("mahalanobis")
        )
        warm, forecast = self._baseline.warmed_up, self._exhaustion.forecast
        arrays = tick_arrays(shown, warm, share, forecast, self._shifts)
        anomalies = self._anomalies(now_seconds, arrays)
        shifts = self._shifts.update(
            now_seconds,
            np.where(moment.direction == DOWN, -baseline.score, baseline.score),
            self._baseline,
            self._channels.statistical,
            self._channels.hard.active,
        )
        states = States(self._index, arrays, BITS)
        result = Detections(
            now_seconds,
            anomalies,
            states,
            self._realised(),
            tuple(shifts),
            self._weigh(now_seconds),
        )
        self._retire(now_seconds)
        return result

    def adopt_shapes(self, shapes: Mapping[SeriesKey, SeasonalShape]) -> None:
        """Use seasonal shapes that were fitted on stored history."""
        self._grow([key for key in shapes if key not in self._index])
        self._baseline.adopt({self._index[key]: shape for key, shape in shapes.items()})

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

    def _retire(self, now_seconds: float) -> None:
        """Forget series that have had no value for very long, so that churn does not add up."""
        gone = self._retirement.gone(now_seconds, self._seen["seconds"])
        if gone is None:
            return
        kept = ~gone
        self._keys = [key for key, stays in zip(self._keys, kept, strict=True) if stays]
        # A new one: the states of earlier ticks go on with the old.
        self._index = {key: column for column, key in enumerate(self._keys)}
        self._place = np.empty(0, dtype=np.int64)
        for part in (self._profiles, self._maintenance, self._naming, *self._parts().values()):
            part.keep(kept)
        _log.info("series_retired", series=int(gone.sum()), left=len(self._keys))

    def _weigh(self, now_seconds: float) -> int:
        """Return how many bytes the arrays take; say it when that has changed by a quarter."""
        if now_seconds - self._weighed_seconds >= _WEIGH_SECONDS:
            self._weighed_seconds, self._bytes = now_seconds, self.nbytes
            if abs(self._bytes - self._told_bytes) > 0.25 * self._told_bytes:
                self._told_bytes, count = self._bytes, len(self._keys)
                _log.info(
                    "detection_memory",
                    series=count,
                    megabytes=round(self._bytes / 1e6, 1),
                    bytes_a_series=round(self._bytes / max(count, 1)),
                )
        return self._bytes

    def _realised(self) -> tuple[Realised, ...]:
        votes = (vote.realised() for vote in self._votes)
        return (self._baseline.realised(), *votes, self._rarity.realised(self._keys))

    def _parts(
        self,
    ) -> dict[str, Detector | AlertPolicy | LevelShifts | Rarity | Columns]:
        detectors = {detector.name: detector for detector in (*self._leaders, *self._votes)}
        return {
            **detectors,
            self._rarity.name: self._rarity,
            "statistical_policy": self._channels.statistical,
            "hard_policy": self._channels.hard,
            "shifts": self._shifts,
            "seen": self._seen,
            "last": self._fusion.last,
            "held": self._fusion.held,
        }

    def _align(self, row: FloatArray) -> FloatArray:
        """Bring a row of the history into the columns of the detectors, which may be older."""
        place = self._place[: len(row)]
        moved = self._history.layout != self._history_layout
        if moved or len(row) > len(place) or np.isfinite(row[place < 0]).any():
            self._history_layout = self._history.layout
            self._find_places(row)
        found = self._place[: len(row)] >= 0
        values = np.full(len(self._keys), np.nan)
        values[self._place[: len(row)][found]] = row[found]
        values[np.isinf(values)] = np.nan
        return values

    def _find_places(self, row: FloatArray) -> None:
        """Find the column of each series of the history; a retired one has none until it speaks."""
        keys = self._history.keys[: len(row)]
        speaking = zip(keys, np.isfinite(row).tolist(), strict=True)
        self._grow([key for key, speaks in speaking if speaks and key not in self._index])
        self._place = np.array([self._index.get(key, -1) for key in keys], dtype=np.int64)

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
        self._naming.grow(keys)
        for sized in (self._channels, self._shifts, self._rarity, self._seen, self._fusion):
            sized.grow(len(keys))

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

    def _moment(
        self,
        now_seconds: float,
        values: FloatArray,
        given: NDArray[np.bool_],
        excused: NDArray[np.bool_],
        baseline: Scores,
    ) -> Moment:
        age = now_seconds - self._seen["seconds"]
        above = np.where(values > baseline.expected, UP, DOWN)
        told = np.isfinite(values - baseline.expected)
        return Moment(
            seconds=now_seconds,
            given=given,
            stale=age > self._absence.age_of_observation,
            age=age,
            direction=np.where(told, above, NORMAL).astype(np.int8),
            mute=excused | ~self._profiles["raised"],
            at_home=self._shifts.at_home(now_seconds, self._baseline.reading),
            p_value=self._rarity.judge(self._baseline.deviation, self._baseline.normal),
        )

    def _anomalies(self, now_seconds: float, arrays: TickArrays) -> tuple[Anomaly, ...]:
        """Return what is active, as its newest deviating value showed it."""
        active = [self._keys[column] for column in np.flatnonzero(arrays.active)]
        if not active:
            return ()
        states = States(self._index, self._fusion.of_anomalies(arrays), BITS)
        labels = self._history.labels
        simulated = {key: labels(key).get("simulated") == "true" for key in active}
        top = self._naming.top(arrays, states, self._keys)
        return tuple(anomalies_of(now_seconds, states, top, simulated))

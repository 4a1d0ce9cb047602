"""Detection whose settings can change while it runs, with the old ones beside it for a while.

New settings go on from what was learnt. While they are on trial the pipeline with the old ones runs
too, on the same values: a real fault shows in both, and only what the new settings alone raise is held
against them. Where they are taken back, the old pipeline goes on as if nothing had been: it has missed
no tick. The price is twice the time and memory of detection during the trial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from analysis.detection.contract import Detections, FloatArray
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.settings import DetectionSettings
from analysis.history import History
from collectors.contract import SeriesKey

_log = structlog.get_logger(__name__)

_GRACE_SECONDS = 30.0
"""Settings that are quicker to raise the same are no worse: so long the old ones may take."""
_FACTOR = 3.0
"""Where the old settings raise many series, so many times as many is far more."""
_NAMED = 5

Make = Callable[[DetectionSettings], DetectionPipeline]


@dataclass(frozen=True, slots=True)
class TrialTerms:
    """What new settings have to stand."""

    seconds: float
    """How long; 0 takes them at their word."""
    most_new: int
    """Series that they may raise and the old ones do not."""


@dataclass(frozen=True, slots=True)
class TrialVerdict:
    """How a trial ended."""

    kept: bool
    reason: str


class _Trial:
    """What the old settings and the new ones raised since the new ones hold."""

    def __init__(
        self, before: DetectionPipeline, settings_before: DetectionSettings, terms: TrialTerms
    ) -> None:
        self.before = before
        self.settings_before = settings_before
        self.terms = terms
        self.until_seconds: float | None = None  # set at its first tick
        self.raised_before: set[SeriesKey] = set()
        self.raised_since: dict[SeriesKey, float] = {}

    def note(self, now: float, before: Detections, after: Detections) -> None:
        """Take in one tick of both."""
        if self.until_seconds is None:
            self.until_seconds = now + self.terms.seconds
        self.raised_before |= {SeriesKey(one.entity, one.signal) for one in before.anomalies}
        for one in after.anomalies:
            self.raised_since.setdefault(SeriesKey(one.entity, one.signal), now)

    def complaint(self, now: float) -> str | None:
        """Say what is wrong with the new settings, if anything."""
        grace = min(_GRACE_SECONDS, 0.5 * self.terms.seconds)
        extra = [
            key
            for key, since in self.raised_since.items()
            if key not in self.raised_before and now - since >= grace
        ]
        if len(extra) <= max(self.terms.most_new, _FACTOR * len(self.raised_before)):
            return None
        named = ", ".join(f"{key.entity} {key.signal}" for key in extra[:_NAMED])
        return (
            f"{len(extra)} series were raised that the settings before do not raise "
            f"(they raise {len(self.raised_before)}): {named}{', ...' * (len(extra) > _NAMED)}"
        )

    def over(self, now: float) -> bool:
        return self.until_seconds is not None and now >= self.until_seconds


class ReplaceablePipeline:
    """The detection pipeline of the watch loop. Not thread-safe: one loop calls it."""

    def __init__(
        self, settings: DetectionSettings, history: History, *, make: Make | None = None
    ) -> None:
        """Start without a baseline.

        Args:
            settings: of detection.
            history: as for :class:`DetectionPipeline`.
            make: makes the pipeline for settings, in place of the usual one.
        """
        self._make = make or (lambda own: DetectionPipeline(own, history))
        self._settings = settings
        self._active = self._make(settings)
        self._trial: _Trial | None = None
        self._verdict: TrialVerdict | None = None

    @property
    def settings(self) -> DetectionSettings:
        """Those that hold now."""
        return self._settings

    @property
    def last_seconds(self) -> float | None:
        """The time of the newest tick with a value; None before the first."""
        return self._active.last_seconds

    def replace(self, settings: DetectionSettings, terms: TrialTerms) -> None:
        """Go on with other settings, on trial; during a trial the ones before it stay the old ones.

        Raises:
            Exception: whatever the settings make fail; the present ones hold then.
        """
        trial = self._trial
        before, settings_before = (
            (self._active, self._settings)
            if trial is None
            else (trial.before, trial.settings_before)
        )
        candidate = self._make(settings)
        try:
            candidate.continue_from(before)
        except BaseException:
            candidate.close()
            raise
        if trial is not None:
            self._active.close()
        self._active, self._settings, self._verdict = candidate, settings, None
        if terms.seconds > 0:
            self._trial = _Trial(before, settings_before, terms)
        else:
            self._trial = None
            before.close()

    def take_verdict(self) -> TrialVerdict | None:
        """Return how a trial ended since the last call, if one did."""
        verdict, self._verdict = self._verdict, None
        return verdict

    def tick(self, now_seconds: float, row: FloatArray) -> Detections:
        """Score the newest row; on trial, by both, and the old one's word counts where it must."""
        trial = self._trial
        if trial is None:
            return self._active.tick(now_seconds, row)
        before = trial.before.tick(now_seconds, row)
        try:
            after = self._active.tick(now_seconds, row)
        # Whatever new settings make fail, the old ones are there to go on with.
        except Exception as error:  # noqa: BLE001 - said by the verdict and the log
            _log.exception("detection_trial_failed")
            self._roll_back(trial, f"a tick failed: {type(error).__name__}: {error}")
            return before
        trial.note(now_seconds, before, after)
        if (complaint := trial.complaint(now_seconds)) is not None:
            self._roll_back(trial, complaint)
            return before
        if trial.over(now_seconds):
            self._trial = None
            trial.before.close()
            self._verdict = TrialVerdict(True, f"{trial.terms.seconds:g} s without a complaint")
        return after

    def _roll_back(self, trial: _Trial, reason: str) -> None:
        self._active.close()
        self._active, self._settings = trial.before, trial.settings_before
        self._trial = None
        self._verdict = TrialVerdict(False, reason)

    def adopt_shapes(self, shapes: Mapping[SeriesKey, SeasonalShape]) -> None:
        """Use seasonal shapes that were fitted on stored history."""
        self._active.adopt_shapes(shapes)
        if self._trial is not None:
            self._trial.before.adopt_shapes(shapes)

    def save(self, path: Path) -> None:
        """Write what the present settings have learnt: after a restart they hold."""
        self._active.save(path)

    def load(self, path: Path) -> bool:
        """Take up a saved state; False where there is no file.

        Raises:
            DetectionStateError: as for :meth:`DetectionPipeline.load`.
        """
        return self._active.load(path)

    def close(self) -> None:
        """Release what detection holds."""
        self._active.close()
        if self._trial is not None:
            self._trial.before.close()

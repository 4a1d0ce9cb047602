"""Before and now: how series changed since an incident began, alarmed or not.

Detection decides what people hear of, so it lets load move freely and follows it. Diagnosis asks another
question: given that something is wrong, what else changed? Demand that doubled is no anomaly, and it is
the best evidence there is for a surge. So the series that do not hurt anybody by themselves are compared
with what they were just before the first symptom.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from analysis.detection.contract import Detections, FloatArray, SignalState
from analysis.diagnosis.causes import CauseCatalogue, Role
from analysis.diagnosis.settings import ContextSettings
from analysis.findings import Direction
from analysis.history import History
from collectors.contract import SeriesKey
from collectors.signals import catalogue as signal_catalogue

_LEAST_VALUES = 12
"""Values before the onset without which nobody can say what was normal."""


class BeforeAndNow:
    """Scores the change of series since a time.

    Args:
        settings: the windows and thresholds.
        causes: the catalogue; series that only its symptoms look at stay as detection sees them.
        history: the recent past; only read.
    """

    def __init__(self, settings: ContextSettings, causes: CauseCatalogue, history: History) -> None:
        self._settings = settings
        self._history = history
        observations = causes.observations.values()
        felt = {each.signal for each in observations if each.role is Role.SYMPTOM}
        asked = {each.signal for each in observations if each.level is None or each.also_deviates}
        self._signals = asked - felt

    def states(
        self, detections: Detections, scope: Collection[str], since_seconds: float
    ) -> Mapping[SeriesKey, SignalState]:
        """Return the states of a scope's series that changed more than detection says.

        Args:
            detections: this tick.
            scope: the entities that are looked at.
            since_seconds: when the first symptom began.
        """
        found = {}
        for key in detections.states:
            if key.entity not in scope or key.signal not in self._signals:
                continue
            changed = self._changed(key, detections, since_seconds)
            if changed is not None:
                found[key] = changed
        return found

    def _changed(
        self, key: SeriesKey, detections: Detections, since_seconds: float
    ) -> SignalState | None:
        own = self._settings
        state = detections.states[key]
        if state.observed is None:
            return None
        start = since_seconds - own.gap_seconds
        _, before = self._history.window(key, start - own.before_seconds, start)
        before = before[np.isfinite(before)]
        times, after = self._history.window(key, start, np.inf)
        present = np.isfinite(after)
        times, after = times[present], after[present]
        if len(before) < _LEAST_VALUES or not len(after):
            return None
        expected = float(np.median(before))
        now = float(np.median(after[-own.recent_values :]))
        score = abs(now - expected) / self._threshold(key.signal, before, expected)
        if score <= state.score:
            return None
        low, high = (float(each) for each in np.quantile(before, [0.02, 0.98]))
        half = np.abs(after - expected) >= 0.5 * abs(now - expected)
        return replace(
            state,
            observed=now,
            expected=expected,
            low=low,
            high=high,
            score=score,
            direction=Direction.UP if now > expected else Direction.DOWN,
            onset_seconds=float(times[int(np.argmax(half))]) if score > 1 else None,
            warmed_up=True,
        )

    def _threshold(self, signal: str, before: FloatArray, expected: float) -> float:
        quarter, three_quarters = np.quantile(before, [0.25, 0.75])
        mad = 1.48 * float(np.median(np.abs(before - expected)))
        sigma = max(float(three_quarters - quarter) / 1.349, mad)
        known = signal_catalogue().get(signal)
        deadband = known.deadband if known is not None else 0.0
        least = max(self._settings.least_share * abs(expected), deadband, 1e-12)
        return max(self._settings.sigmas * sigma, least)

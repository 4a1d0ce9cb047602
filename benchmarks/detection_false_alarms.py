"""Counts false alarms of live detection on real series without faults, and what it finds of events.

    python -m benchmarks.detection_false_alarms [--json]

The live pipeline runs tick by tick over SMD, KPI and NAB at its default policy, seasons included. What
it raises in stretches that are an hour away from every label is false. Then the same again with events
put in: steps, spikes of four values, drops and ramps of 6, 9 and 15 sigma of the local robust residual;
an event is found by an alarm of its series between its onset and two values after its end. `random`
raises as many alarms at random times and series, `always` raises each series anew at every value.

Goals: at most 0.02 false alarms a series and day, and at least 95% of the events.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.replaying.alarms import Alarm, AlarmRecorder
from analysis.detection.replaying.seasons import ReplayedSeasons, SeasonPlan
from analysis.detection.settings import DetectionSettings
from benchmarks.labelled.cases import DATA
from benchmarks.labelled.events import SHAPES, SIZES, Event, inject
from benchmarks.labelled.fleets import FLEETS, Fleet
from collectors.contract import SeriesKey

GOAL_FALSE = 1 / 50
GOAL_FOUND = 0.95
_DAY_SECONDS = 86_400.0
# As `galen watch` fits them at the default retention of the series store, but once a day and not every
# six hours: fits take most of the time of this benchmark.
_SEASONS = SeasonPlan(first_seconds=60.0, every_seconds=24 * 3600.0, history_seconds=72 * 3600.0)


class _Names:
    """The series of a fleet as the pipeline wants to read them."""

    def __init__(self, keys: Sequence[SeriesKey]) -> None:
        self.keys = tuple(keys)

    layout = 0

    def labels(self, _key: SeriesKey) -> Mapping[str, str]:
        return MappingProxyType({})


def watch(fleet: Fleet, settings: DetectionSettings, *, seasons: bool = True) -> list[Alarm]:
    """Return all alarms of the live pipeline over a fleet."""
    pipeline = DetectionPipeline(settings, _Names(fleet.keys), executor=SameThreadExecutor())
    recorder = AlarmRecorder()
    replayed = ReplayedSeasons(_SEASONS) if seasons else None
    for now, row in zip(fleet.times, fleet.values, strict=True):
        recorder.take(pipeline.tick(float(now), row))
        if replayed is not None and (shapes := replayed.take(float(now), row, fleet.keys)):
            pipeline.adopt_shapes(shapes)
    return recorder.alarms()


@dataclass
class Measured:
    """One detector on one fleet."""

    series_days: float
    false_alarms: int
    found: dict[tuple[str, float], list[bool]]
    delay_values: list[float]
    false_by_detector: Counter[str]

    @property
    def false_rate(self) -> float:
        return self.false_alarms / max(self.series_days, 1e-9)

    @property
    def share_found(self) -> float:
        hits = [hit for hits in self.found.values() for hit in hits]
        return float(np.mean(hits)) if hits else float("nan")


def quiet_series_days(fleet: Fleet) -> float:
    steps = np.diff(fleet.times, append=fleet.times[-1])
    # A pause of all series at once is time that nobody watched.
    steps = np.minimum(steps, 10 * np.median(steps))
    return float((fleet.quiet * steps[:, None]).sum() / _DAY_SECONDS)


def is_quiet(fleet: Fleet, columns: Mapping[SeriesKey, int], key: SeriesKey, at: float) -> bool:
    row = min(int(np.searchsorted(fleet.times, at)), len(fleet.times) - 1)
    return bool(fleet.quiet[row, columns[key]])


def measure(
    fleet: Fleet, clean: Sequence[Alarm], alarms: Sequence[Alarm], events: Sequence[Event]
) -> Measured:
    """Judge the alarms of the clean fleet, and of the one with events."""
    columns = {key: column for column, key in enumerate(fleet.keys)}
    wrong = [each for each in clean if is_quiet(fleet, columns, each.key, each.raised_seconds)]
    by_series: dict[int, list[float]] = {}
    for alarm in alarms:
        by_series.setdefault(columns[alarm.key], []).append(alarm.raised_seconds)
    result = Measured(quiet_series_days(fleet), len(wrong), {}, [], Counter())
    for alarm in wrong:
        result.false_by_detector["+".join(alarm.detectors)] += 1
    for event in events:
        until = event.end_seconds + 2 * event.step_seconds
        raised = np.array(by_series.get(event.column, []))
        hits = raised[(raised >= event.start_seconds) & (raised <= until)]
        result.found.setdefault((event.shape, event.size), []).append(bool(len(hits)))
        if len(hits):
            delay = float(hits.min()) - event.start_seconds
            result.delay_values.append(1 + delay / event.step_seconds)
    return result


def random_alarms(fleet: Fleet, count: int, seed: int) -> list[Alarm]:
    random = np.random.default_rng(seed)
    rows = random.integers(0, len(fleet.times), count)
    columns = random.integers(0, len(fleet.keys), count)
    return [
        Alarm(fleet.keys[column], float(at), float(at), float(at), 1.0, ("random",))
        for at, column in zip(fleet.times[rows], columns, strict=True)
    ]


def always(fleet: Fleet, events: Sequence[Event]) -> Measured:
    """Judge what raises each series anew at every value, without making its alarms."""
    false = int((fleet.quiet & np.isfinite(fleet.values)).sum())
    found: dict[tuple[str, float], list[bool]] = {}
    for event in events:
        found.setdefault((event.shape, event.size), []).append(True)
    return Measured(quiet_series_days(fleet), false, found, [1.0] * len(events), Counter())


def run(
    fleet: Fleet, seed: int, settings: DetectionSettings, *, seasons: bool
) -> dict[str, Measured]:
    began = time.perf_counter()
    clean = watch(fleet, settings, seasons=seasons)
    changed, events = inject(fleet, seed)
    alarms = watch(changed, settings, seasons=seasons)
    own = measure(fleet, clean, alarms, events)
    sys.stderr.write(
        f"{fleet.name}: {len(fleet.keys)} series, {own.series_days:.0f} quiet series-days, "
        f"{len(events)} events, {time.perf_counter() - began:.0f} s\n"
    )
    return {
        "galen": own,
        "random": measure(
            fleet,
            random_alarms(fleet, len(clean), seed),
            random_alarms(fleet, len(alarms), seed + 1),
            events,
        ),
        "always": always(fleet, events),
    }


def document(results: Mapping[str, Mapping[str, Measured]]) -> dict[str, Any]:
    told: dict[str, Any] = {"goals": {"false_alarms": GOAL_FALSE, "found": GOAL_FOUND}}
    for fleet, detectors in results.items():
        told[fleet] = {
            name: {
                "series_days": round(one.series_days, 1),
                "false_alarms": one.false_alarms,
                "false_alarms_per_series_day": round(one.false_rate, 5),
                "events": sum(map(len, one.found.values())),
                "events_found": round(one.share_found, 4),
                "found": {
                    f"{shape} {size:g} sigma": round(float(np.mean(hits)), 4)
                    for (shape, size), hits in sorted(one.found.items())
                },
                "median_delay_values": float(np.median(one.delay_values))
                if one.delay_values
                else None,
                "false_alarms_by_detector": dict(one.false_by_detector.most_common()),
            }
            for name, one in detectors.items()
        }
    return told


def tell(results: Mapping[str, Mapping[str, Measured]]) -> None:
    print(
        f"{'data':5}{'detector':9}{'series-days':>12}{'false':>8}{'a series and day':>18}"
        f"{'events found':>14}{'median delay':>14}"
    )
    for fleet, detectors in results.items():
        for name, one in detectors.items():
            delay = f"{np.median(one.delay_values):.0f} values" if one.delay_values else "-"
            print(
                f"{fleet:5}{name:9}{one.series_days:>12.0f}{one.false_alarms:>8}"
                f"{one.false_rate:>18.4f}{one.share_found:>14.1%}{delay:>14}"
            )
    print(f"\n{'events found':14}" + "".join(f"{size:>7g} s" for size in SIZES))
    for shape in SHAPES:
        for fleet, detectors in results.items():
            cells = [detectors["galen"].found.get((shape, size), []) for size in SIZES]
            shares = "".join(f"{np.mean(c):>9.1%}" if c else f"{'-':>9}" for c in cells)
            print(f"{fleet:5}{shape:9}{shares}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--fleet", choices=tuple(FLEETS), action="append")
    parser.add_argument("--limit", type=int, default=1000, help="files of a data set at most")
    parser.add_argument(
        "--days", type=float, default=1e9, help="only the newest days of each series"
    )
    parser.add_argument("--no-seasons", action="store_true", help="fit no seasonal shapes")
    parser.add_argument("--seed", type=int, default=0, help="of the events and the random control")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    results = {
        name: run(
            FLEETS[name](given.data, given.limit, given.days),
            given.seed,
            DetectionSettings(),
            seasons=not given.no_seasons,
        )
        for name in given.fleet or FLEETS
    }
    if given.json:
        print(json.dumps(document(results), indent=2))
    else:
        tell(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

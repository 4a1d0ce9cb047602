"""Peers: one of several siblings is unlike the others.

GPUs of one host, or of one model where a host has too few, and replicas of one service do the same
work: their temperatures, clocks and latencies move together, and the one that does not is named, even
without any past. The distance is to the median of the siblings that are there and equally busy, in
units of their median absolute deviation (Leys et al., "Detecting outliers: do not use standard deviation
around the mean", 2013) and at least of what can matter. A usual distance, such as that of the warmest
place in a chassis, is learned over hours.

Which signals are compared is in ``profiles.toml``. Direction: as the signal is bad. Warm-up: the
duration that a distance has to last. It fails where half of the siblings have the same fault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Scores
from analysis.detection.profiles import PEERS, SeriesProfiles, sensitivity_of
from analysis.detection.settings import PeerSettings
from analysis.detection.sibling_groups import SiblingGroups
from collectors.contract import SeriesKey
from collectors.entities import kind_of, parent_of

Labels = Callable[[SeriesKey], Mapping[str, str]]

LOAD_OF = {"gpu": "gpu_utilization_percent", "replica": "llm_requests_per_second"}
"""The kinds of entities that have siblings, and the signal that says how busy each is."""
_MODEL_LABEL = "name"
"""Which GPU a sample is of, such as `NVIDIA H100 80GB HBM3`."""
_SIGMA_PER_MAD = 1.4826
_SMOOTH = 0.3
"""Weight of the newest value: siblings are compared over the last few values."""
_STALE_GAPS = 2.5
_CLEAR = 0.7


@dataclass(frozen=True, slots=True)
class _Middle:
    """Of the group of each member, arrays ``[members]``."""

    median: FloatArray
    deviation: FloatArray
    count: NDArray[np.int64]


@cache
def _is_compared(signal: str) -> bool:
    return sensitivity_of(signal).peers != "never"


def _takes_part(key: SeriesKey) -> bool:
    kind = kind_of(key.entity)
    return kind in LOAD_OF and (key.signal == LOAD_OF[kind] or _is_compared(key.signal))


class Peers:
    """Scores how far each series is from the same series of its siblings.

    Args:
        settings: how far, and for how long.
        labels: what is known of a series beside its name; GPUs of a model are siblings across hosts.
    """

    name = "peers"

    def __init__(self, settings: PeerSettings, labels: Labels | None = None) -> None:
        self._settings = settings
        self._labels: Labels = labels or (lambda _key: {})
        # Only the series that take part have profiles and columns: most of a fleet's have no siblings.
        self._series = 0
        self._watched: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._profiles = SeriesProfiles()
        self._columns = Columns(
            smooth=np.nan,
            seconds=np.nan,
            gap=np.nan,
            usual=0.0,
            since_seconds=np.nan,
            values=0.0,
        )
        self._loads: dict[str, int] = {}
        self._groups: dict[tuple[str, ...], int] = {}
        self._members: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._load_columns: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._place: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._model: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """-1 where the labels were not seen yet."""
        self._tables: tuple[SiblingGroups, SiblingGroups] | None = None

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Make room for new series; those that siblings do not share are left out."""
        taken = [place for place, key in enumerate(keys) if _takes_part(key)]
        start = len(self._profiles)
        self._watched = np.append(self._watched, self._series + np.array(taken, dtype=np.int64))
        self._series += len(keys)
        self._profiles.grow([keys[place] for place in taken])
        self._columns.grow(len(taken))
        self._enlist(start)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        still = kept[self._watched]
        self._watched = (np.cumsum(kept) - 1)[self._watched[still]]
        self._series = int(kept.sum())
        self._profiles.keep(still)
        self._columns.keep(still)
        self._loads, self._groups = {}, {}
        self._members = np.empty(0, dtype=np.int64)
        self._place = np.empty(0, dtype=np.int64)
        self._model = np.empty(0, dtype=np.int64)
        self._enlist(0)

    def _enlist(self, start: int) -> None:
        """Put the series that take part, from one of them on, into the group of their parent."""
        compared = self._profiles["peers"]
        members, places = [], []
        for column, key in enumerate(self._profiles.keys[start:], start=start):
            kind = kind_of(key.entity)
            if key.signal == LOAD_OF[kind]:
                self._loads[key.entity] = column
            if compared[column]:
                members.append(column)
                places.append(self._group("place", key.signal, kind, parent_of(key.entity)))
        self._members = np.append(self._members, np.array(members, dtype=np.int64))
        self._place = np.append(self._place, np.array(places, dtype=np.int64))
        self._model = np.append(self._model, np.full(len(members), -1))
        self._tables = None
        entities = [self._profiles.keys[column].entity for column in self._members.tolist()]
        self._load_columns = np.array([self._loads.get(e, -1) for e in entities], dtype=np.int64)

    def _group(self, *name: str) -> int:
        return self._groups.setdefault(name, len(self._groups))

    def _find_models(self, given: NDArray[np.bool_]) -> None:
        """Put members whose labels are there for the first time into the group of their model."""
        for member in np.flatnonzero(given & (self._model < 0)).tolist():
            key = self._profiles.keys[int(self._members[member])]
            kind = kind_of(key.entity)
            model = self._labels(key).get(_MODEL_LABEL, "") if kind == "gpu" else ""
            # Without a model it is in a group of its own place, which then has too few as well.
            name = (
                ("model", key.signal, kind, model) if model else ("place", key.signal, key.entity)
            )
            self._model[member] = self._group(*name)
            self._tables = None

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:
        """Score one tick of values ``[series]``; counters as their increases."""
        told = np.full((4, self._series), np.nan)
        watched = self._watched
        if self._settings.enabled and self._members.size and np.isfinite(values[watched]).any():
            told[:, watched] = self._judge(time_seconds, values[watched], learn[watched])
        return Scores(*told)

    def _judge(
        self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return score, expected, low and high of the series that take part."""
        nothing = np.full(len(self._columns), np.nan)
        members = self._members
        given = np.isfinite(values)
        self._note(time_seconds, values, given)
        judged = given[members]
        self._find_models(judged)
        columns, profiles = self._columns, self._profiles
        fresh = time_seconds - columns["seconds"] <= _STALE_GAPS * columns["gap"] + 1.0
        position = (columns["smooth"] - columns["usual"])[members]
        middle = self._middle(position, fresh)
        judged &= np.isfinite(middle.median)
        centre = nothing.copy()
        centre[members] = middle.median
        # Not a share of the level, as over time: load explains nothing between siblings.
        floor = self._settings.floor_share * np.where(
            profiles["multiplicative"], profiles["log_floor"], profiles["least"]
        )
        threshold = nothing.copy()
        spread = self._settings.raise_sigmas * _SIGMA_PER_MAD * middle.deviation
        threshold[members] = np.maximum(spread, floor[members])
        expected = profiles.inverse(centre + columns["usual"])
        error = columns["smooth"] - columns["usual"] - centre
        harmful = np.where(error > 0, profiles["bad_up"], profiles["bad_down"])
        present = profiles.inverse(columns["smooth"])
        least = np.maximum(self._settings.floor_share * profiles["least"], 1e-12)
        raw = np.minimum(
            np.abs(error) / np.maximum(threshold, 1e-12), np.abs(present - expected) / least
        )
        raw = np.where(harmful, raw, 0.0)
        chosen = np.zeros(len(nothing), dtype=bool)
        chosen[members] = judged
        score, old = self._lasting(time_seconds, raw, chosen)
        self._learn(error, chosen & learn & (raw <= 1.0), old)
        middle_of = centre + columns["usual"]
        low, high = profiles.inverse(middle_of - threshold), profiles.inverse(middle_of + threshold)
        score, expected, low, high = (
            np.where(chosen, each, np.nan) for each in (score, expected, low, high)
        )
        return score, expected, low, high

    def _note(self, time_seconds: float, values: FloatArray, given: NDArray[np.bool_]) -> None:
        columns = self._columns
        position = self._profiles.forward(np.where(given, values, np.nan))
        first = given & np.isnan(columns["smooth"])
        columns.put("smooth", position, first)
        columns.add("smooth", _SMOOTH * (position - columns["smooth"]), given)
        elapsed = np.fmax(time_seconds - columns["seconds"], 0.0)
        gap = np.where(np.isnan(columns["gap"]), elapsed, columns["gap"])
        columns.put("gap", gap + 0.1 * (elapsed - gap), given)
        columns.put("seconds", time_seconds, given)

    def _middle(self, position: FloatArray, fresh: NDArray[np.bool_]) -> _Middle:
        """Return what siblings of the same place show, or of the same model where those are too few."""
        usable = fresh[self._members] & np.isfinite(position)
        if self._tables is None:
            self._tables = SiblingGroups(self._place), SiblingGroups(np.maximum(self._model, 0))
        by_place, by_model = self._tables
        near = self._judge_group(by_place, position, usable)
        enough = near.count > self._settings.least_peers
        known = usable & (self._model >= 0)
        far = near if (enough | ~known).all() else self._judge_group(by_model, position, known)
        ample = np.where(enough, True, far.count > self._settings.least_peers) & usable
        return _Middle(
            np.where(ample, np.where(enough, near.median, far.median), np.nan),
            np.where(ample, np.where(enough, near.deviation, far.deviation), np.nan),
            np.where(enough, near.count, far.count),
        )

    def _judge_group(
        self, group: SiblingGroups, position: FloatArray, usable: NDArray[np.bool_]
    ) -> _Middle:
        usable = usable & self._equally_busy(group, usable)
        median, count = group.medians(position, usable)
        deviation, _ = group.medians(np.abs(position - median), usable)
        return _Middle(median, deviation, np.where(usable, count, 0))

    def _equally_busy(self, group: SiblingGroups, usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which members work as much as their group does, where that matters."""
        matters = self._profiles["peers"][self._members] == PEERS["equal_load"]
        source = self._load_columns
        told = self._profiles.inverse(self._columns["smooth"])
        load = np.where(source >= 0, told[source], np.nan)
        middle, _ = group.medians(load, usable & np.isfinite(load))
        deadband = np.where(source >= 0, self._profiles["deadband"][source], 0.0)
        near = np.maximum(self._settings.load_share * np.abs(middle), 2.0 * deadband)
        with np.errstate(invalid="ignore"):
            return np.asarray(~matters | (np.abs(load - middle) <= near))

    def _lasting(
        self, time_seconds: float, raw: FloatArray, chosen: NDArray[np.bool_]
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Keep scores at 1 until the distance has lasted; say also which has lasted for long."""
        columns, own = self._columns, self._settings
        far = chosen & (raw > 1.0)
        begun = far & np.isnan(columns["since_seconds"])
        columns.put("since_seconds", time_seconds, begun)
        columns.add("values", 1.0, far)
        over = chosen & (raw < _CLEAR)
        columns.put("since_seconds", np.nan, over)
        columns.put("values", 0.0, over)
        lasted = time_seconds - columns["since_seconds"]
        enough = (lasted >= own.minimum_seconds) & (columns["values"] >= own.minimum_values)
        return np.where(enough, raw, np.minimum(raw, 1.0)), far & (lasted >= own.absorb_seconds)

    def _learn(self, error: FloatArray, chosen: NDArray[np.bool_], old: NDArray[np.bool_]) -> None:
        """Move the usual distance of some a little, and of those that are old all the way."""
        columns = self._columns
        rate = 1.0 - np.exp(-columns["gap"] / self._settings.memory_seconds)
        columns.add("usual", rate * error, chosen)
        columns.add("usual", error, old)
        columns.put("since_seconds", np.nan, old)
        columns.put("values", 0.0, old)

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return what has to be kept over a restart. Groups come from the names and labels again."""
        return self._columns.state()

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series."""
        self._columns.restore(state)

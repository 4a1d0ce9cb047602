"""One target's scrapes, one after the other, turned into canonical samples.

Pure computing: no network, no clock. Gauges are given as they are; counters become rates over the time
since the scrape before, and ratios and quantiles over a window; both go on when the target restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from collectors.contract import Collection, CollectorError, Sample
from collectors.counter_history import CounterHistory
from collectors.evaluation import Scrape, throttle_flags
from collectors.exposition_lines import ExpositionError
from collectors.mapping import EntityNamer
from collectors.plan import (
    THROTTLE_MASK,
    Plan,
    Planner,
    models_of,
    unrecognised,
    wanted_names,
)
from collectors.presets import detect, sources_of
from collectors.series_links import SeriesLinks
from collectors.series_table import Row, SeriesTable
from collectors.settings import ReadingSettings

_AUTO = "auto"
_OLDEST_SECONDS = 300.0  # Prometheus' own lookback: what is older counts as gone
_AHEAD_SECONDS = 60.0
_MAX_TOLD = 1_000


class TargetReader:
    """Reads the scrapes of one target. Not thread-safe; give each target its own.

    Args:
        labels: the target's own (``instance``, ``pod``, ``node``, ``service``, ``replica``...). They
            count as if every series had them; a label of a series itself wins, except that ``host`` and
            ``node`` of the target say where it runs.
        settings: how to read.
    """

    def __init__(
        self, labels: Mapping[str, str] | None = None, settings: ReadingSettings | None = None
    ) -> None:
        self._labels = _target_labels(labels or {})
        self._settings = settings or ReadingSettings()
        self._table = SeriesTable(
            wanted=wanted_names(),
            max_series=self._settings.max_series,
            max_series_per_name=self._settings.max_series_per_name,
        )
        self._history = CounterHistory(keep_seconds=self._settings.window_seconds)
        self._plan = Plan()
        self._links = SeriesLinks(self._plan, (), self._labels)
        self._planned = (-1, -1, -1)
        self._counted: dict[int, int] = {}
        self._unrecognised: Sequence[str] = ()
        self._standing: dict[tuple[str, str], tuple[float, float | None]] = {}
        self.kinds: tuple[str, ...] = ()
        """The presets that the target belongs to, as configured or as its metrics tell."""

    def take(
        self, text: str, now_seconds: float, at_seconds: float, *, open_metrics: bool | None = None
    ) -> Collection:
        """Read one scrape.

        Args:
            text: the whole answer.
            now_seconds: the wall clock, for the samples.
            at_seconds: a clock that never goes back, for rates. When it does, rates start anew.
            open_metrics: what the answer's type said; None looks at the text.

        Raises:
            CollectorError: when the text is no exposition, or has too many series.
        """
        try:
            row = self._table.read(text, open_metrics=open_metrics)
        except ExpositionError as error:
            raise CollectorError(
                str(error), fix="this must be Prometheus exposition text; drop labels that explode"
            ) from error
        self._replan()
        notes = list(_notes(row))
        self._drop_stale(row, now_seconds, notes)
        counters = [row.values[place] for place in self._plan.counters]
        if not self._history.add(at_seconds, counters):
            notes.append("the clock did not go forward; rates start anew")
        samples = list(self._samples(row, now_seconds, at_seconds))
        if self._plan.too_many_entities:
            notes.append(
                f"{self._plan.too_many_entities} series are about more than "
                f"{self._settings.max_entities} entities and were left out"
            )
        return Collection(
            samples=samples,
            unrecognised=self._unrecognised,
            notes=notes,
            links=self._links.of(row.values),
        )

    def _samples(self, row: Row, now_seconds: float, at_seconds: float) -> Iterator[Sample]:
        values = row.values
        for place, factor, signal, entity, labels in self._plan.direct:
            value = values[place]
            if value == value:  # noqa: PLR0124  # NaN, which stands for absent, is not equal to itself
                yield Sample(now_seconds, entity, signal, value * factor, labels)
        scrape = Scrape(
            values,
            now_seconds,
            self._history.step(),
            self._history.window(),
            self._settings.minimum_events,
        )
        for found in scrape.evaluate(self._plan):
            signal, value = found.signal.name, found.value
            if found.signal.sticky:
                standing = self._stands(found.entity, signal, value, at_seconds)
                if standing is None:
                    continue
                value = standing
            yield Sample(now_seconds, found.entity, signal, value, found.labels)
            if signal == THROTTLE_MASK:
                for flag, on in throttle_flags(found):
                    yield Sample(now_seconds, found.entity, flag, on, found.labels)

    def _stands(self, entity: str, signal: str, value: float, at_seconds: float) -> float | None:
        """Return what stands of an event that the target repeats for ever.

        What stood at the first sight may be long over: nobody knows, so it is absent until it changes.
        """
        known = self._standing.get((entity, signal))
        if known is None or known[0] != value:
            since = None if known is None and value != 0 else at_seconds
            known = self._standing[entity, signal] = (value, since)
        if known[1] is None:
            return None
        return value if at_seconds - known[1] <= self._settings.hold_seconds else 0.0

    def _replan(self) -> None:
        table = self._table
        state = (table.generation, len(table.series), len(table.passed_names))
        if state == self._planned:
            return
        names = list(dict.fromkeys([*(one.name for one in table.series), *table.passed_names]))
        if state[:2] != self._planned[:2] or tuple(self._detected(names)) != self.kinds:
            self.kinds = tuple(self._detected(names))
            planner = Planner(
                self._namer(),
                sources_of(self.kinds),
                self._labels,
                max_entities=self._settings.max_entities,
            )
            self._plan = planner.plan(table.series)
            self._links = SeriesLinks(self._plan, self._table.series, self._labels)
            self._resize()
        told = unrecognised(names, self._plan.used)
        self._unrecognised = told[:_MAX_TOLD]
        self._planned = state

    def _resize(self) -> None:
        """Carry what is known of the counters over to their new places."""
        # By their hashes, since the labels themselves would be most of what a reader holds.
        identities = [
            hash((series.name, frozenset(series.labels.items())))
            for series in (self._table.series[place] for place in self._plan.counters)
        ]
        self._history.resize(
            [self._counted.get(identity) for identity in identities],
            [self._table.series[place].from_zero for place in self._plan.counters],
        )
        self._counted = {identity: place for place, identity in enumerate(identities)}

    def _detected(self, names: Sequence[str]) -> Sequence[str]:
        kind = self._settings.kind
        return detect(names) if kind == _AUTO else (kind,)

    def _namer(self) -> EntityNamer:
        labels = self._labels
        models = models_of(self._table.series)
        host = _host_of(labels.get("instance", ""))
        replica = labels.get("replica") or labels.get("pod")
        if not replica and not labels.get("service"):
            replica = labels.get("instance")
        return EntityNamer(
            host=host or "unknown",
            fallback=models.pop() if len(models) == 1 else labels.get("job") or host or None,
            replica=replica or None,
        )

    def _drop_stale(self, row: Row, now_seconds: float, notes: list[str]) -> None:
        stale = [
            place
            for place, seconds in row.times.items()
            if not now_seconds - _OLDEST_SECONDS <= seconds <= now_seconds + _AHEAD_SECONDS
        ]
        for place in stale:
            row.values[place] = float("nan")
        if stale:
            names = sorted({self._table.series[place].name for place in stale})
            notes.append(
                f"{len(stale)} series carry times that are not of now and were left out: "
                f"{', '.join(names[:5])}"
            )


def _target_labels(given: Mapping[str, str]) -> dict[str, str]:
    labels = {name: value for name, value in given.items() if value}
    # An exporter in a pod takes the pod for its host; who configured the target knows better.
    where = labels.get("host") or labels.get("node")
    if where:
        labels["host"] = where
    return labels


def _host_of(instance: str) -> str:
    name, colon, port = instance.rpartition(":")
    return name if colon and port.isdigit() and name else instance


def _notes(row: Row) -> Iterator[str]:
    for name, count in row.left_out.items():
        yield f"{name}: {count} values were blank, NaN or infinite and left out"
    if row.repeated:
        yield f"{row.repeated} lines repeat a series; the last of each counts"
    for offender in row.offenders:
        yield f"left out: {offender}"

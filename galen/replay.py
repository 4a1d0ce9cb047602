"""What `galen backtest` replays, against what, and how the result is told."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment
from pydantic import BaseModel

from analysis.detection.backtest import BacktestResult, LabelledFault, Quality
from analysis.detection.wide_csv import TIME_COLUMN, WideCsvError, read_wide_csv, times_of
from collectors.entities import entity
from collectors.store.sqlite import SqliteSeriesReader
from collectors.store.tables import COLUMNS, TableError, columns_of, read_samples
from galen.commands.context import parse_moment
from galen.errors import ConfigError
from galen.watch import WATCH_ENTITY

_END_SLACK_SECONDS = 0.001  # the store keeps milliseconds, and an end is exclusive


@dataclass(frozen=True, slots=True)
class ReplayHistory:
    """Samples to replay, with ``start <= time < end``."""

    frame: pd.DataFrame
    start_seconds: float
    end_seconds: float
    tick_times: Sequence[float] | None
    """When the watch loop ticked, where the samples say; None where the usual step has to do."""


def load_history(source: Path, start_seconds: float, end_seconds: float) -> ReplayHistory:
    """Read a series store, or a wide or long table, within a time; either bound may be infinite.

    The watch loop writes a sample of itself at every tick, so a store knows when it ticked and the
    replay can tick then.

    Raises:
        ConfigError: when a file cannot be read as a table, or nothing lies in the time.
        StoreError: when the store cannot be read.
    """
    if source.suffix in {".csv", ".parquet"}:
        frame = _load_table(source)
    else:
        reader = SqliteSeriesReader(source)
        try:
            frame = reader.read(start_seconds=start_seconds, end_seconds=end_seconds)
        finally:
            reader.close()
    frame = frame[(frame["time"] >= start_seconds) & (frame["time"] < end_seconds)]
    if frame.empty:
        raise ConfigError(
            f"{source}: there is nothing to replay in that time",
            fix="Choose another --since and --until; `galen store info` shows what there is.",
        )
    start = max(start_seconds, float(frame["time"].min()))
    end = min(end_seconds, float(frame["time"].max()) + _END_SLACK_SECONDS)
    own = frame.loc[frame["entity"] == WATCH_ENTITY, "time"]
    ticks = None
    if len(own):
        # The loop's first tick has no sample of itself: it tells the time that a tick before took.
        first = frame.loc[frame["time"] < own.min(), "time"].unique()[-1:]
        ticks = [*first.tolist(), *np.unique(own.to_numpy()).tolist()]
    return ReplayHistory(frame, start, end, ticks)


def _load_table(source: Path) -> pd.DataFrame:
    try:
        if all(name in columns_of(source) for name in COLUMNS):
            return read_samples(source)
        return _long(_wide(source), source)
    except (TableError, WideCsvError) as error:
        raise ConfigError(
            str(error),
            fix=f"A long table has {', '.join(COLUMNS)}; a wide one {TIME_COLUMN} and one column "
            "a metric, `entity:signal` or a name.",
        ) from error


def _wide(source: Path) -> pd.DataFrame:
    if source.suffix == ".csv":
        return read_wide_csv(source)
    frame = pd.read_parquet(source)
    if frame.empty or str(frame.columns[0]) != TIME_COLUMN:
        raise TableError(f"{source}: the first column is not {TIME_COLUMN!r}, or there is no row")
    for name in frame.columns[1:]:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise TableError(
                f"{source}: column {str(name)!r} holds {frame[name].dtype}, no numbers"
            )
    return frame


def _long(wide: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Turn one column a metric into one row a sample; a bare name is a signal of the file's name."""
    times = times_of(wide[TIME_COLUMN], len(wide))
    parts = []
    for name in map(str, wide.columns[1:]):
        about, _, signal = name.rpartition(":")
        values = wide[name].to_numpy(dtype=float, na_value=np.nan)
        kept = np.isfinite(values)
        parts.append(
            pd.DataFrame(
                {
                    "time": times[kept],
                    "entity": about or entity("file", source.stem),
                    "signal": signal,
                    "value": values[kept],
                }
            )
        )
    return pd.concat(parts).sort_values("time", kind="stable", ignore_index=True)


def load_faults(path: Path) -> list[LabelledFault]:
    """Read labelled faults: a CSV ``start,end`` with ``entity`` and ``signal`` where they are known.

    Raises:
        ConfigError: naming file, line and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = {"start", "end"} - set(rows.fieldnames or ())
            if missing:
                raise ConfigError(
                    f"{path}, line 1: there is no column {min(missing)!r}",
                    fix="The columns are start,end and, where known, entity,signal.",
                )
            return [_fault(path, rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {error}") from error


def _fault(path: Path, line: int, row: dict[str, str | None]) -> LabelledFault:
    def moment(column: str) -> float:
        text = (row[column] or "").strip()
        return parse_moment(text, name=f"{path}, line {line}, column {column!r}")

    start, end = moment("start"), moment("end")
    if not (math.isfinite(start) and start <= end < math.inf):
        raise ConfigError(f"{path}, line {line}, column 'end': the end is before the start")
    about, signal = ((row.get(name) or "").strip() for name in ("entity", "signal"))
    return LabelledFault(start, end, [about] if about else (), [signal] if signal else ())


class FoundAlarm(BaseModel):
    """One alarm that would have been raised."""

    entity: str
    signal: str
    onset_seconds: float
    raised_seconds: float
    last_seconds: float
    highest_score: float
    detectors: list[str]


class FoundQuality(BaseModel):
    """How alarms compare with the labelled faults; controls are judged by the same measure."""

    name: str
    faults: int
    detected: int
    median_delay_seconds: float | None
    delay_seconds: list[float]
    false_alarms: int
    false_alarms_per_series_day: float

    @classmethod
    def of(cls, name: str, quality: Quality) -> FoundQuality:
        """Name a quality and add its median delay."""
        delays = list(quality.delay_seconds)
        return cls(
            name=name,
            faults=quality.faults,
            detected=quality.detected,
            median_delay_seconds=statistics.median(delays) if delays else None,
            delay_seconds=delays,
            false_alarms=quality.false_alarms,
            false_alarms_per_series_day=quality.false_alarms_per_series_day,
        )


class SeriesRate(BaseModel):
    """How often one series alarmed."""

    entity: str
    signal: str
    alarms_per_day: float


class Findings(BaseModel):
    """The result of a backtest as it is printed."""

    source: str
    start_seconds: float
    end_seconds: float
    ticks: int
    series: int
    judged: bool
    """Whether there were labels; without them every alarm counts as false."""
    alarms: list[FoundAlarm]
    noisiest: list[SeriesRate]
    qualities: list[FoundQuality]
    """Detection first, then the controls."""

    @classmethod
    def of(cls, result: BacktestResult, *, source: str, judged: bool) -> Findings:
        """Shape the result of a replay for people and programs."""
        rates = sorted(result.alarms_per_series_day().items(), key=lambda item: -item[1])
        qualities = {"galen": result.quality, **result.controls}
        return cls(
            source=source,
            start_seconds=result.start_seconds,
            end_seconds=result.end_seconds,
            ticks=result.ticks,
            series=result.series,
            judged=judged,
            alarms=list(_alarms(result)),
            noisiest=[
                SeriesRate(entity=key.entity, signal=key.signal, alarms_per_day=rate)
                for key, rate in rates
            ],
            qualities=[FoundQuality.of(name, quality) for name, quality in qualities.items()],
        )

    @property
    def as_hoped(self) -> bool:
        """No alarm; with labels every fault noticed and no false alarm."""
        own = self.qualities[0]
        return own.false_alarms == 0 and own.detected == own.faults


def _alarms(result: BacktestResult) -> Iterator[FoundAlarm]:
    for alarm in result.alarms:
        yield FoundAlarm(
            entity=alarm.key.entity,
            signal=alarm.key.signal,
            onset_seconds=alarm.onset_seconds,
            raised_seconds=alarm.raised_seconds,
            last_seconds=alarm.last_seconds,
            highest_score=alarm.highest_score,
            detectors=list(alarm.detectors),
        )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


# One file without scripts or addresses, so that it can be mailed and opened anywhere.
_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Backtest</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #d8dee4 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
</style></head><body>
<h1>Backtest</h1>
<p>{{ found.source }}: {{ found.ticks }} ticks of {{ found.series }} series,
{{ found.start_seconds | moment }} to {{ found.end_seconds | moment }}.
The live detection ran tick by tick and saw no later sample.</p>
<h2>Quality</h2>
{% if not found.judged %}<p>There were no labels, so every alarm counts as false.</p>{% endif %}
<table><tr><th></th><th class="number">faults noticed</th><th class="number">median delay, s</th>
<th class="number">false alarms</th><th class="number">false per series and day</th></tr>
{% for one in found.qualities %}<tr><td>{{ one.name }}</td>
<td class="number">{% if found.judged %}{{ one.detected }} of {{ one.faults }}
{%- else %}&ndash;{% endif %}</td>
<td class="number">{% if one.median_delay_seconds is none %}&ndash;{% else %}{{
 "%.0f" | format(one.median_delay_seconds) }}{% endif %}</td>
<td class="number">{{ one.false_alarms }}</td>
<td class="number">{{ "%.3g" | format(one.false_alarms_per_series_day) }}</td></tr>
{% endfor %}</table>
<p>Controls: <em>random</em> raises as many alarms at random times and series, <em>always</em> alarms
for all the time.</p>
<h2>Noisiest series</h2>
<table><tr><th>entity</th><th>signal</th><th class="number">alarms per day</th></tr>
{% for one in found.noisiest[:20] %}<tr><td>{{ one.entity }}</td><td>{{ one.signal }}</td>
<td class="number">{{ "%.3g" | format(one.alarms_per_day) }}</td></tr>
{% else %}<tr><td colspan="3">none</td></tr>{% endfor %}</table>
<h2>Alarms</h2>
<table><tr><th>raised</th><th class="number">for, s</th><th>entity</th><th>signal</th>
<th class="number">highest score</th><th>detectors</th></tr>
{% for one in found.alarms %}<tr><td>{{ one.raised_seconds | moment }}</td>
<td class="number">{{ "%.0f" | format(one.last_seconds - one.raised_seconds) }}</td>
<td>{{ one.entity }}</td><td>{{ one.signal }}</td>
<td class="number">{{ "%.1f" | format(one.highest_score) }}</td>
<td>{{ one.detectors | join(", ") }}</td></tr>
{% else %}<tr><td colspan="6">none</td></tr>{% endfor %}</table>
</body></html>
"""


def render_html(found: Findings) -> str:
    """Return a page that needs nothing beside itself; names from the data are escaped."""
    environment = Environment(autoescape=True)
    environment.filters["moment"] = _moment
    return environment.from_string(_PAGE).render(found=found)

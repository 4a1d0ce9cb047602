"""Limits: physical and contractual bounds that hold whatever a series did before.

Direction: as the rule says. Warm-up: none. It fails where a limit is not known; the rules, each with
its source, are in ``limits.toml``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from analysis.detection.columns import Columns
from analysis.detection.contract import FloatArray, Scores
from collectors.contract import SeriesKey

_HIGHEST_SCORE = 10.0


class LimitRule(BaseModel):
    """One limit of one signal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    above: float | None = None
    below: float | None = None
    on: Literal["value", "increase"] = "value"
    unless: float | None = None
    """One value beyond the limit that breaks no rule, such as a state that is meant."""
    minimum_values: int = Field(1, ge=1)
    minimum_seconds: float = Field(0.0, ge=0)
    hold_seconds: float = Field(5.0, ge=0)
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _has_a_bound(self) -> LimitRule:
        if self.above is None and self.below is None:
            raise ValueError("a limit needs `above` or `below`")
        return self


def parse_limits(text: str, *, origin: str = "limits.toml") -> Mapping[str, LimitRule]:
    """Read rules by signal from TOML.

    Raises:
        ValueError: naming the file, the signal and the fault.
    """
    rules: dict[str, LimitRule] = {}
    for signal, row in tomllib.loads(text).items():
        try:
            rules[signal] = LimitRule.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "rule"
            raise ValueError(f"{origin} [{signal}] {place}: {first['msg']}") from error
    return MappingProxyType(rules)


@cache
def bundled_limits() -> Mapping[str, LimitRule]:
    """Return the rules that ship with Galen."""
    text = resources.files("analysis.detection").joinpath("limits.toml").read_text("utf-8")
    return parse_limits(text)


class Limits:
    """Compares each value with the rule of its signal."""

    name = "limit"

    def __init__(self, rules: Mapping[str, LimitRule] | None = None) -> None:
        self._rules = bundled_limits() if rules is None else rules
        self._fixed = Columns(
            above=np.inf,
            below=-np.inf,
            ruled=False,
            increase=False,
            unless=np.nan,
            minimum_values=1,
            minimum_seconds=0.0,
            hold_seconds=5.0,
        )
        self._columns = Columns(previous=np.nan)

    @property
    def durations(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return the least values, the least seconds and the hold in seconds, each ``[series]``."""
        fixed = self._fixed
        return fixed["minimum_values"], fixed["minimum_seconds"], fixed["hold_seconds"]

    @property
    def below(self) -> FloatArray:
        """``[series]``: the lower limit of each, minus infinity where there is none."""
        return self._fixed["below"]

    def grow(self, keys: Sequence[SeriesKey]) -> None:
        """Look up the rules of new series."""
        start = len(self._fixed)
        self._fixed.grow(len(keys))
        self._columns.grow(len(keys))
        for column, key in enumerate(keys, start=start):
            rule = self._rules.get(key.signal)
            if rule is None:
                continue
            fixed = self._fixed
            fixed["above"][column] = np.inf if rule.above is None else rule.above
            fixed["below"][column] = -np.inf if rule.below is None else rule.below
            fixed["ruled"][column] = True
            fixed["increase"][column] = rule.on == "increase"
            fixed["unless"][column] = np.nan if rule.unless is None else rule.unless
            fixed["minimum_values"][column] = rule.minimum_values
            fixed["minimum_seconds"][column] = rule.minimum_seconds
            fixed["hold_seconds"][column] = rule.hold_seconds

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Forget the series where ``kept`` is false."""
        self._fixed.keep(kept)
        self._columns.keep(kept)

    def score(self, time_seconds: float, values: FloatArray, learn: NDArray[np.bool_]) -> Scores:  # noqa: ARG002
        """Score one tick: 1 plus how far the value is beyond its limit, 0 within it.

        ``learn`` is not used: limits do not move.
        """
        fixed, previous = self._fixed, self._columns["previous"]
        judged = np.where(fixed["increase"], values - previous, values)
        present = np.isfinite(values)
        previous[present] = values[present]
        over = _excess(judged - fixed["above"], fixed["above"])
        under = _excess(fixed["below"] - judged, fixed["below"])
        worst = np.fmax(over, under)
        worst = np.where(judged == fixed["unless"], 0.0, worst)
        score = np.where(worst > 0, np.minimum(1.0 + worst, _HIGHEST_SCORE), 0.0)
        nothing = np.full(len(fixed), np.nan)
        on_value = ~fixed["increase"]
        return Scores(
            score=np.where(fixed["ruled"] & np.isfinite(judged), score, np.nan),
            expected=nothing,
            low=np.where(on_value & np.isfinite(fixed["below"]), fixed["below"], np.nan),
            high=np.where(on_value & np.isfinite(fixed["above"]), fixed["above"], np.nan),
        )

    def state(self) -> Mapping[str, NDArray[np.generic]]:
        """Return the previous values, from which increases are told."""
        return self._columns.state()

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up a state of the same series."""
        self._columns.restore(state)


def _excess(beyond: FloatArray, limit: FloatArray) -> FloatArray:
    """Return how far values are beyond a limit as a share of it, of 1 where the limit is smaller."""
    size = np.maximum(np.where(np.isfinite(limit), np.abs(limit), 1.0), 1.0)
    return np.asarray(np.where(np.isfinite(beyond), beyond / size, 0.0))

"""What every page needs to know: where the state is, what is set, which time range, what time it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

import streamlit as st

from dashboard.settings import DashboardSettings, state_directory

RANGES = {
    "15m": 900.0,
    "1h": 3600.0,
    "6h": 21600.0,
    "24h": 86400.0,
    "7d": 604800.0,
    "30d": 2592000.0,
}
DEFAULT_RANGE = "1h"

clock: Callable[[], float] = time.time
"""Tests put their own here."""


@dataclass(frozen=True, slots=True)
class Context:
    """One run's view of the world."""

    settings: DashboardSettings
    state_dir: Path
    now_seconds: float
    range_seconds: float
    range_name: str

    @property
    def start_seconds(self) -> float:
        """Return where the chosen time range begins."""
        return self.now_seconds - self.range_seconds

    @property
    def zone(self) -> ZoneInfo:
        """Return the time zone in which times are shown."""
        return ZoneInfo(self.settings.timezone)

    @property
    def refresh_seconds(self) -> float:
        """Return how often a live panel of the chosen range reads again.

        A range of a day moves by one pixel in about a minute, so that reading it more often than once
        in 1/600 of its length would show nothing new.
        """
        return max(self.settings.refresh_seconds, min(60.0, self.range_seconds / 600))

    def is_stale(self, time_seconds: float | None) -> bool:
        """Return whether a reading is too old to speak of now; one that never came is too."""
        if time_seconds is None:
            return True
        return self.now_seconds - time_seconds > self.settings.stale_after_seconds


def current() -> Context:
    """Return the context of this run, from the environment and the page's address."""
    name = st.session_state.get("range") or st.query_params.get("range") or DEFAULT_RANGE
    name = name if name in RANGES else DEFAULT_RANGE
    return Context(
        settings=DashboardSettings.from_environment(),
        state_dir=state_directory(),
        now_seconds=clock(),
        range_seconds=RANGES[name],
        range_name=name,
    )

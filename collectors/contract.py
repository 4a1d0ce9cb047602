"""What a collector is, and what it gives.

A collector reads one source once per call and returns canonical samples. It never raises for a source
that is absent, slow or broken beyond :class:`CollectorError`; the poller turns that into the
collector's own health signals. An absent value is left out: it is never zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from collectors.links import Link


class Sample(NamedTuple):
    """One number of one signal of one entity.

    ``(entity, signal)`` identifies the series; labels only describe it (``simulated``, ``model``).
    """

    time_seconds: float
    entity: str
    signal: str
    value: float
    labels: Mapping[str, str] = {}


class SeriesKey(NamedTuple):
    """The identity of a series."""

    entity: str
    signal: str


@dataclass(frozen=True, slots=True)
class Collection:
    """What one call of a collector found."""

    samples: Sequence[Sample]
    unrecognised: Sequence[str] = ()
    """Names that the source offered and the catalogue does not know."""
    notes: Sequence[str] = ()
    """What a person should know about this collection, such as a blank sentinel that was left out."""
    links: Sequence[Link] = ()
    """What the source says about where its entities run."""


@dataclass(frozen=True, slots=True)
class Support:
    """Whether something can work here, and if not why and what would help."""

    supported: bool
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class CollectorHealth:
    """How a collector's last call went."""

    name: str
    ok: bool
    seconds: float
    samples: int
    error: str = ""
    last_success_seconds: float | None = None
    unrecognised: Sequence[str] = field(default_factory=tuple)


class CollectorError(Exception):
    """A source could not be read.

    ``retryable`` says whether the next call may succeed by itself. ``samples`` are what is known all
    the same: that a GPU's driver hangs is a fact about the GPU, not only about the reading of it.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = True,
        fix: str = "",
        samples: Sequence[Sample] = (),
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.fix = fix
        self.samples = samples


@runtime_checkable
class Collector(Protocol):
    """Reads one source. Calls come from one thread at a time and must honour ``deadline_seconds``."""

    @property
    def name(self) -> str:
        """A short unique name; the collector's own entity is ``collector/<name>``."""

    @property
    def deadline_seconds(self) -> float:
        """The longest that one call may take; the poller gives up on it after that."""

    def is_supported(self) -> Support:
        """Say whether this collector can work on this machine."""

    def collect(self, now_seconds: float) -> Collection:
        """Read the source once. Samples carry ``now_seconds`` unless the source gives its own time.

        Raises:
            CollectorError: when the source cannot be read.
        """

    def close(self) -> None:
        """Release what the collector holds."""


@runtime_checkable
class LimitsSeries(Protocol):
    """A collector of many sources, which holds each of them to the limit of series itself."""

    @property
    def series_limit(self) -> object:
        """The limit that it applies, None where there is none."""


@runtime_checkable
class Paced(Protocol):
    """A collector that is not called at every tick says how often it is called."""

    @property
    def every_seconds(self) -> float:
        """The time between the starts of two calls."""

"""What the service asks about poison: may this request pass, and who was there when it went down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.poison.investigation import Case, Investigator
from inference.poison.quarantine import Quarantine
from inference.poison.sandbox import Numbered, Trial
from inference.settings import InferenceSettings


class Identified(Protocol):
    """A request that can be recognised."""

    @property
    def identity(self) -> Iterable[object]:
        """Everything that decides what the engine computes."""
        ...


class PoisonGuard:
    """Quarantine and investigation behind one object; belongs to the event loop.

    Raises:
        OSError: the state directory cannot be written.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        make_trial: Callable[[Case], Trial],
        serving: Callable[[str], bool],
        wall_clock: Callable[[], float],
    ) -> None:
        self.quarantine = Quarantine(
            settings.state_dir,
            max_entries=settings.quarantine_entries,
            quarantine_seconds=settings.quarantine_seconds,
            suspicion_seconds=settings.suspicion_seconds,
            wall_clock=wall_clock,
        )
        self.investigator = Investigator(
            self.quarantine,
            make_trial if settings.sandbox else None,
            max_trials=settings.sandbox_trials,
            limit_seconds=settings.sandbox_seconds,
            serving=serving,
        )

    def check(self, request: Identified, model: str, version: int) -> None:
        """Let a request pass.

        Raises:
            QuarantinedError: it was shown to bring a worker down.
            EngineFailedError: it is suspected of that.
        """
        if not self.quarantine.empty:
            self.quarantine.check(self.quarantine.fingerprint(model, version, request.identity))

    def went_down(
        self,
        model: str,
        version: int,
        effect: str,
        suspects: Sequence[tuple[Identified, Numbered]],
    ) -> None:
        """Take note of the requests on which a worker was working when it went down."""
        fingerprint = self.quarantine.fingerprint
        by_print = {
            fingerprint(model, version, request.identity): make for request, make in suspects
        }
        self.investigator.report(Case(model, version, effect, by_print))

    def describe(self) -> dict[str, Any]:
        """Return what an administrator wants to see; no request's text is known here."""
        investigator = self.investigator
        return {
            "suspected": self.quarantine.suspects(),
            "quarantined": [
                {
                    "fingerprint": item.fingerprint,
                    "model": item.model,
                    "version": item.version,
                    "effect": item.effect,
                    "together": item.group,
                    "since_seconds": item.since_seconds,
                    "until_seconds": item.until_seconds,
                }
                for item in self.quarantine.culprits()
            ],
            "investigating": investigator.current is not None,
            "waiting": investigator.waiting,
            "trials": dict(investigator.trials),
            "outcomes": dict(investigator.outcomes),
        }


class PoisonCollector(Collector):
    """Reads the guard at the time of a scrape."""

    def __init__(self, guard: PoisonGuard) -> None:
        self._guard = guard

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        quarantine, investigator = self._guard.quarantine, self._guard.investigator
        gauges = {
            "requests_quarantined": ("Requests refused for good", len(quarantine.culprits())),
            "requests_suspected": ("Requests refused while they are tried", quarantine.suspects()),
            "sandbox_cases_waiting": ("Crashes and hangs to look into", investigator.waiting),
        }
        for name, (text, value) in gauges.items():
            family = GaugeMetricFamily(name, text)
            family.add_metric([], value)
            yield family
        trials = CounterMetricFamily(
            "sandbox_trials", "Groups of suspects tried", labels=["outcome"]
        )
        for outcome in ("survived", "died"):
            trials.add_metric([outcome], investigator.trials[outcome])
        yield trials
        cases = CounterMetricFamily(
            "sandbox_cases", "Crashes and hangs looked into, by how that ended", labels=["outcome"]
        )
        for outcome in ("found", "cleared", "inconclusive", "not_tried"):
            cases.add_metric([outcome], investigator.outcomes[outcome])
        yield cases

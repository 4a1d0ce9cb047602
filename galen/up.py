"""`galen up`: everything on this machine, and with ``--demo`` also traffic and a series of faults."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from analysis.findings import IncidentState
from analysis.journal import EventKind, Journal
from galen.config import Settings
from galen.drill.faults import CORE, DrillFault, Patient
from galen.drill.traffic import Traffic, shaped_arrivals, trace_arrivals
from galen.errors import GalenError
from galen.narrator import Narrator
from galen.paths import StatePaths
from galen.stack import (
    StackOptions,
    part,
    require_free_port,
    service_url,
    wait_until_answering,
)
from galen.supervisor import Supervisor

DEMO_REQUESTS_PER_SECOND = 30.0
_FIRST_FAULT_SECONDS = 90.0
_BETWEEN_FAULTS_SECONDS = 45.0
_POLL_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line was told."""

    stack: StackOptions
    demo: bool
    dashboard: bool
    for_seconds: float | None
    trace: Path | None
    seed: int


@contextmanager
def running_stack(options: StackOptions, say: Callable[[str], None]) -> Iterator[Supervisor]:
    """Start the service and then the watch loop, and stop both at the end.

    Raises:
        GalenError: when a port is taken or a part does not start, with the end of its log.
    """
    settings, paths = options.settings, StatePaths(options.state_dir)
    require_free_port(settings.inference.host, settings.inference.port, key="inference.port")
    with Supervisor(paths.logs) as supervisor:
        say("starting the inference service")
        supervisor.start(part(options, "service", "serve"))
        ready = f"{service_url(settings)}/health/ready"
        wait_until_answering(ready, supervisor, "service")
        say(f"the service answers at {service_url(settings)}")
        supervisor.start(part(options, "watch", "watch"))
        yield supervisor


@contextmanager
def running_traffic(settings: Settings, trace: Path | None, seed: int) -> Iterator[Traffic]:
    """Send traffic to the service until the end of the block."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    arrivals = (
        partial(shaped_arrivals, DEMO_REQUESTS_PER_SECOND, rng)
        if trace is None
        else partial(trace_arrivals, trace)
    )
    traffic = Traffic(service_url(settings), arrivals, rng=rng)
    traffic.start()
    try:
        yield traffic
    finally:
        traffic.stop()


def run_up(options: UpOptions, console: Console, stop: threading.Event) -> None:
    """Run everything until told to stop."""
    settings, paths = options.stack.settings, StatePaths(options.stack.state_dir)
    with ExitStack() as stack:
        journal = stack.enter_context(_journal(paths))
        narrator = Narrator(journal, console)
        supervisor = stack.enter_context(running_stack(options.stack, narrator.say))
        if options.dashboard:
            address = _start_dashboard(options.stack, supervisor)
            console.print(f"\n  Dashboard: [bold]{address}[/bold]    (Ctrl-C stops everything)\n")
        demo = None
        if options.demo:
            traffic = stack.enter_context(running_traffic(settings, options.trace, options.seed))
            patient = Patient.of_stack(settings, paths, traffic)
            stack.callback(patient.close)
            demo = Demonstration(patient, journal, narrator, CORE, clock=time.monotonic)
        end = time.monotonic() + options.for_seconds if options.for_seconds else float("inf")
        while not stop.wait(_POLL_SECONDS) and time.monotonic() < end:
            for words in supervisor.check():
                narrator.say(words)
            if demo is not None:
                demo.step()
            narrator.catch_up()
        narrator.say("stopping")


@contextmanager
def _journal(paths: StatePaths) -> Iterator[Journal]:
    journal = Journal(paths.journal)
    try:
        yield journal
    finally:
        journal.close()


def _start_dashboard(options: StackOptions, supervisor: Supervisor) -> str:
    settings = options.settings.dashboard
    require_free_port(settings.address, settings.port, key="dashboard.port")
    supervisor.start(part(options, "dashboard", "dashboard"))
    address = f"http://{settings.address}:{settings.port}"
    wait_until_answering(f"{address}/_stcore/health", supervisor, "dashboard")
    return address


class Demonstration:
    """Injects fault after fault: the next once the one before is over and some calm has passed."""

    def __init__(
        self,
        patient: Patient,
        journal: Journal,
        narrator: Narrator,
        faults: Sequence[DrillFault],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._patient = patient
        self._journal = journal
        self._narrator = narrator
        self._faults = faults
        self._clock = clock
        self._number = 0
        self._current: DrillFault | None = None
        self._injected_seconds = 0.0
        self._next_seconds = clock() + _FIRST_FAULT_SECONDS
        narrator.say(
            f"traffic runs; Galen learns what is normal; first fault in {_FIRST_FAULT_SECONDS:.0f} s"
        )

    def step(self) -> None:
        """Do what is due now. Call it often."""
        now = self._clock()
        if self._current is not None:
            if now >= self._injected_seconds + self._current.lasts_seconds or self._is_over(now):
                self._clear(now)
        elif now >= self._next_seconds:
            self._inject(now)

    def _inject(self, now: float) -> None:
        fault = self._faults[self._number % len(self._faults)]
        self._number += 1
        self._current, self._injected_seconds = fault, now
        try:
            fault.inject(self._patient)
        except GalenError as error:
            self._narrator.say(f"{fault.name} could not be injected: {error}")
            return
        self._record(EventKind.FAULT_INJECTED, f"Fault injected: {fault.told}", fault)

    def _clear(self, now: float) -> None:
        if self._current is None:
            return
        fault, self._current = self._current, None
        try:
            self._patient.restore()
        except GalenError as error:
            self._narrator.say(f"{fault.name} could not be taken back: {error}")
        self._record(EventKind.FAULT_CLEARED, f"Fault taken back: {fault.name}", fault)
        self._next_seconds = now + _BETWEEN_FAULTS_SECONDS

    def _is_over(self, now: float) -> bool:
        """Whether an incident came of the fault and is resolved again."""
        since = time.time() - (now - self._injected_seconds)
        found = [
            incident
            for incident in self._journal.incidents(since_seconds=since)
            if incident.opened_seconds >= since
        ]
        return bool(found) and all(one.state is IncidentState.RESOLVED for one in found)

    def _record(self, kind: EventKind, summary: str, fault: DrillFault) -> None:
        self._journal.append(
            kind, time_seconds=time.time(), actor="demo", summary=summary,
            data={"fault": fault.name},
        )  # fmt: skip

"""`galen incidents` and `galen actions`: the journal from a terminal."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.findings import Evidence, Incident, IncidentState
from analysis.journal import Journal
from galen.commands.context import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    invocation,
    parse_moment,
    print_json,
    print_line,
)
from galen.errors import GalenError
from galen.paths import StatePaths
from healing.actions import Action, ActionState
from healing.ledger import Ledger, LedgerError

actions_app = typer.Typer(
    help="See what healing did or proposes; approve or reject.", no_args_is_help=True
)
SinceOption = Annotated[str, typer.Option(help="From when: 24h, 7d, ISO 8601 or epoch seconds.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(incidents)
    app.add_typer(actions_app, name="actions")


@contextmanager
def open_journal(paths: StatePaths) -> Iterator[Journal]:
    """Open the journal of a state directory for the length of a block.

    Raises:
        GalenError: when there is none.
    """
    if not paths.journal.exists():
        raise GalenError(
            f"{paths.journal}: there is no journal yet",
            fix="Start `galen up` or `galen watch`, or name the right directory with --state-dir.",
        )
    journal = Journal(paths.journal)
    try:
        yield journal
    finally:
        journal.close()


def incidents(
    incident_id: Annotated[str | None, typer.Argument(help="Show one incident whole.")] = None,
    since: SinceOption = "24h",
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are open.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 50,
    json: JsonOption = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """List incidents, or show one with its hypotheses, evidence and timeline."""
    call = invocation(config, state_dir)
    with open_journal(call.paths) as journal:
        if incident_id is not None:
            _show(journal, incident_id, json=json)
            return
        found = journal.incidents(
            state=IncidentState.OPEN if only_open else None,
            since_seconds=parse_moment(since, name="--since"),
            limit=limit,
        )
    if json:
        print_json(TypeAdapter(list[Incident]).dump_json(found, indent=2).decode())
        return
    if not found:
        print_line("no incidents")
        return
    table = Table("incident", "state", "since", "lasted", "what", "cause", box=None)
    for incident in found:
        lead = incident.leading
        cause = f"{lead.cause} {lead.confidence:.0%}" if lead else incident.verdict.value
        table.add_row(
            *map(
                Text,
                (
                    incident.id,
                    incident.state.value,
                    _clock_time(incident.onset_seconds),
                    _lasted(incident),
                    incident.title,
                    cause,
                ),
            )
        )
    Console().print(table)


def _show(journal: Journal, incident_id: str, *, json: bool) -> None:
    incident = journal.incident(incident_id)
    if incident is None:
        raise GalenError(f"no incident {incident_id!r}", fix="`galen incidents` lists them.")
    if json:
        print_json(incident)
        return
    print_line(f"{incident.title}   [{incident.state.value}, {incident.severity.value}]")
    print_line(
        f"{incident.entity}, since {_clock_time(incident.onset_seconds)}, {_lasted(incident)}"
    )
    for one in incident.hypotheses:
        print_line(f"\n{one.rank}. {one.title} ({one.cause}) on {one.entity}: {one.confidence:.0%}")
        _print_evidence("for", one.evidence)
        _print_evidence("against", one.against)
    print_line("\nTimeline")
    for event in journal.events(incident_id=incident_id):
        print_line(f"  {_clock_time(event.time_seconds)}  {event.kind.value:<20} {event.summary}")


def _print_evidence(side: str, items: tuple[Evidence, ...]) -> None:
    for item in items:
        print_line(f"   {side:<8} {item.weight:+.1f}  {item.statement}")


def _lasted(incident: Incident) -> str:
    end = incident.resolved_seconds or time.time()
    return f"{end - incident.onset_seconds:.0f} s"


def _clock_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


@actions_app.command("list")
def list_actions(
    since: SinceOption = "24h",
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Only those that wait for a person.")
    ] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """List actions: what was done, refused or proposed, and why."""
    call = invocation(config, state_dir)
    with open_journal(call.paths) as journal:
        found = Ledger(journal).actions(
            since_seconds=parse_moment(since, name="--since"),
            states=[ActionState.PROPOSED] if waiting else None,
        )
    if json:
        print_json(TypeAdapter(list[Action]).dump_json(found, indent=2).decode())
        return
    table = Table("action", "when", "what", "on", "state", "why", box=None)
    for one in found:
        table.add_row(
            *map(
                Text,
                (one.id, _clock_time(one.created_seconds), one.action, one.entity, one.state.value,
                 one.reason),
            )
        )  # fmt: skip
    if found:
        Console().print(table)
    else:
        print_line("no actions")


@actions_app.command()
def approve(
    action_id: Annotated[str, typer.Argument(metavar="ID", help="The action's id.")],
    actor: Annotated[str | None, typer.Option("--as", help="Who approves.")] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Approve a proposed action; the watch loop checks its guards again and does it."""
    call = invocation(config, state_dir)
    with _ledger(call.paths) as ledger:
        action = ledger.approve(action_id, actor or getpass.getuser(), time.time())
    print_line(f"approved: {action.action} on {action.entity}")


@actions_app.command()
def reject(
    action_id: Annotated[str, typer.Argument(metavar="ID", help="The action's id.")],
    reason: Annotated[str, typer.Option(help="Why not; kept in the journal.")] = "",
    actor: Annotated[str | None, typer.Option("--as", help="Who rejects.")] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Reject a proposed action; it will not be done."""
    call = invocation(config, state_dir)
    with _ledger(call.paths) as ledger:
        action = ledger.reject(action_id, actor or getpass.getuser(), reason, time.time())
    print_line(f"rejected: {action.action} on {action.entity}")


@contextmanager
def _ledger(paths: StatePaths) -> Iterator[Ledger]:
    """Open the ledger; what it refuses is told with the way to see what waits."""
    with open_journal(paths) as journal:
        try:
            yield Ledger(journal)
        except LedgerError as error:
            raise GalenError(
                str(error), fix="`galen actions list --waiting` shows what waits."
            ) from error

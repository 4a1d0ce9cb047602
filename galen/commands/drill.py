"""`galen drill`: real faults in a live stack of its own, and what was measured."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from analysis.journal import Journal
from galen.commands.context import (
    ConfigOption,
    Invocation,
    JsonOption,
    invocation,
    print_json,
    print_line,
    progress,
    unwind_on_terminate,
)
from galen.drill.faults import Patient, select_faults
from galen.drill.results import DrillResult, markdown_table
from galen.drill.runner import DrillPlan, DrillRunner
from galen.paths import StatePaths
from galen.stack import DEMO_ENVIRONMENT, StackOptions, own_service_environment
from galen.up import running_stack, running_traffic

DRILL_PORT_OFFSET = 11


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(drill)


def drill(
    suite: Annotated[str, typer.Option(help="The suite of faults.")] = "core",
    fault: Annotated[
        list[str] | None, typer.Option(help="Only this fault; may be repeated.")
    ] = None,
    repeat: Annotated[
        int, typer.Option(min=1, max=100, help="How often each fault is injected.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the traffic.")] = 1,
    json: JsonOption = False,
    quiet_seconds: Annotated[
        float, typer.Option(min=0, help="Length of the quiet phase of changing load.")
    ] = 300.0,
    warm_up_seconds: Annotated[
        float, typer.Option(min=0, help="Traffic before anything is judged.")
    ] = 120.0,
    config: ConfigOption = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir", help="Keep the drill's state here; without it a temporary folder."
        ),
    ] = None,
) -> None:
    """Inject faults into a live stack that it starts itself, and measure what Galen makes of them.

    Runs a service, a watch loop and traffic of its own, on ports of its own; a running Galen is not
    touched. Exit status 1 when a fault was missed, misjudged or not healed, or the quiet phase was not.
    """
    faults = select_faults(suite, fault or [])
    unwind_on_terminate()
    call = _own_stack(config, state_dir)
    plan = DrillPlan(
        suite=suite,
        faults=faults,
        repeats=repeat,
        seed=seed,
        warm_up_seconds=warm_up_seconds,
        quiet_seconds=quiet_seconds,
        interval_seconds=call.settings.watch.interval_seconds,
    )
    with ExitStack() as stack:
        folder = state_dir or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="galen-drill-"))
        )
        result = _run(plan, StackOptions(call.settings, config, folder.absolute()), stack)
    if json:
        print_json(result)
    else:
        print_line(markdown_table(result))
    raise typer.Exit(0 if result.as_hoped else 1)


def _own_stack(config: Path | None, state_dir: Path | None) -> Invocation:
    """Set the environment of this process and its children to a service on a port of its own."""
    port = invocation(config, state_dir).settings.inference.port + DRILL_PORT_OFFSET
    # What the user watches in earnest is not watched here.
    os.environ |= {**DEMO_ENVIRONMENT, "GALEN_INFERENCE__PORT": str(port)}
    os.environ["GALEN_COLLECTORS__SERVICES"] = "[]"
    os.environ["GALEN_COLLECTORS__PROMETHEUS"] = "[]"
    os.environ["GALEN_HEALING__SERVICES"] = "[]"
    os.environ |= own_service_environment(invocation(config, state_dir).settings)
    return invocation(config, state_dir)


def _run(plan: DrillPlan, options: StackOptions, stack: ExitStack) -> DrillResult:
    paths = StatePaths(options.state_dir)
    tell = lambda words: progress.print(words, markup=False)  # noqa: E731
    stack.enter_context(running_stack(options, tell))
    traffic = stack.enter_context(running_traffic(options.settings, None, plan.seed))
    patient = Patient.of_stack(options.settings, paths, traffic)
    stack.callback(patient.close)
    journal = Journal(paths.journal)
    stack.callback(journal.close)
    return DrillRunner(plan, patient, journal, tell).run()

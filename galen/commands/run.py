"""Commands that run parts of Galen: up, serve, watch, dashboard, export, doctor."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.text import Text

from galen.check import Check, Level
from galen.commands.context import (
    ConfigOption,
    JsonOption,
    StateDirOption,
    invocation,
    print_json,
    print_line,
    progress,
    stop_on_signals,
)
from galen.doctor import run_checks
from galen.stack import DEMO_ENVIRONMENT, StackOptions, own_service_environment
from galen.up import UpOptions, run_up

_MARKS = {
    Level.OK: ("ok  ", "green"),
    Level.NOTE: ("note", "yellow"),
    Level.FAIL: ("FAIL", "bold red"),
}


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (up, serve, watch, dashboard, export, doctor):
        app.command()(command)


def up(
    demo: Annotated[
        bool, typer.Option("--demo", help="Add traffic, a simulated GPU and a series of faults.")
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
    no_dashboard: Annotated[
        bool, typer.Option("--no-dashboard", help="Leave the pages out.")
    ] = False,
    for_seconds: Annotated[
        float | None,
        typer.Option("--for", min=1, help="Stop by itself so many seconds after the start."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Replay the arrivals of this trace (CSV) in the demo.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the demo's traffic.")] = None,
) -> None:
    """Run everything on this machine: the service, the watch loop, the dashboard.

    With --demo the loop is shown live: traffic in the shape of a production trace, faults that are
    really injected, and on the terminal what is detected, concluded, done and proven. Ctrl-C stops all.
    """
    stop = stop_on_signals()
    base = invocation(config, state_dir)
    # The parts are child processes: they take it up with the environment.
    os.environ.update(own_service_environment(base.settings))
    if demo:
        os.environ.update(DEMO_ENVIRONMENT)
    call = invocation(config, state_dir)
    stack = StackOptions(call.settings, config, call.paths.state_dir)
    options = UpOptions(
        stack=stack,
        demo=demo,
        dashboard=not no_dashboard,
        for_seconds=for_seconds,
        trace=trace,
        seed=random.randrange(2**31) if seed is None else seed,  # noqa: S311 - not for secrets
    )
    run_up(options, progress, stop)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Run the bundled inference service alone."""
    from galen.compose import run_service

    call = invocation(config, state_dir)
    run_service(call.settings, call.paths, host=host, port=port)


def watch(config: ConfigOption = None, state_dir: StateDirOption = None) -> None:
    """Collect, analyse, heal and tell, until stopped."""
    from galen.compose import run_watch
    from galen.config import DEFAULT_FILE, load_settings
    from galen.reload import ConfigFile, ConfigSource, ReloadRequest

    stop = stop_on_signals()
    request = ReloadRequest()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda _number, _frame: request.ask())
    # The file is noted before it is read: what changes while the loop starts is taken up, too.
    file = ConfigFile(config or DEFAULT_FILE)
    call = invocation(config, state_dir)
    source = ConfigSource(file, lambda: load_settings(config), request)
    run_watch(call.settings, call.paths, stop, source)


def dashboard(config: ConfigOption = None, state_dir: StateDirOption = None) -> None:
    """Run the dashboard alone, over the state that the watch loop writes."""
    from dashboard.launch import streamlit_command, streamlit_environment

    call = invocation(config, state_dir)
    command = streamlit_command(call.settings.dashboard, call.paths.state_dir)
    environment = {
        **os.environ,
        **streamlit_environment(
            call.settings.dashboard,
            call.paths.state_dir,
            healing_mode=call.settings.healing.mode.value,
        ),
    }
    progress.print(
        f"dashboard at http://{call.settings.dashboard.address}:{call.settings.dashboard.port}"
    )
    if os.name == "posix":
        # This process becomes the dashboard, so that signals reach it and not a parent.
        os.execvpe(command[0], command, environment)  # noqa: S606 - the command is ours
    raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)  # noqa: S603


def export(
    host: Annotated[str | None, typer.Option(help="Address; by default as configured.")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port, 0 for any; by default as configured."),
    ] = None,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Offer the newest samples to Prometheus on /metrics."""
    from galen.compose import run_exporter

    stop = stop_on_signals()
    call = invocation(config, state_dir)
    settings = call.settings.collectors
    run_exporter(
        call.paths,
        host=host or settings.exporter_host,
        port=settings.exporter_port if port is None else port,
        max_age_seconds=settings.exporter_max_age_seconds,
        say=progress.print,
        stop=stop,
    )


def doctor(
    json: JsonOption = False, config: ConfigOption = None, state_dir: StateDirOption = None
) -> None:
    """Check this machine and the configuration: what was found, why it matters, the exact fix."""
    call = invocation(config, state_dir)
    checks = run_checks(call.settings, call.paths.state_dir)
    failed = any(check.level is Level.FAIL for check in checks)
    if json:
        print_json(TypeAdapter(list[Check]).dump_json(checks, indent=2).decode())
    else:
        for check in checks:
            _print_check(check)
        print_line("something needs mending" if failed else "Galen can run here")
    raise typer.Exit(1 if failed else 0)


def _print_check(check: Check) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    mark, style = _MARKS[check.level]
    console.print(Text.assemble((mark, style), f"  {check.name:<22}", check.found), soft_wrap=True)
    if check.level is not Level.OK:
        console.print(Text(f"      {'':<22}why: {check.why}", "dim"), soft_wrap=True)
        console.print(Text(f"      {'':<22}fix: {check.fix}"), soft_wrap=True)

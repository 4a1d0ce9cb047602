"""The command line. Exit status: 0 fine, 1 a finding or a failure, 2 wrong usage or configuration."""

from __future__ import annotations

import sys

import typer
from rich.text import Text

from galen.commands import analyse, collect, drill, engine, journal, keep, report, run, signals
from galen.commands.context import progress
from galen.errors import GalenError

app = typer.Typer(
    name="galen",
    help="Keeps GPU inference services healthy: watches, explains, heals, proves and tells.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for family in (run, collect, signals, analyse, journal, report, keep, drill, engine):
    family.register(app)


def main() -> None:
    """Run the command line; an error that a person can act on ends in two lines, not in a trace."""
    try:
        app()
    except GalenError as error:
        progress.print(Text.assemble(("error: ", "bold red"), str(error)))
        if error.fix:
            progress.print(Text.assemble(("fix:   ", "bold green"), error.fix))
        sys.exit(error.exit_status)

"""The command line. Exit status: 0 fine, 1 a finding or a failure, 2 wrong usage or configuration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module

import typer
from rich.text import Text

from galen.commands.context import progress
from galen.errors import GalenError

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "run": ("up", "serve", "watch", "dashboard", "export", "doctor"),
    "collect": ("collect",),
    "signals": ("signals",),
    "analyse": ("detect", "diagnose"),
    "journal": ("incidents", "actions"),
    "report": ("report", "config"),
    "store": ("store",),
    "agent": ("agent",),
    "backtest": ("backtest",),
    "prometheus": ("prometheus",),
    "drill": ("drill",),
    "engine": ("engine",),
}
"""The modules of ``galen.commands`` and the commands that each of them adds."""


def make_app(command: str | None = None) -> typer.Typer:
    """Return the command line.

    Args:
        command: only the module of this command is imported, which makes an agent four times smaller;
            without it, or when it is unknown, all are.
    """
    app = typer.Typer(
        name="galen",
        help="Keeps GPU inference services healthy: watches, explains, heals, proves and tells.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_several)
    wanted = [family for family, commands in FAMILIES.items() if command in commands]
    for family in wanted or FAMILIES:
        import_module(f"galen.commands.{family}").register(app)
    return app


def _several() -> None:
    # A command line of one command would otherwise take the command's name for its first argument.
    pass


def main() -> None:
    """Run the command line; an error that a person can act on ends in two lines, not in a trace."""
    try:
        make_app(sys.argv[1] if len(sys.argv) > 1 else None)()
    except GalenError as error:
        progress.print(Text.assemble(("error: ", "bold red"), str(error)))
        if error.fix:
            progress.print(Text.assemble(("fix:   ", "bold green"), error.fix))
        sys.exit(error.exit_status)

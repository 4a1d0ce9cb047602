"""`galen engine`: engines, off line."""

from __future__ import annotations

import typer

engine_app = typer.Typer(help="Build, inspect and compare engines, off line.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.add_typer(engine_app, name="engine")

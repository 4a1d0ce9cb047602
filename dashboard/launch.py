"""How to start the dashboard: the command line and the environment of Streamlit's process."""

from __future__ import annotations

import sys
from pathlib import Path

from dashboard.settings import (
    HEALING_MODE_VARIABLE,
    STATE_DIR_OPTION,
    STATE_DIR_VARIABLE,
    DashboardSettings,
)

_FOLDER = Path(__file__).resolve().parent


def streamlit_command(settings: DashboardSettings, state_dir: Path) -> list[str]:
    """Return the command that serves the dashboard over a state directory.

    The theme and every server option are arguments, so that it looks and behaves the same from any
    working directory. :func:`streamlit_environment` carries the settings that the pages need.
    """
    options = {
        "server.address": settings.address,
        "server.port": str(settings.port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "type",
        "logger.hideWelcomeMessage": "true",
        "theme.base": str(_FOLDER / "theme.toml"),
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(_FOLDER / "app.py"),
        *flags,
        "--",
        f"{STATE_DIR_OPTION}{state_dir.resolve()}",
    ]


def streamlit_environment(
    settings: DashboardSettings, state_dir: Path, *, healing_mode: str | None = None
) -> dict[str, str]:
    """Return the variables to lay over the environment of that command.

    Args:
        settings: The dashboard's settings.
        state_dir: The state directory to show.
        healing_mode: The configured mode of healing, shown until the journal tells the running one.
    """
    variables = {STATE_DIR_VARIABLE: str(state_dir.resolve()), **settings.to_environment()}
    if healing_mode is not None:
        variables[HEALING_MODE_VARIABLE] = healing_mode
    return variables

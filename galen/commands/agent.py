"""`galen agent`: polls a machine and pushes its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from galen.commands.context import (
    ConfigOption,
    StateDirOption,
    invocation,
    progress,
    stop_on_signals,
)
from galen.errors import ConfigError, GalenError

_OTHER_WAYS_IN = ("token", "token_variable", "username", "password", "password_file")


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(agent)


def agent(
    push: Annotated[
        str | None, typer.Option(help="Where to, such as http://prometheus:9090/api/v1/write.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token.", dir_okay=False)
    ] = None,
    interval: Annotated[
        float | None, typer.Option(min=1, max=3600, help="Seconds between two polls.")
    ] = None,
    retry_refused: Annotated[
        bool, typer.Option("--retry-refused", help="Send again what the server had refused.")
    ] = False,
    config: ConfigOption = None,
    state_dir: StateDirOption = None,
) -> None:
    """Poll this machine and push its samples by Prometheus remote write, through outages, until stopped.

    What cannot be sent waits in a bounded buffer under the state directory and survives restarts.
    """
    from collectors.access import AccessError, read_secret
    from collectors.agent import run_agent
    from collectors.spool import SpoolError

    stop = stop_on_signals()
    call = invocation(config, state_dir)
    given: dict[str, object] = {
        name: value
        for name, value in (("url", push), ("interval_seconds", interval))
        if value is not None
    }
    if token_file is not None:
        # Read once now, so that a wrong path is an error here and not in the log of every request.
        try:
            read_secret(token_file)
        except AccessError as error:
            raise ConfigError(f"--token-file: {error}") from error
        given |= {"token_file": token_file, **dict.fromkeys(_OTHER_WAYS_IN)}
    settings = call.settings.collectors.push.model_copy(update=given)
    if settings.url is None:
        raise ConfigError(
            "there is no address to push to",
            fix="Give --push http://prometheus:9090/api/v1/write, or set collectors.push.url.",
        )
    # Only the host: an address may hold a password.
    where = urlsplit(settings.url).hostname
    progress.print(f"pushing to {where} every {settings.interval_seconds:g} s", markup=False)
    try:
        left = run_agent(
            call.settings.collectors.model_copy(update={"push": settings}),
            state_dir=call.paths.state_dir,
            stop=stop,
            retry_refused=retry_refused,
        )
    except ValueError as error:
        raise ConfigError(f"--push: {error}") from error
    except AccessError as error:
        raise ConfigError(f"collectors.push: {error}") from error
    except SpoolError as error:
        raise GalenError(str(error)) from error
    progress.print(
        f"{left.waiting_samples} samples wait for the next start, {left.parked_samples} were "
        f"refused, {left.dropped_samples} were dropped"
    )

"""The parts of Galen as commands, and what a stack of its own (a demo, a drill) sets for them."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from galen.config import Settings
from galen.errors import GalenError
from galen.supervisor import Part, Supervisor
from inference.demo.corpus import golden_prompts

OWN_SERVICE = "llm"
_START_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What all parts of one stack share."""

    settings: Settings
    config: Path | None
    state_dir: Path


def service_url(settings: Settings) -> str:
    """Return where the bundled service listens."""
    return f"http://{settings.inference.host}:{settings.inference.port}"


def part(options: StackOptions, name: str, command: str) -> Part:
    """Return one command of the command line as a part."""
    config = ["--config", str(options.config)] if options.config else []
    return Part(
        name=name,
        command=[sys.executable, "-m", "galen", command, *config,
                 "--state-dir", str(options.state_dir)],
        stop_seconds=15.0,
    )  # fmt: skip


def own_service_environment(settings: Settings) -> dict[str, str]:
    """Return what makes the watch loop watch and heal the service that is started beside it.

    Nothing where the user has named services: then those are watched, and no other. Two controllers
    of one degradation level would fight, so the service leaves it to the healer unless told not to.
    """
    if settings.collectors.services:
        return {}
    golden = golden_prompts()[0]
    canary = {"prompt": f"Sentiment: {golden.text}", "expected": golden.expected, "max_tokens": 4}
    service = {"name": OWN_SERVICE, "url": service_url(settings), "canary": canary}
    environment = {"GALEN_COLLECTORS__SERVICES": json.dumps([service])}
    if "automatic_degradation" not in settings.inference.model_fields_set:
        environment["GALEN_INFERENCE__AUTOMATIC_DEGRADATION"] = "false"
    return environment


# A demonstration and a drill run on a service that they start themselves, and touch nothing else.
DEMO_ENVIRONMENT: Mapping[str, str] = {
    "GALEN_INFERENCE__ALLOW_FAULTS": "true",
    # One slot, so that traffic which the same two cores can make is more than it can take.
    "GALEN_INFERENCE__SLOTS": "1",
    "GALEN_COLLECTORS__GPU_MODE": "auto",
    "GALEN_HEALING__MODE": "auto",
    # The same service is broken many times an hour here; in earnest these limits call a person.
    "GALEN_HEALING__MAX_ACTIONS_PER_HOUR": "1000",
    "GALEN_HEALING__REPEAT_LIMIT": "1000",
    "GALEN_REPORTING__GROUP_WAIT_SECONDS": "2",
}


def require_free_port(host: str, port: int, *, key: str) -> None:
    """Check that a port can be listened on.

    Raises:
        GalenError: naming the port and the key that moves it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            variable = "GALEN_" + key.replace(".", "__").upper()
            raise GalenError(
                f"port {port} on {host} is not free: {error.strerror}",
                fix=f"Stop what listens there, or set {key} (or {variable}) to another port.",
            ) from error


def wait_until_answering(url: str, supervisor: Supervisor, name: str) -> None:
    """Wait until a part answers 200 at a URL.

    Raises:
        GalenError: with the end of the part's log, when it does not in time.
    """
    end = time.monotonic() + _START_SECONDS
    with httpx.Client(timeout=2.0) as client:
        while time.monotonic() < end:
            try:
                if client.get(url).status_code == httpx.codes.OK:
                    return
            except httpx.HTTPError:
                # Not listening yet; the part's own end is looked at below.
                pass
            if not supervisor.is_running(name):
                supervisor.check()
            time.sleep(0.2)
    raise GalenError(
        f"{name} did not answer at {url} within {_START_SECONDS:.0f} s. The end of its log:\n"
        f"{supervisor.log_tail(name)}",
        fix="Run `galen doctor`.",
    )

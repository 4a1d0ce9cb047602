"""`galen doctor`: what was checked, why it matters, and the exact fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from collectors.contract import CollectorError
from collectors.gpu.release import RELEASE_FILE, GpuRelease
from collectors.promapi import PrometheusClient
from galen.check import Check, Level
from galen.config import Settings
from galen.doctor_gpu import gpu_checks

_OLDEST_PYTHON = (3, 11)
_DISK_WARN_BYTES = 2 * 2**30
_DISK_FAIL_BYTES = 200 * 2**20
_SKEW_WARN_SECONDS = 2.0
_DEADLINE_SECONDS = 3.0
# https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks
_SLACK_WEBHOOK = re.compile(r"https://hooks\.slack(-gov)?\.com/services/T\w+/B\w+/\w+")


def run_checks(settings: Settings, state_dir: Path) -> list[Check]:
    """Look at everything. No check changes anything, and each ends within some seconds."""
    checks: list[Callable[[], Iterator[Check]]] = [
        _python,
        _dependencies,
        lambda: gpu_checks(settings.collectors, GpuRelease(state_dir / RELEASE_FILE)),
        _tensorrt,
        lambda: _prometheus(settings),
        lambda: _slack(settings),
        lambda: _disk(state_dir),
        lambda: _permissions(state_dir),
        lambda: _ports(settings),
    ]
    return [result for check in checks for result in check()]


def _python() -> Iterator[Check]:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info[:2] >= _OLDEST_PYTHON
    yield Check(
        name="python",
        level=Level.OK if good else Level.FAIL,
        found=f"Python {found} at {sys.executable}",
        why="Galen uses what Python 3.11 brought.",
        fix="" if good else "Install Python 3.11 or newer and run `make setup PYTHON=python3.11`.",
    )


def _dependencies() -> Iterator[Check]:
    faults = list(_dependency_faults(importlib.metadata.requires("galen") or []))
    yield Check(
        name="dependencies",
        level=Level.FAIL if faults else Level.OK,
        found="; ".join(faults) or "all installed in versions that fit",
        why="A missing or old library fails only when the part that needs it runs.",
        fix="Run `make setup`, which installs what requirements.lock pins." if faults else "",
    )


def _dependency_faults(requirements: Sequence[str]) -> Iterator[str]:
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement.name} is missing"
            continue
        if version not in requirement.specifier:
            yield f"{requirement.name} {version} does not fit {requirement.specifier}"


def _tensorrt() -> Iterator[Check]:
    present = [name for name in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(name)]
    can_run = Path("/dev/nvidiactl").exists()
    if not present:
        found, level = "not installed: models run on ONNX Runtime", Level.NOTE
        fix = "On a GPU host: pip install 'galen[tensorrt]'; to build plans without one: 'galen[rtx]'."
    elif not can_run:
        found, level = f"{', '.join(present)}: can build plans, cannot run them here", Level.NOTE
        fix = "Run plans on a machine with an NVIDIA GPU of the architecture that they were built for."
    else:
        found, level, fix = f"{', '.join(present)}: can build and run", Level.OK, ""
    yield Check(
        name="tensorrt", level=level, found=found, fix=fix,
        why="TensorRT is the fastest engine on NVIDIA GPUs.",
    )  # fmt: skip


def _prometheus(settings: Settings) -> Iterator[Check]:
    for target in settings.collectors.prometheus:
        why = "Samples whose time is off look stale, or come from the future."
        name = f"prometheus {target.name}"
        try:
            client = PrometheusClient(target.url, access=target, deadline_seconds=_DEADLINE_SECONDS)
            skew = client.clock_skew_seconds()
            client.close()
        except CollectorError as error:
            fix = f"{error.fix}; `galen prometheus check {target.name}` asks again."
            yield Check(name=name, level=Level.FAIL, found=str(error), why=why, fix=fix)
            continue
        off = abs(skew) > _SKEW_WARN_SECONDS
        yield Check(
            name=name,
            level=Level.FAIL if off else Level.OK,
            found=f"answers, clock {skew:+.1f} s from ours",
            why=why,
            fix="Synchronise both clocks (chrony or systemd-timesyncd)." if off else "",
        )


def _slack(settings: Settings) -> Iterator[Check]:
    why = "Without a webhook nobody is told."
    webhook = settings.reporting.slack_webhook_url
    if webhook is None:
        yield Check(
            name="slack",
            level=Level.NOTE,
            found="no webhook configured",
            why=why,
            fix="Set GALEN_REPORTING__SLACK_WEBHOOK_URL to an incoming webhook of your workspace.",
        )
        return
    good = _SLACK_WEBHOOK.fullmatch(webhook.get_secret_value()) is not None
    yield Check(
        name="slack",
        level=Level.OK if good else Level.FAIL,
        found="has the shape of a webhook" if good else "does not look like a Slack webhook",
        why=why,
        fix="" if good else "It must be https://hooks.slack.com/services/T.../B.../...",
    )


def _disk(state_dir: Path) -> Iterator[Check]:
    place = _nearest_existing(state_dir)
    free = shutil.disk_usage(place).free
    level = Level.OK
    if free < _DISK_WARN_BYTES:
        level = Level.FAIL if free < _DISK_FAIL_BYTES else Level.NOTE
    yield Check(
        name="disk",
        level=level,
        found=f"{free / 2**30:.1f} GiB free at {place}",
        why="The series store and the journal stop when the disk is full.",
        fix=""
        if level is Level.OK
        else "Free some space, or set state_dir to a larger file system.",
    )


def _permissions(state_dir: Path) -> Iterator[Check]:
    place = _nearest_existing(state_dir)
    good = os.access(place, os.W_OK | os.X_OK)
    yield Check(
        name="permissions",
        level=Level.OK if good else Level.FAIL,
        found=f"{place} can{'' if good else 'not'} be written",
        why="Everything that Galen keeps lies there.",
        fix="" if good else f"chown it to this user, or set state_dir (now {state_dir}).",
    )


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _ports(settings: Settings) -> Iterator[Check]:
    wanted = [
        ("service", settings.inference.host, settings.inference.port, "inference.port"),
        ("dashboard", settings.dashboard.address, settings.dashboard.port, "dashboard.port"),
    ]
    for name, host, port, key in wanted:
        with socket.socket() as probe:
            probe.settimeout(_DEADLINE_SECONDS)
            taken = probe.connect_ex((host, port)) == 0
        yield Check(
            name=f"port {name}",
            level=Level.NOTE if taken else Level.OK,
            found=f"{host}:{port} is {'in use' if taken else 'free'}",
            why="Two programs cannot listen on one port.",
            fix=f"Fine if that is Galen itself; else set {key} to another port." if taken else "",
        )

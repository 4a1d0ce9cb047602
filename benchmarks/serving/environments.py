"""A virtual environment per peer, made when it is first needed and kept in a cache folder."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.serving.contestants import OURS, Contestant

_SECONDS = 900.0


class InstallError(RuntimeError):
    """An environment could not be made; the message holds the end of the installer's output."""


def interpreter(contestant: Contestant, cache: Path) -> Path:
    """Return the interpreter of a server, installing the pinned packages if they are not there.

    The peers get the onnxruntime of this environment, so that all run the same engine.

    Raises:
        InstallError: the packages cannot be installed.
    """
    if contestant.name == OURS:
        return Path(sys.executable)
    wanted = [*contestant.requirements, *(_same(name) for name in ("onnxruntime", "numpy"))]
    return environment(contestant.requirements[0].partition("==")[0], wanted, cache)


def environment(name: str, wanted: Sequence[str], cache: Path) -> Path:
    """Return the interpreter of an environment with these packages, which is made if it is not there.

    Raises:
        InstallError: the packages cannot be installed.
    """
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not python.exists():
        sys.stderr.write(f"installing {', '.join(wanted)} into {folder}\n")
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _run(["venv", "--quiet", str(partial)])
        _run(["pip", "install", "--quiet", "--python", str(partial / "bin" / "python"), *wanted])
        partial.rename(folder)
    return python


def installed(contestant: Contestant, python: Path) -> str:
    """Return the version that is measured."""
    if contestant.name == OURS:
        return metadata.version("galen")
    package = contestant.requirements[0].partition("==")[0]
    program = f"from importlib.metadata import version; print(version({package!r}))"
    found = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def _same(package: str) -> str:
    return f"{package}=={metadata.version(package)}"


def _run(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "uv", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise InstallError(f"{' '.join(command)}\n{done.stderr[-2000:]}")

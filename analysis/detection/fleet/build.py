"""Which program computes: scores are the same only where the code and its libraries are."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import analysis
import collectors

LIBRARIES = ("galen", "numpy", "pandas", "scipy", "scikit-learn", "statsmodels")
"""What decides about a score."""


class BuildMismatchError(Exception):
    """A worker runs another program than whoever asks it."""


@dataclass(frozen=True, slots=True)
class Build:
    """A program that computes scores."""

    python: str
    versions: tuple[tuple[str, str], ...]
    code: str
    """Digest of the sources and data files of detection and of what it reads with."""

    def differences(self, python: str, versions: Mapping[str, str | None]) -> list[str]:
        """Return in words how an installation differs from this one."""
        different = [
            f"{name} {versions.get(name) or 'missing'} instead of {wanted}"
            for name, wanted in self.versions
            if versions.get(name) != wanted
        ]
        if python != self.python:
            different.insert(0, f"Python {python} instead of {self.python}")
        return different

    def check(self, own: Build, worker: str) -> None:
        """Compare what was asked for with what a worker runs.

        Raises:
            BuildMismatchError: naming the worker and every difference.
        """
        different = self.differences(own.python, dict(own.versions))
        if not different and own.code != self.code:
            different = ["other code of the same version of Galen"]
        if different:
            raise BuildMismatchError(f"worker {worker} has {', '.join(different)}")


@cache
def this_build() -> Build:
    """Return the program that runs here."""
    major, minor, _ = platform.python_version_tuple()
    return Build(f"{major}.{minor}", tuple((name, _version(name)) for name in LIBRARIES), _code())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _code() -> str:
    digest = hashlib.sha256()
    for package in (analysis, collectors):
        root = Path(package.__path__[0])
        for path in sorted((*root.rglob("*.py"), *root.rglob("*.toml"))):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]

"""The model repository: ``<root>/<model>/<version>/`` folders, and which version is in use.

The choice (versions in use, quarantined ones with the reason) is kept in the state directory and
survives restarts, so that a worker which comes back loads what was proven good, not what is newest.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from inference.errors import ConflictError, NotFoundError
from inference.model import METADATA_FILE, ModelFormatError, ModelMetadata, read_metadata

_log = structlog.get_logger(__name__)

STATE_FILE = "model_versions.json"


class _ModelState(BaseModel):
    """What is remembered about one model."""

    model_config = ConfigDict(extra="forbid")

    active: int | None = None
    good: list[int] = []
    """Versions that served, oldest first."""
    quarantined: dict[int, str] = {}
    """Version to the reason why it must not be chosen."""


class _State(BaseModel):
    """The state file."""

    models: dict[str, _ModelState] = {}


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version for people."""

    version: int
    active: bool
    quarantined: str | None = field(default=None)


def bundled_repository() -> Path:
    """Return the repository that ships with the package; nothing writes to it."""
    return Path(str(resources.files("inference.demo") / "repository"))


def install_bundled_repository(target: Path) -> Path:
    """Copy the bundled repository to a folder that may be written, keeping what is there."""
    for source in sorted(bundled_repository().iterdir()):
        for version in sorted(path for path in source.iterdir() if path.is_dir()):
            destination = target / source.name / version.name
            if not destination.exists():
                partial = destination.with_name(f".{version.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(version, partial)
                partial.rename(destination)
    return target


class ModelRepository:
    """Versions on disk and the choice among them; safe to use from several threads."""

    def __init__(self, root: Path, state_dir: Path) -> None:
        self.root = root
        self._path = state_dir / STATE_FILE
        self._lock = threading.Lock()
        self._state = self._read_state()

    @property
    def writable(self) -> bool:
        """Whether new versions may be put into it; the bundled one is not ours to change."""
        return self.root.resolve() != bundled_repository().resolve() and os.access(
            self.root, os.W_OK
        )

    def versions(self, model: str) -> list[int]:
        """Return the versions on disk, oldest first.

        Raises:
            NotFoundError: the repository has no such model.
        """
        folder = self.root / model
        if not folder.is_dir():
            raise NotFoundError(f"no model {model!r} in {self.root}", reason="model_not_found")
        return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())

    def describe(self, model: str) -> list[VersionInfo]:
        """Return the versions with what is known about them."""
        state = self._model(model)
        return [
            VersionInfo(number, number == state.active, state.quarantined.get(number))
            for number in self.versions(model)
        ]

    def folder(self, model: str, version: int) -> Path:
        """Return the folder of a version."""
        return self.root / model / str(version)

    def metadata(self, model: str, version: int) -> ModelMetadata:
        """Read ``model.toml`` of a version.

        Raises:
            ModelFormatError: it cannot be used.
        """
        return read_metadata(self.folder(model, version))

    def active(self, model: str) -> int:
        """Return the version in use; at first the newest that is not quarantined.

        Raises:
            NotFoundError: there is none.
        """
        state = self._model(model)
        if state.active in self.versions(model):
            return int(state.active or 0)
        return self.newest(model)

    def newest(self, model: str) -> int:
        """Return the newest version that is not quarantined.

        Raises:
            NotFoundError: there is none.
        """
        quarantined = self._model(model).quarantined
        usable = [number for number in self.versions(model) if number not in quarantined]
        if not usable:
            raise NotFoundError(
                f"model {model!r} has no usable version", reason="version_not_found"
            )
        return usable[-1]

    def require(self, model: str, version: int) -> int:
        """Return the version if it is on disk.

        Raises:
            NotFoundError: it is not.
        """
        if version not in self.versions(model):
            raise NotFoundError(
                f"model {model!r} has no version {version}", reason="version_not_found"
            )
        return version

    def previous_good(self, model: str) -> int:
        """Return the version to roll back to: the newest other one that served, or that is older.

        Raises:
            ConflictError: there is none.
        """
        active = self.active(model)
        state = self._model(model)
        usable = [v for v in self.versions(model) if v != active and v not in state.quarantined]
        served = [v for v in state.good if v in usable]
        if served:
            return served[-1]
        older = [v for v in usable if v < active]
        if not older:
            raise ConflictError(f"model {model!r} has no version to roll back to from {active}")
        return older[-1]

    def activate(self, model: str, version: int) -> None:
        """Put a version into use and lift its quarantine."""
        with self._lock:
            state = self._model(model)
            state.active = version
            state.quarantined.pop(version, None)
            self._write_state()

    def mark_good(self, model: str, version: int) -> None:
        """Remember that a version serves; from now on it is the one in use.

        A version that appears later is taken by a reload, which proves it, and never by a restart.
        """
        with self._lock:
            state = self._model(model)
            if state.good[-1:] != [version] or state.active != version:
                state.active = version
                state.good = [v for v in state.good if v != version] + [version]
                self._write_state()

    def quarantine(self, model: str, version: int, reason: str) -> None:
        """Never choose this version by itself again."""
        with self._lock:
            self._model(model).quarantined[version] = reason
            self._write_state()

    def add_corrupt_version(self, model: str) -> int:
        """Put a damaged copy of the active version into the repository, as a bad upload would.

        Raises:
            ConflictError: the repository must not be written.
        """
        if not self.writable:
            raise ConflictError(
                f"{self.root} is not writable: start the service on a copy of the repository"
            )
        active = self.active(model)
        version = self.versions(model)[-1] + 1
        target = self.folder(model, version)
        shutil.copytree(self.folder(model, active), target)
        for path in target.glob("*.onnx"):
            os.truncate(path, path.stat().st_size // 2)
        metadata = target / METADATA_FILE
        text = metadata.read_text(encoding="utf-8")
        metadata.write_text(
            text.replace(f"\nversion = {active}\n", f"\nversion = {version}\n", 1), encoding="utf-8"
        )
        return version

    def _model(self, model: str) -> _ModelState:
        return self._state.models.setdefault(model, _ModelState())

    def _read_state(self) -> _State:
        try:
            return _State.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return _State()
        except (OSError, ValidationError) as error:
            _log.error("model_versions_unreadable", path=str(self._path), error=str(error))
            return _State()

    def _write_state(self) -> None:
        """Replace the state file in one step, so that a crash leaves the old or the new one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        text = json.dumps(self._state.model_dump(), indent=1)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)


__all__ = [
    "ModelFormatError",
    "ModelRepository",
    "VersionInfo",
    "bundled_repository",
    "install_bundled_repository",
]

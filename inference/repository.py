"""The model repository: ``<root>/<model>/<version>/`` folders, and which version is in use.

The choice (versions in use, quarantined ones with the reason) is kept in the state directory and
survives restarts, so that a worker which comes back loads what was proven good, not what is newest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from inference.errors import ConflictError, NotFoundError
from inference.model import (
    METADATA_FILE,
    ModelFormatError,
    ModelMetadata,
    check_identity,
    read_metadata,
)

_log = structlog.get_logger(__name__)

STATE_FILE = "model_versions.json"
# A name becomes a folder: no separators, no "..", nothing hidden.
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


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
        self.state_problem = ""
        """What is wrong with the state file, for people; empty if nothing is."""
        self._gone: set[tuple[str, int]] = set()
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
        if not _MODEL_NAME.fullmatch(model) or not folder.is_dir():
            raise NotFoundError(f"no model {model!r} in {self.root}", reason="model_not_found")
        return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and _is_version(p.name))

    def models(self) -> list[str]:
        """Return the models on disk, served or not."""
        folders = [path for path in self.root.iterdir() if path.is_dir()]
        return sorted(path.name for path in folders if _MODEL_NAME.fullmatch(path.name))

    def problems(self, model: str) -> dict[str, str]:
        """Return what cannot be served of a model: the folder's name to what is wrong with it.

        Reads every ``model.toml``; call it where a few milliseconds do not matter.
        """
        problems = {}
        for path in sorted((self.root / model).iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                problem = self._problem(model, path)
                if problem:
                    problems[path.name] = problem
        return problems

    def _problem(self, model: str, path: Path) -> str:
        if not _is_version(path.name):
            return "not a version: the folder's name must be a whole number like 1 or 2"
        try:
            self.metadata(model, int(path.name))
        except ModelFormatError as error:
            return str(error)
        if not any(path.glob("*.onnx")) and not any(path.glob("*.plan")):
            return f"{path} holds neither model.onnx nor model.plan"
        return ""

    def describe(self, model: str) -> list[VersionInfo]:
        """Return the versions with what is known about them; none if the folder is gone."""
        state = self._model(model)
        if not (self.root / model).is_dir():
            return []
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
        folder = self.folder(model, version)
        metadata = read_metadata(folder)
        check_identity(metadata, folder)
        return metadata

    def active(self, model: str) -> int:
        """Return the version in use; at first the newest that is not quarantined.

        Where its folder is gone, it is the last other one that served, and the newest only if none
        did: a version that was never proven is taken by a reload, not because another is missing.

        Raises:
            NotFoundError: there is none.
        """
        state = self._model(model)
        versions = self.versions(model)
        if state.active is None:
            return self.newest(model)
        if state.active in versions:
            return state.active
        served = [v for v in state.good if v in versions and v not in state.quarantined]
        instead = served[-1] if served else self.newest(model)
        if (model, state.active) not in self._gone:
            self._gone.add((model, state.active))
            _log.error(
                "active_version_is_gone",
                model=model,
                version=state.active,
                folder=str(self.folder(model, state.active)),
                instead=instead,
            )
        return instead

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

    def quarantined(self, model: str) -> dict[str, str]:
        """Return the versions that must not be chosen, with the reasons."""
        return {str(number): why for number, why in self._model(model).quarantined.items()}

    def choice(self, model: str) -> int | None:
        """Return the version that was chosen, None if none ever was."""
        return self._model(model).active

    def restore(self, model: str, choice: int | None) -> None:
        """Go back to an earlier choice."""
        with self._lock:
            self._model(model).active = choice
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
        """Read the state file; if it is damaged, the one before it. No file is a fresh start."""
        try:
            return _parse(self._path)
        except FileNotFoundError:
            return _State()
        except (OSError, ValidationError) as error:
            problem = f"{self._path} cannot be read: {error}"
            _log.error("model_versions_unreadable", path=str(self._path), error=str(error))
        _set_aside(self._path)
        backup = _backup(self._path)
        try:
            state = _parse(backup)
        except (OSError, ValidationError) as error:
            _log.error("model_versions_forgotten", path=str(backup), error=str(error))
            self.state_problem = f"{problem}; versions in use and quarantines are forgotten"
            return _State()
        self.state_problem = f"{problem}; {backup} is used, which is one change older"
        _log.warning("model_versions_from_backup", path=str(backup))
        return state

    def _write_state(self) -> None:
        """Replace the state file in one step, so that a crash leaves the old or the new one.

        A disk that takes no more must not end the service: the choice holds until it ends, and the
        problem is told.
        """
        partial = self._path.with_suffix(".partial")
        text = json.dumps(self._state.model_dump(), indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if self._path.exists():
                shutil.copyfile(self._path, _backup(self._path))
            partial.replace(self._path)
        except OSError as error:
            self.state_problem = f"{self._path} cannot be written: {error}"
            _log.error("model_versions_not_written", path=str(self._path), error=str(error))
        else:
            self.state_problem = ""


def _is_version(name: str) -> bool:
    """Say whether a folder's name is a version: 0, 1, 2; not 01, not ², not latest."""
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _parse(path: Path) -> _State:
    return _State.model_validate_json(path.read_bytes())


def _backup(path: Path) -> Path:
    return path.with_suffix(".previous.json")


def _set_aside(path: Path) -> None:
    """Keep a damaged file under another name, so that it is not overwritten."""
    try:
        path.replace(path.with_suffix(".damaged.json"))
    except OSError as error:
        _log.warning("damaged_file_stays", path=str(path), error=str(error))


__all__ = [
    "ModelFormatError",
    "ModelRepository",
    "VersionInfo",
    "bundled_repository",
    "install_bundled_repository",
]

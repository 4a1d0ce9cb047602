"""Keeps the state of detection over a restart and an upgrade: one npz file, written atomically.

The file holds arrays by part and name, and the version of their meaning. An older version is brought
up to the present one step by step (:mod:`analysis.detection.state_migrations`); a newer one, or a file
that cannot be read, is set aside under another name, so that nothing that was learnt is overwritten.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.detection.state_migrations import MIGRATIONS, MutableParts
from collectors.contract import SeriesKey

STATE_VERSION = max(MIGRATIONS) + 1
"""Raised by adding a migration, whenever a part gains an array or an array changes its meaning."""

Parts = Mapping[str, Mapping[str, NDArray[Any]]]


class DetectionStateError(ValueError):
    """A state file cannot be used; the message names it and what to do."""


def write_state(path: Path, keys: Sequence[SeriesKey], parts: Parts) -> None:
    """Write the arrays of all parts; the file is either the old one or the new one, never half."""
    arrays: dict[str, Any] = {
        f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()
    }
    arrays["version"] = np.array([STATE_VERSION])
    arrays["keys"] = np.array([list(key) for key in keys], dtype=str).reshape(-1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_state(path: Path) -> tuple[list[SeriesKey], MutableParts]:
    """Read what :func:`write_state` wrote, in this or an older version.

    Raises:
        DetectionStateError: when the file is damaged or of a newer version. It is set aside then; the
            message says where.
    """
    try:
        version, arrays = _read(path)
        _check_version(path, version)
        keys = [SeriesKey(str(entity), str(signal)) for entity, signal in arrays.pop("keys")]
        parts: MutableParts = {}
        for name, array in arrays.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = array
        for step in range(version, STATE_VERSION):
            MIGRATIONS[step](parts, keys)
    except DetectionStateError as error:
        raise _set_aside(path, error) from error
    # What a damaged file holds is anything: whatever is wrong with it, it is set aside.
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = f"{path}: not a readable state of detection ({error})"
        raise _set_aside(path, DetectionStateError(reason)) from error
    return keys, parts


def _check_version(path: Path, version: int) -> None:
    if version not in range(1, STATE_VERSION + 1):
        raise DetectionStateError(
            f"{path}: state version {version}, this Galen reads up to {STATE_VERSION}"
        )


def _read(path: Path) -> tuple[int, dict[str, NDArray[Any]]]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return int(arrays.pop("version").item()), arrays


def _set_aside(path: Path, error: DetectionStateError) -> DetectionStateError:
    """Move a file out of the way of the next save; return the error with the place added."""
    aside = path.with_name(f"{path.name}.set-aside")
    try:
        path.replace(aside)
    except OSError as trouble:
        return DetectionStateError(f"{error}; it cannot be set aside: {trouble.strerror}")
    return DetectionStateError(
        f"{error}; it is kept as {aside.name} beside, for the Galen that wrote it; detection starts anew"
    )

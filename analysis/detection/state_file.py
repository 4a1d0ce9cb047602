"""Keeps the state of detection over a restart: one npz file, written atomically."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collectors.contract import SeriesKey

STATE_VERSION = 1
"""Raised when arrays change their meaning; a file of another version is refused, not guessed at."""

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


def read_state(path: Path) -> tuple[list[SeriesKey], dict[str, dict[str, NDArray[Any]]]]:
    """Read what :func:`write_state` wrote.

    Raises:
        DetectionStateError: when the file is damaged or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DetectionStateError(
            f"{path}: not a readable state of detection ({error}); remove it to start anew"
        ) from error
    version = arrays.pop("version", np.array([0]))
    if version.tolist() != [STATE_VERSION]:
        raise DetectionStateError(
            f"{path}: state version {version.tolist()}, this Galen reads {STATE_VERSION}; "
            "remove it to start anew"
        )
    keys = [SeriesKey(str(entity), str(signal)) for entity, signal in arrays.pop("keys")]
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = array
    return keys, parts

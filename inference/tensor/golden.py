"""Golden examples of a tensor model: writing them, and judging an answer by value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.model import DEFAULT_TOLERANCE, METADATA_FILE

Arrays = Mapping[str, npt.NDArray[Any]]


def write_golden(
    folder: Path, inputs: Arrays, outputs: Arrays, *, tolerance: float = DEFAULT_TOLERANCE
) -> Path:
    """Add a golden example to a version folder and return the file that holds its values.

    The outputs must come from whoever made the model, such as the framework it was trained with:
    outputs of the exported file itself prove only that nothing changed since.

    Args:
        folder: The version folder; its ``model.toml`` is extended by one ``[[golden]]`` table.
        inputs: Arrays by the name of the model's inputs.
        outputs: Arrays by the name of those outputs that should be compared.
        tolerance: See `GoldenTensors`.

    Raises:
        OSError: the folder cannot be written.
    """
    number = len(list(folder.glob("golden*.npz"))) + 1
    path = folder / f"golden{number}.npz"
    arrays: dict[str, Any] = {f"inputs.{name}": array for name, array in inputs.items()}
    arrays.update({f"outputs.{name}": array for name, array in outputs.items()})
    np.savez(path, **arrays)
    with (folder / METADATA_FILE).open("a", encoding="utf-8") as file:
        file.write(f'\n[[golden]]\nfile = "{path.name}"\ntolerance = {tolerance!r}\n')
    return path


def difference(expected: Mapping[str, Any], found: Arrays, tolerance: float) -> str:
    """Say where an answer differs from a golden example, or return nothing."""
    for name, value in expected.items():
        if name not in found:
            return f"the output {name} is missing"
        array = found[name]
        wanted = np.asarray(value, dtype=object if array.dtype == object else array.dtype)
        if wanted.shape != array.shape:
            return f"{name} has the shape {list(array.shape)}, not {list(wanted.shape)}"
        if array.dtype.kind in "Ob":
            close = wanted == array
        else:
            close = np.isclose(array, wanted, rtol=tolerance, atol=tolerance)
        if not np.all(close):
            place = tuple(int(i) for i in np.argwhere(~np.asarray(close, dtype=np.bool_))[0])
            return f"{name}{list(place)} is {array[place]!s}, not {wanted[place]!s}"
    return ""

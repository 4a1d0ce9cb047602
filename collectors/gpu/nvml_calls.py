"""Calls NVML, notes which call is under way, and sorts the errors.

``nvml`` is the module ``pynvml``; everything that reads a device goes through here.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any, Protocol

from collectors.gpu.states import ABSENT, NvmlError

# NVML's blank values of 32 and 64 bits: "not available" (nvml.h, NVML_VALUE_NOT_AVAILABLE).
_BLANKS = frozenset({2**32 - 1, 2**64 - 1})
_NOTE = struct.Struct("i60s")
NOTE_BYTES = _NOTE.size
NO_GPU = -1


class ProgressNote:
    """One line of shared memory that says which call is under way.

    The parent reads it after it had to kill the child: it names the GPU at which the driver hung.

    Args:
        file_descriptor: a file of at least :data:`NOTE_BYTES`, which both processes map.
    """

    def __init__(self, file_descriptor: int) -> None:
        self._memory = mmap.mmap(file_descriptor, NOTE_BYTES)

    def write(self, gpu: int, function: str) -> None:
        """Say that a function is being called for a GPU, :data:`NO_GPU` for none."""
        _NOTE.pack_into(self._memory, 0, gpu, function.encode()[:60])

    def read(self) -> tuple[int, str]:
        """Return the GPU's NVML index and the function of the last call."""
        gpu, function = _NOTE.unpack_from(self._memory, 0)
        return gpu, function.rstrip(b"\0").decode("ascii", errors="replace")

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()


class Note(Protocol):
    """Where the call under way is noted."""

    def write(self, gpu: int, function: str) -> None:
        """Say that a function is being called for a GPU."""


class NvmlCalls:
    """The calls about one device at a time.

    Args:
        nvml: the module, initialised.
        note: where to write which call is under way.
    """

    def __init__(self, nvml: Any, note: Note | None = None) -> None:
        self.nvml = nvml
        self._note = note
        self._gpu = NO_GPU
        self.answered = 0
        """Optional calls about this device that were answered."""
        self.failed: list[str] = []
        """Optional calls about this device that failed with an error that is no mere absence."""
        self.last_error: int | None = None
        mismatch = getattr(nvml, "NVMLLibraryMismatchError", nvml.NVMLError)
        self.errors: tuple[type[Exception], ...] = (nvml.NVMLError, mismatch)

    def begin(self, gpu: int) -> None:
        """Start on a device."""
        self._gpu, self.answered, self.failed, self.last_error = gpu, 0, [], None

    def must(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Call a function.

        Raises:
            nvml.NVMLError: whatever NVML says.
        """
        if self._note is not None:
            self._note.write(self._gpu, function)
        return getattr(self.nvml, function)(*arguments, **options)

    def ask(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Call a function; None when device, driver or binding does not have it, or it fails.

        Raises:
            nvml.NVMLError: when the device is lost or has to be reset; nothing else it says counts.
        """
        try:
            answer = self.must(function, *arguments, **options)
        except AttributeError:  # a binding that is older than the function
            return None
        except self.errors as error:
            code = code_of(error)
            if code in {NvmlError.GPU_IS_LOST, NvmlError.RESET_REQUIRED}:
                raise
            if code is not None and code not in ABSENT:
                self.failed.append(function)
                self.last_error = code
            return None
        except ValueError:  # text that is not UTF-8
            return None
        if isinstance(answer, int) and answer in _BLANKS:
            return None
        self.answered += 1
        return answer

    def constant(self, name: str) -> int | None:
        """Return a constant of the binding, or None where it is older than the constant."""
        value = getattr(self.nvml, name, None)
        return None if value is None else int(value)

    def fields(self, handle: Any, *names: str) -> dict[str, float]:
        """Read field values by the names of their constants, in one call; absent ones are left out."""
        numbers = {name: number for name in names if (number := self.constant(name)) is not None}
        values = self.ask("nvmlDeviceGetFieldValues", handle, list(numbers.values()))
        if values is None:
            return {}
        found: dict[str, float] = {}
        for name, value in zip(numbers, values, strict=True):
            read = _field_number(value)
            if value.nvmlReturn == 0 and read is not None:
                found[name] = read
        return found


def _field_number(value: Any) -> float | None:
    """Read the member of NVML's union that its type names (nvml.h, ``nvmlValueType_t``)."""
    members = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
    if value.valueType >= len(members):
        return None
    number = getattr(value.value, members[value.valueType])
    return None if number in _BLANKS else float(number)


def code_of(error: Exception) -> int | None:
    """Return NVML's return code of an error."""
    value = getattr(error, "value", None)
    return value if isinstance(value, int) else None


def text_of(value: object) -> str:
    """Return NVML's text; some versions of the binding give bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return "" if value is None else str(value)

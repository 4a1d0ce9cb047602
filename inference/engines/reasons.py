"""What TensorRT says about a failure: its logger and its error recorder, in one list."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

# TensorRT follows one cause by several errors; the first few name it.
_MAX_REASONS = 20
_SHOWN_REASONS = 5
_FAILED_ALLOCATION = 5
_MEMORY_WORDS = ("out of memory", "FAILED_ALLOCATION", "OutOfMemory", "failed to allocate")


class ReasonLog:
    """Collects errors from the threads of the library.

    Attributes:
        logger: Goes into ``Runtime(logger)``.
        recorder: Is set as ``runtime.error_recorder``; engines and contexts inherit it. TensorRT
            holds neither, so both must live as long as what they were given to.
    """

    def __init__(self, module: Any) -> None:
        self._lock = threading.Lock()
        self._reasons: deque[str] = deque(maxlen=_MAX_REASONS)
        self.logger = _make_logger(module, self._add)
        self.recorder = _make_recorder(module, self._add)

    def take(self) -> str:
        """Return what was said since the last call, as one text, and forget it."""
        with self._lock:
            reasons = list(dict.fromkeys(self._reasons))
            self._reasons.clear()
        self.recorder.clear()
        # The recorder and the logger tell the same; the longer wording has the place too.
        kept = [
            one for one in reasons if not any(one != other and one in other for other in reasons)
        ]
        return "; ".join(kept[:_SHOWN_REASONS])

    @staticmethod
    def out_of_memory(text: str) -> bool:
        """Say whether a text tells of missing memory."""
        return any(word in text for word in _MEMORY_WORDS)

    def _add(self, text: str) -> None:
        with self._lock:
            self._reasons.append(text)


def _make_logger(module: Any, add: Any) -> Any:
    """Make a logger that keeps the errors; its base class exists at run time only."""

    class Logger(module.ILogger):  # type: ignore[misc]
        """Takes errors, leaves warnings."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Take one message of the library."""
            if severity in {module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR}:
                add(message)

    return Logger()


def _make_recorder(module: Any, add: Any) -> Any:
    """Make an error recorder; its base class exists at run time only."""

    class Recorder(module.IErrorRecorder):  # type: ignore[misc]
        """Keeps the last errors with their codes, as TensorRT asks for them back."""

        def __init__(self) -> None:
            module.IErrorRecorder.__init__(self)
            self._errors: list[tuple[Any, str]] = []
            self._overflowed = False

        def num_errors(self) -> int:
            """Return how many are kept."""
            return len(self._errors)

        def get_error_code(self, number: int) -> Any:
            """Return the code of one."""
            return self._errors[number][0]

        def get_error_desc(self, number: int) -> str:
            """Return the words of one."""
            return self._errors[number][1]

        def has_overflowed(self) -> bool:
            """Say whether some were left out."""
            return self._overflowed

        def clear(self) -> None:
            """Forget all."""
            self._errors.clear()
            self._overflowed = False

        def report_error(self, code: Any, desc: str) -> bool:
            """Take one; the answer says whether TensorRT should give up, which it decides itself."""
            if len(self._errors) < _MAX_REASONS:
                self._errors.append((code, desc))
            else:
                self._overflowed = True
            out_of_memory = int(code) == _FAILED_ALLOCATION
            add(f"FAILED_ALLOCATION: {desc}" if out_of_memory else desc)
            return False

    return Recorder()

"""Faults injected where they would happen: inside the worker.

They are what drills and demonstrations run on, and only where configuration allows it. They live in
this process, so a restart cures them, unless the front hands persistent ones to the next worker.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from inference.engines.contract import Array, Context, DeviceLostError, EngineStepError, Tensor

ENGINE_HANG = "engine_hang"
ENGINE_CRASH = "engine_crash"
ENGINE_SLOW = "engine_slow"
CORRUPT_OUTPUT = "corrupt_output"
HOST_MEMORY_LEAK = "host_memory_leak"
POISON_TEXT = "poison_text"
ENGINE_ERROR = "engine_error"
DEVICE_LOST = "device_lost"
WORKER_FAULTS = (
    ENGINE_HANG, ENGINE_CRASH, ENGINE_SLOW, CORRUPT_OUTPUT, HOST_MEMORY_LEAK, POISON_TEXT,
    ENGINE_ERROR, DEVICE_LOST,
)  # fmt: skip

_LEAK_INTERVAL_SECONDS = 0.1
_HANG_POLL_SECONDS = 0.05
# Scores move by this many places: each answer is fluent for the engine and wrong for the reader.
_WRONG_SHIFT = 17


class FaultInjector:
    """The faults that are active in this worker."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._hung = False
        self._step_seconds = 0.0
        self._corruption = ""
        self._poisons: dict[str, str] = {}
        self._error: EngineStepError | None = None
        self._leak: _Leak | None = None

    def inject(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Activate a fault; an unknown name does nothing, for the front checks names."""
        if name == ENGINE_HANG:
            self._hung = True
        elif name == ENGINE_CRASH:
            os.kill(os.getpid(), signal.SIGKILL)
        elif name == ENGINE_SLOW:
            self._step_seconds = float(parameters["step_seconds"])
        elif name == CORRUPT_OUTPUT:
            self._corruption = str(parameters["kind"])
        elif name == ENGINE_ERROR:
            self._error = EngineStepError("device-side assert triggered (injected)")
        elif name == DEVICE_LOST:
            self._error = DeviceLostError("the device fell off the bus (injected)")
        elif name == POISON_TEXT:
            self._poisons[str(parameters["marker"])] = str(parameters["kind"])
        elif name == HOST_MEMORY_LEAK:
            self._stop_leak()
            self._leak = _Leak(int(parameters["bytes_per_second"]))

    def clear(self) -> None:
        """Deactivate everything; safe in a signal handler, and ends a hang."""
        self._hung = False
        self._step_seconds = 0.0
        self._corruption = ""
        self._poisons = {}
        self._error = None
        self._stop_leak()

    def wrap(self, context: Context) -> Context:
        """Return a context that shows the active faults."""
        return _FaultyContext(context, self)

    def take(self, text: str) -> None:
        """Look at a request that begins; a poisonous one ends or stops this process."""
        for marker, kind in self._poisons.items():
            if marker in text and kind == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            self._hung = self._hung or marker in text
        self._stand_still()

    def run(
        self,
        context: Context,
        feeds: Mapping[str, Tensor],
        fetches: Sequence[str] | None,
        resident: frozenset[str],
    ) -> dict[str, Tensor]:
        """Run once under the active faults."""
        self._stand_still()
        if self._error is not None:
            raise self._error
        started = self._clock()
        outputs = context.run(feeds, fetches, resident)
        while self._clock() - started < self._step_seconds:
            outputs = context.run(feeds, fetches, resident)
        if self._corruption:
            # The first output is the answer: a decoder's logits, a classifier's scores.
            name, answer = next(iter(outputs.items()))
            outputs[name] = _corrupt(np.asarray(answer), self._corruption)
        return outputs

    def _stand_still(self) -> None:
        """Stop the step loop while a hang is injected.

        No message is read and SIGTERM is not obeyed, as with a kernel that never returns. Only
        `clear`, called by a signal, or SIGKILL ends it.
        """
        while self._hung:
            time.sleep(_HANG_POLL_SECONDS)

    def _stop_leak(self) -> None:
        if self._leak is not None:
            self._leak.stop()
            self._leak = None


class _FaultyContext:
    """A context with the injector in front."""

    def __init__(self, context: Context, injector: FaultInjector) -> None:
        self._context = context
        self._injector = injector

    def run(
        self,
        feeds: Mapping[str, Tensor],
        fetches: Sequence[str] | None = None,
        resident: frozenset[str] = frozenset(),
    ) -> dict[str, Tensor]:
        """Run once; see `Context.run`."""
        return self._injector.run(self._context, feeds, fetches, resident)

    def close(self) -> None:
        """Close the context; see `Context.close`."""
        self._context.close()


def _corrupt(answer: Array, kind: str) -> Array:
    """Return an output that is not a number (``nan``), or plausible and wrong (``wrong``)."""
    if kind == "nan" and np.issubdtype(answer.dtype, np.floating):
        return np.full_like(answer, np.nan)
    return np.roll(answer, _WRONG_SHIFT, axis=-1) if answer.ndim else answer


class _Leak:
    """A thread that allocates and touches memory at a constant rate."""

    def __init__(self, bytes_per_second: int) -> None:
        self._chunk_bytes = max(1, int(bytes_per_second * _LEAK_INTERVAL_SECONDS))
        self._held: list[bytearray] = []
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="memory-leak", daemon=True).start()

    def stop(self) -> None:
        """Stop and give the memory back."""
        self._stopped.set()
        self._held = []

    def _run(self) -> None:
        while not self._stopped.wait(_LEAK_INTERVAL_SECONDS):
            # Filled with ones: a page of zeros would never become resident.
            self._held.append(bytearray(b"\x01") * self._chunk_bytes)

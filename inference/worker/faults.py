"""Faults injected where they would happen: inside the worker.

They are what drills and demonstrations run on, and only where configuration allows it. They live in
this process, so a restart cures them, unless the front hands persistent ones to the next worker.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from inference.engines.contract import Context, StepInputs, StepOutputs

ENGINE_HANG = "engine_hang"
ENGINE_CRASH = "engine_crash"
ENGINE_SLOW = "engine_slow"
CORRUPT_OUTPUT = "corrupt_output"
HOST_MEMORY_LEAK = "host_memory_leak"
WORKER_FAULTS = (ENGINE_HANG, ENGINE_CRASH, ENGINE_SLOW, CORRUPT_OUTPUT, HOST_MEMORY_LEAK)

_LEAK_INTERVAL_SECONDS = 0.1
_HANG_POLL_SECONDS = 0.05
# Logits move by this many tokens: each answer is fluent for the engine and wrong for the reader.
_WRONG_SHIFT = 17


class FaultInjector:
    """The faults that are active in this worker."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._hung = False
        self._step_seconds = 0.0
        self._corruption = ""
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
        elif name == HOST_MEMORY_LEAK:
            self._stop_leak()
            self._leak = _Leak(int(parameters["bytes_per_second"]))

    def clear(self) -> None:
        """Deactivate everything; safe in a signal handler, and ends a hang."""
        self._hung = False
        self._step_seconds = 0.0
        self._corruption = ""
        self._stop_leak()

    def wrap(self, context: Context) -> Context:
        """Return a context that shows the active faults."""
        return _FaultyContext(context, self)

    def execute(self, context: Context, inputs: StepInputs) -> StepOutputs:
        """Run one step under the active faults."""
        while self._hung:
            # The step loop stops here: no message is read and SIGTERM is not obeyed, as with a
            # kernel that never returns. Only `clear`, called by a signal, or SIGKILL ends it.
            time.sleep(_HANG_POLL_SECONDS)
        started = self._clock()
        outputs = context.execute(inputs)
        while self._clock() - started < self._step_seconds:
            outputs = context.execute(inputs)
        if self._corruption == "nan":
            outputs.logits[:] = np.nan
        elif self._corruption == "wrong":
            outputs.logits[:] = np.roll(outputs.logits, _WRONG_SHIFT, axis=-1)
        return outputs

    def _stop_leak(self) -> None:
        if self._leak is not None:
            self._leak.stop()
            self._leak = None


class _FaultyContext:
    """A context with the injector in front."""

    def __init__(self, context: Context, injector: FaultInjector) -> None:
        self._context = context
        self._injector = injector

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """Run one step; see `Context.execute`."""
        return self._injector.execute(self._context, inputs)


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

"""The worker's main loop: read messages, admit, step, answer.

It imports little (numpy, tokenizers, msgpack and one engine library), because a worker that starts
in a second is what makes restarting a remedy.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.engines.contract import Engine, EngineError, Runtime
from inference.engines.onnx import OnnxRuntime
from inference.model import TOKENIZER_FILE, ModelFormatError, ModelMetadata, read_metadata
from inference.worker.cache import PrefixCache
from inference.worker.decoder import Decoder
from inference.worker.faults import FaultInjector
from inference.worker.heartbeat import HeartbeatWriter, WorkerState
from inference.worker.wire import (
    Cancel,
    ClearCache,
    Failed,
    Finished,
    FrameDecoder,
    Generate,
    InjectFault,
    Load,
    Loaded,
    Message,
    Ready,
    Start,
    WireError,
    encode,
)

EXIT_DRAINED = 0
EXIT_LOAD_FAILED = 3
EXIT_ORPHANED = 4

_RECEIVE_BYTES = 65536
_GOLDEN_MAX_TOKENS = 128


@dataclass(slots=True)
class LoadedModel:
    """An engine with everything that decoding needs."""

    metadata: ModelMetadata
    engine: Engine
    decoder: Decoder
    load_seconds: float


def make_runtime(engine: str, threads: int) -> Runtime:
    """Return the runtime of a name: ``onnx``, ``tensorrt`` or ``tensorrt_rtx``."""
    if engine == "onnx":
        return OnnxRuntime(threads)
    from inference.engines.tensorrt import TensorRtRuntime  # noqa: PLC0415 - needs a GPU

    return TensorRtRuntime.from_installed(engine)


class Worker:
    """One engine behind a socket."""

    def __init__(
        self,
        connection: socket.socket,
        memory: mmap.mmap,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._heartbeat = HeartbeatWriter(memory)
        self._clock = clock
        self.faults = FaultInjector(clock)
        self._frames = FrameDecoder()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._stopping = False
        self._waiting: list[Generate] = []
        self._next: tuple[Load, LoadedModel | None, str] | None = None
        self._model: LoadedModel
        self._start: Start

    def install_signals(self) -> None:
        """SIGTERM drains; SIGUSR1 clears injected faults, even from a hung step."""
        # A byte in the wake socket ends `select`, which Python would otherwise restart.
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGUSR1, lambda _signal, _frame: self.faults.clear())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front, which drains

    def run(self) -> int:
        """Serve until the front goes away or SIGTERM; return the exit status."""
        record = self._heartbeat.record
        record.pid, record.started_at = os.getpid(), self._clock()
        record.state = WorkerState.LOADING
        self._heartbeat.write()
        start = self._first_message()
        if start is None:
            return EXIT_ORPHANED
        self._start = start
        try:
            self._model = self._load(Path(start.folder))
        except (EngineError, ModelFormatError, OSError, ValueError) as error:
            record.state = WorkerState.LOAD_FAILED
            self._heartbeat.write_detail(str(error))
            return EXIT_LOAD_FAILED
        for name, parameters in start.faults:
            self.faults.inject(name, parameters)
        record.ready_at = self._clock()
        self._set_state(WorkerState.IDLE)
        self._send([self._ready()])
        return self._serve()

    def _serve(self) -> int:
        while not self._stopping or self._waiting or self._model.decoder.active:
            busy = bool(self._waiting or self._model.decoder.active)
            if not self._receive(block=not busy):
                return EXIT_ORPHANED
            self._swap_if_loaded()
            if not self._waiting and not self._model.decoder.active:
                continue
            self._set_state(WorkerState.DRAINING if self._stopping else WorkerState.BUSY)
            self._work()
            if not self._waiting and not self._model.decoder.active:
                self._set_state(WorkerState.IDLE)
        return EXIT_DRAINED

    def _work(self) -> None:
        """Admit one waiting prompt and compute one token for everybody."""
        decoder = self._model.decoder
        if self._waiting:
            request = self._waiting.pop(0)
            if request.deadline <= self._clock():
                self._send([Failed(request.number, "deadline", "deadline exceeded")])
            else:
                self._send(decoder.start(request))
        self._send(decoder.step())

    def _receive(self, *, block: bool) -> bool:
        """Handle what arrived; return False once the front is gone."""
        readable, _, _ = select.select(
            [self._connection, self._wake_read], [], [], None if block else 0
        )
        if self._wake_read in readable:
            self._wake_read.recv(_RECEIVE_BYTES)
        if self._connection not in readable:
            return True
        data = self._connection.recv(_RECEIVE_BYTES)
        if not data:
            return False
        for message in self._frames.feed(data):
            self._handle(message)
        return True

    def _handle(self, message: Message) -> None:
        match message:
            case Generate():
                self._waiting.append(message)
            case Cancel(number):
                self._cancel(number)
            case ClearCache():
                self._model.decoder.cache.clear()
            case InjectFault(name, parameters):
                self.faults.inject(name, parameters)
            case Load():
                threading.Thread(
                    target=self._load_beside, args=(message,), name="model-load", daemon=True
                ).start()
            case _:
                raise WireError(f"a worker does not take {type(message).__name__}")

    def _cancel(self, number: int) -> None:
        for request in self._waiting:
            if request.number == number:
                self._waiting.remove(request)
                self._send([Failed(number, "cancelled", "cancelled")])
                return
        self._send(self._model.decoder.cancel(number))

    def _send(self, messages: list[Any]) -> None:
        if messages:
            self._connection.sendall(b"".join(map(encode, messages)))

    def _first_message(self) -> Start | None:
        while data := self._connection.recv(_RECEIVE_BYTES):
            for message in self._frames.feed(data):
                if not isinstance(message, Start):
                    raise WireError(f"expected Start, got {type(message).__name__}")
                return message
        return None

    def _load(self, folder: Path, heartbeat: HeartbeatWriter | None = None) -> LoadedModel:
        """Load a version folder and run one prompt through it, so that the first user need not."""
        from tokenizers import Tokenizer  # noqa: PLC0415 - after the state says loading

        started = self._clock()
        metadata = read_metadata(folder)
        runtime = make_runtime(self._start.engine, self._start.threads)
        support = runtime.is_supported()
        if not support.supported:
            raise EngineError(support.reason)
        engine = runtime.load(folder, metadata.shape)
        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        except Exception as error:
            raise EngineError(f"{folder / TOKENIZER_FILE}: {error}") from error
        if tokenizer.token_to_id(metadata.end_token) is None:
            raise EngineError(f"{folder}: the tokenizer lacks the end token {metadata.end_token}")
        decoder = Decoder(
            self.faults.wrap(engine.create_context()),
            tokenizer,
            metadata,
            cache=PrefixCache(self._start.cache_bytes, metadata.shape),
            heartbeat=heartbeat or self._heartbeat,
            clock=self._clock,
        )
        return LoadedModel(metadata, engine, decoder, self._clock() - started)

    def _load_beside(self, message: Load) -> None:
        """Load and prove another version while this one serves; runs in its own thread."""
        private = HeartbeatWriter.private()
        try:
            model = self._load(Path(message.folder), private)
            reason = _prove(model.decoder, model.metadata)
            model.decoder.use_heartbeat(self._heartbeat)
            self._next = (message, None if reason else model, reason)
        except (EngineError, ModelFormatError, OSError, ValueError) as error:
            self._next = (message, None, str(error))
        self._wake_write.send(b"\0")

    def _swap_if_loaded(self) -> None:
        """Take a proven version into service once the running batch is done."""
        if self._next is None:
            return
        message, model, reason = self._next
        if model is not None and self._model.decoder.active:
            return
        self._next = None
        if model is not None:
            self._model = model
            self._send([self._ready()])
        load_seconds = model.load_seconds if model else 0.0
        self._send([Loaded(message.version, reason, load_seconds)])

    def _ready(self) -> Ready:
        model = self._model
        return Ready(
            model.metadata.version, model.engine.kind, model.engine.device, model.load_seconds
        )

    def _set_state(self, state: WorkerState) -> None:
        if self._heartbeat.record.state != state:
            self._heartbeat.record.state = state
            self._heartbeat.write()

    def _on_terminate(self, _signal: int, _frame: object) -> None:
        self._stopping = True


def _prove(decoder: Decoder, metadata: ModelMetadata) -> str:
    """Answer every golden prompt; return what was wrong, or nothing."""
    for number, golden in enumerate(metadata.golden):
        request = Generate(
            number=number,
            task=golden.task,
            text=golden.text,
            max_tokens=_GOLDEN_MAX_TOKENS,
            temperature=0.0,
            top_p=1.0,
            seed=0,
            stop=[],
            stream=False,
            deadline=float("inf"),
            canary=True,
        )
        events = decoder.start(request)
        while decoder.active:
            events = decoder.step()
        last = events[-1]
        if not isinstance(last, Finished):
            return f"golden prompt {golden.text!r}: {last}"
        if last.text.strip() != golden.expected.strip():
            return f"golden prompt {golden.text!r} gives {last.text!r}, not {golden.expected!r}"
    return ""

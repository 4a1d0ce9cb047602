"""The worker's shell: read messages, start and step requests, answer, drain, swap versions.

What it runs is a `Workload`, chosen by the ``kind`` of the model. The shell imports little, because
a worker that starts in a second is what makes restarting a remedy.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from inference.engines.contract import DeviceLostError, EngineError, Placement
from inference.model import ModelFormatError, check_identity, read_metadata
from inference.worker.faults import FaultInjector
from inference.worker.frames import Buffer, RunBatch
from inference.worker.heartbeat import HeartbeatWriter, LoadPhase, WorkerState
from inference.worker.wire import (
    Cancel,
    ClearCache,
    DeviceChanged,
    Failed,
    FrameDecoder,
    Generate,
    InjectFault,
    Load,
    Loaded,
    Message,
    Ready,
    Request,
    Start,
    WireError,
    encode_parts,
)
from inference.worker.workload import LoadContext, Workload, check_folder, workload_loader

EXIT_DRAINED = 0
EXIT_LOAD_FAILED = 3
EXIT_ORPHANED = 4
EXIT_DEVICE_LOST = 5

_WAKE_BYTES = 65536
# Below this, one copy is cheaper than a scattered write.
_JOIN_BYTES = 64 * 1024
_MAX_PARTS = 512  # IOV_MAX is 1024 on Linux


@dataclass(frozen=True, slots=True)
class _Served:
    """A loaded version and how long that took."""

    workload: Workload
    variant: str
    load_seconds: float


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
        self._waiting: deque[Request] = deque()
        self._next: tuple[Load, _Served | None, str] | None = None
        self._served: _Served
        self._start: Start
        self._placement: Placement

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
            self._served = self._load(Path(start.folder), start.variant, self._heartbeat)
        except DeviceLostError as error:
            return self._give_up_device(str(error))
        except (EngineError, ModelFormatError, OSError, ValueError) as error:
            record.state = WorkerState.LOAD_FAILED
            self._heartbeat.write_detail(str(error))
            return EXIT_LOAD_FAILED
        for name, parameters in start.faults:
            self.faults.inject(name, parameters)
        # What the load made lives as long as this process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        record.ready_at = self._clock()
        self._set_state(WorkerState.IDLE)
        self._send([self._ready()])
        return self._serve()

    @property
    def _busy(self) -> bool:
        return bool(self._waiting) or self._served.workload.active > 0

    def _serve(self) -> int:
        while not self._stopping or self._busy:
            if not self._receive(block=not self._busy):
                return EXIT_ORPHANED
            self._swap_if_loaded()
            if not self._busy:
                continue
            self._set_state(WorkerState.DRAINING if self._stopping else WorkerState.BUSY)
            if reason := self._work():
                return self._give_up_device(reason)
            if not self._busy:
                self._set_state(WorkerState.IDLE)
        return EXIT_DRAINED

    def _give_up_device(self, reason: str) -> int:
        """Leave behind why this process ends; return its exit status."""
        self._heartbeat.record.state = WorkerState.DEVICE_LOST
        self._heartbeat.write_detail(reason)
        return EXIT_DEVICE_LOST

    def _work(self) -> str:
        """Start what waits, do the next step for everybody, and send what came of it at once.

        While a proven version waits for the running batch to end, new requests wait for it: under
        steady load the batch would never be empty, and the swap would never come.
        Return why the device is lost, when it is: this process is of no use any more then.
        """
        workload = self._served.workload
        swapping = self._next is not None and self._next[1] is not None
        messages: list[Message] = []
        while self._waiting and not swapping:
            request = self._waiting.popleft()
            if request.deadline <= self._clock():
                messages.append(Failed(request.number, "deadline", "deadline exceeded"))
            else:
                self._announce(request)
                if request.canary and (reason := self._check_device()):
                    return reason
                messages += workload.start(request)
        messages += workload.step()
        if reason := self._lost_device(messages):
            return reason
        self._send(messages)
        return ""

    def _lost_device(self, messages: Sequence[Message]) -> str:
        """Look for requests on which the device was lost, and leave their numbers behind.

        They are not answered here: to the front they are what the worker worked on when it went
        down, which may be the fault of one of them.
        """
        lost = [m for m in messages if isinstance(m, Failed) and m.code == DeviceLostError.code]
        if not lost:
            return ""
        self._send([message for message in messages if message not in lost])
        self._heartbeat.record.running_ids = tuple(message.number for message in lost)
        return lost[0].message

    def _announce(self, request: Request) -> None:
        """Name the request in the heartbeat before it can do harm: who dies here says on what."""
        record = self._heartbeat.record
        record.running_ids = (*record.running_ids, request.number)
        self._heartbeat.write()
        if isinstance(request, Generate):
            self.faults.take(request.text)

    def _check_device(self) -> str:
        """Ask again where the model is: a library may move it without a word.

        Return why the device is lost, when it is; no request is to blame then.
        """
        try:
            placement = self._served.workload.placement
        except DeviceLostError as error:
            self._heartbeat.record.running_ids = ()
            return str(error)
        if placement != self._placement:
            self._placement = placement
            self._send([DeviceChanged(placement.device, placement.reason)])
        return ""

    def _receive(self, *, block: bool) -> bool:
        """Handle what arrived; return False once the front is gone."""
        if block:
            select.select([self._connection, self._wake_read], [], [])
            # Wake-ups only end this wait; between steps they may pile up, as the socket bounds them.
            with suppress(BlockingIOError):
                self._wake_read.recv(_WAKE_BYTES)
        try:
            # Without a select before it: one system call between two steps is enough.
            count = self._connection.recv_into(self._frames.get_buffer(), 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        for message in self._frames.received(count):
            self._handle(message)
        return count > 0

    def _handle(self, message: Message) -> None:
        match message:
            case Generate() | RunBatch():
                self._waiting.append(message)
            case Cancel(number):
                self._cancel(number)
            case ClearCache():
                self._served.workload.clear_cache()
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
        self._send(self._served.workload.cancel(number))

    def _send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            send_all(self._connection, encode_parts(message))

    def _first_message(self) -> Start | None:
        while count := self._connection.recv_into(self._frames.get_buffer()):
            for message in self._frames.received(count):
                if not isinstance(message, Start):
                    raise WireError(f"expected Start, got {type(message).__name__}")
                return message
        return None

    def _load(self, folder: Path, variant: str, heartbeat: HeartbeatWriter) -> _Served:
        """Load a version folder as the kind that its ``model.toml`` names."""
        started = self._clock()
        heartbeat.enter(LoadPhase.READ, started)
        metadata = read_metadata(folder)
        check_identity(metadata, folder)
        check_folder(folder, self._start.engine)
        context = LoadContext(self._start, self.faults, heartbeat, self._clock, variant)
        workload = workload_loader(metadata.kind)(folder, context)
        heartbeat.enter(LoadPhase.NONE, self._clock())
        return _Served(workload, variant, self._clock() - started)

    def _load_beside(self, message: Load) -> None:
        """Load and prove another version while this one serves; runs in its own thread."""
        try:
            served = self._load(Path(message.folder), message.variant, HeartbeatWriter.private())
            reason = served.workload.prove()
            if reason:
                served.workload.close()
            else:
                served.workload.use_heartbeat(self._heartbeat)
            self._next = (message, None if reason else served, reason)
        except (EngineError, ModelFormatError, OSError, ValueError) as error:
            self._next = (message, None, str(error))
        self._wake_write.send(b"\0")

    def _swap_if_loaded(self) -> None:
        """Take a proven version into service once the running batch is done."""
        if self._next is None:
            return
        message, served, reason = self._next
        if served is not None and self._served.workload.active:
            return
        self._next = None
        if served is not None:
            before, self._served = self._served, served
            before.workload.close()
            self._send([self._ready()])
        load_seconds = served.load_seconds if served else 0.0
        self._send([Loaded(message.version, reason, load_seconds)])

    def _ready(self) -> Ready:
        workload = self._served.workload
        self._placement = placement = workload.placement
        return replace(
            workload.describe(),
            load_seconds=self._served.load_seconds,
            device=placement.device,
            wanted_device=placement.wanted,
            device_reason=placement.reason,
            variant=self._served.variant,
        )

    def _set_state(self, state: WorkerState) -> None:
        if self._heartbeat.record.state != state:
            self._heartbeat.record.state = state
            self._heartbeat.write()

    def _on_terminate(self, _signal: int, _frame: object) -> None:
        self._stopping = True


def send_all(connection: socket.socket, parts: Sequence[Buffer]) -> None:
    """Send all parts on a blocking socket, without joining large ones.

    Raises:
        OSError: the front is gone.
    """
    size = sum(memoryview(part).nbytes for part in parts)
    if size <= _JOIN_BYTES or len(parts) > _MAX_PARTS:
        connection.sendall(b"".join(parts))
        return
    sent = connection.sendmsg(parts)
    for part in parts:
        view = memoryview(part).cast("B")
        if sent < len(view):
            connection.sendall(view[sent:])
        sent = max(0, sent - len(view))

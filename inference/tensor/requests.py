"""A tensor request on its way through queue, batch and engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from inference.errors import ServiceError
from inference.queueing import Priority
from inference.requests import TicketState

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.worker.frames import Buffer

Shapes = tuple[tuple[int, ...], ...]
"""Of each input, without the batch axis. Requests of equal shapes can share a batch."""


class BatchOutputs:
    """What a batch computed, shared by the requests in it."""

    __slots__ = ("_row_json", "arrays", "ended_at", "started_at", "version")

    def __init__(
        self,
        arrays: list[npt.NDArray[Any]],
        started_at: float,
        ended_at: float,
        version: int,
    ) -> None:
        self.arrays = arrays
        self.started_at = started_at
        """When the worker began to compute it, CLOCK_MONOTONIC seconds."""
        self.ended_at = ended_at
        self.version = version
        """The version that computed it, whatever serves by now."""
        self._row_json: dict[int, list[bytes]] = {}

    def row_json(self, index: int) -> list[bytes]:
        """Return the values of each row of an output as JSON, separated by commas.

        A whole batch is written at once and cut into rows, which is several times cheaper than to
        write each request's few numbers by themselves.
        """
        rows = self._row_json.get(index)
        if rows is None:
            rows = self._row_json[index] = _rows_as_json(self.arrays[index])
        return rows


class TensorTicket:
    """One request: what it asks, where it is, and whom to tell.

    It is request and ticket in one object, because on the hot path each object costs more than
    the model. ``deadline`` is CLOCK_MONOTONIC seconds; ``data`` holds the raw bytes of each input.
    """

    __slots__ = (
        "answer", "canary", "data", "deadline", "dispatched_at", "enqueued_at", "golden", "model",
        "number", "offset", "on_done", "owner", "priority", "repeats", "request_id", "rows", "shapes",
        "state",
    )  # fmt: skip

    def __init__(
        self,
        *,
        request_id: str,
        model: str,
        rows: int,
        shapes: Shapes,
        data: tuple[Buffer, ...],
        deadline: float,
        on_done: Callable[[TensorTicket, ServiceError | None], None],
        owner: Any = None,
        priority: Priority = Priority.NORMAL,
        canary: bool = False,
        golden: bool = False,
    ) -> None:
        self.request_id = request_id
        self.model = model
        self.rows = rows
        self.shapes = shapes
        self.data = data
        self.deadline = deadline
        self.priority = priority
        self.canary = canary
        self.golden = golden
        """A golden example of the service's own canary."""
        self.on_done = on_done
        """Called once, from the event loop, with the error if there is no answer."""
        self.owner = owner
        """Whatever `on_done` needs to know; it belongs to whoever gave it."""
        self.state = TicketState.QUEUED
        self.number = 0
        self.enqueued_at = 0.0
        self.dispatched_at = 0.0
        self.repeats = 0
        """How often it was given to another worker after one was lost."""
        self.answer: BatchOutputs | None = None
        self.offset = 0
        """First row of this request in the answer."""

    @property
    def identity(self) -> tuple[object, ...]:
        """Everything that decides what the engine computes, beside model and version."""
        return (self.rows, self.shapes, *map(bytes, self.data))

    def finish(self, error: ServiceError | None) -> None:
        """Tell whoever waits, once."""
        if self.state is not TicketState.DONE:
            self.state = TicketState.DONE
            self.on_done(self, error)

    def outputs(self) -> list[npt.NDArray[Any]]:
        """Return this request's rows of each output; views, without a copy."""
        if self.answer is None:
            raise RuntimeError("the request has no answer")
        return [array[self.offset : self.offset + self.rows] for array in self.answer.arrays]


def _rows_as_json(array: npt.NDArray[Any]) -> list[bytes]:
    """Return the values of each row, in row-major order, with as many digits as the type has."""
    rows = array.reshape(len(array), -1)
    if rows.shape[1] == 0:
        return [b""] * len(rows)
    if rows.dtype == object:
        return [orjson.dumps(row)[1:-1] for row in rows.tolist()]
    if rows.dtype == np.float16:
        rows = rows.astype(np.float32)
    text = orjson.dumps(np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[2:-2].split(b"],[")

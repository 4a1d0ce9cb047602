"""What the end of a request says about the version that had it."""

from __future__ import annotations

from inference.errors import DeadlineExceededError, EngineFailedError, ServiceError
from inference.release.probation import Observation
from inference.requests import Ticket, TicketState
from inference.worker.wire import Finished

# A deadline that passed on the engine is the version's doing if the engine had the request for more
# than this share of its time; else it came late from the queue.
_BLAMED_SHARE = 0.5


def of_generation(
    ticket: Ticket, event: Finished | ServiceError, *, beside: int, engine_up: bool, now: float
) -> Observation | None:
    """Judge a request of a language model, or say that it tells nothing.

    Args:
        ticket: The request, in its state before the end.
        event: How it ended.
        beside: Requests that the engine computes together with it.
        engine_up: Whether the worker is there: the requests of one that died are not counted one by
            one, for they died of one cause.
        now: CLOCK_MONOTONIC seconds.
    """
    if ticket.request.canary:
        return None
    if isinstance(event, Finished):
        return Observation(
            failed=False,
            stratum=(ticket.request.task, beside.bit_length()),
            seconds=seconds_per_token(event),
        )
    if isinstance(event, EngineFailedError):
        return Observation(failed=True) if engine_up else None
    if isinstance(event, DeadlineExceededError) and ticket.state is TicketState.RUNNING:
        had = now - ticket.dispatched_at
        allowed = ticket.request.deadline - ticket.enqueued_at
        return Observation(failed=True) if had > _BLAMED_SHARE * allowed else None
    return None


def seconds_per_token(answer: Finished) -> float | None:
    """Return the time between two tokens after the first; the first one is the prompt's."""
    if answer.completion_tokens < 2:
        return None
    return (answer.last_token_at - answer.first_token_at) / (answer.completion_tokens - 1)


def of_batch(seconds: float, rows: int, *, failed: bool) -> Observation:
    """Judge a batch of a tensor model; batches of about the same size are comparable."""
    if failed:
        return Observation(failed=True)
    return Observation(failed=False, stratum=rows.bit_length(), seconds=seconds)

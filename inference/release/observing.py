"""What the worker's messages and the ends of requests say about the version that serves.

Canaries count like other requests here: they use the same engine, and on a quiet service they are
all there is to judge by.
"""

from __future__ import annotations

from inference.release.probation import Observation
from inference.worker.frames import BatchDone
from inference.worker.wire import Failed, Finished, Message

# Failures that are the engine's, and not the request's or the client's.
_ENGINE_CODES = frozenset({"step_failed", "invalid_output", "memory_limit"})
# A deadline that passed on the engine is the version's doing if the engine had the request for more
# than this share of its time; else it came late from the queue.
_BLAMED_SHARE = 0.5


def of_message(message: Message, beside: int) -> Observation | None:
    """Judge a message, or say that it tells nothing.

    Args:
        message: What the worker sent.
        beside: Requests that it computes together; their number makes times comparable.
    """
    match message:
        case Finished():
            return Observation(
                failed=False, stratum=beside.bit_length(), seconds=seconds_per_token(message)
            )
        case BatchDone():
            if message.invalid_rows:
                return Observation(failed=True)
            seconds = message.ended_at - message.started_at
            return Observation(failed=False, stratum=message.rows.bit_length(), seconds=seconds)
        case Failed() if message.code in _ENGINE_CODES:
            return Observation(failed=True)
    return None


def of_deadline(had_seconds: float, allowed_seconds: float) -> Observation | None:
    """Judge a request whose deadline passed while the engine had it.

    Without this a version so slow that nothing is ever finished would never be compared.
    """
    return Observation(failed=True) if had_seconds > _BLAMED_SHARE * allowed_seconds else None


def seconds_per_token(answer: Finished) -> float | None:
    """Return the time between two tokens after the first; the first one is the prompt's."""
    if answer.completion_tokens < 2:
        return None
    return (answer.last_token_at - answer.first_token_at) / (answer.completion_tokens - 1)

"""From a protocol's request to a `GenerationRequest`: task, deadline and limits in one place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from inference.api.deadlines import timeout_seconds
from inference.api.http import Exchange
from inference.errors import InvalidRequestError
from inference.model import CHAT_TASK, TensorMetadata
from inference.requests import GenerationRequest, Ticket

SENTIMENT_TASK = "sentiment"
_SENTIMENT_PREFIX = "sentiment:"

Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]


def _whole(value: Any) -> Any:
    """Take 5.0 for 5: to JSON Schema, and to some JSON writers, they are the same number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), Whole]
MaxTokens = Annotated[int, Field(ge=1, le=1_000_000), Whole]
MinTokens = Annotated[int, Field(ge=0, le=1_000_000), Whole]
StopText = Annotated[str, Field(min_length=1, max_length=64)]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a client may say about an answer; None is the service's default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0


def submit(
    exchange: Exchange,
    model: str,
    text: str,
    task: str | None,
    sampling: Sampling,
    *,
    conversation: tuple[tuple[str, str], ...] = (),
) -> Ticket:
    """Build a request from what a protocol has read, and admit it.

    Args:
        exchange: The request.
        model: Whom it asks.
        text: The question.
        task: What is asked for, if the request says it.
        sampling: How to answer.
        conversation: Role and content of all messages, for a model with a chat template.

    Raises:
        ServiceError: it is wrong or refused.
    """
    service = exchange.service
    settings = service.settings
    host = service.host(model)
    metadata = host.metadata()
    if isinstance(metadata, TensorMetadata):
        raise InvalidRequestError(
            f"{model} computes on tensors; ask it by /v2/models/{model}/infer", param="model"
        )
    if metadata is None or metadata.chat_template is None:
        conversation = ()
    length = max(len(text), sum(len(content) for _, content in conversation))
    if length > settings.max_prompt_characters:
        raise InvalidRequestError(
            f"the prompt has {length} characters; the limit is {settings.max_prompt_characters}",
            reason="context_length_exceeded",
            param="prompt",
        )
    tasks = (SENTIMENT_TASK,) if metadata is None else metadata.tasks
    task, text = _task_of(exchange.header("x-galen-task") or task, text, tasks)
    if metadata is not None and task not in tasks:
        known = ", ".join(tasks)
        raise InvalidRequestError(f"no task {task!r}; {model} has {known}", param="task")
    wanted = settings.default_max_tokens if sampling.max_tokens is None else sampling.max_tokens
    request = GenerationRequest(
        request_id=exchange.request_id,
        model=model,
        task=task,
        text=text,
        deadline=service.clock() + _deadline_seconds(exchange, task),
        max_tokens=min(wanted, settings.max_output_tokens),
        temperature=sampling.temperature or 0.0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        seed=sampling.seed or 0,
        stop=_stops(sampling.stop),
        stream=sampling.stream,
        ignore_eos=sampling.ignore_eos,
        min_tokens=sampling.min_tokens,
        messages=conversation,
        canary=exchange.canary,
        priority=exchange.priority(),
        exemplar=exchange.exemplar,
    )
    if exchange.canary:
        service.gate.check_canary_rate()
    exchange.request = request
    ticket, route = service.submit(request)
    exchange.ticket = ticket
    exchange.answered_by, exchange.fallback = route.model, route.reason.value
    exchange.level = service.level_of(request, route.model)
    return ticket


def _task_of(task: str | None, text: str, tasks: Collection[str]) -> tuple[str, str]:
    """Return the task and the text without the prefix that may name it."""
    stripped = text.lstrip()
    named = stripped[: len(_SENTIMENT_PREFIX)].lower() == _SENTIMENT_PREFIX
    if named and SENTIMENT_TASK in tasks and task in {None, SENTIMENT_TASK}:
        return SENTIMENT_TASK, stripped[len(_SENTIMENT_PREFIX) :].strip()
    return task or CHAT_TASK, text


def _deadline_seconds(exchange: Exchange, task: str) -> float:
    """Return the task's deadline, shortened by the client's wish."""
    limit = exchange.service.settings.deadline_seconds(task)
    return timeout_seconds(exchange.header("x-request-timeout-ms"), limit)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    """Return the stop texts."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())

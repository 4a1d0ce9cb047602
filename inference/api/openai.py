"""The OpenAI routes: completions, chat completions and the list of models."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from inference.api.generation import (
    MaxTokens,
    MinTokens,
    Sampling,
    Seed,
    StopText,
    Temperature,
    TopP,
    Whole,
    submit,
)
from inference.api.http import Exchange
from inference.errors import InvalidRequestError
from inference.requests import Ticket
from inference.worker.wire import Finished, Token


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


class _GenerationBody(BaseModel):
    """What both routes take.

    Fields of the OpenAI API that are not listed are ignored, except `n` and `logprobs`, which
    would change the answer: other values than the listed ones are refused.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = Field(default=None, description="Model name; none is the default model.")
    task: str | None = Field(default=None, description="sentiment or chat (Galen).")
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = Field(default=None, description="0, the default, is greedy.")
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[Literal[1], Whole] | None = 1
    logprobs: Literal[False, 0] | None = None
    ignore_eos: bool | None = Field(
        default=None, description="Go on after the end token, as in vLLM; for measurements."
    )
    min_tokens: MinTokens | None = Field(
        default=None, description="No end token before the answer has this length, as in vLLM."
    )

    def sampling(self) -> Sampling:
        """Return what concerns the engine."""
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop,
            stream=bool(self.stream),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(_GenerationBody):
    """``POST /v1/completions``."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)] = Field(
        description="One prompt."
    )

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


# What the field types cannot say: somebody has to ask.
_A_QUESTION: dict[str, Any] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"const": "user"}, "content": {"type": ["string", "array"]}},
}


class ChatBody(_GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=1000,
        description="The conversation; a model without a chat template answers the last question.",
        json_schema_extra={"contains": _A_QUESTION},
    )
    max_completion_tokens: MaxTokens | None = None

    def sampling(self) -> Sampling:
        """Return what concerns the engine."""
        base = super().sampling()
        longest = self.max_completion_tokens
        return base if longest is None else replace(base, max_tokens=longest)

    @property
    def text(self) -> str:
        """The last message of the user: the bundled models answer single questions."""
        for message in reversed(self.messages):
            if message.role == "user" and message.content is not None:
                return message.text
        raise InvalidRequestError("messages must hold one of the user", param="messages")

    @property
    def conversation(self) -> tuple[tuple[str, str], ...]:
        """All messages, for models that have a template for them; a developer is the system."""
        return tuple(
            ("system" if message.role == "developer" else message.role, message.text)
            for message in self.messages
        )


async def completions(exchange: Exchange) -> None:
    """Answer ``POST /v1/completions``."""
    body = await exchange.body(CompletionBody)
    await _answer(exchange, body, body.text, _CompletionWriter())


async def chat_completions(exchange: Exchange) -> None:
    """Answer ``POST /v1/chat/completions``."""
    body = await exchange.body(ChatBody)
    await _answer(exchange, body, body.text, _ChatWriter(), body.conversation)


async def models(exchange: Exchange) -> None:
    """Answer ``GET /v1/models``."""
    data = [_model(exchange, model) for model in exchange.service.hosts]
    await exchange.send_json(200, {"object": "list", "data": data})


async def model(exchange: Exchange) -> None:
    """Answer ``GET /v1/models/{model}``."""
    host = exchange.service.host(exchange.params["model"])
    await exchange.send_json(200, _model(exchange, host.model))


def _model(exchange: Exchange, model: str) -> dict[str, Any]:
    """Describe a model; it was created when the service was."""
    service = exchange.service
    created = int(service.wall_clock() - (service.clock() - service.started_at))
    return {"id": model, "object": "model", "created": created, "owned_by": "galen"}


class _Writer(ABC):
    """Builds the objects of one of the two routes."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self) -> None:
        self._id = f"{self.prefix}-{secrets.token_hex(12)}"

    @abstractmethod
    def choice(self, text: str) -> dict[str, Any]:
        """Return what a choice of a whole answer says."""

    @abstractmethod
    def delta(self, text: str, *, first: bool) -> dict[str, Any]:
        """Return what a choice of a chunk says."""

    def whole(self, created: int, model: str, answer: Finished) -> dict[str, Any]:
        """Return a whole answer."""
        choice = {"index": 0, **self.choice(answer.text), "finish_reason": answer.finish_reason}
        return {
            "id": self._id,
            "object": self.kind,
            "created": created,
            "model": model,
            "choices": [{**choice, "logprobs": None}],
            "usage": _usage(answer),
        }

    def chunk(
        self, created: int, model: str, text: str, reason: str | None, *, first: bool
    ) -> bytes:
        """Return one chunk of a stream."""
        choice = {"index": 0, **self.delta(text, first=first), "finish_reason": reason}
        return self._encode(created, model, {"choices": [{**choice, "logprobs": None}]})

    def usage_chunk(self, created: int, model: str, answer: Finished) -> bytes:
        """Return the chunk that holds the usage."""
        return self._encode(created, model, {"choices": [], "usage": _usage(answer)})

    def _encode(self, created: int, model: str, content: dict[str, Any]) -> bytes:
        head = {"id": self._id, "object": self.chunk_kind, "created": created, "model": model}
        return orjson.dumps(head | content)


class _CompletionWriter(_Writer):
    """``/v1/completions``."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def choice(self, text: str) -> dict[str, Any]:
        """Return the text."""
        return {"text": text}

    def delta(self, text: str, *, first: bool) -> dict[str, Any]:  # noqa: ARG002 - chat needs it
        """Return more of the text."""
        return {"text": text}


class _ChatWriter(_Writer):
    """``/v1/chat/completions``."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, text: str) -> dict[str, Any]:
        """Return the assistant's message."""
        return {"message": {"role": "assistant", "content": text}}

    def delta(self, text: str, *, first: bool) -> dict[str, Any]:
        """Return more of the message; the first chunk names the role, the last may be empty."""
        delta = {"role": "assistant"} if first else {}
        return {"delta": {**delta, "content": text} if text else delta}


async def _answer(
    exchange: Exchange,
    body: _GenerationBody,
    text: str,
    writer: _Writer,
    conversation: tuple[tuple[str, str], ...] = (),
) -> None:
    """Submit a request and write its answer, whole or as a stream."""
    model = body.model or exchange.service.default_model
    exchange.count_received(model)
    ticket = submit(exchange, model, text, body.task, body.sampling(), conversation=conversation)
    created = int(exchange.service.wall_clock())
    async with exchange.watch(ticket):
        if body.stream:
            await _stream(exchange, ticket, writer, created, include_usage=body.include_usage)
        else:
            answer = await ticket.result()
            await exchange.send_json(200, writer.whole(created, exchange.answered_by, answer))


async def _stream(
    exchange: Exchange, ticket: Ticket, writer: _Writer, created: int, *, include_usage: bool
) -> None:
    """Send an answer as it is decoded.

    The status line waits for the first event, so that a failure before it has its own status.
    """
    model = exchange.answered_by
    first = True
    async for event in ticket.events():
        if first:
            await exchange.start_events()
        if isinstance(event, Token):
            await exchange.send_event(writer.chunk(created, model, event.text, None, first=first))
        else:
            last = [writer.chunk(created, model, "", event.finish_reason, first=first)]
            if include_usage:
                last.append(writer.usage_chunk(created, model, event))
            await exchange.end_events(*last, b"[DONE]")
        first = False


def _usage(answer: Finished) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }

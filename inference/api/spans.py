"""What an exchange tells a trace: HTTP and GenAI attributes, and a span per stage.

Names follow OpenTelemetry's semantic conventions: HTTP server spans (stable) and generative AI (in
development; the names are those of semantic-conventions-genai in 2026). Texts are left out unless
``trace_prompts`` is set.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import orjson
from structlog.contextvars import bind_contextvars, clear_contextvars

from inference.requests import GenerationRequest, Ticket
from inference.tensor.requests import TensorTicket
from inference.tracing import RequestTrace
from inference.worker.wire import Finished

if TYPE_CHECKING:
    from inference.api.http import Exchange

_OPERATIONS = {"/v1/chat/completions": "chat"}
_PROVIDER = "galen"


def begin(exchange: Exchange) -> None:
    """Begin the trace of an exchange, if requests are traced, and name it in the log."""
    clear_contextvars()  # a request that was pipelined runs in the context of the one before
    tracing = exchange.service.tracing
    if tracing is None:
        bind_contextvars(request_id=exchange.request_id)
        return
    carrier = {name: exchange.header(name) for name in ("traceparent", "tracestate")}
    name = f"{exchange.scope['method']} {exchange.endpoint}"
    exchange.trace = tracing.begin(name, exchange.started_at, carrier, _http(exchange))
    bind_contextvars(
        request_id=exchange.request_id,
        trace_id=exchange.trace.trace_id,
        span_id=exchange.trace.span_id,
    )


def end(exchange: Exchange) -> None:
    """Make the spans of an exchange that has ended."""
    trace = exchange.trace
    if trace is None:
        return
    now = exchange.service.clock()
    error = exchange.error
    failed = error.message if error is not None and exchange.status >= 500 else ""
    if trace.recording:
        _stages(exchange, trace, now)
    trace.end(now, _outcome(exchange) if trace.recording else {}, failed=failed)


def _stages(exchange: Exchange, trace: RequestTrace, now: float) -> None:
    """Add the stages that were reached; the last one carries the error."""
    stages = [*_front_stages(exchange), *_engine_stages(exchange)]
    reason = exchange.error.reason if exchange.error is not None else ""
    times = [begin for _, begin, _ in stages] + [now]
    last = len(stages) - 1
    for number, ((name, _, attributes), (start, stop)) in enumerate(
        zip(stages, pairwise(times), strict=True)
    ):
        trace.stage(name, start, stop, attributes, reason if number == last else "")


def _front_stages(exchange: Exchange) -> list[tuple[str, float, dict[str, Any]]]:
    """Return name, begin and attributes of the stages before the engine."""
    stages: list[tuple[str, float, dict[str, Any]]] = [("receive", exchange.started_at, {})]
    if exchange.read_at:
        stages.append(("admission", exchange.read_at, {}))
    ticket = exchange.ticket or exchange.tensor_ticket
    if ticket is not None:
        stages.append(("queue", ticket.enqueued_at, {}))
    return stages


def _engine_stages(exchange: Exchange) -> list[tuple[str, float, dict[str, Any]]]:
    """Return the stages inside the worker and after it, as far as the request came."""
    if exchange.tensor_ticket is not None:
        return _batch_stages(exchange.tensor_ticket)
    ticket = exchange.ticket
    if ticket is None or not ticket.dispatched_at:
        return []
    answer = ticket.answer
    if answer is None:
        # What a worker did for a request that failed is not told.
        return [("engine", ticket.dispatched_at, {})]
    return [
        ("prefix_cache", answer.started_at, {"galen.prefix_cache.tokens": answer.cached_tokens}),
        (
            "prefill",
            answer.looked_up_at,
            {"galen.prefill.tokens": answer.prompt_tokens - answer.cached_tokens},
        ),
        ("decode", answer.prefilled_at, {"galen.decode.tokens": answer.completion_tokens}),
        ("postprocess", answer.last_token_at, {}),
    ]


def _batch_stages(ticket: TensorTicket) -> list[tuple[str, float, dict[str, Any]]]:
    """Return the stages of a tensor request in the worker and after it."""
    if not ticket.dispatched_at:
        return []
    if ticket.answer is None:
        return [("engine", ticket.dispatched_at, {})]
    rows = {"galen.request.rows": ticket.rows}
    return [
        ("compute", ticket.answer.started_at, rows),
        ("postprocess", ticket.answer.ended_at, {}),
    ]


def _http(exchange: Exchange) -> dict[str, Any]:
    """Return what is known of a request when it comes."""
    scope = exchange.scope
    attributes: dict[str, Any] = {
        "http.request.method": scope["method"],
        "http.route": exchange.endpoint,
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
        "galen.request_id": exchange.request_id,
    }
    if agent := exchange.header("user-agent"):
        attributes["user_agent.original"] = agent
    if client := scope.get("client"):
        attributes["client.address"] = client[0]
    if server := scope.get("server"):
        attributes["server.address"], attributes["server.port"] = server
    return attributes


def _outcome(exchange: Exchange) -> dict[str, Any]:
    """Return what is known of a request when it has ended."""
    attributes: dict[str, Any] = {
        "http.response.status_code": exchange.status,
        "galen.degradation.level": exchange.level,
    }
    if exchange.error is not None:
        attributes["error.type"] = exchange.error.reason
    if exchange.request is not None:
        attributes |= _asked(exchange.endpoint, exchange.request)
    ticket = exchange.ticket
    if ticket is not None and ticket.answer is not None:
        attributes |= _answered(exchange.answered_by, ticket, ticket.answer)
        if exchange.service.settings.trace_prompts:
            attributes |= _texts(ticket.request, ticket.answer)
    return attributes


def _asked(endpoint: str, request: GenerationRequest) -> dict[str, Any]:
    return {
        "gen_ai.operation.name": _OPERATIONS.get(endpoint, "text_completion"),
        "gen_ai.provider.name": _PROVIDER,
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.request.seed": request.seed,
        "gen_ai.request.stream": request.stream,
        "galen.task": request.task,
    }


def _answered(model: str, ticket: Ticket, answer: Finished) -> dict[str, Any]:
    return {
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [answer.finish_reason],
        "gen_ai.response.time_to_first_chunk": answer.first_token_at - ticket.enqueued_at,
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": answer.cached_tokens,
        "gen_ai.usage.output_tokens": answer.completion_tokens,
    }


def _texts(request: GenerationRequest, answer: Finished) -> dict[str, Any]:
    """Return prompt and answer as messages, for those who asked for them."""
    asked = {"role": "user", "parts": [{"type": "text", "content": request.text}]}
    said = {
        "role": "assistant",
        "parts": [{"type": "text", "content": answer.text}],
        "finish_reason": answer.finish_reason,
    }
    return {
        "gen_ai.input.messages": orjson.dumps([asked]).decode(),
        "gen_ai.output.messages": orjson.dumps([said]).decode(),
    }

"""Inference with tensor models over the Open Inference Protocol, the ordinary way."""

from __future__ import annotations

import asyncio

import orjson

from inference.api.deadlines import timeout_seconds
from inference.api.http import Exchange
from inference.errors import ServiceError, UnavailableError, UnsupportedMediaTypeError
from inference.tensor.codec import (
    HEADER_LENGTH,
    InferRequest,
    answer_head,
    parse_json,
)
from inference.tensor.requests import TensorTicket

JSON_TYPES = frozenset({"", "application/json", "application/x-www-form-urlencoded"})
BINARY_TYPES = JSON_TYPES | {"application/octet-stream"}


async def infer_tensors(exchange: Exchange, model: str) -> None:
    """Answer ``POST /v2/models/{model}/infer`` of a tensor model.

    Raises:
        ServiceError: it is wrong, refused or failed.
    """
    service = exchange.service
    host = service.hosts[model]
    header_length = exchange.header(HEADER_LENGTH)
    check_media_type(exchange.media_type(), binary=bool(header_length))
    body = await exchange.read(service.settings.tensor_max_body_bytes)
    document, binary = parse_json(body, header_length)
    if not host.tensors.inputs:
        # Nothing was ever loaded: the model's tensors are not known.
        host.check_available()
        raise UnavailableError(f"the engine of {model} loads", retry_after_seconds=1.0)
    request = host.tensors.codec.decode(document, binary)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ticket = _ticket(exchange, model, request, ended)
    if exchange.canary:
        service.gate.check_canary_rate()
    route = service.tensors.submit(ticket)
    exchange.answered_by, exchange.fallback = route.model, route.reason.value
    exchange.tensor_ticket = ticket
    exchange.level = service.level_of(ticket, route.model)
    async with exchange.watch(ticket):
        await ended
    if ticket.answer is None:
        raise RuntimeError("a request without an error has no answer")
    serving = service.hosts[exchange.answered_by]
    head = answer_head(exchange.answered_by, ticket.answer.version)
    head += orjson.dumps(request.id or exchange.request_id) + b',"outputs":'
    payload, json_length = serving.tensors.codec.encode(head, request, ticket.answer, ticket.offset)
    await exchange.send_payload(payload, answer_headers(json_length))


def check_media_type(media_type: str, *, binary: bool) -> None:
    """Refuse a body that says that it is something else.

    Raises:
        UnsupportedMediaTypeError: it does.
    """
    if media_type in (BINARY_TYPES if binary else JSON_TYPES) or media_type.endswith("+json"):
        return
    raise UnsupportedMediaTypeError(f"the body must be JSON, not {media_type}")


def answer_headers(json_length: int) -> dict[str, str]:
    """Return the headers that describe an answer's body."""
    if not json_length:
        return {"content-type": "application/json"}
    return {"content-type": "application/octet-stream", HEADER_LENGTH: str(json_length)}


def _ticket(
    exchange: Exchange, model: str, request: InferRequest, ended: asyncio.Future[None]
) -> TensorTicket:
    service = exchange.service

    def on_done(_ticket: TensorTicket, error: ServiceError | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    seconds = timeout_seconds(
        exchange.header("x-request-timeout-ms"), service.settings.tensor_deadline_seconds
    )
    return TensorTicket(
        request_id=exchange.request_id,
        model=model,
        rows=request.rows,
        shapes=request.shapes,
        data=request.data,
        deadline=exchange.started_at + seconds,
        on_done=on_done,
        priority=exchange.priority(),
        canary=exchange.canary,
    )

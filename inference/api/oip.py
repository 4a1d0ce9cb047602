"""The Open Inference Protocol, version 2, over REST; one text in and out, or a model's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inference.api.generation import MaxTokens, Sampling, Seed, Temperature, TopP, submit
from inference.api.http import Exchange, invalid_body
from inference.api.oip_tensors import answer_headers, check_media_type, infer_tensors
from inference.errors import InvalidRequestError, NotFoundError
from inference.model import ModelKind
from inference.service import VERSION
from inference.tensor.codec import HEADER_LENGTH, merge_binary, parse_json
from inference.tensor.datatypes import TensorInfo, pack_bytes

INPUT = "text"
OUTPUT = "answer"
EXTENSIONS = ["model_repository", "binary_tensor_data"]


class InferParameters(BaseModel):
    """``parameters`` of an infer request; unknown ones are ignored, as the protocol asks."""

    model_config = ConfigDict(extra="ignore", strict=True)

    task: str | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    binary_data_output: bool = False


class InputTensor(BaseModel):
    """The input: BYTES of shape [1] or [1, 1], one UTF-8 text."""

    name: Literal["text"]
    shape: list[int] = Field(min_length=1, max_length=2)
    datatype: Literal["BYTES"]
    parameters: dict[str, Any] | None = None
    data: list[Any] = Field(min_length=1, max_length=1)

    @property
    def text(self) -> str:
        """The one text of the tensor."""
        value = self.data[0]
        if len(self.shape) == 2 and isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, str) or any(size != 1 for size in self.shape):
            raise InvalidRequestError("the input must be one text of shape [1]", param="inputs.0")
        return value


class OutputParameters(BaseModel):
    """``parameters`` of a requested output."""

    model_config = ConfigDict(extra="ignore", strict=True)

    binary_data: bool | None = None


class OutputTensor(BaseModel):
    """A requested output."""

    name: Literal["answer"]
    parameters: OutputParameters = OutputParameters()


class InferBody(BaseModel):
    """``POST /v2/models/{model}/infer``."""

    id: str | None = Field(default=None, max_length=256)
    parameters: InferParameters = InferParameters()
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[OutputTensor] | None = Field(default=None, max_length=1)

    @property
    def binary_answer(self) -> bool:
        """Whether the answer should come as binary data."""
        own = self.outputs[0].parameters.binary_data if self.outputs else None
        return self.parameters.binary_data_output if own is None else own


async def server_metadata(exchange: Exchange) -> None:
    """Answer ``GET /v2``."""
    content = {"name": "galen", "version": VERSION, "extensions": EXTENSIONS}
    await exchange.send_json(200, content)


async def live(exchange: Exchange) -> None:
    """Answer ``GET /v2/health/live``; a full queue or a dead engine is no reason to restart us."""
    alive = exchange.service.supervised
    await exchange.send_json(200 if alive else 503, {"live": alive})


async def ready(exchange: Exchange) -> None:
    """Answer ``GET /v2/health/ready``."""
    reason = exchange.service.not_ready_reason()
    content = {"ready": not reason, "reason": reason}
    await exchange.send_json(503 if reason else 200, content)


async def model_metadata(exchange: Exchange) -> None:
    """Answer ``GET /v2/models/{model}``."""
    model, _ = _model_of(exchange)
    service = exchange.service
    host = service.hosts[model]
    platform = host.ready.engine if host.ready else service.settings.engine
    if host.kind is ModelKind.TENSOR:
        inputs, outputs = map(_describe, (host.tensors.inputs, host.tensors.outputs))
    else:
        tensor = {"datatype": "BYTES", "shape": [1]}
        inputs, outputs = [{"name": INPUT, **tensor}], [{"name": OUTPUT, **tensor}]
    content = {
        "name": model,
        "versions": [str(host.version)],
        "platform": platform,
        "inputs": inputs,
        "outputs": outputs,
    }
    await exchange.send_json(200, content)


async def model_ready(exchange: Exchange) -> None:
    """Answer ``GET /v2/models/{model}/ready``: all five layers of this model."""
    model, _ = _model_of(exchange)
    report = exchange.service.health_of(model)
    await exchange.send_json(200 if report.ok else 503, {"name": model, "ready": report.ok})


async def infer(exchange: Exchange) -> None:
    """Answer ``POST /v2/models/{model}/infer``."""
    exchange.count_received(exchange.params["model"])
    model, _ = _model_of(exchange)
    if exchange.service.hosts[model].kind is ModelKind.TENSOR:
        await infer_tensors(exchange, model)
    else:
        await _infer_text(exchange, model)


async def _infer_text(exchange: Exchange, model: str) -> None:
    """Answer with a language model."""
    body = await _text_body(exchange)
    options = body.parameters
    sampling = Sampling(options.max_tokens, options.temperature, options.top_p, options.seed)
    ticket = submit(exchange, model, body.inputs[0].text, options.task, sampling)
    async with exchange.watch(ticket):
        answer = await ticket.result()
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "BYTES", "shape": [1]}
    binary = b""
    if body.binary_answer:
        binary = pack_bytes([answer.text.encode("utf-8", "replace")])
        output["parameters"] = {"binary_data_size": len(binary)}
    else:
        output["data"] = [answer.text]
    content = orjson.dumps(
        {
            "model_name": exchange.answered_by,
            "model_version": str(ticket.version),
            "id": body.id or exchange.request_id,
            "parameters": {
                "finish_reason": answer.finish_reason,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
            },
            "outputs": [output],
        }
    )
    headers = answer_headers(len(content) if binary else 0)
    await exchange.send_payload(content + binary, headers)


async def _text_body(exchange: Exchange) -> InferBody:
    """Read an infer request for text, with its texts as JSON or as binary data."""
    header_length = exchange.header(HEADER_LENGTH)
    if not header_length:
        return await exchange.body(InferBody)
    check_media_type(exchange.media_type(), binary=True)
    document, binary = parse_json(await exchange.read(), header_length)
    merge_binary(document, binary)
    try:
        return InferBody.model_validate(document)
    except ValidationError as error:
        raise invalid_body(error) from error


def _describe(infos: Sequence[TensorInfo]) -> list[dict[str, Any]]:
    """Describe tensors as the protocol does."""
    return [
        {"name": info.name, "datatype": info.datatype.name, "shape": list(info.shape)}
        for info in infos
    ]


def _model_of(exchange: Exchange) -> tuple[str, int]:
    """Return the model and version that a path names.

    Raises:
        NotFoundError: the model is not served, or another version of it is.
    """
    model = exchange.params["model"]
    host = exchange.service.host(model)
    wanted = exchange.params.get("version")
    if wanted is not None and wanted != str(host.version):
        raise NotFoundError(
            f"model {model!r} serves version {host.version}, not {wanted!r}",
            reason="version_not_found",
        )
    return model, host.version

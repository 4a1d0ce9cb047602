"""What the service answers, as schemas for its OpenAPI document.

Nothing here runs when a request is served: the handlers build plain dictionaries. The conformance
tests compare what is really sent with these, so that the document cannot drift from the code.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length"]
Code = Literal[
    "invalid_input",
    "unsupported",
    "too_large",
    "rate_limited",
    "overloaded",
    "deadline_exceeded",
    "memory_limit",
    "model_unavailable",
    "engine_failed",
    "internal",
    "unauthorized",
    "forbidden",
    "conflict",
]
LayerName = Literal["device", "runtime", "engine", "context", "canary"]


class ErrorDetail(BaseModel):
    """The inside of an error of the OpenAI routes, health and administration."""

    message: str
    type: Literal[
        "authentication_error",
        "invalid_request_error",
        "permission_error",
        "rate_limit_error",
        "server_error",
    ]
    param: str | None
    code: Code
    reason: str
    request_id: str


class OpenAiError(BaseModel):
    """An error as OpenAI writes it."""

    error: ErrorDetail


class OipError(BaseModel):
    """An error as the Open Inference Protocol writes it, with more beside it."""

    error: str
    code: Code
    reason: str
    request_id: str


class PromptTokensDetails(BaseModel):
    """Where the tokens of a prompt came from."""

    cached_tokens: int = Field(ge=0)


class Usage(BaseModel):
    """Tokens of an answer."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptTokensDetails


class CompletionChoice(BaseModel):
    """The one choice of a completion."""

    index: Literal[0]
    text: str
    finish_reason: FinishReason
    logprobs: None


class Completion(BaseModel):
    """Answer of ``POST /v1/completions``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice] = Field(min_length=1, max_length=1)
    usage: Usage


class AssistantMessage(BaseModel):
    """The message of a chat completion."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """The one choice of a chat completion."""

    index: Literal[0]
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: None


class ChatCompletion(BaseModel):
    """Answer of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice] = Field(min_length=1, max_length=1)
    usage: Usage


class Model(BaseModel):
    """A model, as OpenAI describes it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"]
    data: list[Model]


class ServerMetadata(BaseModel):
    """Answer of ``GET /v2``."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Whether restarting the process would help no one."""

    live: bool


class Ready(BaseModel):
    """Whether traffic should come, and why not."""

    ready: bool
    reason: str


class TensorMetadata(BaseModel):
    """An input or output of a model; -1 in a shape is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Answer of ``GET /v2/models/{model}``."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """Answer of ``GET /v2/models/{model}/ready``."""

    name: str
    ready: bool


class OutputTensor(BaseModel):
    """An output of an inference."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferAnswer(BaseModel):
    """Answer of ``POST /v2/models/{model}/infer``."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


class RepositoryEntry(BaseModel):
    """A version of a model in the repository."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str


class LoadedModel(BaseModel):
    """Answer of a load."""

    name: str
    version: str
    state: Literal["READY"]


class UnloadedModel(BaseModel):
    """Answer of an unload."""

    name: str
    state: Literal["UNAVAILABLE"]


class Layer(BaseModel):
    """One of the five layers of health; ``ok`` is null while it was not judged."""

    ok: bool | None
    reason: str
    age_seconds: float | None


class Health(BaseModel):
    """Answer of ``GET /health``."""

    healthy: bool
    model: str
    layers: dict[LayerName, Layer]


class Started(BaseModel):
    """Answer of ``GET /health/startup``."""

    started: bool

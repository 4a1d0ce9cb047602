"""One OpenAPI document for all routes: those of the protocols, and those that FastAPI serves.

What each operation answers stands in one table here, for both kinds of route: FastAPI's own guesses
(a 422 that is never sent, untyped answers) are replaced. The conformance tests let a generator of
requests compare the document with the service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from inference.api import answers, model_repository, oip, openai
from inference.api.routes import ROUTES, Route

_REF = "#/components/schemas/{model}"
_JSON = "application/json"
_ERRORS = {
    400: "Malformed, or not supported",
    401: "The bearer token, of administration or of an API client, is missing or wrong",
    403: "Configuration does not allow it",
    404: "No such model or version",
    408: "The body did not arrive in time",
    409: "Not possible in the present state",
    413: "The body is too large",
    415: "The body is of a type that the endpoint does not take",
    422: "This request brings the engine down and is quarantined",
    429: "Refused by admission; Retry-After says when to come back",
    500: "A bug; the log has it under the request id",
    503: "Nobody there now, or the engine failed; Retry-After says when to come back",
    504: "The deadline passed",
}
_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The client's id if it was harmless, else a new one; the log has it.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "X-Galen-Degradation": {
        "description": "Degradation level of this answer: 0 full service to 4 refused.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 4},
    },
    "X-Galen-Model": {
        "description": "The model that really answered.",
        "schema": {"type": "string"},
    },
    "X-Galen-Variant": {
        "description": "Variant of the model that answered, such as int8, if it was one.",
        "schema": {"type": "string"},
    },
    "X-Galen-Device": {
        "description": "Where the answer was computed, if that is not where it should be.",
        "schema": {"type": "string", "examples": ["cpu (wanted cuda)"]},
    },
    "Retry-After": {
        "description": "Seconds after which there should be room, from the measured drain rate.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Retry-After-Ms": {
        "description": "The same in milliseconds, for clients that know it.",
        "schema": {"type": "integer", "minimum": 1},
    },
}
_REQUEST_HEADERS: dict[str, tuple[str, dict[str, Any]]] = {
    "X-Request-Id": ("Comes back if it is 64 of `A-Za-z0-9._-`.", {"type": "string"}),
    "X-Request-Timeout-Ms": (
        "Shortens the deadline of the task.",
        {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    ),
    "X-Galen-Task": ("The task, ahead of the body's.", {"type": "string"}),
    "X-Galen-Priority": (
        "Who waits and who is refused first; none is `normal`.",
        {"type": "string", "enum": ["high", "normal", "low"]},
    ),
}
_EVENT: dict[str, Any] = {
    "type": "object",
    "description": "Each event is a chunk as JSON, or an error; the last one is `[DONE]`.",
    "required": ["data"],
    "properties": {"data": {"type": "string", "contentMediaType": "application/json"}},
}
_REPOSITORY_ERRORS = (400, 404, 408, 409, 413, 415, 503)
_PATH_SCHEMAS: dict[str, dict[str, Any]] = {
    "model": {"type": "string"},
    "version": {"type": "string", "pattern": "^(0|[1-9][0-9]{0,8})$"},
}
_GENERATION_ERRORS = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class Operation:
    """What an operation takes and answers."""

    answer: type[BaseModel] | dict[str, Any]
    """Schema of the answers that are no errors."""
    body: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    also: tuple[int, ...] = ()
    """Other statuses with the same body, such as 503 of a health route."""
    stream: bool = False
    media_type: str = _JSON
    generates: bool = False
    """Whether a model answers."""
    administers: bool = False
    """Whether it needs the administrator's token although it is not under /admin."""


_OBJECT: dict[str, Any] = {"type": "object"}
_OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/completions"): Operation(
        answers.Completion, openai.CompletionBody, _GENERATION_ERRORS, stream=True, generates=True
    ),
    ("POST", "/v1/chat/completions"): Operation(
        answers.ChatCompletion, openai.ChatBody, _GENERATION_ERRORS, stream=True, generates=True
    ),
    ("GET", "/v1/models"): Operation(answers.ModelList),
    ("GET", "/v1/models/{model}"): Operation(answers.Model, errors=(404,)),
    ("GET", "/v2"): Operation(answers.ServerMetadata),
    ("GET", "/v2/health/live"): Operation(answers.Live, also=(503,)),
    ("GET", "/v2/health/ready"): Operation(answers.Ready, also=(503,)),
    ("POST", "/v2/repository/index"): Operation(
        {"type": "array", "items": {"$ref": _REF.format(model="RepositoryEntry")}},
        model_repository.IndexBody,
        (400, 408, 413, 415),
    ),
    ("GET", "/health"): Operation(answers.Health, errors=(400,), also=(503,)),
    ("GET", "/health/live"): Operation(answers.Live, also=(503,)),
    ("GET", "/health/ready"): Operation(answers.Ready, also=(503,)),
    ("GET", "/health/startup"): Operation(answers.Started, also=(503,)),
    ("GET", "/metrics"): Operation({"type": "string"}, media_type="text/plain"),
    ("GET", "/api/system/status"): Operation(_OBJECT),
    ("POST", "/admin/faults"): Operation(_OBJECT, errors=(400, 403, 404)),
    ("DELETE", "/admin/faults"): Operation(_OBJECT, errors=(403,)),
    ("POST", "/admin/models/{model}/reload"): Operation(_OBJECT, errors=(400, 404, 409, 503)),
    ("POST", "/admin/models/{model}/rollback"): Operation(_OBJECT, errors=(400, 404, 409, 503)),
    ("POST", "/admin/engine/restart"): Operation(_OBJECT, errors=(400, 404)),
}
for _prefix in ("", "/versions/{version}"):
    _base = f"/v2/repository/models/{{model}}{_prefix}"
    _OPERATIONS |= {
        ("POST", f"{_base}/load"): Operation(
            answers.LoadedModel, model_repository.LoadBody, _REPOSITORY_ERRORS, administers=True
        ),
        ("POST", f"{_base}/unload"): Operation(
            answers.UnloadedModel, model_repository.UnloadBody, _REPOSITORY_ERRORS,
            administers=True,
        ),
    }  # fmt: skip
for _prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
    _OPERATIONS |= {
        ("GET", _prefix): Operation(answers.ModelMetadata, errors=(404,)),
        ("GET", f"{_prefix}/ready"): Operation(answers.ModelReady, errors=(404,), also=(503,)),
        ("POST", f"{_prefix}/infer"): Operation(
            answers.InferAnswer, oip.InferBody, _GENERATION_ERRORS, generates=True
        ),
    }
_DOCUMENTED_ONLY = (answers.RepositoryEntry, answers.OpenAiError, answers.OipError)


def describe(app: FastAPI) -> None:
    """Make the application's document hold all routes."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def documented(method: str, path: str) -> bool:
    """Say whether an operation has more than the defaults."""
    return (method, path) in _OPERATIONS


def _document(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = schema.setdefault("components", {})
    components["headers"] = _HEADERS
    components["securitySchemes"] = {"admin": {"type": "http", "scheme": "bearer"}}
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in _DOCUMENTED_ONLY:
        _register(schemas, model)
    for route in ROUTES:
        schema["paths"].setdefault(route.path, {})[route.method.lower()] = _stub(route)
    for path, operations in schema["paths"].items():
        for method, stub in operations.items():
            _complete(schemas, path, method.upper(), stub)
    return schema


def _register(schemas: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Put a model among the components and return a reference to it."""
    if model.__name__ not in schemas:
        definition = model.model_json_schema(ref_template=_REF)
        schemas.update(definition.pop("$defs", {}))
        schemas[model.__name__] = definition
    return {"$ref": _REF.format(model=model.__name__)}


def _stub(route: Route) -> dict[str, Any]:
    """Return what FastAPI would have written about one of our own routes."""
    stub: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method}{route.path}").strip("_").lower(),
        "tags": ["openai" if route.path.startswith("/v1") else "open inference protocol"],
        "responses": {"200": {}},
    }
    names = re.findall(r"\{(\w+)\}", route.path)
    if names:
        stub["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[name]}
            for name in names
        ]
    return stub


def _complete(schemas: dict[str, Any], path: str, method: str, stub: dict[str, Any]) -> None:
    """Say everything about an operation that the table and the conventions know."""
    administration = path.startswith("/admin")
    default_errors = (400,) if administration and "requestBody" in stub else ()
    operation = _OPERATIONS.get((method, path), Operation(_OBJECT, errors=default_errors))
    success = next(status for status in stub["responses"] if status.startswith("2"))
    answer = operation.answer
    schema = answer if isinstance(answer, dict) else _register(schemas, answer)
    content: dict[str, Any] = {operation.media_type: {"schema": schema}}
    responses = {
        str(status): {"description": text, "headers": _headers(), "content": content}
        for status, text in ((success, "OK"), *((also, "Not so now") for also in operation.also))
    }
    if operation.stream:
        stream = {"text/event-stream": {"schema": _EVENT}}
        responses[success] = {**responses[success], "content": {**content, **stream}}
    if operation.generates:
        responses[success]["headers"] = _headers(
            "X-Galen-Model", "X-Galen-Variant", "X-Galen-Device"
        )
        stub["parameters"] = [*stub.get("parameters", []), *_request_headers()]
    if operation.body is not None:
        reference = {_JSON: {"schema": _register(schemas, operation.body)}}
        needed = any(field.is_required() for field in operation.body.model_fields.values())
        stub["requestBody"] = {"required": needed, "content": reference}
    administration = administration or operation.administers
    if administration:
        stub["security"] = [{"admin": []}]
    errors = {*operation.errors, 500, *((401,) if administration else ())}
    for status in sorted(errors):
        responses.setdefault(str(status), _error(path, status))
    stub["responses"] = responses


def _error(path: str, status: int) -> dict[str, Any]:
    shape = answers.OipError if path.startswith("/v2") else answers.OpenAiError
    reference = {"$ref": _REF.format(model=shape.__name__)}
    more = ("Retry-After", "Retry-After-Ms") if status in {429, 503} else ()
    return {
        "description": _ERRORS[status],
        "headers": _headers(*more),
        "content": {_JSON: {"schema": reference}},
    }


def _headers(*more: str) -> dict[str, Any]:
    """Return the headers of an answer; each of them says whose it is, and the service's state."""
    names = ("X-Request-Id", "X-Galen-Degradation", *more)
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _request_headers() -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in _REQUEST_HEADERS.items()
    ]

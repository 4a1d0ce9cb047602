"""OpenAPI for the routes that FastAPI does not serve, in the same document."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from inference.api import oip, openai
from inference.api.routes import ROUTES, Route

_REF = "#/components/schemas/{model}"
_BODIES: dict[Any, type[BaseModel]] = {
    openai.completions: openai.CompletionBody,
    openai.chat_completions: openai.ChatBody,
    oip.infer: oip.InferBody,
}
_ERRORS = {
    "400": "Malformed", "404": "No such model or version", "413": "Too large",
    "429": "Refused by admission; Retry-After says when to come back",
    "503": "The engine is down or failed; Retry-After says when to come back",
    "504": "The deadline passed",
}  # fmt: skip


def describe(app: FastAPI) -> None:
    """Make the application's document hold all routes."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            _add_routes(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _add_routes(schema: dict[str, Any]) -> None:
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for body in _BODIES.values():
        definition = body.model_json_schema(ref_template=_REF)
        components.update(definition.pop("$defs", {}))
        components[body.__name__] = definition
    for route in ROUTES:
        schema["paths"].setdefault(route.path, {})[route.method.lower()] = _operation(route)


def _operation(route: Route) -> dict[str, Any]:
    """Describe one route."""
    responses: dict[str, Any] = {"200": {"description": "OK"}}
    if route.path.endswith("ready"):
        responses["503"] = {"description": "Not ready"}
    if "{model}" in route.path:
        responses["404"] = {"description": _ERRORS["404"]}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method}{route.path}").strip("_").lower(),
        "tags": ["openai" if route.path.startswith("/v1") else "open inference protocol"],
        "responses": responses,
    }
    names = re.findall(r"\{(\w+)\}", route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    body = _BODIES.get(route.handler)
    if body is not None:
        reference = {"schema": {"$ref": _REF.format(model=body.__name__)}}
        operation["requestBody"] = {"required": True, "content": {"application/json": reference}}
        responses.update({code: {"description": text} for code, text in _ERRORS.items()})
    return operation

"""Chat templates: Jinja source from a checkpoint, rendered without access to anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from inference.engines.contract import EngineLoadError


class PromptError(Exception):
    """A conversation that the model's template does not take; the message is for the client."""


class ChatTemplate:
    """Renders messages as transformers does: the same whitespace, filters and functions.

    Raises:
        EngineLoadError: the template is not valid Jinja.
    """

    def __init__(self, source: str, *, begin_token: str, end_token: str) -> None:
        # Only models with such a template need it, and a worker that imports little starts quickly.
        from jinja2 import TemplateError  # noqa: PLC0415
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._error = TemplateError
        self._tokens = {"bos_token": begin_token, "eos_token": end_token}
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise EngineLoadError(f"the chat template is not valid: {error}") from error

    def render(self, messages: Sequence[Sequence[str]]) -> str:
        """Return the text that the model continues.

        Raises:
            PromptError: the template refuses the messages, or fails on them.
        """
        named = [{"role": role, "content": content} for role, content in messages]
        try:
            return self._template.render(
                messages=named, add_generation_prompt=True, tools=None, **self._tokens
            )
        except (self._error, TypeError, ValueError, LookupError) as error:
            raise PromptError(f"the model's chat template does not take it: {error}") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    """Write JSON without escaping for HTML, which Jinja's own filter does."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _now(layout: str) -> str:
    return datetime.now(UTC).strftime(layout)

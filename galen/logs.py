"""Structured logs, configured once: JSON or console, secrets redacted by type and by name."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, TextIO, cast

import structlog
from pydantic import BaseModel, ConfigDict, Field, SecretBytes, SecretStr

REDACTED = "***"
_SECRET_WORDS = ("password", "secret", "token", "authorization", "api_key", "webhook_url")
_COUNTED_WORDS = ("tokens", "token_count", "max_tokens")


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogSettings(BaseModel):
    """What is logged, and how it looks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="Lowest level that is logged."
    )
    format: LogFormat = Field(
        LogFormat.AUTO, description="json, console, or auto: console on a terminal, else json."
    )


def redact(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace secrets in one log event: values of a secret type, and values under a secret's name."""
    for key, value in event.items():
        if isinstance(value, SecretStr | SecretBytes) or _names_a_secret(key):
            event[key] = REDACTED
    return event


def _names_a_secret(key: str) -> bool:
    name = key.lower()
    return any(word in name for word in _SECRET_WORDS) and not any(
        word in name for word in _COUNTED_WORDS
    )


class _StandardError(io.TextIOBase):
    """Whatever standard error is when a line is written.

    Loggers keep their file for as long as the process lives; one that was replaced meanwhile may be
    closed, and a log line must never bring down who writes it.
    """

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure_logs(settings: LogSettings) -> None:
    """Send every log line to standard error; standard output carries data only."""
    as_json = settings.format is LogFormat.JSON or (
        settings.format is LogFormat.AUTO and not sys.stderr.isatty()
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
        structlog.processors.StackInfoRenderer(),
    ]
    if as_json:
        processors.append(structlog.processors.format_exc_info)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _StandardError())),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard module; below warning they would drown what matters.
    logging.basicConfig(level=max(level, logging.WARNING), stream=_StandardError())

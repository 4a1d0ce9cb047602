"""What ``model.toml`` says about one version of a model; light enough for the worker to import."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from inference.engines.contract import CacheShape

METADATA_FILE = "model.toml"
TOKENIZER_FILE = "tokenizer.json"
TEXT_FIELD = "{text}"


class ModelFormatError(Exception):
    """A ``model.toml`` cannot be used; the message names the file, the key and the fix."""


class ModelKind(StrEnum):
    """What a model computes; the key ``kind`` of ``model.toml``."""

    DECODER = "decoder"
    """Text in, text out, token by token; the default."""


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A prompt whose answer is known; the canary compares with it by value."""

    task: str
    text: str
    expected: str


@dataclass(frozen=True, slots=True)
class DecoderMetadata:
    """One version of a language model."""

    name: str
    version: int
    max_context_tokens: int
    shape: CacheShape
    end_token: str
    pad_token: str
    prompts: Mapping[str, tuple[str, str]]
    """Task to what stands before and after the user's text."""
    golden: tuple[GoldenPrompt, ...]
    kind: ModelKind = ModelKind.DECODER


ModelMetadata = DecoderMetadata


def read_metadata(folder: Path) -> ModelMetadata:
    """Read ``folder/model.toml``.

    Raises:
        ModelFormatError: the file is missing, is not TOML, or lacks a key.
    """
    path = folder / METADATA_FILE
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelFormatError(f"{path}: {error}") from error
    try:
        kind = ModelKind(table.get("kind", ModelKind.DECODER))
        return _READERS[kind](table, path)
    except KeyError as error:
        raise ModelFormatError(f"{path} lacks the key {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelFormatError(f"{path}: {error}") from error


def _decoder(table: Mapping[str, Any], path: Path) -> DecoderMetadata:
    """Read the keys of a language model."""
    return DecoderMetadata(
        name=str(table["name"]),
        version=int(table["version"]),
        max_context_tokens=int(table["max_context_tokens"]),
        shape=CacheShape(int(table["layers"]), int(table["heads"]), int(table["head_dim"])),
        end_token=str(table["end_token"]),
        pad_token=str(table["pad_token"]),
        prompts={
            task: _split_template(template, path) for task, template in table["prompts"].items()
        },
        golden=tuple(_golden(item) for item in table.get("golden", [])),
    )


def _golden(item: Mapping[str, Any]) -> GoldenPrompt:
    """Read one ``[[golden]]`` table."""
    return GoldenPrompt(str(item["task"]), str(item["text"]), str(item["expected"]))


def _split_template(template: str, path: Path) -> tuple[str, str]:
    """Cut a prompt template at its ``{text}``."""
    before, mark, after = template.partition(TEXT_FIELD)
    if not mark:
        raise ModelFormatError(f"{path}: the prompt {template!r} lacks {TEXT_FIELD}")
    return before, after


_READERS = {ModelKind.DECODER: _decoder}

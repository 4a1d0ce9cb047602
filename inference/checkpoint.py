"""What the files of a Hugging Face checkpoint say, where ``model.toml`` does not.

`config.json`, `generation_config.json`, `tokenizer_config.json` and `chat_template.jinja` are what
exporters leave beside a model; none of them has to be there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_CHAT_TEMPLATE_FILE = "chat_template.jinja"
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
# transformers writes 1e30 for a tokenizer without a limit.
_NO_LIMIT = 1_000_000_000


class CheckpointError(Exception):
    """A file cannot be read; the message names it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The parts that concern serving; None where no file says it."""

    max_context_tokens: int | None
    end_token: str | None
    begin_token: str | None
    chat_template: str | None
    """Jinja source that turns messages into a prompt."""


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the files that there are.

    Raises:
        CheckpointError: one of them is damaged.
    """
    config = _read(folder / "config.json")
    tokenizer = _read(folder / TOKENIZER_CONFIG_FILE)
    lengths = [config.get(key) for key in _LENGTH_KEYS]
    lengths.append(tokenizer.get("model_max_length"))
    known = [int(n) for n in lengths if isinstance(n, int | float) and 0 < n < _NO_LIMIT]
    return Checkpoint(
        max_context_tokens=known[0] if known else None,
        end_token=_token(tokenizer.get("eos_token")),
        begin_token=_token(tokenizer.get("bos_token")),
        chat_template=_chat_template(folder, tokenizer.get("chat_template")),
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _token(value: object) -> str | None:
    """Return a token that is written as text or as an object with its text."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _chat_template(folder: Path, value: object) -> str | None:
    """Return the template of its own file, of the tokenizer, or its default among several."""
    try:
        return (folder / _CHAT_TEMPLATE_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / _CHAT_TEMPLATE_FILE}: {error}") from error
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None

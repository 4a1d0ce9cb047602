"""What ``model.toml`` says about one version of a model; light enough for the worker to import."""

from __future__ import annotations

import json
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from inference.checkpoint import Checkpoint, CheckpointError, read_checkpoint

METADATA_FILE = "model.toml"
TOKENIZER_FILE = "tokenizer.json"
TEXT_FIELD = "{text}"
CHAT_TASK = "chat"
# Single precision over some layers, another order of additions on another CPU or GPU.
DEFAULT_TOLERANCE = 1e-3


class ModelFormatError(Exception):
    """A ``model.toml`` cannot be used; the message names the file, the key and the fix."""


class ModelKind(StrEnum):
    """What a model computes; the key ``kind`` of ``model.toml``."""

    DECODER = "decoder"
    """Text in, text out, token by token; the default."""
    TENSOR = "tensor"
    """Arrays in, arrays out."""


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A prompt whose answer is known; the canary compares with it by value."""

    task: str
    text: str
    expected: str
    max_tokens: int | None = None
    """Where the expected answer was cut; None if the model ends it by itself."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The same model in another precision; a line of the table ``variants``."""

    file: str
    """Name of the model in the version folder."""
    tolerance: float | None = None
    """For golden tensors, in place of their own; a decoder's answers must be right to the letter."""


@dataclass(frozen=True, slots=True)
class DecoderMetadata:
    """One version of a language model; names, types and shapes are read from the model itself."""

    name: str
    version: int
    max_context_tokens: int
    end_tokens: tuple[str, ...]
    prompts: Mapping[str, tuple[str, str]]
    """Task to what stands before and after the user's text."""
    golden: tuple[GoldenPrompt, ...]
    tokenizer: str = TOKENIZER_FILE
    """Name of the file in the version's folder."""
    chat_template: str | None = None
    """Jinja source for messages; None where the task chat has a prompt, which takes one question."""
    begin_token: str | None = None
    heads: int | None = None
    """Heads of keys and values, where the model does not say."""
    head_dim: int | None = None
    variants: Mapping[str, Variant] = field(default_factory=dict)
    kind: ModelKind = ModelKind.DECODER

    @property
    def tasks(self) -> tuple[str, ...]:
        """What can be asked."""
        return tuple(sorted({*self.prompts, *([CHAT_TASK] if self.chat_template else [])}))


@dataclass(frozen=True, slots=True)
class GoldenTensors:
    """Inputs whose outputs are known; the canary compares with them by value.

    Values are arrays or nested lists, by tensor name; an output that is not named is not compared.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    tolerance: float
    """Largest difference, absolute for values below 1 and relative above; 0 for equality."""


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One version of a tensor model; names, types and shapes are read from the model itself."""

    name: str
    version: int
    golden: tuple[GoldenTensors, ...]
    max_batch_rows: int | None = None
    """Rows computed together at most; None is the service's setting."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    kind: ModelKind = ModelKind.TENSOR


ModelMetadata = DecoderMetadata | TensorMetadata


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


def check_identity(metadata: ModelMetadata, folder: Path) -> None:
    """Refuse a version that lies in another's folder: it would be remembered under the wrong number.

    Raises:
        ModelFormatError: name or version are not those of the folder.
    """
    path = folder / METADATA_FILE
    if str(metadata.version) != folder.name:
        raise ModelFormatError(
            f"{path} says version = {metadata.version}, but its folder is {folder.name}: "
            "correct one of them"
        )
    if metadata.name != folder.parent.name:
        raise ModelFormatError(
            f"{path} says name = {metadata.name!r}, but its folder is {folder.parent.name}: "
            "correct one of them"
        )


def _decoder(table: Mapping[str, Any], path: Path) -> DecoderMetadata:
    """Read the keys of a language model; what is left out comes from the checkpoint's files."""
    try:
        checkpoint = read_checkpoint(path.parent)
    except CheckpointError as error:
        raise ModelFormatError(str(error)) from error
    prompts = {
        str(task): _split_template(template, path)
        for task, template in table.get("prompts", {}).items()
    }
    chat_template = None if CHAT_TASK in prompts else checkpoint.chat_template
    if not prompts and chat_template is None:
        raise ModelFormatError(
            f"{path} does not say how to ask: write [prompts] with chat = "
            f'"...{TEXT_FIELD}...", or put the tokenizer_config.json with its chat_template there'
        )
    heads, head_dim = (table.get(key) for key in ("heads", "head_dim"))
    return DecoderMetadata(
        name=str(table["name"]),
        version=int(table["version"]),
        max_context_tokens=_context(table, checkpoint, path),
        end_tokens=_end_tokens(table, checkpoint, path),
        prompts=prompts,
        golden=tuple(_golden(item) for item in table.get("golden", [])),
        tokenizer=str(table.get("tokenizer", TOKENIZER_FILE)),
        chat_template=chat_template,
        begin_token=checkpoint.begin_token,
        heads=None if heads is None else int(heads),
        head_dim=None if head_dim is None else int(head_dim),
        variants=_variants(table),
    )


def _context(table: Mapping[str, Any], checkpoint: Checkpoint, path: Path) -> int:
    """Return the longest prompt with its answer."""
    length = int(table.get("max_context_tokens", checkpoint.max_context_tokens or 0))
    if length < 1:
        raise ModelFormatError(
            f"{path} lacks the key 'max_context_tokens', and no config.json beside it says it"
        )
    return length


def _end_tokens(table: Mapping[str, Any], checkpoint: Checkpoint, path: Path) -> tuple[str, ...]:
    """Return the tokens that end an answer: one, or a list."""
    value = table.get("end_token", checkpoint.end_token)
    tokens = value if isinstance(value, list) else [value]
    if not all(isinstance(token, str) and token for token in tokens) or not tokens:
        raise ModelFormatError(
            f"{path} lacks the key 'end_token' (a token or a list of them), and no "
            "tokenizer_config.json beside it names an eos_token"
        )
    return tuple(tokens)


def _golden(item: Mapping[str, Any]) -> GoldenPrompt:
    """Read one ``[[golden]]`` table."""
    longest = item.get("max_tokens")
    return GoldenPrompt(
        task=str(item["task"]),
        text=str(item["text"]),
        expected=str(item["expected"]),
        max_tokens=None if longest is None else int(longest),
    )


def _split_template(template: str, path: Path) -> tuple[str, str]:
    """Cut a prompt template at its ``{text}``."""
    before, mark, after = template.partition(TEXT_FIELD)
    if not mark:
        raise ModelFormatError(f"{path}: the prompt {template!r} lacks {TEXT_FIELD}")
    return before, after


def _tensor(table: Mapping[str, Any], path: Path) -> TensorMetadata:
    """Read the keys of a tensor model."""
    rows = table.get("max_batch_rows")
    if rows is not None and (not isinstance(rows, int) or rows < 1):
        raise ValueError(f"max_batch_rows must be a positive number of rows, not {rows!r}")
    return TensorMetadata(
        name=str(table["name"]),
        version=int(table["version"]),
        golden=tuple(_golden_tensors(item, path) for item in table.get("golden", [])),
        max_batch_rows=rows,
        variants=_variants(table),
    )


def _variants(table: Mapping[str, Any]) -> dict[str, Variant]:
    """Read ``variants = {int8 = "model.int8.onnx"}``; a line may be ``{file, tolerance}`` too."""
    found: dict[str, Variant] = {}
    for name, value in table.get("variants", {}).items():
        item = {"file": value} if isinstance(value, str) else value
        file, tolerance = str(item["file"]), item.get("tolerance")
        if not file or Path(file).name != file:
            raise ValueError(f"variants.{name} must name a file of this folder, not {file!r}")
        if tolerance is not None and not float(tolerance) >= 0:
            raise ValueError(f"variants.{name}.tolerance must not be negative: {tolerance}")
        found[name] = Variant(file, None if tolerance is None else float(tolerance))
    return found


def _golden_tensors(item: Mapping[str, Any], path: Path) -> GoldenTensors:
    """Read one ``[[golden]]`` table of a tensor model, inline or from the file that it names."""
    tolerance = float(item.get("tolerance", DEFAULT_TOLERANCE))
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative: {tolerance}")
    values = _golden_file(path.parent / str(item["file"])) if "file" in item else item
    inputs, outputs = dict(values["inputs"]), dict(values["outputs"])
    if not inputs or not outputs:
        raise ValueError("a golden example needs inputs and outputs")
    return GoldenTensors(inputs, outputs, tolerance)


def _golden_file(path: Path) -> Mapping[str, Any]:
    """Read ``{"inputs": {...}, "outputs": {...}}`` from JSON, or keys like ``inputs.x`` from npz."""
    try:
        if path.suffix != ".npz":
            values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return values
        with np.load(path, allow_pickle=False) as file:
            tables: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}}
            for key in file.files:
                side, _, name = key.partition(".")
                tables[side][name] = file[key]
            return tables
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ModelFormatError(f"{path}: not a golden example: {error}") from error


_READERS: Mapping[ModelKind, Callable[[Mapping[str, Any], Path], ModelMetadata]] = {
    ModelKind.DECODER: _decoder,
    ModelKind.TENSOR: _tensor,
}

"""Writes ``galen.example.toml`` from the settings themselves, so that it cannot say what is not so."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from galen.config import Settings

_HEADER = """\
# Galen's configuration: every key with its default. All of them may be left out.
# Each can be set by a variable too: healing.mode by GALEN_HEALING__MODE.
# Keys that are commented out have no default. Keep secrets in variables, not in this file.
"""


def example_toml() -> str:
    """Return the documented configuration with every key at its default."""
    return _HEADER + "\n".join(_table(Settings(), ())) + "\n"


def _table(model: BaseModel, path: tuple[str, ...]) -> Iterator[str]:
    fields = type(model).model_fields
    inner = {name: value for name in fields if isinstance(value := getattr(model, name), BaseModel)}
    plain = [name for name in fields if name not in inner]
    if path and plain:
        yield ""
        yield from _comment(_first_line(type(model)))
        yield f"[{'.'.join(path)}]"
    for name in plain:
        yield ""
        yield from _comment(_describe(fields[name]))
        yield _assignment(name, getattr(model, name))
    for name, value in inner.items():
        yield from _table(value, (*path, name))


def _assignment(name: str, value: Any) -> str:
    if value is None or isinstance(value, SecretStr | SecretBytes):
        return f'# {name} = "..."'
    return f"{name} = {_literal(value)}"


def _literal(value: Any) -> str:  # noqa: PLR0911 - one return a kind of value is the clearest form
    if isinstance(value, Enum):
        return _literal(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, BaseModel):
        given = {name: getattr(value, name) for name in type(value).model_fields}
        return _literal({name: one for name, one in given.items() if _can_be_written(one)})
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(str(name))} = {_literal(one)}" for name, one in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(_literal(one) for one in value)}]"
    return _quoted(str(value) if not isinstance(value, Path) else value.as_posix())


def _can_be_written(value: Any) -> bool:
    return value is not None and not isinstance(value, SecretStr | SecretBytes)


def _key(name: str) -> str:
    bare = name.replace("_", "").replace("-", "").isalnum() and name.isascii()
    return name if bare else _quoted(name)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _describe(field: FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(limit, name)}"
        for limit in field.metadata
        for name, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        if getattr(limit, name, None) is not None
    ]
    text = field.description or ""
    return f"{text} ({', '.join(bounds)})" if bounds else text


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0] if model.__doc__ else ""


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()), 96):
        yield f"# {line}"

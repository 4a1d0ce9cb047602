from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from galen.config import Settings, load_settings
from galen.example import example_toml

EXAMPLE = Path(__file__).parents[2] / "galen.example.toml"


def keys(table: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield f"{path}{name}"
        if isinstance(value, Mapping):
            yield from keys(value, f"{path}{name}.")


def test_the_example_is_what_the_settings_say() -> None:
    assert EXAMPLE.read_text() == example_toml(), "run: galen config > galen.example.toml"


def test_the_example_loads_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(EXAMPLE) == Settings()


def test_the_example_documents_every_key() -> None:
    text = EXAMPLE.read_text()
    documented = set(keys(tomllib.loads(text)))
    for name, value in Settings().model_dump().items():
        for key in keys({name: value}):
            leaf = key.rsplit(".", 1)[-1]
            assert key in documented or f"\n# {leaf} = " in text, key

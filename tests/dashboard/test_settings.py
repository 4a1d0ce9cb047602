from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dashboard.settings import DashboardSettings, state_directory


def test_settings_survive_the_way_through_the_environment() -> None:
    settings = DashboardSettings(
        address="0.0.0.0", port=9000, refresh_seconds=5, title="prod = eu", timezone="Europe/Berlin"
    )
    assert DashboardSettings.from_environment(settings.to_environment()) == settings


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = DashboardSettings.from_environment({})
    assert settings == DashboardSettings()
    assert (settings.address, settings.port) == ("127.0.0.1", 8501)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timezone", "Mars/Olympus"),
        ("timezone", "../etc/passwd"),
        ("port", 0),
        ("refresh_seconds", 0.01),
        ("title", ""),
        ("unheard_of", 1),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        DashboardSettings.model_validate({name: value})


def test_every_field_is_described() -> None:
    undescribed = [n for n, f in DashboardSettings.model_fields.items() if not f.description]
    assert undescribed == []


def test_the_state_directory_on_the_command_line_comes_first(tmp_path: Path) -> None:
    environment = {"GALEN_STATE_DIR": str(tmp_path / "b")}
    assert state_directory([f"--state-dir={tmp_path / 'a'}"], environment) == tmp_path / "a"
    assert state_directory(["--other"], environment) == tmp_path / "b"
    assert state_directory([], {}) == Path("var").resolve()

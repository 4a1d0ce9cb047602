from __future__ import annotations

from pathlib import Path

import pytest

from galen.config import load_settings
from galen.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "galen.toml"
    path.write_text(text)
    return path


def test_the_file_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, '[watch]\ninterval_seconds = 5\n[log]\nlevel = "debug"\n')
    monkeypatch.setenv("GALEN_WATCH__INTERVAL_SECONDS", "10")
    settings = load_settings(path)
    assert settings.watch.interval_seconds == 10
    assert settings.log.level == "debug"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[watch]\ninterval_second = 5\n",
            ["galen.toml: watch.interval_second", "interval_seconds"],
        ),
        ("[wotch]\n", ["galen.toml: wotch", "watch"]),
        ("[watch]\ninterval_seconds = 0\n", ["galen.toml: watch.interval_seconds", "greater"]),
        ("[watch\n", ["galen.toml: not valid TOML", "line 1"]),
    ],
)
def test_a_wrong_key_or_value_names_file_key_and_reason(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_wrong_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALEN_WATCH__INTERVAL_SECONDS", "often")
    with pytest.raises(ConfigError, match="environment: GALEN_WATCH__INTERVAL_SECONDS"):
        load_settings(write(tmp_path, ""))


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_settings(tmp_path / "nowhere.toml")
    assert "galen.example.toml" in caught.value.fix


def test_a_secret_of_the_wrong_shape_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GALEN_REPORTING__SLACK_WEBHOOK_URL__X", "s3cr3t-value")
    with pytest.raises(ConfigError) as caught:
        load_settings(write(tmp_path, ""))
    assert "s3cr3t-value" not in str(caught.value)

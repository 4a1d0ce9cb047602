"""Configuration: one TOML file, ``GALEN_*`` variables over it, composed of each package's settings."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from analysis.settings import AnalysisSettings
from collectors.settings import CollectorsSettings
from dashboard.settings import DashboardSettings
from galen.errors import ConfigError
from galen.logs import LogSettings
from galen.telemetry.settings import ObjectiveSettings
from healing.settings import HealingSettings
from inference.settings import InferenceSettings
from reporting.settings import ReportingSettings

DEFAULT_FILE = Path("galen.toml")


class WatchSettings(BaseModel):
    """The watch loop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval_seconds: float = Field(1.0, ge=1, le=60, description="Seconds between two ticks.")
    history_minutes: float = Field(
        30.0, ge=5, le=1440, description="How much of the recent past detection keeps in memory."
    )


class ReloadSettings(BaseModel):
    """A changed configuration, taken up while the watch loop runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    poll_seconds: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="Seconds between two looks at the file; it is read once it rests that long. "
        "0: only SIGHUP.",
    )
    trial_seconds: float = Field(
        180.0,
        ge=0,
        le=86400,
        description="How long new settings of detection can be taken back. 0: never.",
    )
    most_new_anomalies: int = Field(
        5,
        ge=0,
        le=100000,
        description="Series that new settings may raise in that time and those before do not; with "
        "more they are rolled back.",
    )


class Settings(BaseSettings):
    """Everything that can be configured, a table a package."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="GALEN_", env_nested_delimiter="__"
    )

    state_dir: Path = Field(Path("var"), description="Directory for everything that is kept.")
    log: LogSettings = LogSettings()
    watch: WatchSettings = WatchSettings()
    reload: ReloadSettings = ReloadSettings()
    inference: InferenceSettings = InferenceSettings()
    collectors: CollectorsSettings = CollectorsSettings()
    analysis: AnalysisSettings = AnalysisSettings()
    healing: HealingSettings = HealingSettings()
    reporting: ReportingSettings = ReportingSettings()
    dashboard: DashboardSettings = DashboardSettings()
    objectives: ObjectiveSettings = ObjectiveSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment over what was given, which is what the file said."""
        del settings_cls, dotenv_settings, file_secret_settings
        return env_settings, init_settings


def load_settings(path: Path | None = None) -> Settings:
    """Read the configuration file and the environment.

    Args:
        path: the file; without one ``galen.toml`` in the working directory, where it exists.

    Raises:
        ConfigError: naming file, key, reason and fix.
    """
    source, given = _read_file(path)
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, source, given))) from error
    except SettingsError as error:
        raise ConfigError(
            f"environment: {error}", fix="Tables are set key by key: GALEN_HEALING__MODE=approve."
        ) from error


def _read_file(path: Path | None) -> tuple[Path | None, dict[str, Any]]:
    if path is None:
        if not DEFAULT_FILE.exists():
            return None, {}
        path = DEFAULT_FILE
    try:
        return path, tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file", fix="Copy galen.example.toml there, or leave --config out."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {error}", fix="Check its permissions."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", fix="Mend that line.") from error


def _explain(
    error: ValidationError, source: Path | None, given: Mapping[str, Any]
) -> Iterator[str]:
    for fault in error.errors():
        keys = [str(part) for part in fault["loc"]]
        where = _place(keys, source, given)
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(keys[-1], _known_keys(keys[:-1]), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "remove it; see galen.example.toml."
            yield f"{where}: unknown key; {hint}"
        else:
            # The input is left out on purpose: it may be a secret.
            yield f"{where}: {fault['msg']}; see galen.example.toml for what it takes."


def _place(keys: list[str], source: Path | None, given: Mapping[str, Any]) -> str:
    variable = "GALEN_" + "__".join(keys).upper()
    if any(name.upper() == variable for name in os.environ):
        return f"environment: {variable}"
    value: Any = given
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            break
        value = value[key]
    return f"{source or 'environment'}: {'.'.join(keys)}"


def _known_keys(path: list[str]) -> list[str]:
    model: Any = Settings
    for key in path:
        field = getattr(model, "model_fields", {}).get(key)
        if field is None:
            return []
        model = field.annotation
        if get_args(model):
            model = get_args(model)[0]
    return list(getattr(model, "model_fields", {}))

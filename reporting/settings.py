"""Settings of reporting: where alerts go, how patiently, and when reports are written."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from analysis.findings import Severity

SLACK_CHANNEL = "slack"


class Format(StrEnum):
    """The forms in which a report can be rendered; the value is the file's extension."""

    HTML = "html"
    MARKDOWN = "md"
    JSON = "json"


class _Frozen(BaseModel):
    # A refused secret must not come back in the text of the error.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class WebhookSettings(_Frozen):
    """One generic webhook that gets every alert as JSON."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$",
        description="Unique short name; it appears in the journal and in the outbox.",
    )
    url: SecretStr = Field(description="Where to POST; http or https.")
    authorization: SecretStr | None = Field(
        default=None, description="Sent as the Authorization header, such as 'Bearer ...'."
    )
    signing_secret: SecretStr | None = Field(
        default=None,
        description="Key of the HMAC-SHA256 over timestamp and body in X-Galen-Signature.",
    )
    minimum_severity: Severity = Field(
        default=Severity.WARNING, description="Incidents below this are not sent here."
    )

    @field_validator("url")
    @classmethod
    def _url_is_http(cls, value: SecretStr) -> SecretStr:
        return _http_url(value, "url")


class ReportingSettings(_Frozen):
    """Alerts and reports. Without a Slack webhook or other webhook, alerts stay in the journal."""

    slack_webhook_url: SecretStr | None = Field(
        default=None, description="Incoming webhook of the Slack channel that gets alerts."
    )
    slack_minimum_severity: Severity = Field(
        default=Severity.WARNING, description="Incidents below this are not sent to Slack."
    )
    webhooks: tuple[WebhookSettings, ...] = Field(
        default=(), max_length=20, description="Generic webhooks that get alerts as JSON."
    )
    public_dashboard_url: str | None = Field(
        default=None,
        description="Address of the dashboard as people reach it, for links in alerts.",
    )
    group_wait_seconds: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="How long an incident's first step waits for more, so that one message tells "
        "all (Alertmanager's group_wait). Steps that need a person do not wait.",
    )
    repeat_interval_seconds: float = Field(
        default=4 * 3600.0,
        ge=60,
        le=7 * 86400,
        description="How often an incident that stays open is told again (Alertmanager's default).",
    )
    send_deadline_seconds: float = Field(
        default=10.0, gt=0, le=120, description="The longest that one delivery may take."
    )
    retry_base_seconds: float = Field(
        default=2.0, gt=0, le=600, description="Wait after the first failed delivery; it doubles."
    )
    retry_limit_seconds: float = Field(
        default=300.0, gt=0, le=3600, description="The longest wait between two tries."
    )
    max_attempts: int = Field(
        default=300, ge=1, le=10_000, description="Failed tries after which a message is parked."
    )
    max_age_seconds: float = Field(
        default=86400.0, ge=60, le=7 * 86400, description="Age at which a message is parked."
    )
    max_pending: int = Field(
        default=1000, ge=10, le=100_000, description="Undelivered messages kept for each channel."
    )
    keep_delivered_seconds: float = Field(
        default=120 * 3600.0,
        ge=3600,
        le=90 * 86400,
        description="How long delivered messages are remembered (Alertmanager keeps 120 h).",
    )
    report_schedule: str | None = Field(
        default="0 6 * * *",
        description="When to write a report: five crontab fields, weekdays by name (mon, not 1). "
        "Null turns scheduled reports off.",
    )
    report_window_seconds: float = Field(
        default=86400.0, ge=60, le=92 * 86400, description="How far back a scheduled report looks."
    )
    report_formats: tuple[Format, ...] = Field(
        default=(Format.HTML, Format.MARKDOWN, Format.JSON),
        min_length=1,
        description="The forms that the archive keeps.",
    )
    report_directory: str = Field(
        default="reports", min_length=1, description="The archive, under the state directory."
    )
    report_keep_days: float = Field(
        default=90.0,
        ge=1,
        le=3660,
        description="Reports whose window ended longer ago are deleted.",
    )
    timezone: str = Field(
        default="UTC", description="IANA time zone of the schedule and of times in reports."
    )

    @field_validator("slack_webhook_url")
    @classmethod
    def _slack_is_http(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else _http_url(value, "slack_webhook_url")

    @field_validator("public_dashboard_url")
    @classmethod
    def _dashboard_is_http(cls, value: str | None) -> str | None:
        return None if value is None else _http_url(SecretStr(value), "it").get_secret_value()

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(
                f"no such time zone: {value!r}; use an IANA name, such as Europe/Berlin"
            ) from error
        return value

    @field_validator("report_schedule")
    @classmethod
    def _schedule_is_crontab(cls, value: str | None) -> str | None:
        if value is None:
            return None
        fields = value.split()
        if len(fields) != 5:
            raise ValueError(
                f"report_schedule needs five fields (minute hour day month weekday), got "
                f"{len(fields)}: {value!r}"
            )
        # Crontab counts weekdays from Sunday and APScheduler 3 from Monday (its issue 286), so a
        # number would silently mean another day than people expect.
        if any(letter.isdigit() for letter in fields[4].partition("/")[0]):
            raise ValueError("report_schedule: write weekdays by name, such as mon or mon-fri")
        from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415 - only schedules need it

        try:
            trigger = CronTrigger.from_crontab(value, timezone=UTC)
        except ValueError as error:
            raise ValueError(f"report_schedule {value!r}: {error}") from error
        # A leap year follows within eight years of any day: what does not fire from here never does.
        if trigger.get_next_fire_time(None, datetime(2024, 1, 1, tzinfo=UTC)) is None:
            raise ValueError(
                f"report_schedule {value!r}: there is no such day, it would never fire"
            )
        return value

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [webhook.name for webhook in self.webhooks]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"webhooks: names must be unique, used twice: {', '.join(doubled)}")
        if SLACK_CHANNEL in names:
            raise ValueError(f"webhooks: the name {SLACK_CHANNEL!r} is taken by the Slack channel")
        if self.retry_limit_seconds < self.retry_base_seconds:
            raise ValueError("retry_limit_seconds must not be below retry_base_seconds")
        return self

    def minimum_severity(self, channel: str) -> Severity:
        """Return the severity from which a channel is told; an unknown one gets the default."""
        if channel == SLACK_CHANNEL:
            return self.slack_minimum_severity
        for webhook in self.webhooks:
            if webhook.name == channel:
                return webhook.minimum_severity
        return Severity.WARNING


def _http_url(value: SecretStr, name: str) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{name} must be an address that starts with http:// or https://")
    return value

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from analysis.findings import Severity
from reporting.settings import ReportingSettings, WebhookSettings


def test_every_field_has_a_description() -> None:
    for model in (ReportingSettings, WebhookSettings):
        missing = [name for name, field in model.model_fields.items() if not field.description]
        assert missing == []


def test_a_refused_secret_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        ReportingSettings(slack_webhook_url=SecretStr("hooks.slack.com/services/verysecret"))
    assert "verysecret" not in str(caught.value)
    assert "http" in str(caught.value)


def test_secrets_do_not_show() -> None:
    settings = ReportingSettings(slack_webhook_url=SecretStr("https://hooks.slack.com/verysecret"))
    assert "verysecret" not in repr(settings)
    assert "verysecret" not in settings.model_dump_json()


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("0 6 * *", "five fields"),
        ("0 6 * * 1", "weekdays by name"),
        ("61 6 * * *", "report_schedule"),
        ("0 6 * * someday", "report_schedule"),
        ("0 6 31 2 *", "never fire"),
    ],
)
def test_a_wrong_schedule_is_refused_with_its_reason(schedule: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ReportingSettings(report_schedule=schedule)


@pytest.mark.parametrize("schedule", [None, "0 6 * * *", "*/15 * * * mon-fri", "0 0 1 * *"])
def test_a_right_schedule_is_taken(schedule: str | None) -> None:
    assert ReportingSettings(report_schedule=schedule).report_schedule == schedule


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc/passwd", ""])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValidationError, match="time zone"):
        ReportingSettings(timezone=zone)


def test_webhook_names_are_unique_and_not_slack() -> None:
    def hook(name: str) -> WebhookSettings:
        return WebhookSettings(name=name, url=SecretStr("https://example.org/x"))

    with pytest.raises(ValidationError, match="used twice: pager"):
        ReportingSettings(webhooks=(hook("pager"), hook("pager")))
    with pytest.raises(ValidationError, match="taken"):
        ReportingSettings(webhooks=(hook("slack"),))


def test_each_channel_has_its_own_minimum_severity() -> None:
    pager = WebhookSettings(
        name="pager", url=SecretStr("https://example.org/x"), minimum_severity=Severity.CRITICAL
    )
    settings = ReportingSettings(webhooks=(pager,), slack_minimum_severity=Severity.INFO)
    assert settings.minimum_severity("pager") is Severity.CRITICAL
    assert settings.minimum_severity("slack") is Severity.INFO
    assert settings.minimum_severity("gone") is Severity.WARNING

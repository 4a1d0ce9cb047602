"""The one list of channels: settings become notifiers here."""

from __future__ import annotations

import httpx

from reporting.alerts.contract import Notifier
from reporting.alerts.slack import SlackNotifier
from reporting.alerts.webhook import WebhookNotifier
from reporting.settings import ReportingSettings


def notifiers(settings: ReportingSettings, client: httpx.Client) -> tuple[Notifier, ...]:
    """Return every channel; one that is not configured says so in ``is_supported()``.

    Args:
        settings: of reporting.
        client: HTTP client of the generic webhooks; the caller closes it.
    """
    webhooks = [WebhookNotifier(webhook, client) for webhook in settings.webhooks]
    return (SlackNotifier(settings.slack_webhook_url), *webhooks)

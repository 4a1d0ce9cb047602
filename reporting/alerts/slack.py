"""Slack, through an incoming webhook.

Limits are Slack's: 50 blocks, 3,000 characters a section, 150 a header, about 12,000 altogether, one
message a second. Everything that is not ours is escaped and sent ``verbatim``, so that a label from a
log can neither mention a channel nor place a link.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any

from pydantic import SecretStr
from slack_sdk.errors import SlackRequestError
from slack_sdk.webhook import WebhookClient, WebhookResponse

from analysis.findings import IncidentState, Severity
from collectors.contract import Support
from reporting.alerts.contract import Delivery, DeliveryResult
from reporting.alerts.messages import ActionLine, AlertMessage, Step, duration
from reporting.alerts.retry_after import retry_after_seconds
from reporting.redaction import redact
from reporting.settings import SLACK_CHANNEL

MAX_BLOCKS = 50
MAX_SECTION_CHARACTERS = 3000
MAX_HEADER_CHARACTERS = 150
# Seven sections of this size, the facts and the frame stay under Slack's 12,000 characters.
_SECTION_BUDGET = 1300
_LINE_CHARACTERS = 400
_TEXT_CHARACTERS = 600
_MAX_LINK_CHARACTERS = 500

_SYMBOL = {
    Severity.CRITICAL: ":red_circle:",
    Severity.WARNING: ":large_yellow_circle:",
    Severity.INFO: ":large_blue_circle:",
}
_DONE = {
    "action_confirmed": ":white_check_mark:",
    "action_executed": ":hourglass_flowing_sand:",
    "action_failed": ":x:",
    "action_rolled_back": ":leftwards_arrow_with_hook:",
    "action_undone": ":leftwards_arrow_with_hook:",
    "action_blocked": ":no_entry:",
    "action_dry_run": ":eyes:",
    "action_proposed": ":raised_hand:",
    "escalated": ":bell:",
}


class SlackNotifier:
    """Sends alerts to one Slack channel by its incoming webhook."""

    name = SLACK_CHANNEL
    min_interval_seconds = 1.0

    def __init__(self, url: SecretStr | None) -> None:
        self._url = url
        # The library writes the address, which is the secret, to its debug log.
        self._logger = logging.getLogger(f"{__name__}.client")
        self._logger.setLevel(logging.CRITICAL)

    def is_supported(self) -> Support:
        """Say whether a webhook is configured."""
        if self._url is None:
            return Support(
                supported=False,
                reason="no Slack webhook is configured",
                fix="create an incoming webhook in Slack and set reporting.slack_webhook_url, or "
                "GALEN_REPORTING__SLACK_WEBHOOK_URL",
            )
        return Support(supported=True)

    def send(self, message: AlertMessage, deadline_seconds: float) -> Delivery:
        """Post one message; a layout that Slack refuses is sent again as plain text."""
        if self._url is None:
            return Delivery(DeliveryResult.RETRY, "no Slack webhook is configured")
        text = fallback_text(message)
        delivery = self._post(deadline_seconds, text=text, blocks=blocks(message))
        if delivery.result is DeliveryResult.REJECTED:
            return self._post(deadline_seconds, text=text, blocks=None)
        return delivery

    def close(self) -> None:
        """Nothing is held between calls."""

    def _post(
        self, deadline_seconds: float, *, text: str, blocks: list[dict[str, Any]] | None
    ) -> Delivery:
        if self._url is None:
            return Delivery(DeliveryResult.RETRY, "no Slack webhook is configured")
        client = WebhookClient(
            self._url.get_secret_value(),
            timeout=max(1, math.floor(deadline_seconds)),
            retry_handlers=[],  # the outbox retries, across restarts
            logger=self._logger,
        )
        try:
            response = client.send(text=text, blocks=blocks, unfurl_links=False, unfurl_media=False)
        except (OSError, HTTPException, SlackRequestError) as error:
            reason = redact(str(error)) or type(error).__name__
            return Delivery(DeliveryResult.RETRY, f"Slack cannot be reached: {reason}")
        return _outcome(response)


def _outcome(response: WebhookResponse) -> Delivery:
    body = redact((response.body or "").strip()[:200])
    # A login page or a proxy answers 200 too; Slack and what speaks like it answer "ok".
    if response.status_code == 200 and body.lower() == "ok":
        return Delivery(DeliveryResult.DELIVERED)
    detail = f"Slack answered {response.status_code}: {body or 'nothing'}"
    headers = {str(name).lower(): str(value) for name, value in dict(response.headers).items()}
    wait = retry_after_seconds(headers.get("retry-after"))
    if response.status_code == 429:
        return Delivery(DeliveryResult.RATE_LIMITED, detail, wait)
    if response.status_code in {400, 413, 422}:
        return Delivery(DeliveryResult.REJECTED, detail)
    # 403, 404 and 410 speak of the channel and not of the message: a person can mend them.
    return Delivery(DeliveryResult.RETRY, detail, wait)


def escape(text: str) -> str:
    """Escape the three characters that have a meaning in Slack's markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(text: str, limit: int) -> str:
    """Escape, and cut between characters, so that no escape is cut in two."""
    if len(escape(text)) <= limit:
        return escape(text)
    room = limit - 1
    kept: list[str] = []
    for character in text:
        piece = escape(character)
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept).rstrip() + "…"


def fallback_text(message: AlertMessage) -> str:
    """Return the sentence that notifications and screen readers show."""
    simulated = "[simulated] " if message.simulated else ""
    sentence = f"{simulated}{message.severity.value}: {message.headline}"
    return _escaped(sentence, _TEXT_CHARACTERS)


def blocks(message: AlertMessage) -> list[dict[str, Any]]:
    """Lay a message out in Block Kit, within Slack's limits."""
    found = [_header(message), _facts(message)]
    if message.asks:
        found.append(_section("Needed from you", message.asks, ":point_right:"))
    if message.cause_title:
        found.append(_section("Most likely cause", [_cause(message)], ""))
    if message.evidence:
        found.append(_section("Evidence for", message.evidence, "•"))
    if message.against:
        found.append(_section("Evidence against", message.against, "•"))
    if message.rivals and message.state is IncidentState.OPEN:
        found.append(_section("Also possible", message.rivals, "•"))
    if message.actions:
        found.append(_section("What was done", _action_texts(message.actions), ""))
    if message.next_check and message.state is IncidentState.OPEN:
        found.append(_section("What would tell", [message.next_check], ""))
    if message.link and len(message.link) <= _MAX_LINK_CHARACTERS:
        found.append(_markdown(f"<{escape(message.link)}|Open the incident in the dashboard>"))
    found.append(_context(message))
    return found[:MAX_BLOCKS]


def _header(message: AlertMessage) -> dict[str, Any]:
    resolved = message.state is IncidentState.RESOLVED
    symbol = ":large_green_circle:" if resolved else _SYMBOL[message.severity]
    text = _cut(f"{symbol} {message.title}", MAX_HEADER_CHARACTERS)
    return {"type": "header", "text": {"type": "plain_text", "text": text, "emoji": True}}


def _facts(message: AlertMessage) -> dict[str, Any]:
    lines = [_escaped(message.headline, 900)]
    confidence = "" if message.confidence is None else f", confidence {message.confidence:.0%}"
    lines.append(
        f"*Severity* {message.severity.value}{confidence}  ·  "
        f"*Where* {_escaped(message.entity, 200)}  ·  *Since* {_date(message.onset_seconds)}"
    )
    if message.resolved_seconds is not None:
        took = duration(message.resolved_seconds - message.opened_seconds)
        lines.append(f"*Resolved* {_date(message.resolved_seconds)}, after {took}")
    return _markdown("\n".join(lines))


def _cause(message: AlertMessage) -> str:
    sure = "" if message.confidence is None else f" ({message.confidence:.0%})"
    where = f" on {message.cause_entity}" if message.cause_entity else ""
    return f"{message.cause_title}{where}{sure}"


def _action_texts(actions: Sequence[ActionLine]) -> list[str]:
    texts: list[str] = []
    for action in actions:
        symbol = _DONE.get(action.outcome, "•")
        texts.append(f"{symbol} {action.summary}")
        texts.extend(f"    proof: {proof}" for proof in action.proof)
    return texts


def _section(title: str, lines: Iterable[str], bullet: str) -> dict[str, Any]:
    room = _SECTION_BUDGET
    kept: list[str] = []
    left_out = 0
    for line in lines:
        text = f"{bullet} {_escaped(line, _LINE_CHARACTERS)}".strip()
        if left_out or len(text) + 1 > room:
            left_out += 1
            continue
        room -= len(text) + 1
        kept.append(text)
    if left_out:
        kept.append(f"_and {left_out} more_")
    return _markdown(f"*{title}*\n" + "\n".join(kept))


def _markdown(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}}


def _context(message: AlertMessage) -> dict[str, Any]:
    steps = ", ".join(_STEP_WORDS[step] for step in message.steps)
    parts = [f"new: {steps}", f"incident {_escaped(message.incident_id, 100)}"]
    parts.append(f"as of {_date(message.as_of_seconds)}")
    if message.simulated:
        parts.append("*simulated data*")
    text = "  ·  ".join(parts)
    return {"type": "context", "elements": [{"type": "mrkdwn", "text": text, "verbatim": True}]}


_STEP_WORDS = {
    Step.OPENED: "opened",
    Step.WORSENED: "got worse",
    Step.ACTED: "acted",
    Step.REFUSED: "action refused",
    Step.APPROVAL_NEEDED: "approval needed",
    Step.ESCALATED: "escalated",
    Step.RESOLVED: "resolved",
    Step.REMINDER: "still open",
}


def _date(seconds: float) -> str:
    # Slack shows it in the reader's own time zone; the text after the bar is for other clients.
    plain = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"<!date^{int(seconds)}^{{date_short_pretty}} {{time_secs}}|{plain}>"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"

"""What every notifier must do, against a real server, and what each does of its own."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from analysis.findings import Incident, IncidentState, Severity, Verdict
from reporting.alerts.channels import notifiers
from reporting.alerts.contract import DeliveryResult, Notifier
from reporting.alerts.messages import ActionLine, AlertMessage, Step, build_message
from reporting.alerts.slack import MAX_BLOCKS, SlackNotifier, blocks, fallback_text
from reporting.alerts.webhook import WebhookNotifier
from reporting.settings import ReportingSettings, WebhookSettings

MakeNotifier = Callable[[str], Notifier]


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as opened:
        yield opened


@pytest.fixture(params=["slack", "webhook"])
def make_notifier(request: pytest.FixtureRequest, client: httpx.Client) -> MakeNotifier:
    if request.param == "slack":
        return lambda url: SlackNotifier(SecretStr(url))
    return lambda url: WebhookNotifier(WebhookSettings(name="pager", url=SecretStr(url)), client)


@pytest.fixture
def message(make_incident: Callable[..., Incident]) -> AlertMessage:
    return build_message(
        make_incident(), [], steps=[Step.OPENED], idempotency_key="key-1", now_seconds=1010.0
    )


class TestEveryNotifier:
    def test_it_keeps_the_contract(self, make_notifier: MakeNotifier) -> None:
        notifier = make_notifier("http://127.0.0.1:9/x")
        assert isinstance(notifier, Notifier)
        assert notifier.is_supported().supported
        assert notifier.min_interval_seconds >= 0
        notifier.close()

    def test_it_delivers(
        self, make_notifier: MakeNotifier, server: Any, message: AlertMessage
    ) -> None:
        assert make_notifier(server.url).send(message, 5).result is DeliveryResult.DELIVERED
        assert "Engine makes no progress" in server.received[0].body.decode()

    @pytest.mark.parametrize("status", [500, 502, 503, 403, 404, 410])
    def test_what_time_or_people_can_mend_is_retried(
        self, make_notifier: MakeNotifier, server: Any, message: AlertMessage, status: int
    ) -> None:
        server.answers(status, "no")
        delivery = make_notifier(server.url).send(message, 5)
        assert delivery.result is DeliveryResult.RETRY
        assert str(status) in delivery.detail

    def test_a_wish_to_wait_is_passed_on(
        self, make_notifier: MakeNotifier, server: Any, message: AlertMessage
    ) -> None:
        server.answers(429, "slow down", Retry_After="17")
        delivery = make_notifier(server.url).send(message, 5)
        assert delivery.result is DeliveryResult.RATE_LIMITED
        assert delivery.retry_after_seconds == 17.0

    def test_a_message_that_is_refused_is_rejected(
        self, make_notifier: MakeNotifier, server: Any, message: AlertMessage
    ) -> None:
        server.answers(400, "invalid_payload")
        server.answers(400, "invalid_payload")
        delivery = make_notifier(server.url).send(message, 5)
        assert delivery.result is DeliveryResult.REJECTED

    def test_a_hang_ends_at_the_deadline(
        self, make_notifier: MakeNotifier, server: Any, message: AlertMessage
    ) -> None:
        server.hangs()
        delivery = make_notifier(server.url).send(message, 1)
        assert delivery.result is DeliveryResult.RETRY

    def test_a_dropped_connection_is_retried(
        self, make_notifier: MakeNotifier, server: Any, message: AlertMessage
    ) -> None:
        server.drops()
        assert make_notifier(server.url).send(message, 5).result is DeliveryResult.RETRY

    def test_nobody_there_is_retried_and_the_secret_stays_in(
        self, make_notifier: MakeNotifier, message: AlertMessage, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        delivery = make_notifier("http://127.0.0.1:9/services/verysecret").send(message, 5)
        assert delivery.result is DeliveryResult.RETRY
        assert "verysecret" not in delivery.detail

    def test_a_redirect_is_not_delivery(
        self, make_notifier: MakeNotifier, server: Any, message: AlertMessage
    ) -> None:
        server.answers(302, "", Location="/login")
        delivery = make_notifier(server.url).send(message, 5)
        assert delivery.result is not DeliveryResult.DELIVERED


class TestSlack:
    def test_a_page_that_answers_200_is_not_delivery(
        self, server: Any, message: AlertMessage
    ) -> None:
        server.answers(200, "<html>Sign in</html>")
        delivery = SlackNotifier(SecretStr(server.url)).send(message, 5)
        assert delivery.result is DeliveryResult.RETRY

    def test_a_refused_layout_is_sent_again_as_text(
        self, server: Any, message: AlertMessage
    ) -> None:
        server.answers(400, "invalid_blocks")
        delivery = SlackNotifier(SecretStr(server.url)).send(message, 5)
        assert delivery.result is DeliveryResult.DELIVERED
        assert "blocks" in server.received[0].json
        assert "blocks" not in server.received[1].json
        assert server.received[1].json["text"]

    def test_the_address_is_not_logged(
        self, server: Any, message: AlertMessage, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        SlackNotifier(SecretStr(server.url)).send(message, 5)
        assert "verysecret" not in caplog.text

    def test_without_a_webhook_it_says_what_to_do(self) -> None:
        support = SlackNotifier(None).is_supported()
        assert not support.supported
        assert "slack_webhook_url" in support.fix

    def test_foreign_text_can_neither_mention_nor_link(
        self, make_incident: Callable[..., Incident]
    ) -> None:
        title = "<!channel> & <https://evil.example|click>"
        hostile = build_message(
            make_incident(title=title, entity="service/<@U1>"),
            [],
            steps=[Step.OPENED],
            idempotency_key="k",
            now_seconds=1.0,
        )
        assert "<!channel>" not in fallback_text(hostile)
        for block in blocks(hostile)[1:]:
            assert "<!channel>" not in str(block)
            assert "<@U1>" not in str(block)
        # The header is plain text, in which Slack reads no markup.
        assert blocks(hostile)[0]["text"]["type"] == "plain_text"

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_any_message_fits_slacks_limits(self, data: st.DataObject) -> None:
        found = blocks(data.draw(_messages))
        assert 1 <= len(found) <= MAX_BLOCKS
        assert len(found[0]["text"]["text"]) <= 150
        texts = [block["text"]["text"] for block in found[1:-1]]
        assert all(0 < len(text) <= 3000 for text in texts)
        assert sum(map(len, texts)) < 12_000


_text = st.one_of(st.text(max_size=700), st.just("&" * 700), st.just("<!here>" * 90))
_texts = st.lists(_text, max_size=12).map(tuple)
_messages = st.builds(
    AlertMessage,
    idempotency_key=st.just("k"),
    incident_id=_text,
    steps=st.lists(st.sampled_from(Step), min_size=1, max_size=8).map(tuple),
    headline=_text,
    severity=st.sampled_from(Severity),
    state=st.sampled_from(IncidentState),
    verdict=st.sampled_from(Verdict),
    title=_text,
    entity=_text,
    simulated=st.booleans(),
    onset_seconds=st.floats(0, 4e9),
    opened_seconds=st.floats(0, 4e9),
    as_of_seconds=st.floats(0, 4e9),
    cause_title=st.none() | _text,
    cause_entity=st.none() | _text,
    confidence=st.none() | st.floats(0, 1),
    evidence=_texts,
    against=_texts,
    rivals=_texts,
    asks=_texts,
    next_check=_text,
    link=st.none() | st.text(min_size=1, max_size=900).map("https://x/".__add__),
    actions=st.lists(
        st.builds(
            ActionLine,
            time_seconds=st.floats(0, 4e9),
            outcome=st.sampled_from(["action_confirmed", "something_new"]),
            summary=_text,
            proof=_texts,
        ),
        max_size=12,
    ).map(tuple),
)


class TestWebhook:
    def test_a_receiver_can_check_signature_and_identity(
        self, server: Any, client: httpx.Client, message: AlertMessage
    ) -> None:
        settings = WebhookSettings(
            name="pager",
            url=SecretStr(server.url),
            signing_secret=SecretStr("key"),
            authorization=SecretStr("Bearer t0ken"),
        )
        WebhookNotifier(settings, client, clock=lambda: 1700000000.5).send(message, 5)
        got = server.received[0]
        signed = b"1700000000." + got.body
        expected = "sha256=" + hmac.new(b"key", signed, hashlib.sha256).hexdigest()
        assert got.headers["X-Galen-Signature"] == expected
        assert got.headers["X-Galen-Timestamp"] == "1700000000"
        assert got.headers["Idempotency-Key"] == "key-1"
        assert got.headers["Authorization"] == "Bearer t0ken"

    def test_the_body_is_the_message(
        self, server: Any, client: httpx.Client, message: AlertMessage
    ) -> None:
        settings = WebhookSettings(name="pager", url=SecretStr(server.url))
        WebhookNotifier(settings, client).send(message, 5)
        assert server.received[0].json["schema_version"] == "galen.alert/1"
        assert AlertMessage.model_validate_json(server.received[0].body) == message
        assert "X-Galen-Signature" not in server.received[0].headers


def test_settings_become_channels(client: httpx.Client) -> None:
    hook = WebhookSettings(name="pager", url=SecretStr("https://example.org/x"))
    found = notifiers(ReportingSettings(webhooks=(hook,)), client)
    assert [each.name for each in found] == ["slack", "pager"]
    assert [each.is_supported().supported for each in found] == [False, True]

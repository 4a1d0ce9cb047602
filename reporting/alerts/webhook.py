"""A generic webhook: one JSON document for each alert, signed where a key is configured."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable

import httpx

from collectors.contract import Support
from reporting.alerts.contract import Delivery, DeliveryResult
from reporting.alerts.messages import AlertMessage
from reporting.alerts.retry_after import retry_after_seconds
from reporting.redaction import redact
from reporting.settings import WebhookSettings


class WebhookNotifier:
    """POSTs an :class:`AlertMessage` as JSON.

    Headers: ``Idempotency-Key`` is the same for every try of one message. With a signing key,
    ``X-Galen-Timestamp`` holds seconds since the epoch and ``X-Galen-Signature`` holds ``sha256=`` and
    the hexadecimal HMAC-SHA256 of timestamp, a full stop and the body; a receiver checks both and
    refuses old timestamps.

    Args:
        settings: of this webhook.
        client: shared HTTP client; redirects are not followed.
        clock: seconds since the epoch, for the timestamp.
    """

    min_interval_seconds = 0.0

    def __init__(
        self,
        settings: WebhookSettings,
        client: httpx.Client,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._client = client
        self._clock = clock

    @property
    def name(self) -> str:
        """The configured name."""
        return self._settings.name

    def is_supported(self) -> Support:
        """Every configured webhook can be tried."""
        return Support(supported=True)

    def send(self, message: AlertMessage, deadline_seconds: float) -> Delivery:
        """Post one message; any 2xx answer is delivery."""
        body = message.model_dump_json().encode()
        try:
            response = self._client.post(
                self._settings.url.get_secret_value(),
                content=body,
                headers=self._headers(message, body),
                timeout=deadline_seconds,
                follow_redirects=False,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = redact(str(error)) or type(error).__name__
            return Delivery(DeliveryResult.RETRY, f"{self.name} cannot be reached: {reason}")
        return self._outcome(response)

    def close(self) -> None:
        """The client belongs to whoever made it."""

    def _headers(self, message: AlertMessage, body: bytes) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "galen",
            "Idempotency-Key": message.idempotency_key,
        }
        if self._settings.authorization is not None:
            headers["Authorization"] = self._settings.authorization.get_secret_value()
        if self._settings.signing_secret is not None:
            timestamp = str(int(self._clock()))
            key = self._settings.signing_secret.get_secret_value().encode()
            headers["X-Galen-Timestamp"] = timestamp
            headers["X-Galen-Signature"] = signature(key, timestamp, body)
        return headers

    def _outcome(self, response: httpx.Response) -> Delivery:
        if response.is_success:
            return Delivery(DeliveryResult.DELIVERED)
        said = redact(response.text.strip()[:200]) or "nothing"
        detail = f"{self.name} answered {response.status_code}: {said}"
        wait = retry_after_seconds(response.headers.get("Retry-After"))
        if response.status_code == 429:
            return Delivery(DeliveryResult.RATE_LIMITED, detail, wait)
        if response.status_code in {400, 413, 415, 422}:
            return Delivery(DeliveryResult.REJECTED, detail)
        return Delivery(DeliveryResult.RETRY, detail, wait)


def signature(key: bytes, timestamp: str, body: bytes) -> str:
    """Return the value of ``X-Galen-Signature``."""
    return "sha256=" + hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()

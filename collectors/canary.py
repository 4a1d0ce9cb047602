"""Galen's own request to a service: a golden prompt from outside, through the whole path."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from collectors.addresses import shown_url
from collectors.contract import Collection, CollectorError, Sample, Support
from collectors.entities import entity
from collectors.fetch import Answer, FetchError, fetch

CANARY_HEADER = "X-Galen-Canary"
"""Marks the request, so that the service does not count it as a user's."""

_MAX_BYTES = 256 * 1024
# Answers that blame the request and not the service: a canary that is set up wrong must not look like
# a sick service. 408 and 429 blame the service's load.
_BLAMES_THE_SERVICE = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS})


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A prompt and the text that a healthy model answers at temperature 0."""

    prompt: str
    expected: str | None = None
    """None compares nothing, and ``canary_output_match`` is absent."""
    max_tokens: int = 8
    model: str | None = None


class CanaryCollector:
    """Asks ``POST /v1/completions`` and tells whether, how fast and what the service answered.

    A service that refuses, fails or is too slow is a finding (``canary_success`` 0), not an error of
    this collector. Only a request that the service calls wrong (4xx) is.

    Args:
        name: the service's name; the entity is ``service/<name>``.
        base_url: where the service listens.
        client: closed together with the collector.
        golden: what to ask and what to expect.
        deadline_seconds: an answer later than this counts as none.
        every_seconds: how often the poller asks.
        monotonic: the clock that latency is measured with.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        client: httpx.Client,
        golden: GoldenPrompt,
        *,
        deadline_seconds: float = 1.5,
        every_seconds: float = 2.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entity = entity("service", name)
        self._name = f"canary-{name}"
        self._url = f"{base_url.rstrip('/')}/v1/completions"
        self._client = client
        self._golden = golden
        self._deadline_seconds = deadline_seconds
        self._every_seconds = every_seconds
        self._monotonic = monotonic

    @property
    def name(self) -> str:
        """``canary-<name>``."""
        return self._name

    @property
    def deadline_seconds(self) -> float:
        """The service's deadline and a little for ourselves, so that a slow answer is a finding."""
        return self._deadline_seconds + 0.5

    @property
    def every_seconds(self) -> float:
        """How often the poller asks."""
        return self._every_seconds

    def is_supported(self) -> Support:
        """Always; whether the service is there is for :meth:`collect` to say."""
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        """Ask once.

        Raises:
            CollectorError: when the service calls the request itself wrong.
        """
        try:
            answer = self._ask()
        except FetchError as error:
            return self._collection(now_seconds, iter([("canary_success", 0.0)]), str(error))
        if 400 <= answer.status < 500 and answer.status not in _BLAMES_THE_SERVICE:
            raise CollectorError(
                f"{shown_url(self._url)} calls the canary wrong: status {answer.status}",
                retryable=False,
                fix="check the canary's model and prompt in [collectors], and the service's API key",
            )
        if answer.status != httpx.codes.OK:
            return self._collection(
                now_seconds, iter([("canary_success", 0.0)]), f"status {answer.status}"
            )
        return self._collection(now_seconds, self._judge(answer), "")

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def _ask(self) -> Answer:
        body: dict[str, object] = {
            "prompt": self._golden.prompt,
            "max_tokens": self._golden.max_tokens,
            "temperature": 0,
        }
        if self._golden.model is not None:
            body["model"] = self._golden.model
        return fetch(
            self._client,
            self._url,
            method="POST",
            json=body,
            headers={CANARY_HEADER: "1"},
            deadline_seconds=self._deadline_seconds,
            max_bytes=_MAX_BYTES,
            monotonic=self._monotonic,
        )

    def _judge(self, answer: Answer) -> Iterator[tuple[str, float]]:
        text = _text_of(answer.body)
        yield "canary_success", float(text is not None)
        if text is None:
            return
        yield "canary_latency_seconds", answer.seconds
        if self._golden.expected is not None:
            yield "canary_output_match", float(text == self._golden.expected)

    def _collection(
        self, now_seconds: float, values: Iterator[tuple[str, float]], note: str
    ) -> Collection:
        return Collection(
            samples=[Sample(now_seconds, self._entity, signal, value) for signal, value in values],
            notes=[note] if note else [],
        )


def _text_of(body: bytes) -> str | None:
    """Return the completion's text, or None when the body is not a completion."""
    try:
        text = json.loads(body)["choices"][0]["text"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None

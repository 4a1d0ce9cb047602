"""A client that does not make an overload worse: deadlines travel along, retries are few and late.

::

    with InferenceClient("http://localhost:8000") as client:
        answer = client.post("/v1/completions", {"prompt": "Hello"}, timeout_seconds=1.5)

- The time that is left goes along as ``X-Request-Timeout-Ms``, so that the service refuses at once
  what it cannot finish, and stops working for who does not wait any more.
- Only refusals are sent again: the service says that it did not begin, and when to come back
  (``Retry-After-Ms``, ``Retry-After``). A request that failed inside the engine is not: it may be the
  reason. Nor is one that would come back after its deadline.
- A `RetryBudget` bounds the extra load to a share of the requests, whatever the server says: retries
  are what turns a short overload into a long one.

Retries are paced by stamina; with `stamina.set_active(False)` there are none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import httpx
import stamina

# Reading the answer after the server's own deadline: its error is worth more than our timeout.
_GRACE_SECONDS = 0.25
_ATTEMPTS = 4
_DEFAULT_BACKOFF_SECONDS = 1.0
# Of the service's taxonomy: refused before the engine began, and it may be otherwise soon.
RETRYABLE_CODES = frozenset({"rate_limited", "overloaded", "model_unavailable", "memory_limit"})


class InferenceError(Exception):
    """The service said no; the fields are those of its error body."""

    def __init__(
        self,
        status: int,
        code: str,
        reason: str,
        message: str,
        *,
        request_id: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{status} {code} ({reason}): {message}")
        self.status = status
        self.code = code
        self.reason = reason
        self.message = message
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds

    @property
    def retryable(self) -> bool:
        """Whether the service refused before it began, so that another try can help."""
        return self.code in RETRYABLE_CODES


class RetryBudget:
    """How many retries there may be: a token bucket that is filled by requests, not by time.

    Each request brings ``share`` tokens, each retry costs one, and ``reserve`` are there at first and
    at most, for clients that ask rarely. Thread-safe: share one among all clients of a service.
    """

    def __init__(self, share: float = 0.1, reserve: float = 5.0) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError("share must lie between 0 and 1")
        self._share = share
        self._reserve = reserve
        self._tokens = reserve
        self._lock = threading.Lock()

    def request(self) -> None:
        """Count a request that is no retry."""
        with self._lock:
            self._tokens = min(self._reserve, self._tokens + self._share)

    def take(self) -> bool:
        """Take a retry's token; False if there is none."""
        with self._lock:
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


class _Call:
    """One call with its attempts, without input and output: what both clients share."""

    def __init__(
        self,
        budget: RetryBudget,
        clock: Callable[[], float],
        timeout_seconds: float,
        headers: Mapping[str, str] | None,
    ) -> None:
        self._budget = budget
        self._clock = clock
        self._deadline = clock() + timeout_seconds
        self._headers = dict(headers or {})
        budget.request()

    def attempt(self) -> dict[str, Any]:
        """Return headers and timeout of the next attempt.

        Raises:
            httpx.ReadTimeout: no time is left.
        """
        left = self._deadline - self._clock()
        if left <= 0.0:
            raise httpx.ReadTimeout("the deadline passed before an attempt was answered")
        milliseconds = max(1, int(left * 1000))
        return {
            "headers": {**self._headers, "x-request-timeout-ms": str(milliseconds)},
            "timeout": left + _GRACE_SECONDS,
        }

    def backoff(self, error: Exception) -> bool | float:
        """Say whether to try again, and after how many seconds; stamina's hook."""
        if isinstance(error, InferenceError) and error.retryable:
            wait = error.retry_after_seconds or _DEFAULT_BACKOFF_SECONDS
        elif isinstance(error, httpx.ConnectError):
            wait = _DEFAULT_BACKOFF_SECONDS
        else:
            return False
        if self._clock() + wait >= self._deadline:
            return False
        return wait if self._budget.take() else False

    def retries(self) -> Any:
        """Return stamina's iterator of attempts."""
        return stamina.retry_context(on=self.backoff, attempts=_ATTEMPTS, timeout=None)


class InferenceClient:
    """Synchronous client.

    Args:
        base_url: Of the service.
        api_key: Sent as a bearer token.
        priority: ``high``, ``normal`` or ``low``, for all requests.
        budget: Share one among the clients of a service; by default the client has its own.
        transport: Of httpx, for tests.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        priority: str | None = None,
        budget: RetryBudget | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        headers = _common_headers(api_key, priority)
        self._client = httpx.Client(base_url=base_url, headers=headers, transport=transport)
        self._budget = budget or RetryBudget()
        self._clock = clock

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Send JSON, and return the JSON of the answer.

        Raises:
            InferenceError: the service refused or failed, and a retry could not or may not help.
            httpx.HTTPError: there was no answer in time.
        """
        call = _Call(self._budget, self._clock, timeout_seconds, headers)
        for attempt in call.retries():
            with attempt:
                return _judge(self._client.post(path, json=body, **call.attempt()))
        raise AssertionError("stamina ends by an answer or an error")


class AsyncInferenceClient:
    """The same for asyncio; see `InferenceClient`."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        priority: str | None = None,
        budget: RetryBudget | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        headers = _common_headers(api_key, priority)
        self._client = httpx.AsyncClient(base_url=base_url, headers=headers, transport=transport)
        self._budget = budget or RetryBudget()
        self._clock = clock

    async def __aenter__(self) -> AsyncInferenceClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Send JSON, and return the JSON of the answer.

        Raises:
            InferenceError: the service refused or failed, and a retry could not or may not help.
            httpx.HTTPError: there was no answer in time.
        """
        call = _Call(self._budget, self._clock, timeout_seconds, headers)
        async for attempt in call.retries():
            with attempt:
                return _judge(await self._client.post(path, json=body, **call.attempt()))
        raise AssertionError("stamina ends by an answer or an error")


def _common_headers(api_key: str | None, priority: str | None) -> dict[str, str]:
    headers = {}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    if priority is not None:
        headers["x-galen-priority"] = priority
    return headers


def _judge(response: httpx.Response) -> dict[str, Any]:
    """Return an answer's JSON, or raise what the service says; both protocols' errors are known."""
    try:
        content = response.json()
    except ValueError:
        content = {}
    document: dict[str, Any] = content if isinstance(content, dict) else {}
    if response.is_success:
        return document
    inner = document.get("error")
    fields = inner if isinstance(inner, dict) else {**document, "message": inner}
    raise InferenceError(
        response.status_code,
        str(fields.get("code") or ""),
        str(fields.get("reason") or ""),
        str(fields.get("message") or response.reason_phrase),
        request_id=response.headers.get("x-request-id", ""),
        retry_after_seconds=_retry_after_seconds(response.headers),
    )


def _retry_after_seconds(headers: httpx.Headers) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        if text.isdecimal():
            return int(text) * unit
    return None

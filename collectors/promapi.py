"""The HTTP API of Prometheus, and of what speaks it: VictoriaMetrics, Thanos, Mimir.

Requests go through prometheus-api-client. What that library leaves open is settled here, in the session
that it is given: it bounds single reads of the socket only (a server that drips bytes would hold a call
for ever), it reads answers of any size, puts queries into the URL (where proxies cut them at 8 KB) even
when it posts, follows redirects with the credentials, and throws away warnings, partial answers and
``Retry-After``.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
import requests
import structlog
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.exceptions import HTTPError as TransportError
from urllib3.util.retry import Retry

from collectors.access import AccessError, HttpAccess
from collectors.addresses import shown_url
from collectors.backoff import retry_after_seconds
from collectors.contract import CollectorError

log = structlog.get_logger(__name__)

_EPOCH = datetime.fromtimestamp(0, UTC)
_PIECE_BYTES = 65_536
_REASON_CHARACTERS = 300
DEFAULT_MAX_BYTES = 256 * 1024**2
MAX_QUERY_CHARACTERS = 12_000
"""VictoriaMetrics refuses queries of more than 16 KiB (``-search.maxQueryLen``)."""
MAX_POINTS = 10_000
"""Prometheus refuses range queries of more than 11,000 points a series."""
# VictoriaMetrics hides the newest 30 s and moves range queries to its own grid, unless told not to.
# Others ignore what they do not know.
_AS_ASKED = {"nocache": "1", "latency_offset": "1ms"}
# Annotations speak of the query; every other warning speaks of data that is missing.
_ANNOTATIONS = ("PromQL info:", "PromQL warning:")
_TOO_MUCH = (
    "too many samples", "exceeded maximum resolution", "timed out",  # Prometheus
    "too many points", "cannot select",  # VictoriaMetrics
    "query time range exceeds", "exceeded the maximum number",  # Mimir
)  # fmt: skip


class Series(NamedTuple):
    """One element of an instant vector."""

    labels: Mapping[str, str]
    time_seconds: float
    value: float


Matrix = list[tuple[Mapping[str, str], list[tuple[float, float]]]]
"""Range vectors: labels, and pairs of time and value from old to new."""


class PrometheusError(CollectorError):
    """Prometheus could not be asked, or refused.

    ``status`` is that of the answer, None where there was none. ``too_much`` says that the same query
    over a shorter time may pass. ``retry_after_seconds`` is how long the server asks to be left alone.
    """

    def __init__(
        self,
        message: str,
        *,
        fix: str,
        retryable: bool = True,
        status: int | None = None,
        too_much: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, fix=fix)
        self.status = status
        self.too_much = too_much
        self.retry_after_seconds = retry_after_seconds

    @property
    def about_the_query(self) -> bool:
        """Whether another query may pass where this one did not."""
        return self.status in {400, 422}


class PrometheusClient:
    """Asks one server, each question once: whoever asks knows best when to ask again.

    Args:
        url: its base address.
        access: credentials and TLS.
        deadline_seconds: the longest that connecting, and then the whole answer, may take.
        max_bytes: the largest answer to read, uncompressed.
        monotonic: the clock of deadlines.

    Raises:
        PrometheusError: when the address cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        access: HttpAccess | None = None,
        deadline_seconds: float = 2.0,
        max_bytes: int = DEFAULT_MAX_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = shown_url(url)
        if "?" in url or "#" in url:
            raise PrometheusError(
                f"{self._place} has a query or a fragment", fix="give the base address alone"
            )
        self._access = access or HttpAccess()
        self._deadline_seconds = deadline_seconds
        self._session = _Session(self._access, deadline_seconds, max_bytes, monotonic)
        if not self._access.verify_tls:
            log.warning("tls_not_verified", server=self._place)
        self._connection = PrometheusConnect(
            url=url.rstrip("/"), session=self._session, retry=Retry(total=0), method="POST"
        )

    @property
    def place(self) -> str:
        """The address without secrets."""
        return self._place

    def query(
        self,
        promql: str,
        *,
        lookback_seconds: float | None = None,
        time_seconds: float | None = None,
    ) -> list[Series]:
        """Ask an instant query that gives a vector or a scalar.

        Args:
            promql: the query.
            lookback_seconds: how old a sample may be; servers that do not know the parameter use their
                own (five minutes unless configured).
            time_seconds: the moment to evaluate at; by default the server's now.

        Raises:
            PrometheusError: when the server cannot be reached or refuses the query.
        """
        params = _lookback(lookback_seconds) | _AS_ASKED
        if time_seconds is not None:
            params["time"] = f"{time_seconds:.3f}"
        result = self._ask(
            lambda: self._connection.custom_query(promql, params, self._deadline_seconds)
        )
        if len(result) == 2 and not isinstance(result[0], Mapping):  # a scalar
            return [Series({}, float(result[0]), float(result[1]))]
        try:
            return [
                Series(one["metric"], float(one["value"][0]), float(one["value"][1]))
                for one in result
            ]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise PrometheusError(
                f"{self._place} did not answer with a vector: {error!r}",
                retryable=False,
                fix="the query must give an instant vector",
            ) from error

    def query_range(
        self,
        promql: str,
        *,
        start_seconds: float,
        end_seconds: float,
        step_seconds: float,
        lookback_seconds: float | None = None,
    ) -> Matrix:
        """Ask a range query; both ends are inclusive, as in Prometheus.

        At most :data:`MAX_POINTS` steps: dividing a longer span is for those who know what it is for.

        Raises:
            PrometheusError: when the server cannot be reached or refuses the query.
        """
        # The library rounds its own bounds to seconds; the parameters override them.
        params = _lookback(lookback_seconds) | _AS_ASKED
        params |= {"start": f"{start_seconds:.3f}", "end": f"{end_seconds:.3f}"}
        return self._matrix(
            lambda: self._connection.custom_query_range(
                promql, _EPOCH, _EPOCH, duration(step_seconds), params, self._deadline_seconds
            )
        )

    def query_window(
        self, selector: str, seconds: float, *, time_seconds: float | None = None
    ) -> Matrix:
        """Return the stored samples of a selector over a time, at their own times.

        The window ends at ``time_seconds``, by default the server's now. Whether a sample at its very
        start belongs to it depends on the server's version.

        Raises:
            PrometheusError: when the server cannot be reached or refuses the query.
        """
        params = {} if time_seconds is None else {"time": f"{time_seconds:.3f}"}
        window = f"{selector}[{duration(seconds)}]"
        return self._matrix(
            lambda: self._connection.custom_query(
                window, params | _AS_ASKED, self._deadline_seconds
            )
        )

    def series(
        self, selector: str, *, start_seconds: float, end_seconds: float
    ) -> list[Mapping[str, str]]:
        """Return the labels of the series of a selector that may have samples in a time.

        Servers answer from their index, by blocks or days: a series that just missed the time may be
        among them. Keep the selector short: it travels in the address.

        Raises:
            PrometheusError: when the server cannot be reached or refuses.
        """
        start, end = (datetime.fromtimestamp(at, UTC) for at in (start_seconds, end_seconds))
        found = self._ask(
            lambda: self._connection.get_series(start, end, {"match[]": selector} | _AS_ASKED)
        )
        try:
            return [{str(name): str(text) for name, text in one.items()} for one in found]
        except AttributeError as error:
            raise PrometheusError(
                f"{self._place} did not answer with series: {error!r}",
                retryable=False,
                fix="check that this is the address of a Prometheus",
            ) from error

    def clock_skew_seconds(self, *, wall: Callable[[], float] = time.time) -> float:
        """Return how far the server's clock is ahead of ours, give or take half of the round trip.

        Raises:
            PrometheusError: when the server cannot be reached.
        """
        before = wall()
        (theirs,) = self.query("time()")
        return theirs.value - (before + wall()) / 2

    def take_warnings(self) -> list[str]:
        """Return, once, why answers since the last call may be incomplete; empty when all were whole."""
        warnings, self._session.warnings = self._session.warnings, {}
        return list(warnings)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _matrix(self, call: Callable[[], Any]) -> Matrix:
        try:
            return [
                (one["metric"], [(float(at), float(value)) for at, value in one["values"]])
                for one in self._ask(call)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise PrometheusError(
                f"{self._place} did not answer with range vectors: {error!r}",
                retryable=False,
                fix="check that this is the address of a Prometheus",
            ) from error

    def _ask(self, call: Callable[[], Any]) -> Sequence[Any]:
        try:
            answer: Sequence[Any] = call()
        except PrometheusApiClientException as error:
            raise self._refusal() from error
        except AccessError as error:
            raise PrometheusError(
                str(error), fix="mend it, and the next request uses it"
            ) from error
        except _AnswerError as error:
            raise PrometheusError(
                f"{self._place}: {error}", too_much=True,
                fix="raise the deadline, or ask for fewer series or a shorter time",
            ) from error  # fmt: skip
        except requests.exceptions.SSLError as error:
            raise PrometheusError(
                f"{self._place}: TLS failed: {_reason(error)}",
                fix="give ca_file, or the client certificate that the server asks for",
            ) from error
        except (requests.RequestException, TransportError, OSError) as error:
            raise PrometheusError(
                f"cannot ask {self._place}: {_reason(error)}",
                fix="check that Prometheus runs at this address",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise PrometheusError(
                f"{self._place} did not answer as Prometheus does: {type(error).__name__}",
                fix="check that this is the base address of a Prometheus, with its path prefix",
            ) from error
        return answer

    def _refusal(self) -> PrometheusError:
        """Say what the server refused, from the answer that the library has only as text."""
        answer = self._session.answer
        status = answer.status_code
        said = _said(answer)
        too_much = any(words in said for words in _TOO_MUCH)
        fix = "ask for less, or raise the server's limit" if too_much else "check the query"
        if status in {401, 403}:
            fix = "check the credentials: token, token_file, or username and password"
        elif 300 <= status < 400:
            # Credentials must not travel to wherever an answer points.
            to = shown_url(answer.headers.get("Location", ""))
            said, fix = f"it redirects to {to}", "give that address, if it is to be trusted"
        elif status == 404:
            fix = "check the address and its path prefix, such as /prometheus"
        elif status == 429 or status >= 500:
            fix = "the server is overloaded or restarting; it is asked again later"
        return PrometheusError(
            f"{self._place} refused: HTTP {status}: {said}",
            retryable=status == 429 or status >= 500,
            fix=fix,
            status=status,
            too_much=too_much,
            retry_after_seconds=retry_after_seconds(
                answer.headers.get("Retry-After", ""), time.time()
            ),
        )


class _AnswerError(Exception):
    """An answer was too large or too slow."""


class _Answer(requests.Response):
    """An answer that has been read whole."""

    def __init__(self, response: requests.Response, body: bytes) -> None:
        super().__init__()
        self.status_code = response.status_code
        self.headers = response.headers
        self.url = response.url
        self.raw = io.BytesIO(body)
        self._envelope: Any = None

    def json(self, **_: Any) -> Any:
        """Return the document, parsed once: it may be large, and two look into it."""
        if self._envelope is None:
            self._envelope = orjson.loads(self.content)
            if not isinstance(self._envelope, dict):
                raise ValueError("the answer is no JSON object")
        return self._envelope


class _Session(requests.Session):
    """Bounds every exchange, and remembers of the last answer what the library does not give."""

    def __init__(
        self,
        access: HttpAccess,
        deadline_seconds: float,
        max_bytes: int,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__()
        self._access = access
        self._deadline_seconds = deadline_seconds
        self._max_bytes = max_bytes
        self._monotonic = monotonic
        self.answer = requests.Response()
        self.warnings: dict[str, None] = {}
        """Why answers were incomplete, in the order of first sight."""
        # Neither a proxy nor credentials come from the environment; nor do Prometheus' own.
        self.trust_env = False
        self.verify = str(access.ca_file) if access.ca_file else access.verify_tls
        if access.client_certificate_file is not None:
            certificate = str(access.client_certificate_file)
            key = access.client_key_file
            self.cert = (certificate, str(key)) if key else certificate

    def request(  # type: ignore[override]  # the library calls it with keywords alone
        self, method: str, url: str, **given: Any
    ) -> requests.Response:
        if method == "POST":
            given["data"] = given.pop("params", None)
        given["headers"] = self._access.request_headers() | {"Accept-Encoding": "gzip"}
        given["timeout"] = self._deadline_seconds
        given.pop("allow_redirects", None)  # what Session.get would do; see below
        started = self._monotonic()
        with super().request(method, url, **given, stream=True, allow_redirects=False) as response:
            self.answer = _Answer(response, self._read(response, started))
        if self.answer.status_code == requests.codes.ok:
            self._note(self.answer.json())
        return self.answer

    def _read(self, response: requests.Response, started: float) -> bytes:
        body = bytearray()
        # read1 returns what has come; read would wait, drip by drip, for all that was asked for.
        while piece := response.raw.read1(_PIECE_BYTES, decode_content=True):
            body += piece
            if len(body) > self._max_bytes:
                raise _AnswerError(f"the answer is larger than {self._max_bytes} bytes")
            if self._monotonic() - started > self._deadline_seconds:
                raise _AnswerError(f"no complete answer within {self._deadline_seconds:g} s")
        return bytes(body)

    def _note(self, envelope: Any) -> None:
        if envelope.get("isPartial"):
            self.warnings["a partial answer: some of the storage could not be reached"] = None
        for warning in envelope.get("warnings") or ():
            if not str(warning).startswith(_ANNOTATIONS):
                self.warnings[str(warning)[:_REASON_CHARACTERS]] = None


def duration(seconds: float) -> str:
    """Return a duration as PromQL writes it: whole numbers of their unit, at least one millisecond."""
    return f"{max(1, round(seconds * 1000))}ms"


def _lookback(seconds: float | None) -> dict[str, str]:
    if seconds is None:
        return {}
    # The first is Prometheus' (and Thanos'), the second VictoriaMetrics' name for it.
    return {"lookback_delta": duration(seconds), "max_lookback": duration(seconds)}


def _said(answer: requests.Response) -> str:
    try:
        told = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        told = answer.content.decode("utf-8", "replace")
    return str(told)[:_REASON_CHARACTERS].strip()


def _reason(error: BaseException) -> str:
    """Return the innermost reason; the outer ones repeat the address with all that is in it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return type(error).__name__  # of an address, which it repeats
    return str(error)[:_REASON_CHARACTERS] or type(error).__name__

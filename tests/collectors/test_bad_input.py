"""Hostile targets: a real HTTP server on this machine that does everything wrong, one way at a time."""

from __future__ import annotations

import gzip
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

from collectors.addresses import shown_url, split_userinfo
from collectors.contract import CollectorError
from collectors.exposition import DEFAULT_MAX_BYTES
from collectors.fetch import BoundedBody, FetchError, check_media_type, fetch, redirect_of
from collectors.service import ServiceCollector
from collectors.sources import SourceReading, collect_source

Handler = http.server.BaseHTTPRequestHandler
GOOD = b'vllm:num_requests_waiting{model_name="m"} 4\n'
SECRET = "s3cr3t-t0ken"


class Hostile:
    """A server that answers every request with one misbehaviour; it keeps the requests' headers."""

    def __init__(self) -> None:
        self.answer: Callable[[Handler], None] = lambda _: None
        self.seen: list[tuple[str, dict[str, str]]] = []
        hostile = self

        class Requests(Handler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802  # the base class' name
                hostile.seen.append((self.path, dict(self.headers)))
                self.close_connection = True
                try:
                    hostile.answer(self)
                except OSError:  # the client had enough
                    return

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    one = Hostile()
    yield one
    one.server.shutdown()
    one.server.server_close()


def _send(
    handler: Handler,
    body: bytes,
    *,
    kind: str = "text/plain; version=0.0.4",
    status: int = 200,
    length: int | None = None,
    **headers: str,
) -> None:
    handler.send_response(status)
    if kind:
        handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def _endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(GOOD * 2000)


def _dripping(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"a")
        threading.Event().wait(0.02)


def _silent(handler: Handler) -> None:
    handler.connection.settimeout(30)
    handler.connection.recv(1)


def _bomb(handler: Handler) -> None:
    _send(handler, gzip.compress(b"a" * 60_000_000, 1), Content_Encoding="gzip")


def _reset(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


@dataclass(frozen=True)
class Case:
    """One misbehaviour, and what is said about it."""

    name: str
    answer: Callable[[Handler], None]
    says: str


def _text(name: str, body: bytes, says: str) -> Case:
    return Case(name, lambda handler: _send(handler, body), says)


def _redirect(name: str, to: str, says: str) -> Case:
    return Case(name, lambda handler: _send(handler, b"", status=302, Location=to), says)


REFUSED = [
    _text("html", b"<html><body>welcome</body></html>\n", "line 1: not a sample"),
    _text("a half line", GOOD + b"vllm:num_requ", "line 2: not a sample"),
    _text("a value that is none", b"up one\n", "line 1: could not convert"),
    _text("a number with an underscore", b"up 1_000\n", "line 1: could not convert"),
    _text("an open quote", b'up{a="b} 1\n', "line 1: could not convert"),
    _text("a label twice", b'up{a="1",a="2"} 1\n', "line 1"),
    _text("binary", bytes(range(1, 256)) * 20, "line 1"),
    _text("nothing but a brace", b"{\n", "line 1"),
    Case("html by its type", lambda h: _send(h, GOOD, kind="text/html"), "'text/html', not expo"),
    Case("json by its type", lambda h: _send(h, b"{}", kind="application/json"), "not exposition"),
    Case(
        "OpenMetrics that is cut off",
        lambda h: _send(h, b"a 1\n", kind="application/openmetrics-text; version=1.0.0"),
        "the answer is not whole",
    ),
    Case("status 500", lambda h: _send(h, b"", status=500), "answered 500"),
    Case("status 401", lambda h: _send(h, b"", status=401), "answered 401"),
    Case("endless", _endless, f"more than {DEFAULT_MAX_BYTES} bytes"),
    Case("dripping", _dripping, "no complete answer"),
    Case("silent", _silent, "no complete answer"),
    Case("huge", lambda h: _send(h, GOOD * 250_000), f"more than {DEFAULT_MAX_BYTES} bytes"),
    Case("a gzip bomb", _bomb, f"more than {DEFAULT_MAX_BYTES} bytes"),
    Case("gzip that is none", lambda h: _send(h, GOOD, Content_Encoding="gzip"), "not the gzip"),
    Case(
        "gzip that is cut off",
        lambda h: _send(h, gzip.compress(GOOD * 100)[:-20], Content_Encoding="gzip"),
        "ends in the middle",
    ),
    Case("brotli", lambda h: _send(h, GOOD, Content_Encoding="br"), "packed as 'br'"),
    Case("shorter than it says", lambda h: _send(h, GOOD, length=1000), "incomplete|peer closed"),
    Case("a reset connection", _reset, "disconnected|reset"),
    _redirect("a redirect loop", "/metrics?again", "redirects more than 3 times"),
    _redirect("a redirect to a file", "file:///etc/passwd", "redirects to file:.*not followed"),
    _redirect("a redirect to another host", "http://localhost:1/metrics", "not followed"),
    _redirect("a redirect to another port", "http://127.0.0.1:1/metrics", "not followed"),
    _redirect("a redirect to credentials", "http://a:b@127.0.0.1/metrics", "not followed"),
    _redirect("a redirect to nothing", "http://[", "redirects to what is no URL"),
    _text(
        "too many series",
        b"".join(b'up{id="%d"} 1\n' % n for n in range(30_000))
        + b"".join(b'down{id="%d"} 1\n' % n for n in range(30_000))
        + b"".join(b'n%d{id="1"} 1\n' % n for n in range(40_000)),
        "more than 50000 series.*label 'id'",
    ),
]


def _collect(url: str) -> SourceReading:
    return collect_source(url, deadline_seconds=1.0)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_bad_answer_is_refused_in_words_and_in_time(hostile: Hostile, case: Case) -> None:
    hostile.answer = case.answer
    started = time.monotonic()
    with pytest.raises(CollectorError, match=case.says) as caught:
        _collect(f"{hostile.url}/metrics?token={SECRET}")
    # The deadline is one second; the rest is for a machine that is busy with other things.
    assert time.monotonic() - started < 30
    assert SECRET not in f"{caught.value} {caught.value.fix} {caught.value!r}"
    assert "127.0.0.1" in str(caught.value) or "line" in str(caught.value)
    assert len(str(caught.value)) < 1000


READ = [
    _text("values that are none", GOOD + b"a NaN\na +Inf\nc -Inf\n", "a: 2 values were"),
    _text("Windows' line ends", GOOD.replace(b"\n", b"\r\n") + b"# EOF\r\n", ""),
    _text("a bomb of one name", GOOD + b"".join(b'x{id="%d"} 1\n' % n for n in range(15_000)), "x "),
    _text(
        "a bomb of labels",
        GOOD + b"x{" + b",".join(b'l%d="1"' % n for n in range(500)) + b"} 1\n",
        "500 labels",
    ),
    _text("a huge label", GOOD + b'x{a="' + b"y" * 100_000 + b'"} 1\n', "longer than"),
    _text("bytes that are no text", GOOD + b'x{a="\xff\xfe"} 1\n', ""),
    _text("a series twice", GOOD + GOOD, "repeat"),
    _text("comments that lie", b"# TYPE\n# HELP\n# TYPE x moon\n#\n# x y z\n" + GOOD, ""),
    Case("no type", lambda h: _send(h, GOOD, kind=""), ""),
    Case("gzip", lambda h: _send(h, gzip.compress(GOOD), Content_Encoding="gzip"), ""),
    Case(
        "OpenMetrics",
        lambda h: _send(h, GOOD + b"# EOF\n", kind="application/openmetrics-text; version=1.0.0"),
        "",
    ),
    Case(
        "a redirect on the same host",
        lambda h: (
            _send(h, GOOD) if h.path == "/metrics/" else
            _send(h, b"", status=307, Location="/metrics/")
        ),
        "",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", READ, ids=lambda case: case.name)
def test_what_is_odd_but_readable_is_read_and_told(hostile: Hostile, case: Case) -> None:
    hostile.answer = case.answer
    reading = _collect(hostile.url)
    assert [(s.signal, s.value) for s in reading.samples] == [("llm_queue_depth", 4.0)]
    assert case.says in " ".join(reading.notes)


def test_credentials_go_to_their_host_only_and_are_never_told(hostile: Hostile) -> None:
    elsewhere = Hostile()
    hostile.answer = lambda h: _send(h, b"", status=302, Location=f"{elsewhere.url}/metrics")
    url = hostile.url.replace("http://", f"http://watcher:{SECRET}@")
    with pytest.raises(CollectorError, match="not followed") as caught:
        _collect(url)
    assert SECRET not in str(caught.value)
    assert hostile.seen[0][1]["Authorization"].startswith("Basic ")
    assert elsewhere.seen == []
    elsewhere.server.shutdown()
    elsewhere.server.server_close()


def test_a_collector_does_not_tell_the_secrets_of_its_url(hostile: Hostile) -> None:
    hostile.answer = lambda h: _send(h, b"<html>", status=200)
    url = hostile.url.replace("http://", f"http://watcher:{SECRET}@")
    collector = ServiceCollector("llm", url, httpx.Client(trust_env=False))
    for status in (200, 503):
        hostile.answer = lambda h, status=status: _send(h, b"<html>", status=status)  # type: ignore[misc]
        with pytest.raises(CollectorError) as caught:
            collector.collect(0.0)
        assert SECRET not in str(caught.value)
    hostile.server.server_close()
    collector.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:p@h:9/m?token=x&a=", "http://h:9/m?token=***&a=***"),
        ("https://h/m#frag", "https://h/m"),
        ("http://u:p@[::1]:9/", "http://[::1]:9/"),
        ("http://[", "(a URL of 8 characters that cannot be read)"),
    ],
)
def test_shown_urls_hold_no_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_userinfo_is_taken_apart() -> None:
    assert split_userinfo("http://a%40b:c%3Ad@h/m") == ("http://h/m", ("a@b", "c:d"))
    assert split_userinfo("http://h/m") == ("http://h/m", None)


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("http://h:8000/metrics", "/metrics/", "http://h:8000/metrics/"),
        ("http://h/m", "https://h/m", "https://h/m"),
        ("http://h/m", "//h/n", "http://h/n"),
    ],
)
def test_redirects_on_the_same_host_are_followed(url: str, location: str, target: str) -> None:
    assert redirect_of(url, location) == target


@pytest.mark.parametrize("location", ["http://h/m", "https://h:444/m", "https://x/m", "gopher://h"])
def test_a_redirect_never_leads_to_less_safety(location: str) -> None:
    with pytest.raises(FetchError, match="not followed"):
        redirect_of("https://h/m", location)


def test_a_bomb_is_never_unpacked_beyond_the_limit() -> None:
    body = BoundedBody("gzip", 1000)
    with pytest.raises(FetchError, match="more than 1000"):
        body.feed(gzip.compress(b"a" * 10_000_000))
    assert len(body._body) <= 1001


def test_media_types() -> None:
    assert check_media_type("application/openmetrics-text; version=1.0.0") is True
    assert check_media_type("Text/Plain; charset=utf-8") is False
    assert check_media_type("") is None
    with pytest.raises(FetchError, match="protobuf"):
        check_media_type("application/vnd.google.protobuf; proto=io.prometheus.client")


def test_a_deadline_that_is_over_before_it_begins_is_a_late_answer() -> None:
    with pytest.raises(FetchError, match="within 0 s") as caught:
        fetch(httpx.Client(), "http://127.0.0.1:9/x", deadline_seconds=0, max_bytes=1)
    assert caught.value.timed_out

"""A head that is known again means what a parser would have found."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.api.known_head import KnownHead

HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nAccept: */*\r\n\r\n"


def _message(body: bytes) -> bytes:
    return HEAD % len(body) + body


def _known(most_bytes: int = 1000) -> KnownHead:
    known = KnownHead.learn(_message(b"abc"), b"abc", most_bytes)
    assert known is not None
    return known


@pytest.mark.parametrize(
    "body", [b"abc", b"x", b"y" * 999, b"\r\n\r\n", b"Content-Length: 5\r\n\r\n"]
)
def test_the_same_head_is_known_with_a_body_of_any_length(body):
    known = _known()
    assert known.body_of(_message(body)) == body
    assert known.body_of(_message(body)) == body  # now as the newest one
    assert known.body_of(_message(b"abc")) == b"abc"


@pytest.mark.parametrize(
    "message",
    [
        _message(b"abc")[:-1],
        _message(b"abc") + b"d",
        _message(b"abc") * 2,
        _message(b"y" * 1001),
        _message(b""),
        _message(b"abc").replace(b"POST", b"GET "),
        _message(b"abc").replace(b"*/*", b"*/x"),
        _message(b"abc").replace(b": 3", b": +3"),
        _message(b"abc").replace(b": 3", b": 3 "),
        _message(b"abc").replace(b": 3", b": \xc2\xb23"),
        _message(b"abc").replace(b": 3", b": 0000000000003"),
        b"abc",
        b"",
    ],
)
def test_anything_else_is_left_to_the_parser(message):
    assert _known().body_of(message) is None


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (_message(b"abc"), b"ab"),
        (_message(b"abc")[:-1], b"ab"),
        (_message(b"abc") + b"d", b"abc"),
        (_message(b"abc").replace(b"Content-Length: 3", b"Content-Size: 3"), b"abc"),
        (b"no head", b""),
    ],
)
def test_only_a_whole_message_is_learnt_from(message, body):
    assert KnownHead.learn(message, body, 1000) is None


class _Parsed:
    """What httptools finds."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body, self.url, self.ended = b"", b"", 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() != b"content-length":
            self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ended += 1


_LINES = st.sampled_from([
    b"Host: x", b"accept: */*", b"X-A:  b ", b"X-Content-Length: 3", b"connection: keep-alive",
])  # fmt: skip
_LENGTH_LINE = st.sampled_from([
    b"Content-Length: %d", b"content-length:%d", b"CONTENT-LENGTH:\t%d ", b"Content-Length:  0%d",
])  # fmt: skip
_BODIES = st.one_of(st.binary(min_size=1, max_size=40), st.just(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"))


@given(
    before=st.lists(_LINES, max_size=3),
    length=_LENGTH_LINE,
    after=st.lists(_LINES, max_size=3),
    first=_BODIES,
    second=_BODIES,
    cut=st.integers(0, 12),
    tail=st.binary(max_size=3),
)
def test_what_is_known_is_what_a_parser_finds(before, length, after, first, second, cut, tail):
    def message(body: bytes) -> bytes:
        lines = [b"POST /x HTTP/1.1", *before, length % len(body), *after]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    learnt = _Parsed(message(first))
    known = KnownHead.learn(message(first), learnt.body, 1000)
    assert known is not None

    other = message(second)
    changed = other[: len(other) - cut] + tail
    body = known.body_of(changed)
    if body is None:
        # Equal heads are always known; a changed message may be anything.
        assert changed != other or length.startswith(b"Content-Length:  0")
        return
    found = _Parsed(changed)
    assert (found.ended, found.body) == (1, body)
    assert (found.url, found.headers) == (learnt.url, learnt.headers)

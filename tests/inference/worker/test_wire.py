import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.worker.wire import (
    MAX_FRAME_BYTES,
    Cancel,
    ClearCache,
    Failed,
    Finished,
    FrameDecoder,
    Generate,
    InjectFault,
    Token,
    WireError,
    encode,
)

_number = st.integers(0, 2**63)
_time = st.floats(allow_nan=False)
MESSAGE = st.one_of(
    st.builds(Cancel, _number),
    st.builds(ClearCache),
    st.builds(Token, _number, st.text()),
    st.builds(Failed, _number, st.text(), st.text()),
    st.builds(InjectFault, st.text(), st.dictionaries(st.text(), st.integers(0, 9))),
    st.builds(
        Generate, _number, st.text(), st.text(), st.integers(1, 99), _time, _time, _number,
        st.lists(st.text(), max_size=4), st.booleans(), _time, st.booleans(),
    ),
    st.builds(
        Finished, _number, st.text(), st.text(), _number, _number, _number, *[_time] * 4
    ),
)  # fmt: skip


@given(st.lists(MESSAGE, max_size=6), st.lists(st.integers(1, 50)))
def test_messages_survive_however_the_stream_is_cut(messages, cuts):
    stream = b"".join(map(encode, messages))
    decoder, received = FrameDecoder(), []
    for size in cuts:
        received += decoder.feed(stream[:size])
        stream = stream[size:]
    received += decoder.feed(stream)
    assert received == messages


@given(st.binary(max_size=64))
def test_any_frame_is_a_message_or_a_wire_error(body):
    frame = struct.pack(">I", len(body)) + body
    try:
        (message,) = FrameDecoder().feed(frame)
    except WireError:
        return
    assert encode(message)


def test_a_length_beyond_the_limit_is_refused_before_it_is_read():
    with pytest.raises(WireError, match="limit"):
        FrameDecoder().feed(struct.pack(">I", MAX_FRAME_BYTES + 1))


def test_a_message_beyond_the_limit_is_not_sent():
    with pytest.raises(WireError, match="Token takes"):
        encode(Token(1, "x" * (MAX_FRAME_BYTES + 1)))

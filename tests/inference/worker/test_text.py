from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inference.worker.text import TextStream

BYTES = st.lists(
    st.one_of(st.text(max_size=5).map(str.encode), st.binary(max_size=3)), max_size=8
).map(b"".join)


def _decode(tokens):
    """A byte-level tokenizer: one byte a token."""
    return bytes(tokens).decode(errors="replace")


@given(BYTES, st.lists(st.integers(1, 4), max_size=30), st.booleans())
def test_the_parts_add_up_to_the_text_however_it_is_read(data, sizes, concatenates):
    stream = TextStream(_decode, concatenates=concatenates)
    parts, at = [], 0
    for size in sizes:
        at = min(at + size, len(data))
        stream.read(data[:at])
        parts.append(stream.take())
    stream.read(data, last=True)
    parts.append(stream.take(last=True))
    assert "".join(parts) == stream.text == _decode(data)


@given(st.text(), st.lists(st.integers(1, 4), max_size=30), st.booleans())
def test_no_part_of_a_character_is_shown(text, sizes, concatenates):
    data = text.encode()
    stream, at = TextStream(_decode, concatenates=concatenates), 0
    for size in sizes:
        at += size
        stream.read(data[:at])
        assert text.startswith(stream.text)


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), max_size=30),
)
def test_nothing_of_a_stop_text_or_after_it_is_sent(text, stops, sizes):
    stream, sent, at = TextStream(_decode, stops), "", 0
    for size in [*sizes, *[1] * 30]:
        at = min(at + size, len(text))
        stream.read(text[:at].encode())
        sent += stream.take()
        # Reading several tokens at once may meet two stop texts; the earlier one counts.
        cut = min((i for i in (text[:at].find(s) for s in stops) if i >= 0), default=None)
        assert sent == text[: len(sent)]
        assert stream.stopped == (cut is not None)
        if stream.stopped:
            assert stream.text == sent == text[:cut]
            return
    stream.read(text.encode(), last=True)
    assert sent + stream.take(last=True) == text


def test_a_tokenizer_that_writes_a_first_token_differently_gives_the_same_text():
    """Like those of SentencePiece: a leading space belongs to the text unless it comes first."""
    words = ["▁one", "▁two", "teen", "▁three"]
    tokenizer = Tokenizer.from_str(
        '{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":null,'
        '"post_processor":null,"truncation":null,"padding":null,'
        '"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":false},'
        '"model":{"type":"WordLevel","vocab":{"▁one":0,"▁two":1,"teen":2,"▁three":3},'
        '"unk_token":"▁one"}}'
    )
    assert tokenizer.decode([1]) == "two"
    stream, sent = TextStream(tokenizer.decode), ""
    ids = [0, 1, 2, 3]
    for length in range(1, 5):
        stream.read(ids[:length])
        sent += stream.take()
    assert sent == "".join(words).replace("▁", " ").strip()

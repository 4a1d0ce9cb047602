from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard import markup
from dashboard.components import EventRow, Tile
from dashboard.palette import Tone
from dashboard.status import Badge

HOSTILE = "<img src=x onerror=alert(1)>`</div><script>alert(2)</script>\"' javascript:"


@pytest.mark.parametrize(
    ("template", "data"),
    [
        ("note", {"tone": Tone.OK, "sentence": HOSTILE, "detail": HOSTILE, "big": True}),
        ("heading", {"title": HOSTILE, "aside": HOSTILE}),
        ("muted", {"text": HOSTILE}),
        ("tiles", {"tiles": [Tile(HOSTILE, HOSTILE, HOSTILE, HOSTILE, spark=[])]}),
        (
            "bar",
            {
                "title": HOSTILE,
                "badges": [Badge(HOSTILE, Tone.OK), Badge(HOSTILE, Tone.CRITICAL)],
                "simulated": True,
                "time": "",
                "down": [HOSTILE],
            },
        ),
        (
            "events",
            {
                "title": HOSTILE,
                "rows": [EventRow("", "", Tone.OK, HOSTILE, HOSTILE, HOSTILE)],
                "origin": True,
                "nothing": "",
            },
        ),
        ("counts", {"title": HOSTILE, "rows": [(3, HOSTILE)], "nothing": ""}),
        (
            "action",
            {
                "name": HOSTILE,
                "where": HOSTILE,
                "badge": Badge(HOSTILE),
                "reason": HOSTILE,
                "facts": [(HOSTILE, HOSTILE)],
                "proof": [HOSTILE],
            },
        ),
    ],
)
def test_data_never_becomes_markup(template: str, data: dict[str, object]) -> None:
    rendered = markup.render(template, **data)
    assert "<script" not in rendered
    assert "<img" not in rendered
    assert "&lt;script&gt;" in rendered


def test_a_template_that_lacks_data_fails_instead_of_showing_nothing() -> None:
    with pytest.raises(Exception, match="sentence"):
        markup.render("note", tone=Tone.OK, big=True, detail="")


def test_commands_in_our_own_sentences_stand_out() -> None:
    rendered = markup.render("note", tone=Tone.OK, sentence="Run `galen up`.", detail="", big=True)
    assert "<code>galen up</code>" in rendered


@settings(deadline=None)
@given(st.text())
def test_plain_text_has_no_active_markdown_left(text: str) -> None:
    escaped = markup.plain(text)
    assert "\n" not in escaped
    bare = re.sub(r"\\[\\`*_{}\[\]()#+\-.!|<>~$:^=&@/]", "", escaped)
    assert not set(bare) & set("\\`*_{}[]()#+-.!|<>~$:^=&@/")
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(text.split())

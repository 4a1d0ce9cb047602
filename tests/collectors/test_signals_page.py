from __future__ import annotations

from pathlib import Path

from collectors.signals import catalogue
from collectors.signals_page import signals_page

PAGE = Path(__file__).parents[2] / "docs" / "signals.md"


def test_the_page_is_what_the_catalogue_says() -> None:
    assert PAGE.read_text("utf-8") == signals_page(), (
        "write it again: python -m galen signals --markdown > docs/signals.md"
    )


def test_every_signal_is_on_the_page_in_a_whole_row() -> None:
    rows = [line for line in signals_page().splitlines() if line.startswith("| `")]
    named = {row.split("`")[1] for row in rows}
    assert set(catalogue()) <= named
    signals = [row for row in rows if row.split("`")[1] in catalogue() and "<br>" in row]
    assert len(signals) == len(catalogue())
    assert {row.replace("\\|", "").count("|") for row in signals} == {8}

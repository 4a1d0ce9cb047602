from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright

from reporting.reports.model import Precision, Report, Status, Window
from reporting.reports.render import Format, escape_markdown, render

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("form", [Format.MARKDOWN, Format.HTML])
def test_a_fixed_window_renders_as_it_always_did(report: Report, form: Format) -> None:
    """Set GALEN_UPDATE_GOLDEN=1 to accept what is rendered now, and read the difference."""
    path = GOLDEN / f"report.{form.value}"
    text = render(report, form)
    if os.environ.get("GALEN_UPDATE_GOLDEN"):
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


def test_json_holds_the_whole_report(report: Report) -> None:
    assert Report.model_validate_json(render(report, Format.JSON)) == report


class Page(HTMLParser):
    """What a browser would see of tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs


def hostile(report: Report) -> Report:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)> [x](javascript:alert(1)) *b*"
    incident = report.incidents[0]
    changed = incident.model_copy(
        update={
            "title": evil,
            "entity": evil,
            "id": evil,
            "cause_title": evil,
            "cause_entity": evil,
            "next_check": evil,
            "timeline": tuple(
                row.model_copy(update={"summary": evil}) for row in incident.timeline
            ),
            "evidence": tuple(
                row.model_copy(update={"statement": evil}) for row in incident.evidence
            ),
            "actions": tuple(
                row.model_copy(update={"reason": evil, "proof": (evil,), "action": evil})
                for row in incident.actions
            ),
            "charts": tuple(
                chart.model_copy(update={"entity": evil, "signal": evil, "unit": evil})
                for chart in incident.charts
            ),
        }
    )
    return report.model_copy(update={"incidents": (changed,), "verdict": evil, "notes": (evil,)})


def test_the_page_needs_nothing_and_runs_nothing(report: Report) -> None:
    for each in (report, hostile(report)):
        page = Page(render(each, Format.HTML))
        assert not page.tags & {"script", "img", "iframe", "link", "object", "form", "base"}
        names = {name for name, _ in page.attributes}
        assert not names & {"src", "style", "onerror", "onclick", "onload", "xlink:href", "href"}
        contents = [value for name, value in page.attributes if name == "content" and value]
        assert any(value.startswith("default-src 'none'; style-src 'sha256-") for value in contents)
    text = render(report, Format.HTML)
    assert "http://" not in text
    assert "https://" not in text


def test_the_policy_names_the_style_sheet_that_is_there(report: Report) -> None:
    text = render(report, Format.HTML)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
    assert f"sha256-{digest}" in text.replace("&#43;", "+")


def test_markdown_has_no_markup_of_others(report: Report) -> None:
    text = render(hostile(report), Format.MARKDOWN)
    assert not re.search(r"(?<!\\)<(script|img)", text)
    assert "[x](javascript" not in text.replace("\\[x\\]", "")


@given(st.text(max_size=200))
def test_escaped_text_stays_on_its_line_and_starts_nothing(text: str) -> None:
    found = str(escape_markdown(text))
    assert len(found.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[<>|`*\[\]]", found)
    assert not re.match(r"\s*(#|[-+=]|\d+[.)]\s)", found)


def test_many_incidents_stay_a_small_file(report: Report) -> None:
    first = report.incidents[1]
    many = tuple(
        first.model_copy(update={"id": f"inc-{n}", "charts": first.charts if n < 12 else ()})
        for n in range(200)
    )
    full = report.model_copy(update={"incidents": many, "incidents_left_out": 7})
    text = render(full, Format.HTML)
    assert len(text.encode()) < 500_000
    assert "7 more incidents" in text


def empty(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "generated_seconds": 5.0,
        "window": Window(
            since_seconds=0.0,
            until_seconds=60.0,
            timezone="Asia/Kolkata",
            minutes=1,
            observed_minutes=0,
        ),
        "status": Status.UNKNOWN,
        "verdict": "Nothing was found, but too little was seen.",
        "simulated": False,
        "precision": Precision(incidents=0, judged=0, right=0),
    }
    return Report(**{**fields, **changes})


@pytest.mark.parametrize("form", list(Format))
def test_an_empty_report_renders_and_says_what_is_missing(form: Format) -> None:
    text = render(empty(), form)
    assert "too little was seen" in text
    if form is not Format.JSON:
        assert "No GPU has samples in this window" in text
        assert "05:30:00" in text  # the zone's own time
        assert "undefined" not in text.lower()


@pytest.mark.integration
def test_a_browser_shows_it_without_complaint(report: Report, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail("no Chromium here: install it, or unset GALEN_REQUIRE_SERVICES")
        pytest.skip("no Chromium here")
    path = tmp_path / "report.html"
    path.write_text(render(report, Format.HTML), "utf-8")
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 420, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        border = page.evaluate("getComputedStyle(document.querySelector('.card')).borderLeftWidth")
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        browser.close()
    assert said == []
    assert border == "5px"  # the policy lets the style sheet through
    assert overflow <= 0

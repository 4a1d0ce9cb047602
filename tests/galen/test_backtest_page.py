"""The page of a backtest in a real browser: drawn, quiet on the network, and deaf to hostile names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import sync_playwright

from analysis.detection.backtest import LabelledFault, backtest
from analysis.detection.settings import DetectionSettings
from galen.backtest.findings import Findings
from galen.backtest.page import render_html

pytestmark = pytest.mark.integration

CHROMIUM = Path(os.environ.get("GALEN_CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
START = 1_800_000_000.0
HOSTILE = 'service/<img src=x onerror="document.title=1">'


def page_text() -> str:
    times = START + np.arange(900.0)
    queue = 2.0 + np.random.default_rng(0).normal(0, 0.2, 900)
    for start in (200, 400, 600, 800):
        queue[start : start + 4] += 60.0
    missed = np.full(900, 1.0)
    frame = pd.concat(
        [
            pd.DataFrame({"time": times, "entity": name, "signal": signal, "value": values})
            for name, signal, values in (
                (HOSTILE, "llm_queue_depth", queue),
                ("service/b", "llm_error_ratio", 0.01 * missed),
            )
        ]
    )
    faults = [
        LabelledFault(START + 400, START + 410, [HOSTILE]),
        LabelledFault(START + 500, START + 520, ["service/b"]),
    ]
    result = backtest(frame, DetectionSettings(), START, START + 900, labels=faults)
    found = Findings.of(result, source="x.csv", judged=True, nominal_tail_rate=0.005)
    assert found.advice.proposals
    return render_html(found)


def test_a_browser_draws_the_page_and_asks_nobody(tmp_path: Path) -> None:
    if not CHROMIUM.exists():
        reason = f"no Chromium at {CHROMIUM}; install it or set GALEN_CHROMIUM"
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    path = tmp_path / "backtest.html"
    path.write_text(page_text(), "utf-8")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        plots = page.locator("svg.plot")
        assert plots.count() == 4
        for number in range(plots.count()):
            box = plots.nth(number).bounding_box()
            assert box is not None
            assert box["width"] > 300
            assert box["height"] > 100
        # Lines with a length, a band, an alarm: a path that holds no number would have none.
        lengths = page.locator("svg.plot path.line").evaluate_all(
            "lines => lines.map(line => line.getTotalLength())"
        )
        assert lengths
        assert min(lengths) > 50
        assert page.locator("svg.plot rect.alarm").count() >= 3
        assert page.locator("svg.plot polygon.band").count() >= 3
        assert page.locator("svg.timeline rect.right").count() == 1
        assert page.locator("svg.timeline rect.wrong").count() == 3
        assert page.get_by_text("nearest to a missed fault").count() == 1
        assert page.get_by_text('<img src=x onerror="document.title=1">').count() > 0
        assert page.title() == "Galen backtest"
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0
        if os.environ.get("GALEN_SCREENSHOT"):
            page.screenshot(path=os.environ["GALEN_SCREENSHOT"], full_page=True)
        browser.close()
    assert asked == [path.as_uri()]
    assert said == []

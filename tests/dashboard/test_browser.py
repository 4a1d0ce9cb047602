"""The dashboard in a real browser: what only shows there, such as fragments that refresh."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from collectors.contract import Sample
from collectors.store.sqlite import SqliteSeriesStore
from dashboard.data import StateDirectory
from dashboard.launch import streamlit_command, streamlit_environment
from dashboard.settings import DashboardSettings
from healing.actions import ActionState

pytestmark = pytest.mark.integration

CHROMIUM = Path(os.environ.get("GALEN_CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
OPEN_ID, PROPOSAL, SERVICE = "inc-20261121-0007", "act-0012", "service/llm"


Browse = Callable[[str], Page]


@dataclass(frozen=True)
class Running:
    """A dashboard that answers."""

    address: str
    state_dir: Path


@pytest.fixture(scope="module")
def running(
    build: Callable[..., Path], now: float, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    if not CHROMIUM.exists():
        reason = f"no Chromium at {CHROMIUM}; install it or set GALEN_CHROMIUM"
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tmp_path = tmp_path_factory.mktemp("dashboard")
    state_dir = build(tmp_path / "var", now, seconds=1200, cadence_seconds=20)
    settings = DashboardSettings(port=port, refresh_seconds=1, stale_after_seconds=600)
    environment = {**os.environ, **streamlit_environment(settings, state_dir)}
    with (tmp_path / "streamlit.log").open("w") as log:
        process = subprocess.Popen(
            streamlit_command(settings, state_dir),
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_answering(address, process)
            yield Running(address, state_dir)
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_answering(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "streamlit ended; see streamlit.log"
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/_stcore/health", timeout=2).status_code == 200:
                return
        time.sleep(0.2)
    pytest.fail("streamlit did not answer within a minute")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def browse(running: Running, browser: Browser) -> Iterator[Browse]:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(30_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def visit(path: str) -> Page:
        page.goto(f"{running.address}/{path}")
        page.wait_for_selector(".g.bar")
        return page

    yield visit
    page.close()
    at_home = (running.address, "data:", "blob:", "about:")
    outside = [url for url in asked if not url.startswith(at_home)]
    assert outside == [], "the dashboard asks nobody on the internet"


def test_a_first_visit_to_a_deep_link_has_the_frame_and_the_page(
    running: Running, browse: Browse
) -> None:
    page = browse("gpus")
    page.wait_for_selector(".gpu.critical")
    page.wait_for_selector(".js-plotly-plot")
    assert page.locator(".js-plotly-plot").count() == 6
    assert page.get_by_role("link", name="Incidents").count() >= 1
    assert page.locator("[data-testid=stException]").count() == 0


def test_tiles_follow_the_store_by_themselves(running: Running, browse: Browse) -> None:
    page = browse("")
    page.wait_for_selector(".g.tiles .tile")
    store = SqliteSeriesStore(running.state_dir / "series.sqlite")
    for value in (777.0, 888.0):
        store.write([Sample(time.time(), SERVICE, "llm_requests_per_second", value)])
        page.wait_for_function(
            f"document.querySelector('.g.tiles').innerText.includes('{value:.0f}')"
        )
    store.close()
    assert page.locator("[data-testid=stException]").count() == 0
    assert page.locator(".g.bar").count() == 1


def test_a_proposal_is_approved_with_a_name(running: Running, browse: Browse) -> None:
    page = browse(f"incidents?incident={OPEN_ID}")
    page.get_by_role("button", name="Approve…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Approve now").click()
    dialog.get_by_text("Enter your name first").wait_for()
    assert StateDirectory(running.state_dir).action(PROPOSAL).state is ActionState.PROPOSED
    dialog.get_by_label("Your name").fill("ann")
    dialog.get_by_label("Your name").press("Enter")
    dialog.get_by_role("button", name="Approve now").click()
    dialog.wait_for(state="hidden")
    page.locator(".chip", has_text="approved").first.wait_for()
    action = StateDirectory(running.state_dir).action(PROPOSAL)
    assert (action.state, action.actor) == (ActionState.APPROVED, "ann")
    assert page.locator("[data-testid=stException]").count() == 0


def test_the_chosen_range_travels_with_the_link_and_across_pages(
    running: Running, browse: Browse
) -> None:
    page = browse("service?range=15m")
    page.wait_for_selector(".js-plotly-plot")
    page.get_by_role("link", name="Overview").first.click()
    page.locator(".heading", has_text="last 15m").wait_for()
    assert "range=15m" in page.url


def test_a_report_cannot_run_a_script(running: Running, browse: Browse) -> None:
    page = browse("reports?report=2026-11-20.html")
    frame = page.frame_locator("iframe").frame_locator("iframe")
    frame.get_by_role("heading", name="Galen, 20 November").wait_for()
    assert "taken over" not in page.title()
    assert frame.locator("html").evaluate("document.title") != "ran"

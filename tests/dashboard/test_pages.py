"""Every page, run by Streamlit's own test runner over a real state directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import dashboard
from dashboard.data import StateDirectory
from healing.actions import ActionState
from healing.ledger import Ledger

Point = Callable[..., None]
APP = Path(dashboard.__file__).with_name("app.py")
PAGES = ("gpus", "service", "incidents", "healing", "reports")
OPEN_ID, OLD_ID, PROPOSAL = "inc-20261121-0007", "inc-20261121-0006", "act-0012"


def visit(page: str = "overview", **query: str) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=30).run()
    if page != "overview" or query:
        app.switch_page(f"views/{page}.py")
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(
        element.proto.body
        for element in app.get("html")
        if not element.proto.body.startswith("<style>")
    )


def charts(app: AppTest) -> list[str]:
    return [element.proto.spec for element in app.get("plotly_chart")]


@pytest.fixture
def story(state_dir: Path, dashboard_at: Point) -> Path:
    dashboard_at(state_dir)
    return state_dir


def test_the_overview_says_how_things_are(story: Path) -> None:
    page = html(visit())
    assert "GPU 1 throttles and the service slows down (box1 / gpu 1" in page
    assert "Waiting for approval: lower power limit" in page
    assert "collectors 4/4 up" in page
    assert "healing: approve" in page
    assert "SIMULATED DATA" in page
    assert "The engine of llm hangs" in page


def test_gpus_stand_worst_first_with_their_lines(story: Path) -> None:
    app = visit("gpus")
    page = html(app)
    assert page.index("GPU 1</b>") < page.index("GPU 0</b>")
    assert "SW thermal" in page
    assert page.count(">simulated<") == 2
    assert len(charts(app)) == 6
    assert app.selectbox(key="gpu").value == "host/box1/gpu/1"


def test_the_service_page_draws_every_panel_with_incidents_and_actions(story: Path) -> None:
    app = visit("service", range="6h")
    assert len(charts(app)) == 9
    assert "p99" in charts(app)[0]
    assert "restart engine" in charts(app)[0]
    assert '"type":"rect"' in charts(app)[0]
    assert "level 1, reduced service" in html(app)


def test_a_standing_service_page_offers_a_refresh(story: Path) -> None:
    app = visit("service")
    app.toggle(key="live").set_value(False).run()
    assert not app.exception
    assert "Refresh" in [button.label for button in app.button]
    assert len(charts(app)) == 9


def test_incidents_are_listed_open_first(story: Path) -> None:
    page = html(visit("incidents"))
    assert page.index("GPU is overheating") < page.index("Engine hang")


def test_an_incident_is_shown_down_to_its_evidence(story: Path) -> None:
    app = visit("incidents", incident=OPEN_ID)
    page = html(app)
    assert "temperature rose 25 °C above normal before anything else moved" in page
    assert "58 to 71 °C" in page
    assert "Against it" in page
    assert "the inlet temperature of box1" in page
    assert "cooldown: the same action ran 4 min ago" in page
    assert "Slack #oncall was told" in page
    assert len(charts(app)) == 5
    assert "onset" in charts(app)[0]


def test_a_resolved_incident_has_nothing_to_approve(story: Path) -> None:
    app = visit("incidents", incident=OLD_ID)
    assert "step age 9.0 s → 0.02 s" in html(app)
    assert not [button for button in app.button if (button.key or "").startswith("approve")]


def test_an_unknown_incident_is_explained(story: Path) -> None:
    assert "There is no incident" in html(visit("incidents", incident="nope<b>"))


@pytest.mark.parametrize(
    ("page", "key"), [("incidents", "incident"), ("overview", "overview"), ("healing", "healing")]
)
def test_an_approval_changes_the_ledger(story: Path, page: str, key: str) -> None:
    app = visit(page, **({"incident": OPEN_ID} if page == "incidents" else {}))
    app.button(key=f"approve-{key}-{PROPOSAL}").click().run()
    app.text_input(key="actor-answer").set_value("ann")
    app.button(key="confirm").click().run()
    assert not app.exception
    assert not app.error
    action = StateDirectory(story).action(PROPOSAL)
    assert (action.state, action.actor) == (ActionState.APPROVED, "ann")
    keys = [button.key or "" for button in app.button]
    assert not [name for name in keys if name.startswith("approve")]


def test_somebody_else_was_faster(story: Path) -> None:
    app = visit("incidents", incident=OPEN_ID)
    app.button(key=f"reject-incident-{PROPOSAL}").click().run()
    journal = StateDirectory(story).journal
    assert journal is not None
    Ledger(journal).approve(PROPOSAL, "bob", 1.0)
    app.text_input(key="actor-answer").set_value("ann")
    app.button(key="confirm").click().run()
    [error] = app.error
    assert "Nothing was changed" in error.value
    assert StateDirectory(story).action(PROPOSAL).actor == "bob"


def test_feedback_needs_a_name_and_then_stands_in_the_timeline(story: Path) -> None:
    app = visit("incidents", incident=OPEN_ID)
    app.button(key="feedback-right").click().run()
    assert "name" in app.error[0].value
    app.text_input(key="actor-feedback").set_value("ann")
    app.text_input(key="feedback-note").set_value("<i>fan</i> broken")
    app.button(key="feedback-partly").click().run()
    assert not app.error
    assert "GPU is overheating: partly, &lt;i&gt;fan&lt;/i&gt; broken" in html(app)


def test_the_audit_shows_numbers_reasons_and_the_chain(story: Path) -> None:
    page = html(visit("healing"))
    assert "1 of 1 verified" in page
    assert "intact" in page
    assert "cooldown: the same action ran 4 min ago and waits 10 min" in page
    assert "Healing is allowed." in page


def test_the_kill_switch_is_thrown_and_cleared(story: Path) -> None:
    app = visit("healing")
    app.button(key="switch").click().run()
    app.text_input(key="actor-switch").set_value("ann")
    app.text_input(key="switch-reason").set_value("maintenance")
    app.button(key="confirm-switch").click().run()
    assert "maintenance" in (story / "healing.stop").read_text()
    assert "Healing is stopped by the kill switch." in html(app)
    assert "healing stopped" in html(app)
    app.button(key="switch").click().run()
    app.text_input(key="actor-switch").set_value("ann")
    app.button(key="confirm-switch").click().run()
    assert not (story / "healing.stop").exists()


def test_reports_are_listed_and_the_html_is_caged(story: Path) -> None:
    app = visit("reports")
    names = [name for name in app.selectbox(key="report").options if ".html" in name]
    app.selectbox(key="report").set_value("2026-11-20.html").run()
    [frame] = app.get("iframe")
    assert names
    assert 'sandbox=""' in frame.proto.srcdoc
    assert "<script" not in frame.proto.srcdoc
    assert "&lt;script&gt;" in frame.proto.srcdoc
    app.selectbox(key="report").set_value("2026-11-20.md").run()
    assert "# Galen, 20 November" in app.code[0].value
    app.selectbox(key="report").set_value("2026-11-20.json").run()
    assert app.json[0].value == '{"incidents": 2}'


@pytest.mark.parametrize("page", ["overview", *PAGES])
def test_an_empty_state_says_what_to_do(page: str, tmp_path: Path, dashboard_at: Point) -> None:
    dashboard_at(tmp_path)
    shown = html(visit(page))
    assert "no data yet" in shown
    assert "<code>galen " in shown or "<code>healing.mode</code>" in shown
    assert 'class="dot ok"' not in shown


@pytest.mark.parametrize("page", ["overview", *PAGES])
def test_stale_data_is_told_loudly_and_nothing_is_green(
    page: str, state_dir: Path, dashboard_at: Point
) -> None:
    dashboard_at(state_dir, 900.0)
    shown = html(visit(page))
    assert "data is 15 min old" in shown
    assert "No new data since" in shown or "The present state is unknown" in shown
    assert 'class="dot ok"' not in shown.partition("What happened lately")[0]
    assert "healthy</span>" not in shown


@pytest.mark.parametrize("page", ["overview", *PAGES])
def test_broken_files_are_explained_on_a_page_that_still_stands(
    page: str, tmp_path: Path, dashboard_at: Point
) -> None:
    (tmp_path / "series.sqlite").write_bytes(b"\x00broken" * 500)
    (tmp_path / "journal.sqlite").write_bytes(b"\x00broken" * 500)
    dashboard_at(tmp_path)
    shown = html(visit(page))
    assert "series.sqlite" in shown
    assert "galen doctor" in shown


def test_hostile_names_stay_text(state_dir: Path, dashboard_at: Point) -> None:
    journal = StateDirectory(state_dir).journal
    assert journal is not None
    incident = journal.incident(OPEN_ID)
    assert incident is not None
    hostile = "<script>alert(1)</script> [x](javascript:alert(1)) :red[!]"
    journal.save_incident(incident.model_copy(update={"title": hostile}))
    dashboard_at(state_dir)
    for app in (visit(), visit("incidents"), visit("incidents", incident=OPEN_ID), visit("gpus")):
        assert "<script" not in html(app)
    links = [element.proto.label for element in visit("incidents").get("page_link")]
    assert any(r"\[x\]\(javascript\:alert\(1\)\)" in label for label in links)

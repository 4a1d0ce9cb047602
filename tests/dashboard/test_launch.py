from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from dashboard.launch import streamlit_command, streamlit_environment
from dashboard.palette import COLOURS, PANEL, Tone
from dashboard.settings import DashboardSettings


def test_the_command_is_quiet_local_and_complete(tmp_path: Path) -> None:
    command = streamlit_command(DashboardSettings(port=8765), tmp_path)
    assert command[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(command[4]).is_file()
    assert {
        "--server.port=8765",
        "--server.address=127.0.0.1",
        "--server.headless=true",
        "--browser.gatherUsageStats=false",
    } <= set(command)
    assert command[-2:] == ["--", f"--state-dir={tmp_path}"]


def test_the_theme_is_packaged_and_agrees_with_the_palette(tmp_path: Path) -> None:
    command = streamlit_command(DashboardSettings(), tmp_path)
    [theme] = [part.partition("=")[2] for part in command if part.startswith("--theme.base=")]
    colours = tomllib.loads(Path(theme).read_text("utf-8"))["theme"]
    assert colours["base"] == "dark"
    assert colours["secondaryBackgroundColor"] == PANEL
    assert colours["redColor"] == COLOURS[Tone.CRITICAL]


def test_no_folder_named_pages_lies_beside_the_entry_script(tmp_path: Path) -> None:
    # Streamlit would serve its files alone, without the frame, on a first visit to a deep link.
    entry = Path(streamlit_command(DashboardSettings(), tmp_path)[4])
    assert not (entry.parent / "pages").exists()


def test_the_environment_carries_settings_state_and_mode(tmp_path: Path) -> None:
    variables = streamlit_environment(
        DashboardSettings(title="x"), tmp_path, healing_mode="approve"
    )
    assert variables["GALEN_STATE_DIR"] == str(tmp_path)
    assert variables["GALEN_DASHBOARD__TITLE"] == "x"
    assert variables["GALEN_HEALING__MODE"] == "approve"

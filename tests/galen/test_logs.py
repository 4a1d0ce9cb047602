from __future__ import annotations

import io
import json
import sys

import pytest
import structlog
from pydantic import SecretStr

from galen.logs import LogFormat, LogSettings, configure_logs


def test_secrets_do_not_reach_the_log_and_token_counts_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    structlog.reset_defaults()
    configure_logs(LogSettings(level="info", format=LogFormat.JSON))
    structlog.get_logger("test").info(
        "sent", url=SecretStr("https://hooks"), admin_token="abc", max_tokens=7, completion_tokens=3
    )
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["url"] == line["admin_token"] == "***"
    assert (line["max_tokens"], line["completion_tokens"]) == (7, 3)
    structlog.reset_defaults()


def test_a_standard_error_that_was_replaced_and_closed_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    structlog.reset_defaults()
    before = io.StringIO()
    with monkeypatch.context() as replaced:
        replaced.setattr(sys, "stderr", before)
        configure_logs(LogSettings(level="info", format=LogFormat.JSON))
        log = structlog.get_logger("test")
        log.info("first")
    before.close()
    log.info("second")
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["event"] == "second"
    structlog.reset_defaults()

"""The service executor against the bundled service itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from healing.executors.contract import Command, Outcome
from healing.executors.service import ServiceExecutor
from healing.settings import ServiceTarget

pytestmark = pytest.mark.integration

_START_SECONDS = 60.0


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceTarget]:
    state_dir = tmp_path_factory.mktemp("state")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "galen", "serve", "--port", str(port)]
    log = (state_dir / "serve.log").open("w+")
    process = subprocess.Popen(
        [*command, "--state-dir", str(state_dir)],
        env={**os.environ, "GALEN_INFERENCE__MODELS": '["demo-lm"]'},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_until_ready(url, process, Path(log.name))
        token_file = state_dir / "service" / "admin_token"
        yield ServiceTarget(name="llm", url=url, token_file=token_file)
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health/ready", timeout=2.0).is_success:
                return
        except httpx.HTTPError:
            if process.poll() is not None:
                break
        time.sleep(0.2)
    pytest.fail(f"the service did not become ready:\n{log.read_text()[-2000:]}")


@pytest.fixture
def executor(target: ServiceTarget) -> Iterator[ServiceExecutor]:
    made = ServiceExecutor([target])
    yield made
    made.close()


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("set_degradation_level", {"level": 2}),
        ("set_limits", {"max_queue": 8}),
        ("set_limits", {"requests_per_second": 6.0}),
        ("set_drain", {"drain": True}),
    ],
)
def test_a_temporary_change_is_made_and_taken_back(
    executor: ServiceExecutor, operation: str, parameters: dict[str, object]
) -> None:
    command = Command(operation, "service/llm", parameters, "a test")
    before = executor.snapshot(command, 5.0)
    assert executor.execute(command, 5.0).outcome is Outcome.DONE
    during = executor.snapshot(command, 5.0)
    assert {name: during[name] for name in parameters} == parameters
    assert executor.undo(command, before, 5.0).outcome is Outcome.DONE
    assert executor.snapshot(command, 5.0) == before


@pytest.mark.parametrize("operation", ["clear_cache", "reload_model", "restart_engine"])
def test_a_lasting_change_is_accepted(executor: ServiceExecutor, operation: str) -> None:
    result = executor.execute(Command(operation, "service/llm", {}, "a test"), 20.0)
    assert result.outcome is Outcome.DONE, result.detail


def test_a_rollback_with_nothing_to_go_back_to_is_refused_in_words(
    executor: ServiceExecutor,
) -> None:
    command = Command("rollback_model", "service/llm")
    assert executor.snapshot(command, 5.0) == {"model": "demo-lm", "version": 1}
    result = executor.execute(command, 20.0)
    assert result.outcome is Outcome.NOT_DONE
    assert "409" in result.detail

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from healing.errors import ExecutionError
from healing.executors.contract import Command, Outcome
from healing.executors.service import ServiceExecutor
from healing.settings import ServiceTarget

TOKEN = "a-secret-token"


@dataclass
class FakeService:
    """The admin API of the bundled service, as far as healing uses it, over real HTTP."""

    url: str = ""
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    state: dict[str, Any] = field(
        default_factory=lambda: {
            "degradation": {"level": 0, "reason": ""},
            "draining": False,
            "limits": {"max_queue": 64, "max_slots": 8, "requests_per_second": None},
            "models": {"demo": {"version": 2}},
        }
    )
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    delay_seconds: float = 0.0
    drip: bool = False

    def answer(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        if path in self.answers:
            return self.answers[path]
        if path == "/admin/state":
            return 200, json.dumps(self.state).encode()
        if path == "/v1/models":
            return 200, b'{"data": [{"id": "demo"}, {"id": "other"}]}'
        if path == "/admin/degradation":
            self.state["degradation"]["level"] = body["level"]
        if path == "/admin/limits":
            self.state["limits"].update(body)
        if path == "/admin/drain":
            self.state["draining"] = body["drain"]
        return 200, b"{}"


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()

    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            # The caller may give up, as it should.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                super().handle()

        def _serve(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            fake.calls.append((self.command, self.path, body))
            fake.headers.append({k.lower(): v for k, v in self.headers.items()})
            if self.headers.get("authorization") != f"Bearer {TOKEN}" and "admin" in self.path:
                status, answer = 401, b'{"error": "token"}'
            else:
                status, answer = fake.answer(self.command, self.path, body)
            time.sleep(fake.delay_seconds)
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            for start in range(0, len(answer), 1 if fake.drip else 65536):
                self.wfile.write(answer[start : start + (1 if fake.drip else 65536)])
                if fake.drip:
                    self.wfile.flush()
                    time.sleep(0.05)

        do_GET = do_POST = do_PUT = _serve  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def executor(service: FakeService) -> Iterator[ServiceExecutor]:
    made = ServiceExecutor([ServiceTarget(name="llm", url=service.url, token=SecretStr(TOKEN))])
    yield made
    made.close()


def command(operation: str, **parameters: Any) -> Command:
    return Command(operation, "service/llm", parameters, "because", "inc-1/1/x")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (command("restart_engine"), ("POST", "/admin/engine/restart", {"reason": "because"})),
        (command("reload_model"), ("POST", "/admin/models/demo/reload", {})),
        (command("reload_model", version=3), ("POST", "/admin/models/demo/reload", {"version": 3})),
        (command("rollback_model"), ("POST", "/admin/models/demo/rollback", {})),
        (
            command("set_degradation_level", level=2),
            ("PUT", "/admin/degradation", {"level": 2, "reason": "because"}),
        ),
        (command("set_limits", max_queue=8), ("PUT", "/admin/limits", {"max_queue": 8})),
        (command("clear_cache"), ("POST", "/admin/cache/clear", {})),
        (command("set_drain", drain=True), ("PUT", "/admin/drain", {"drain": True})),
    ],
    ids=lambda value: value.operation if isinstance(value, Command) else "",
)
def test_each_operation_is_one_call_of_the_admin_api(
    executor: ServiceExecutor, service: FakeService, given: Command, expected: Any
) -> None:
    assert executor.execute(given, 5.0).outcome is Outcome.DONE
    assert service.calls[-1] == expected
    assert service.headers[-1]["idempotency-key"] == "inc-1/1/x"
    assert [call for call in service.calls if call[0] != "GET"] == [expected]


@pytest.mark.parametrize(
    ("given", "undo", "restored"),
    [
        (
            command("set_degradation_level", level=2),
            {"level": 0},
            ("/admin/degradation", "level", 0),
        ),
        (
            command("set_limits", max_queue=8),
            {"max_queue": 64, "max_slots": 8, "requests_per_second": None},
            ("/admin/limits", "max_queue", 64),
        ),
        (command("set_drain", drain=True), {"drain": False}, ("/admin/drain", "drain", False)),
        (
            command("rollback_model"),
            {"model": "demo", "version": 2},
            ("/admin/models/demo/reload", "version", 2),
        ),
    ],
    ids=lambda value: value.operation if isinstance(value, Command) else "",
)
def test_what_was_before_is_read_and_restored(
    executor: ServiceExecutor, service: FakeService, given: Command, undo: Any, restored: Any
) -> None:
    assert executor.snapshot(given, 5.0) == undo
    executor.execute(given, 5.0)
    assert executor.undo(given, undo, 5.0).outcome is Outcome.DONE
    path, key, value = restored
    assert service.calls[-1][1] == path
    assert service.calls[-1][2][key] == value


def test_only_the_limits_that_were_set_are_restored(
    executor: ServiceExecutor, service: FakeService
) -> None:
    given = command("set_limits", requests_per_second=6.0)
    undo = executor.snapshot(given, 5.0)
    executor.execute(given, 5.0)
    executor.undo(given, undo, 5.0)
    assert service.calls[-1][2] == {"requests_per_second": None}


def test_what_a_person_changed_since_is_left_alone(
    executor: ServiceExecutor, service: FakeService
) -> None:
    given = command("set_degradation_level", level=2)
    undo = executor.snapshot(given, 5.0)
    executor.execute(given, 5.0)
    service.state["degradation"]["level"] = 4
    result = executor.undo(given, undo, 5.0)
    assert (result.outcome, service.state["degradation"]["level"]) == (Outcome.DONE, 4)
    assert "somebody has changed it" in result.detail


def test_a_level_is_never_lowered(executor: ServiceExecutor, service: FakeService) -> None:
    service.state["degradation"]["level"] = 3
    result = executor.execute(command("set_degradation_level", level=2), 5.0)
    assert result.outcome is Outcome.NOT_DONE
    assert "degradation level 3 already" in result.detail
    assert service.state["degradation"]["level"] == 3


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, Outcome.NOT_DONE),
        (404, Outcome.NOT_DONE),
        (409, Outcome.NOT_DONE),
        (429, Outcome.NOT_DONE),
        (500, Outcome.UNKNOWN),
        (501, Outcome.NOT_DONE),
        (502, Outcome.UNKNOWN),
        (503, Outcome.NOT_DONE),
        (202, Outcome.DONE),
        (302, Outcome.UNKNOWN),
    ],
)
def test_answers(
    executor: ServiceExecutor, service: FakeService, status: int, outcome: Outcome
) -> None:
    service.answers["/admin/engine/restart"] = (status, b"the budget\n is used up")
    result = executor.execute(command("restart_engine"), 5.0)
    assert result.outcome is outcome
    if outcome is not Outcome.DONE:
        assert f"answered {status}" in result.detail
        assert "the budget is used up" in result.detail


def test_a_wrong_token_is_told_and_never_shown(service: FakeService) -> None:
    target = ServiceTarget(name="llm", url=service.url, token=SecretStr("wrong-secret"))
    result = ServiceExecutor([target]).execute(command("restart_engine"), 5.0)
    assert result.outcome is Outcome.NOT_DONE
    assert "check the admin token" in result.detail
    assert "wrong-secret" not in result.detail
    assert "wrong-secret" not in repr(target)


def test_a_token_file_is_read_at_each_call(service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "token"
    executor = ServiceExecutor([ServiceTarget(name="llm", url=service.url, token_file=path)])
    missing = executor.execute(command("restart_engine"), 5.0)
    assert missing.outcome is Outcome.NOT_DONE
    assert str(path) in missing.detail
    path.write_text(f"{TOKEN}\n", "utf-8")
    assert executor.execute(command("restart_engine"), 5.0).outcome is Outcome.DONE


def test_no_answer_in_time_is_unknown(executor: ServiceExecutor, service: FakeService) -> None:
    service.delay_seconds = 0.6
    result = executor.execute(command("restart_engine"), 0.2)
    assert result.outcome is Outcome.UNKNOWN
    assert "ReadTimeout" in result.detail


def test_an_answer_that_drips_ends_at_the_deadline(
    executor: ServiceExecutor, service: FakeService
) -> None:
    service.drip = True
    service.answers["/admin/engine/restart"] = (200, b" " * 200)
    result = executor.execute(command("restart_engine"), 0.3)
    assert (result.outcome, "took too long" in result.detail) == (Outcome.UNKNOWN, True)


def test_an_endless_answer_is_cut(executor: ServiceExecutor, service: FakeService) -> None:
    service.answers["/admin/engine/restart"] = (200, b"x" * (1 << 21))
    assert "longer than 1 MiB" in executor.execute(command("restart_engine"), 5.0).detail


def test_a_service_that_is_not_there_changes_nothing() -> None:
    executor = ServiceExecutor([ServiceTarget(name="llm", url="http://127.0.0.1:9")])
    result = executor.execute(command("restart_engine"), 2.0)
    assert result.outcome is Outcome.NOT_DONE
    assert "Is the service running?" in result.detail
    with pytest.raises(ExecutionError, match="cannot connect"):
        executor.snapshot(command("set_drain", drain=True), 2.0)


@pytest.mark.parametrize(
    ("path", "answer", "given"),
    [
        ("/admin/state", b"not json", command("set_degradation_level", level=2)),
        ("/admin/state", b"[]", command("set_degradation_level", level=2)),
        ("/admin/state", b"{}", command("set_degradation_level", level=2)),
        ("/admin/state", b"{}", command("set_limits", max_queue=8)),
        ("/admin/state", b"{}", command("set_drain", drain=True)),
        ("/admin/state", b"{}", command("rollback_model")),
        ("/v1/models", b'{"data": []}', command("rollback_model")),
    ],
)
def test_what_cannot_be_read_is_told_and_nothing_is_changed(
    executor: ServiceExecutor, service: FakeService, path: str, answer: bytes, given: Command
) -> None:
    service.answers[path] = (200, answer)
    with pytest.raises(ExecutionError):
        executor.snapshot(given, 5.0)
    assert {call[0] for call in service.calls} == {"GET"}


def test_a_redirect_does_not_carry_the_token_away() -> None:
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(307, headers={"location": "http://evil.example/"})

    executor = ServiceExecutor(
        [ServiceTarget(name="llm", url="http://good.example", token=SecretStr(TOKEN))],
        transport=httpx.MockTransport(handle),
    )
    executor.execute(command("restart_engine"), 5.0)
    assert seen == ["http://good.example/admin/engine/restart"]


def test_a_model_name_cannot_leave_its_place_in_the_path(service: FakeService) -> None:
    target = ServiceTarget(
        name="llm", url=service.url, token=SecretStr(TOKEN), model="../../admin/drain?x="
    )
    ServiceExecutor([target]).execute(command("rollback_model"), 5.0)
    assert service.calls[-1][1] == "/admin/models/..%2F..%2Fadmin%2Fdrain%3Fx%3D/rollback"


def test_it_controls_a_service_and_what_belongs_to_it(executor: ServiceExecutor) -> None:
    assert executor.controls("service/llm") == "service/llm"
    assert executor.controls("service/llm/replica/0") == "service/llm"
    assert executor.controls("service/llm2") is None
    assert executor.controls("fleet") is None


def test_an_operation_that_it_does_not_know_is_not_done(executor: ServiceExecutor) -> None:
    assert executor.execute(command("reboot"), 5.0).outcome is Outcome.NOT_DONE
    assert executor.undo(command("clear_cache"), {}, 5.0).outcome is Outcome.NOT_DONE
    stranger = Command("restart_engine", "service/other")
    assert executor.execute(stranger, 5.0).outcome is Outcome.NOT_DONE

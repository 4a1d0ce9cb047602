"""How the service ends: under its own server, in a process of its own."""

import os
import signal
import threading
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.integration


class Client:
    """Talks with a service in another process."""

    def __init__(self, served, token):
        self.url = f"http://127.0.0.1:{served.port}"
        self.headers = {"authorization": f"Bearer {token}"}
        self.statuses = []
        self.threads = []

    def fault(self, name, **parameters):
        answer = httpx.post(
            f"{self.url}/admin/faults",
            json={"fault": name, "parameters": parameters},
            headers=self.headers,
        )
        assert answer.status_code == 201, answer.text

    def models(self):
        return httpx.get(f"{self.url}/api/system/status").json()["models"]

    def active(self):
        model = self.models()["tiny"]
        return model["running"] + model["queue_depth"]

    def ask(self, count, **fields):
        """Send requests, each from a thread of its own."""

        def send():
            body = {"prompt": "hello", **fields}
            try:
                answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60.0)
            except httpx.TransportError as error:
                self.statuses.append(type(error).__name__)
            else:
                whole = not fields.get("stream") or answer.text.rstrip().endswith("data: [DONE]")
                self.statuses.append(answer.status_code if whole else "cut off")

        threads = [threading.Thread(target=send) for _ in range(count)]
        for thread in threads:
            thread.start()
        self.threads += threads

    def join(self):
        for thread in self.threads:
            thread.join(60)
        return self.statuses


@pytest.fixture
def serve(tools, repository, tmp_path):
    """Start a service whose canary does not mix with the requests that are counted."""

    def begin(**settings):
        values = {"canary_interval_seconds": 600.0, "max_output_tokens": 64, **settings}
        return tools.serve(repository, tmp_path, **values)

    return begin


def test_sigterm_answers_what_runs_and_what_waits(serve, tools):
    with serve(drain_seconds=60.0) as served:
        client = Client(served, tools.token)
        client.fault("engine_slow", step_seconds=0.01)
        client.ask(6)
        client.ask(3, stream=True)
        tools.eventually(lambda: client.active() == 9, "two run and seven wait")
        served.process.send_signal(signal.SIGTERM)
        assert client.join() == [200] * 9
        assert served.process.wait(60) in {0, -signal.SIGTERM}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{client.url}/health/live")


def test_while_it_drains_nobody_new_gets_in(serve, tools):
    with serve(drain_seconds=60.0) as served:
        client = Client(served, tools.token)
        client.fault("engine_slow", step_seconds=0.05)
        client.ask(2)
        tools.eventually(lambda: client.active() == 2, "two run")
        served.process.send_signal(signal.SIGTERM)

        def refused():
            try:
                answer = httpx.post(f"{client.url}/v1/completions", json={"prompt": "late"})
            except httpx.TransportError:
                return True
            return answer.status_code == 503 and answer.json()["error"]["reason"] == "draining"

        tools.eventually(refused, "new requests are refused")
        assert client.join() == [200] * 2
        assert served.process.wait(60) in {0, -signal.SIGTERM}


def test_a_second_signal_does_not_wait(serve, tools):
    with serve(drain_seconds=600.0, progress_budget_seconds=600.0) as served:
        client = Client(served, tools.token)
        pids = [model["worker_pid"] for model in client.models().values()]
        client.fault("engine_hang")
        client.ask(1)
        tools.eventually(lambda: client.active() == 1, "one hangs")
        served.process.send_signal(signal.SIGTERM)
        tools.eventually(lambda: _closed(client), "it drains")
        assert served.process.poll() is None
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) in {0, 1, -signal.SIGTERM}
        tools.eventually(lambda: not any(map(_alive, pids)), "no worker is left")
        assert len(client.join()) == 1, "the client is not left hanging"


def test_a_signal_to_the_whole_group_loses_nothing(serve, tools):
    """As systemd and Ctrl-C in a shell do: the workers are told to end at the same time."""
    with serve(drain_seconds=60.0) as served:
        client = Client(served, tools.token)
        client.fault("engine_slow", step_seconds=0.01)
        client.ask(8)
        tools.eventually(lambda: client.active() == 8, "two run and six wait")
        for model in client.models().values():
            os.kill(model["worker_pid"], signal.SIGTERM)
        served.process.send_signal(signal.SIGTERM)
        assert client.join() == [200] * 8
        assert served.process.wait(60) in {0, -signal.SIGTERM}


def test_a_worker_that_dies_while_the_service_drains_is_replaced(serve, tools):
    with serve(drain_seconds=60.0) as served:
        client = Client(served, tools.token)
        client.fault("engine_slow", step_seconds=0.02)
        client.ask(6)
        tools.eventually(lambda: client.active() == 6, "two run and four wait")
        pid = client.models()["tiny"]["worker_pid"]
        served.process.send_signal(signal.SIGTERM)
        os.kill(pid, signal.SIGKILL)
        statuses = client.join()
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) >= 4, "those that waited are answered"
        assert served.process.wait(60) in {0, -signal.SIGTERM}


def test_workers_end_when_the_front_is_killed_even_in_a_hang(serve, tools):
    with serve() as served:
        client = Client(served, tools.token)
        pids = [model["worker_pid"] for model in client.models().values()]
        client.fault("engine_hang")
        served.process.kill()
        tools.eventually(lambda: not any(map(_alive, pids)), "no orphans")


def _closed(client):
    try:
        httpx.get(f"{client.url}/health/live")
    except httpx.TransportError:
        return True
    return False


def _alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
        return status.split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False

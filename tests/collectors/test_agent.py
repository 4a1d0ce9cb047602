from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from collectors.agent import PushAgent, run_agent
from collectors.contract import Collection, Sample, Support
from collectors.poller import Poller
from collectors.remote_write import RemoteWriteClient, SpoolSender
from collectors.settings import CollectorsSettings, GpuMode, PushSettings
from collectors.spool import Spool

READY_SECONDS = 30.0


class Counter:
    """Counts its calls, so that a lost one shows."""

    name = "counter"
    deadline_seconds = 5.0

    def __init__(self) -> None:
        self.calls = 0

    def is_supported(self) -> Support:
        return Support(supported=True)

    def collect(self, now_seconds: float) -> Collection:
        self.calls += 1
        return Collection([Sample(now_seconds, "host/box1", "host_load", float(self.calls))])

    def close(self) -> None:
        return


class Prometheus:
    """A real server that can be stopped and started again over the same data."""

    def __init__(self, binary: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "prometheus.yml"
        config.write_text("global: {scrape_interval: 1m}\n")
        self._command = [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-remote-write-receiver",
            "--log.level=error",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        eventually(self._ready)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=READY_SECONDS)
            self._process = None

    def samples(self, selector: str) -> list[tuple[float, float]]:
        """Return the stored samples of one series over the last hour."""
        query = urllib.parse.urlencode({"query": f"{selector}[1h]"})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return [(float(at), float(value)) for one in found for at, value in one["values"]]

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "Prometheus ended"
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def eventually(check: Callable[[], Any]) -> Any:
    waiter = threading.Event()
    for _ in range(int(READY_SECONDS / 0.1)):
        if result := check():
            return result
        waiter.wait(0.1)
    raise AssertionError(f"not within {READY_SECONDS:g} s: {check}")


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    binary = shutil.which("prometheus")
    if binary is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail("GALEN_REQUIRE_SERVICES=1 and there is no prometheus on the PATH")
        pytest.skip("there is no prometheus on the PATH")
    server = Prometheus(binary, tmp_path)
    yield server
    server.stop()


@contextmanager
def running(agent: PushAgent) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=agent.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.integration
def test_no_poll_is_lost_while_the_server_and_the_agent_restart(
    prometheus: Prometheus, tmp_path: Path
) -> None:
    counter = Counter()
    stored = 'host_load{entity="host/box1",instance="box1"}'

    @contextmanager
    def pushing() -> Iterator[None]:
        spool = Spool(tmp_path / "spool.sqlite", max_bytes=1_000_000)
        poller = Poller([counter])
        with httpx.Client(trust_env=False) as http:
            client = RemoteWriteClient(f"{prometheus.url}/api/v1/write", http, deadline_seconds=5)
            sender = SpoolSender(spool, client, batch_samples=20, backoff_seconds=(0.05, 0.5))
            agent = PushAgent(
                poller, spool, sender, interval_seconds=0.05, labels={"instance": "box1"}
            )
            with running(agent):
                yield
        poller.close()
        spool.close()

    def calls_reach(count: int) -> None:
        eventually(lambda: counter.calls >= count)

    prometheus.start()
    with pushing():
        eventually(lambda: prometheus.samples(stored))
        prometheus.stop()
        calls_reach(counter.calls + 20)
    with pushing():  # the agent restarts while the server is away
        calls_reach(counter.calls + 20)
        prometheus.start()
        eventually(lambda: len(prometheus.samples(stored)) >= 30)
        prometheus.stop()
        prometheus.start()
        calls_reach(counter.calls + 10)
    with pushing():  # sends what the last stop may have left
        eventually(lambda: len(prometheus.samples(stored)) >= 50)
    values = [value for _, value in prometheus.samples(stored)]
    assert values == [float(number) for number in range(1, counter.calls + 1)]


@pytest.mark.integration
def test_this_machine_reads_back_from_a_real_server(prometheus: Prometheus, tmp_path: Path) -> None:
    prometheus.start()
    settings = CollectorsSettings(
        host_name="box1",
        gpu_mode=GpuMode.NONE,
        push=PushSettings(
            url=f"{prometheus.url}/api/v1/write", interval_seconds=1, labels={"cluster": "test"}
        ),
    )
    stop = threading.Event()
    thread = threading.Thread(
        target=run_agent, args=(settings,), kwargs={"state_dir": tmp_path, "stop": stop}
    )
    thread.start()
    try:
        found = eventually(
            lambda: prometheus.samples(
                'host_memory_used_ratio{host="box1",instance="box1",cluster="test",job="galen-agent"}'
            )
        )
        assert 0 < found[0][1] < 1
        assert (
            eventually(lambda: prometheus.samples("galen_agent_dropped_samples_total"))[0][1] == 0
        )
    finally:
        stop.set()
        thread.join()


def test_an_agent_without_a_server_fills_its_buffer_and_counts_what_it_drops(
    tmp_path: Path,
) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    spool = Spool(tmp_path / "spool.sqlite", max_bytes=3_000)
    poller = Poller([Counter()])
    with httpx.Client(transport=httpx.MockTransport(refuse)) as http:
        sender = SpoolSender(spool, RemoteWriteClient("http://receiver.test/write", http))
        times = iter(range(1000, 2000))
        agent = PushAgent(
            poller, spool, sender, interval_seconds=1, labels={}, clock=lambda: float(next(times))
        )
        polled = sum(agent.poll() for _ in range(20))
        assert sender.step() is not None
    state = spool.state()
    assert state.dropped_samples > 0
    assert state.waiting_samples + state.dropped_samples == polled
    poller.close()

from __future__ import annotations

import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from collectors.agent import PushAgent, run_agent
from collectors.contract import Collection, Sample, Support
from collectors.poller import Poller
from collectors.remote_write import RemoteWriteClient, SpoolSender
from collectors.settings import CollectorsSettings, GpuMode, PushSettings
from collectors.spool import Spool, SpoolError

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


def eventually(check: Callable[[], Any]) -> Any:
    waiter = threading.Event()
    for _ in range(int(READY_SECONDS / 0.1)):
        if result := check():
            return result
        waiter.wait(0.1)
    raise AssertionError(f"not within {READY_SECONDS:g} s: {check}")


@pytest.fixture(params=["prometheus-in-order", "victoria-metrics"])
def receiver(
    request: pytest.FixtureRequest, live: SimpleNamespace, tmp_path: Path
) -> Iterator[Any]:
    """A receiver that has not been started."""
    folder = tmp_path / "receiver"
    folder.mkdir()
    server = live.servers[request.param](folder)
    server.kind = request.param
    yield server
    server.stop()


class AgentProcess:
    """`galen agent` as people run it. It scrapes one target, which counts its polls."""

    def __init__(self, folder: Path, url: str, target: Any, **push: object) -> None:
        given = {"interval_seconds": 1, "longest_backoff_seconds": 1, **push}
        config = folder / "galen.toml"
        config.write_text(
            f"""\
[collectors]
gpu_mode = "none"
host_name = "edge"
[collectors.push]
{chr(10).join(f"{name} = {value}" for name, value in given.items())}
[[collectors.services]]
name = "target"
url = "http://127.0.0.1:{target.port}"
canary = {{ enabled = false }}
"""
        )
        self.state = folder / "state"
        self._target = target
        self._command = [
            sys.executable, "-m", "galen", "agent", "--push", url,
            "--config", str(config), "--state-dir", str(self.state),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    def stop(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=READY_SECONDS)
            self._process = None

    def polls(self, count: int) -> None:
        """Return when so many polls more are in the buffer."""
        # The one after them begins when they have been written.
        wanted = self._target.scrapes + count + 1
        eventually(lambda: self._target.scrapes >= wanted)


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
    receiver: Any, tmp_path: Path
) -> None:
    counter = Counter()
    stored = 'host_load{entity="host/box1",instance="box1"}'

    @contextmanager
    def pushing() -> Iterator[None]:
        spool = Spool(tmp_path / "spool.sqlite", max_bytes=1_000_000)
        poller = Poller([counter])
        with httpx.Client(trust_env=False) as http:
            client = RemoteWriteClient(receiver.write_url, http, deadline_seconds=5)
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

    receiver.start()
    with pushing():
        eventually(lambda: receiver.samples(stored))
        receiver.stop()
        calls_reach(counter.calls + 20)
    with pushing():  # the agent restarts while the server is away
        calls_reach(counter.calls + 20)
        receiver.start()
        eventually(lambda: len(receiver.samples(stored)) >= 30)
        receiver.stop()
        receiver.start()
        calls_reach(counter.calls + 10)
    with pushing():  # sends what the last stop may have left
        eventually(lambda: len(receiver.samples(stored)) >= 50)
    wanted = [float(number) for number in range(1, counter.calls + 1)]
    eventually(lambda: [value for _, value in receiver.samples(stored)] == wanted)
    eventually(lambda: receiver.now(stored) == [])  # an agent that stops says so


@pytest.mark.integration
def test_no_poll_is_lost_while_agent_and_server_are_killed(
    receiver: Any, live: SimpleNamespace, tmp_path: Path
) -> None:
    # VictoriaMetrics says yes before its last seconds are on the disk: killing it loses what it has
    # taken, which no sender can know of.
    hard = signal.SIGKILL if receiver.kind == "prometheus-in-order" else signal.SIGTERM
    polls = 'galen_agent_polls_total{instance="edge",job="galen-agent"}'
    agent = AgentProcess(tmp_path, receiver.write_url, live.Target())
    receiver.start()
    agent.start()
    try:
        eventually(lambda: len(receiver.samples(polls)) >= 2)
        receiver.stop(hard)
        agent.polls(3)
        agent.stop(signal.SIGKILL)
        agent.start()
        agent.polls(3)
        receiver.start()
        eventually(lambda: [v for _, v in receiver.samples(polls)].count(2.0) == 2)
        agent.stop(signal.SIGTERM)
        receiver.stop(hard)
        receiver.start()
    finally:
        agent.stop(signal.SIGKILL)
    spool = Spool(agent.state / "agent_spool.sqlite", max_bytes=10**9)
    left = spool.state()
    spool.close()
    assert (left.waiting_samples, left.dropped_samples) == (0, 0)
    values = [value for _, value in eventually(lambda: receiver.samples(polls))]
    second = values.index(1.0, 1)  # the agent counts from one again after its restart
    for run in (values[:second], values[second:]):
        assert run == [float(number) for number in range(1, len(run) + 1)]
    assert second >= 5


@pytest.mark.integration
def test_a_full_buffer_keeps_the_newest_and_counts_the_rest(
    receiver: Any, live: SimpleNamespace, tmp_path: Path
) -> None:
    agent = AgentProcess(tmp_path, receiver.write_url, live.Target(), spool_megabytes=0.012)
    agent.start()
    try:
        agent.polls(10)
        receiver.start()
        dropped = eventually(lambda: receiver.samples("galen_agent_dropped_samples_total"))
        assert max(value for _, value in dropped) > 0
        polls = [value for _, value in receiver.samples("galen_agent_polls_total")]
        assert polls[0] > 1  # the oldest went
        assert polls == [polls[0] + place for place in range(len(polls))]  # and nothing else did
    finally:
        agent.stop(signal.SIGTERM)


@pytest.mark.integration
def test_this_machine_reads_back_from_a_real_server(receiver: Any, tmp_path: Path) -> None:
    receiver.start()
    settings = CollectorsSettings(
        host_name="box1",
        gpu_mode=GpuMode.NONE,
        push=PushSettings(url=receiver.write_url, interval_seconds=1, labels={"cluster": "test"}),
    )
    stop = threading.Event()
    thread = threading.Thread(
        target=run_agent, args=(settings,), kwargs={"state_dir": tmp_path, "stop": stop}
    )
    thread.start()
    try:
        found = eventually(
            lambda: receiver.samples(
                'host_memory_used_ratio{host="box1",instance="box1",cluster="test",job="galen-agent"}'
            )
        )
        assert 0 < found[0][1] < 1
        assert eventually(lambda: receiver.samples("galen_agent_dropped_samples_total"))[0][1] == 0
    finally:
        stop.set()
        thread.join()


def test_polls_that_cannot_be_written_are_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", max_bytes=1_000_000)
    poller = Poller([Counter()])
    times = iter(range(1000, 2000))
    agent = PushAgent(
        poller, spool, SimpleNamespace(), interval_seconds=1, labels={},  # type: ignore[arg-type]
        clock=lambda: float(next(times)),
    )  # fmt: skip
    agent.poll()
    whole, spool.append = spool.append, _full_disk  # type: ignore[method-assign,assignment]
    with pytest.raises(SpoolError):
        agent.poll()
    spool.append = whole  # type: ignore[method-assign]
    lost = agent.poll()
    payload = spool.peek(max_samples=10**6)[-1].payload
    # The last poll tells of the one before it: as many samples as this one has.
    named = payload.index(b"galen_agent_dropped_samples_total")
    assert struct.pack("<d", float(lost)) in payload[named - 100 : named + 200]
    poller.close()
    spool.close()


def _full_disk(payload: bytes, samples: int) -> int:
    raise SpoolError("no space left")


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

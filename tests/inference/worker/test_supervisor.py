from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.settings import InferenceSettings
from inference.worker.heartbeat import Heartbeat, WorkerState
from inference.worker.launch import Usage
from inference.worker.supervisor import RestartReason, Supervisor, SupervisorState

SETTINGS = InferenceSettings(
    restart_budget=3, load_attempts=2, backoff_initial_seconds=1.0, progress_budget_seconds=15.0,
    terminate_grace_seconds=2.0, memory_limit_bytes=2**30, load_budget_seconds=60.0,
)  # fmt: skip


@dataclass
class FakeWorker:
    pid: int = 1
    status: int | None = None
    record: Heartbeat = field(default_factory=Heartbeat)
    memory: int = 0
    signals: list[str] = field(default_factory=list)
    obeys: bool = True

    def poll(self):
        return self.status

    def terminate(self):
        self.signals.append("TERM")
        if self.obeys:
            self.status = 0

    def kill(self):
        self.signals.append("KILL")
        self.status = -9

    def heartbeat(self):
        return self.record

    def usage(self):
        return Usage(self.memory, 1.0)

    def close(self):
        self.signals.append("closed")


class World:
    """A supervisor with a clock that the test turns."""

    def __init__(self, settings=SETTINGS):
        self.now = 100.0
        self.workers = []
        self.lost = []
        self.pending = None
        self.supervisor = Supervisor("m", settings, self.launch, self, lambda: self.now)
        self.supervisor.start()

    def launch(self):
        self.workers.append(FakeWorker(pid=len(self.workers) + 1))
        return self.workers[-1]

    def worker_launched(self, worker):
        pass

    def worker_lost(self, reason, *, planned):
        self.lost.append((reason, planned))

    def pending_since(self):
        return self.pending

    @property
    def worker(self):
        return self.workers[-1]

    @property
    def status(self):
        return self.supervisor.status

    def tick(self, seconds=0.0):
        self.now += seconds
        self.supervisor.tick()

    def ready(self):
        self.worker.record = Heartbeat(state=WorkerState.IDLE, ready_at=self.now)
        self.tick()
        assert self.status.state is SupervisorState.RUNNING


@pytest.fixture
def world():
    world = World()
    world.ready()
    return world


def test_a_crash_is_seen_counted_and_restarted_after_the_backoff(world):
    world.worker.status = -11
    world.tick()
    assert world.status.state is SupervisorState.BACKOFF
    assert world.status.restarts == {RestartReason.CRASH: 1}
    assert world.lost == [("the worker ended with signal 11", False)]
    world.tick(0.9)
    assert len(world.workers) == 1
    world.tick(0.2)
    assert (len(world.workers), world.status.state) == (2, SupervisorState.STARTING)


def test_the_backoff_doubles_and_starts_anew_after_a_stable_time(world):
    waits = []
    for _ in range(2):
        world.worker.status = 1
        world.tick()
        waits.append(world.status.retry_at - world.now)
        world.tick(waits[-1])
        world.ready()
    assert waits == [1.0, 2.0]
    world.tick(SETTINGS.stable_seconds + 1)
    world.worker.status = 1
    world.tick()
    assert world.status.retry_at - world.now == 1.0


def test_a_spent_budget_keeps_the_engine_down_until_somebody_asks(world):
    for _ in range(3):
        world.worker.status = 1
        world.tick()
        world.tick(world.status.retry_at - world.now)
        world.ready()
    world.worker.status = 1
    world.tick()
    assert world.status.state is SupervisorState.FAILED
    assert "3 restarts within" in world.status.reason
    workers = len(world.workers)
    world.tick(10_000)
    assert len(world.workers) == workers
    world.supervisor.restart("try again")
    world.tick()
    assert world.status.state is SupervisorState.STARTING
    assert world.status.budget_left == 3


def test_old_restarts_do_not_count(world):
    for _ in range(6):
        world.worker.status = 1
        world.tick(SETTINGS.restart_window_seconds)
        world.tick(world.status.retry_at - world.now)
        world.ready()
    assert world.status.state is SupervisorState.RUNNING


def test_pending_work_without_a_step_is_a_hang(world):
    world.pending = world.now
    world.tick(14.9)
    assert world.status.state is SupervisorState.RUNNING
    world.tick(0.2)
    assert world.status.state is SupervisorState.TERMINATING
    assert world.worker.signals == ["KILL"], "it reads no message, so a grace would only cost time"
    world.tick()
    assert world.status.restarts == {RestartReason.HANG: 1}
    assert not world.lost[0][1]


def test_progress_and_idleness_are_no_hang(world):
    world.tick(3600)
    assert world.status.state is SupervisorState.RUNNING
    world.pending = world.now
    for _ in range(10):
        world.worker.record.last_step_at = world.now
        world.tick(10)
    assert world.status.state is SupervisorState.RUNNING


def test_a_stuck_batch_is_a_hang_even_if_the_front_forgot_it(world):
    world.worker.record.batch_size = 1
    world.worker.record.step_started_at = world.now
    world.tick(15.1)
    assert world.status.ending is RestartReason.HANG


def test_memory_beyond_the_limit_ends_the_worker(world):
    world.worker.memory = 2**30 + 1
    world.tick()
    world.tick()
    assert world.status.restarts == {RestartReason.MEMORY: 1}


def test_a_swap_may_hold_two_versions_in_memory_but_not_three(world):
    world.supervisor.holds_two = True
    world.worker.memory = 2**31 - 1
    world.tick()
    world.tick()
    assert world.status.restarts == {}
    world.worker.memory = 2**31 + 1
    world.tick()
    world.tick()
    assert world.status.restarts == {RestartReason.MEMORY: 1}


def test_a_worker_that_does_not_obey_is_killed_after_the_grace(world):
    world.worker.obeys = False
    world.supervisor.restart("new flags")
    world.tick()
    world.tick(1.9)
    assert world.worker.signals == ["TERM"]
    world.tick(0.2)
    assert world.worker.signals == ["TERM", "KILL"]


def test_a_lost_device_is_remembered_until_another_worker_is_ready(world):
    world.worker.record.state = WorkerState.DEVICE_LOST
    world.worker.record.detail = "XID 79"
    world.worker.status = 5
    world.tick()
    assert world.status.device_lost == "XID 79"
    assert "XID 79" in world.status.reason
    world.tick(1.0)
    assert world.status.state is SupervisorState.STARTING
    assert world.status.device_lost == "XID 79"
    world.ready()
    assert world.status.device_lost == ""


def test_a_planned_restart_has_no_backoff_and_costs_no_budget(world):
    world.supervisor.restart("new flags")
    world.tick()
    assert world.workers[0].signals == ["TERM", "closed"]
    assert world.status.state is SupervisorState.STARTING
    assert world.status.restarts == {RestartReason.PLANNED: 1}
    assert world.status.budget_left == 3
    assert world.lost == [("new flags", True)]


def test_loads_that_fail_give_up_with_the_workers_reason():
    world = World()
    for _ in range(2):
        world.worker.record.detail = "INVALID_PROTOBUF"
        world.worker.status = 3
        world.tick()
        world.tick(max(0.0, world.status.retry_at - world.now))
    assert world.status.state is SupervisorState.FAILED
    assert world.status.load_failures == 2
    assert "INVALID_PROTOBUF" in world.status.reason
    assert world.status.restarts == {}


def test_a_load_has_its_own_longer_budget():
    world = World()
    world.pending = world.now
    world.tick(59)
    assert world.status.state is SupervisorState.STARTING
    world.tick(2)
    assert world.status.ending is RestartReason.HANG


def test_stop_ends_the_worker_for_good(world):
    world.supervisor.stop()
    world.tick()
    world.tick()
    assert world.status.state is SupervisorState.STOPPED
    assert world.worker.signals == ["TERM", "closed"]
    world.tick(1000)
    assert len(world.workers) == 1


def test_totals_outlive_a_worker(world):
    world.worker.record.steps = 5
    world.worker.status = 1
    world.tick()
    assert world.status.totals.steps == 5
    assert world.status.totals.cpu_seconds == 1.0


def test_a_launch_that_fails_is_tried_again():
    class Failing(World):
        def launch(self):
            if not self.workers:
                self.workers.append(None)
                raise OSError("too many open files")
            return super().launch()

    world = Failing()
    assert world.status.state is SupervisorState.BACKOFF
    world.tick(1.0)
    assert world.status.state is SupervisorState.STARTING


EVENT = st.sampled_from(
    ["crash", "ready", "hang", "leak", "restart", "wait", "deaf", "load_failed"]
)


@given(st.lists(EVENT, max_size=40))
def test_whatever_happens_counts_agree_and_a_restart_brings_it_back(events):
    world = World()
    for event in events:
        worker = world.worker
        alive = worker.status is None
        if event == "crash" and alive:
            worker.status = -6
        elif event == "load_failed" and alive and not worker.record.ready:
            worker.status = 3
        elif event == "ready" and alive:
            worker.record = Heartbeat(state=WorkerState.IDLE, ready_at=world.now)
        elif event == "hang":
            world.pending = world.now - 100
        elif event == "leak":
            worker.memory = 2**40
        elif event == "deaf":
            worker.obeys = False
        elif event == "restart":
            world.supervisor.restart("asked")
        world.tick(1.0)
        world.pending = None
    status = world.status
    gone = sum(status.restarts.values()) + status.load_failures
    assert gone >= len(world.workers) - 1
    assert 0 <= status.budget_left <= 3
    world.supervisor.restart("again")
    for _ in range(10):
        world.tick(2.5)
        if world.status.state is SupervisorState.STARTING:
            break
    assert world.status.state is SupervisorState.STARTING

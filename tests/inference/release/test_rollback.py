"""A version that turns out to be worse goes back by itself."""

import threading

import pytest

from inference.release.probation import RollbackReason

pytestmark = pytest.mark.integration


@pytest.fixture
def live(tools, own_repository, tmp_path):
    tools.write_version(own_repository, "tiny", 2, seed=2)
    settings = {
        "probation_seconds": 60.0,
        "probation_minimum_requests": 10,
        "models": ("tiny",),
        "canary_interval_seconds": 0.5,
    }
    with tools.run_service(own_repository, tmp_path / "state", **settings) as running:
        running.admin.post("/admin/models/tiny/reload", json={"version": 1})
        yield running


def state(live):
    return live.admin.get("/admin/state").json()["models"]["tiny"]


def swap(live, version):
    answer = live.admin.post("/admin/models/tiny/reload", json={"version": version})
    assert answer.status_code == 200, answer.text


class Traffic:
    """One client that asks without a pause."""

    def __init__(self, live):
        self._live = live
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.statuses = []

    def _ask(self):
        while not self._stop.is_set():
            answer = self._live.client.post("/v1/completions", json={"prompt": "hello"})
            self.statuses.append(answer.status_code)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(30)


def settle(live):
    """End the probation of the first swap, so that only the one under test remains."""
    releases = live.service.releases
    for serving in releases._serving.values():
        serving.probation = None


def test_a_version_that_became_slow_goes_back_and_is_quarantined(live, tools):
    settle(live)
    with Traffic(live) as traffic:
        tools.eventually(lambda: len(traffic.statuses) > 40, "the old version is known")
        swap(live, 2)
        probation = state(live)["probation"]
        assert (probation["version"], probation["before"]) == (2, 1)
        assert live.metric("model_probation", model="tiny") == 1
        live.fault("engine_slow", step_seconds=0.01)
        tools.eventually(
            lambda: live.metric("model_rollbacks_total", model="tiny") == 1, "it goes back", 60.0
        )
    assert set(traffic.statuses) == {200}, "and nobody noticed"
    now = state(live)
    assert now["version"] == 1
    quarantined = {v["version"]: v["quarantined"] for v in now["versions"]}
    assert "times as long as before" in quarantined[2]
    assert now["probation"] is None
    assert now["last_probation"]["verdict"] == "rolled back"
    assert live.metric("model_rollbacks_total", model="tiny", reason="latency") == 1


def test_a_version_with_a_failing_canary_goes_back(live, tools, monkeypatch):
    """The canary of the new version answers wrong; the old one's does not."""
    settle(live)
    swap(live, 2)
    real = live.service.questions.ask

    async def ask(model, golden):
        wrong = live.service.hosts["tiny"].version == 2
        return "wrong answer" if wrong else await real(model, golden)

    monkeypatch.setattr(live.service.canaries["tiny"], "_ask", ask)
    tools.eventually(
        lambda: live.metric("model_rollbacks_total", reason="canary") == 1, "it goes back"
    )
    assert state(live)["version"] == 1
    tools.eventually(lambda: live.client.get("/health/ready").status_code == 200, "ready again")


def test_a_version_that_kills_its_worker_twice_goes_back(live, tools):
    settle(live)
    swap(live, 2)
    for _ in range(2):
        tools.eventually(lambda: live.service.hosts["tiny"].up, "up")
        if state(live)["version"] == 2:
            live.fault("engine_crash")
            tools.eventually(lambda: not live.service.hosts["tiny"].up, "down")
    tools.eventually(
        lambda: live.metric("model_rollbacks_total", reason="engine") == 1, "it goes back"
    )
    tools.eventually(lambda: live.complete().status_code == 200, "the old one answers")
    assert state(live)["version"] == 1


def test_a_good_version_passes(live, tools):
    settle(live)
    live.service.releases._rules = type(live.service.releases._rules)(1.0, 10, 1.25, 0.01)
    with Traffic(live) as traffic:
        tools.eventually(lambda: len(traffic.statuses) > 40, "the old version is known")
        swap(live, 2)
        tools.eventually(lambda: state(live)["last_probation"] is not None, "a verdict", 60.0)
    last = state(live)["last_probation"]
    assert last["verdict"] == "passed"
    assert state(live)["version"] == 2
    assert all(
        live.metric("model_rollbacks_total", reason=reason.value) == 0 for reason in RollbackReason
    )


def test_a_manual_rollback_is_counted_and_starts_no_probation(live):
    settle(live)
    swap(live, 2)
    assert live.admin.post("/admin/models/tiny/rollback").json()["version"] == 1
    assert live.metric("model_rollbacks_total", reason="manual") == 1
    assert state(live)["probation"] is None

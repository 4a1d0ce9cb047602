"""The repository is emptied under a running service."""

import shutil

import pytest

pytestmark = pytest.mark.integration


def test_without_any_version_left_the_service_says_so_and_lives(tools, own_repository, tmp_path):
    settings = {"restart_budget": 2, "backoff_initial_seconds": 0.05}
    with tools.run_service(own_repository, tmp_path / "state", **settings) as live:
        shutil.rmtree(own_repository / "tiny")
        assert live.complete().status_code == 200, "what is loaded goes on"
        assert live.client.get("/api/system/status").status_code == 200
        live.fault("engine_crash")
        tools.eventually(
            lambda: live.metric("engine_state", model="tiny", state="failed") == 1, "it gives up"
        )
        answer = live.complete()
        assert answer.status_code == 503
        assert "no model 'tiny' in" in answer.json()["error"]["message"]
        assert live.client.get("/health/live").status_code == 200
        assert live.client.get("/health/ready").status_code == 503
        assert live.client.get("/health").status_code == 503
        assert live.client.get("/metrics").status_code == 200
        assert live.client.get("/api/system/status").status_code == 200
        state = live.admin.get("/admin/state")
        assert state.status_code == 200
        assert state.json()["models"]["tiny"]["version"] == 1, "the one it had"
        assert live.client.post("/v2/repository/index", json={}).status_code == 200
        assert live.client.get("/v2/models/tiny").status_code in {200, 503}
        assert live.complete(model="tiny-small").status_code == 200, "the other model serves"
        tools.write_version(own_repository, "tiny", 1, seed=1)
        live.admin.post("/admin/engine/restart", json={"reason": "it is back"})
        tools.eventually(lambda: live.client.get("/health/ready").status_code == 200, "ready")
        assert live.complete().status_code == 200

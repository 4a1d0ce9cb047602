"""Ready without a reason to be."""

import re

import pytest

pytestmark = pytest.mark.integration


def test_no_worker_and_no_loaded_model_is_never_ready(start, probes, tools, own_repository):
    """LitServe #663 and #664: ``all([])`` over no workers was ready."""
    with (
        probes.slow_load(own_repository / "tiny" / "1") as release,
        start(wait_ready=False) as live,
    ):
        for _ in range(50):
            assert probes.statuses(live)[1:] == (503, 503)
            assert live.client.get("/v2/health/ready").status_code == 503
        health = live.client.get("/health").json()
        assert not health["healthy"]
        assert health["layers"]["canary"] == {
            "ok": None, "reason": "no golden prompt was answered yet", "age_seconds": None,
        }  # fmt: skip
        release.set()
        tools.eventually(lambda: probes.statuses(live)[1] == 200, "it is ready once it is loaded")


def test_a_model_that_cannot_be_proven_is_never_ready(start, tools, probes, own_repository):
    """LitServe #664 once more: no golden prompts are no failed golden prompts, and no proof."""
    path = own_repository / "tiny" / "1" / "model.toml"
    path.write_text(path.read_text(encoding="utf-8").partition("[[golden]]")[0], encoding="utf-8")
    with start(wait_ready=False) as live:
        tools.eventually(lambda: live.complete().status_code == 200, "it is loaded")
        tools.eventually(
            lambda: "no golden prompts" in live.client.get("/health/ready").text, "the reason"
        )
        assert probes.statuses(live) == (200, 503, 503)


def test_the_canary_judges_the_whole_answer(start, tools, probes, own_repository):
    """Dynamo #13675: the canary looked at the first chunk only; what came after could be anything."""
    path = own_repository / "tiny" / "1" / "model.toml"
    text = path.read_text(encoding="utf-8")
    # The golden answers begin as the model's do, and end otherwise.
    changed = re.sub(r'expected = "(.*)"', r'expected = "\1!"', text)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    with start(wait_ready=False) as live:
        tools.eventually(lambda: live.complete().status_code == 200, "it is loaded")
        tools.eventually(
            lambda: live.metric("canary_checks_total", model="tiny", outcome="wrong") >= 2, "wrong"
        )
        assert probes.statuses(live) == (200, 503, 503)


def test_a_silent_fallback_to_the_cpu_is_told(start, live, probes):
    """onnxruntime #23372, #17801, #23647: a session without CUDA runs on the CPU and says nothing.

    A GPU is asked for here, and there is none that onnxruntime could use: it falls back for real.
    """
    if live.client.get("/api/system/status").json()["models"]["tiny"]["device"] != "cpu":
        pytest.skip("this machine has a GPU that onnxruntime uses")
    with start(device="cuda") as fallen:
        device = fallen.client.get("/health").json()["layers"]["device"]
        assert (device["ok"], "runs on cpu" in device["reason"]) == (False, True)
        assert fallen.metric("health_status", layer="device") == 0
        assert fallen.metric("engine_device_fallback", model="tiny") == 1
        assert fallen.metric("model_info", model="tiny", device="cpu") == 1


def test_a_fallback_that_is_not_allowed_is_never_ready(start, live, tools, probes):
    """onnxruntime #23372 again, for those who would rather have no service than a slow one."""
    if live.client.get("/api/system/status").json()["models"]["tiny"]["device"] != "cpu":
        pytest.skip("this machine has a GPU that onnxruntime uses")
    settings = {"device": "cuda", "allow_device_fallback": False, "load_attempts": 1}
    with start(wait_ready=False, **settings) as live:
        tools.eventually(
            lambda: live.metric("engine_state", model="tiny", state="failed") == 1, "it gives up"
        )
        assert probes.statuses(live) == (200, 503, 503)
        assert "cuda" in live.client.get("/health/ready").text.lower()

from __future__ import annotations

import pytest

from collectors.presets import PresetError, detect, parse_presets, presets, sources_of
from collectors.signals import catalogue


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["DCGM_FI_DEV_GPU_TEMP", "process_open_fds"], ["dcgm"]),
        (["nv_inference_count", "vllm:prompt_tokens_total"], ["vllm", "triton"]),
        (["llm_requests_received_total"], ["galen"]),
        (["galen_store_readable", "gpu_power_usage_watts"], ["galen_export"]),
        (["my_node_load"], []),
        ([], []),
    ],
)
def test_a_target_is_known_by_its_metrics(names: list[str], kinds: list[str]) -> None:
    assert list(detect(names)) == kinds


def test_sources_of_a_kind_are_its_own_and_of_none_all() -> None:
    assert sources_of(["node"]) == ["node"]
    assert sources_of(["vllm", "triton"]) == ["vllm", "process", "triton"]
    everyone = {source for signal in catalogue().values() for source in signal.names}
    assert set(sources_of([])) == everyone


def test_every_exporter_of_the_catalogue_has_a_preset() -> None:
    named = {source for preset in presets().values() for source in preset.names}
    everyone = {source for signal in catalogue().values() for source in signal.names}
    # What Prometheus itself says of its targets comes from no target.
    assert everyone - named == {"prometheus"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('title = "t"\nport = 1\nnames = []', "detect"),
        ('title = "t"\nport = 1\ndetect = []\nnames = ["moon"]', "no names of"),
        ('title = "t"\nport = 1\ndetect = []\nnames = []\nmystery = 1', "mystery"),
    ],
)
def test_a_fault_names_the_preset(row: str, says: str) -> None:
    with pytest.raises(PresetError, match=rf"\[x\].*{says}"):
        parse_presets(f"[x]\n{row}\n")

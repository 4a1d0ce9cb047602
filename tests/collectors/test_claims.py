from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from collectors.claims import GpuClaims
from collectors.contract import Sample
from collectors.reading import TargetReader


def _sample(
    exporter: str, entity: str, signal: str, value: float, *, at: float = 0.0, uuid: str = "GPU-a"
) -> Sample:
    labels = {"uuid": uuid, **({"exporter": exporter} if exporter else {})}
    return Sample(at, entity, signal, value, labels)


OWN = "host/box/gpu/0"
DCGM = "host/box.example.com/gpu/3"


def _values(samples: list[Sample]) -> dict[tuple[str, str], float]:
    return {(s.entity, s.signal): s.value for s in samples}


def test_one_gpu_of_two_exporters_is_one_entity_and_the_first_hand_wins() -> None:
    claims = GpuClaims()
    samples = [
        _sample("dcgm", DCGM, "gpu_temperature_celsius", 50),
        _sample("dcgm", DCGM, "gpu_sm_active_percent", 70),
        _sample("", OWN, "gpu_temperature_celsius", 51),
        _sample("triton", "host/t/gpu/GPU-a", "gpu_sm_active_percent", 1),
        _sample("", "host/box/gpu/1", "gpu_temperature_celsius", 40, uuid="GPU-b"),
    ]
    with capture_logs() as logs:
        for _ in range(3):
            settled = claims.settle(samples)
    assert _values(settled) == {
        (OWN, "gpu_temperature_celsius"): 51,
        (OWN, "gpu_sm_active_percent"): 70,
        ("host/box/gpu/1", "gpu_temperature_celsius"): 40,
    }
    said = [(line["believed"], line["beside"]) for line in logs]
    assert said == [("nvml", "dcgm"), ("nvml", "triton")]


def test_who_falls_silent_loses_the_claim_after_a_while() -> None:
    claims = GpuClaims(forget_seconds=60)
    both = [_sample("", OWN, "gpu_temperature_celsius", 51)]
    claims.settle([*both, _sample("dcgm", DCGM, "gpu_temperature_celsius", 50)])
    kept = [
        _values(claims.settle([_sample("dcgm", DCGM, "gpu_temperature_celsius", 50, at=at)]))
        for at in (30.0, 61.0, 62.0)
    ]
    assert kept == [
        {},
        {(DCGM, "gpu_temperature_celsius"): 50},
        {(DCGM, "gpu_temperature_celsius"): 50},
    ]


def test_a_gpu_of_one_source_and_everything_else_pass_unchanged() -> None:
    claims = GpuClaims()
    samples = [
        _sample("triton", "host/t/gpu/GPU-a", "gpu_power_usage_watts", 1),
        Sample(0.0, "host/box/gpu/0", "gpu_power_usage_watts", 2, {"simulated": "true"}),
        Sample(0.0, "service/llm", "llm_queue_depth", 3),
    ]
    assert claims.settle(samples) == samples


def test_a_dcgm_exporter_that_is_scraped_twice_is_one_gpu() -> None:
    text = 'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a",Hostname="box"} 50\n'
    by_pod = 'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a",Hostname="exporter-x7"} 50\n'
    samples = [
        sample
        for one in (text, by_pod)
        for sample in TargetReader({"instance": "x:9400"}).take(one, 10.0, 1.0).samples
    ]
    settled = GpuClaims().settle(samples)
    assert _values(settled) == {("host/box/gpu/0", "gpu_temperature_celsius"): 50}


@given(
    st.lists(
        st.builds(
            _sample,
            st.sampled_from(["", "dcgm", "triton", "other"]),
            st.sampled_from([OWN, DCGM, "host/c/gpu/0"]),
            st.sampled_from(["a", "b"]),
            st.floats(0, 1),
            uuid=st.sampled_from(["GPU-a", "GPU-b"]),
        ),
        max_size=30,
        unique_by=lambda one: (
            one.entity,
            one.signal,
            one.labels.get("exporter"),
            one.labels["uuid"],
        ),
    )
)
def test_every_gpu_has_one_entity_and_every_signal_one_source(samples: list[Sample]) -> None:
    settled = GpuClaims().settle(samples)
    for uuid in ("GPU-a", "GPU-b"):
        mine = [one for one in settled if one.labels["uuid"] == uuid]
        assert len({one.entity for one in mine}) <= 1
        assert len({one.signal for one in mine}) == len(mine)
        assert {s.signal for s in samples if s.labels["uuid"] == uuid} == {s.signal for s in mine}


@pytest.mark.parametrize("count", [3])
def test_mig_instances_have_claims_of_their_own(count: int) -> None:
    samples = [
        _sample("", f"{OWN}/mig/{n}.0", "gpu_memory_used_bytes", n, uuid=f"MIG-{n}")
        for n in range(count)
    ]
    assert GpuClaims().settle(samples) == samples


def test_mig_instances_that_carry_the_uuid_of_their_gpu_stay_apart_and_go_with_it() -> None:
    gpu = 'gpu="3",UUID="GPU-a",Hostname="pod"'
    text = (
        f"DCGM_FI_DEV_FB_USED{{{gpu}}} 3\n"
        f'DCGM_FI_DEV_FB_USED{{{gpu},GPU_I_ID="1"}} 1\n'
        f'DCGM_FI_DEV_FB_USED{{{gpu},GPU_I_ID="2"}} 2\n'
    )
    scraped = list(TargetReader({"instance": "x:9400"}).take(text, 10.0, 1.0).samples)
    mib = 1024.0**2
    alone = _values(GpuClaims().settle(scraped))
    assert alone == {
        ("host/pod/gpu/3", "gpu_memory_used_bytes"): 3 * mib,
        ("host/pod/gpu/3/mig/1", "gpu_memory_used_bytes"): mib,
        ("host/pod/gpu/3/mig/2", "gpu_memory_used_bytes"): 2 * mib,
    }
    own = _sample("", OWN, "gpu_memory_used_bytes", 4 * mib, at=10.0)
    assert _values(GpuClaims().settle([*scraped, own])) == {
        (OWN, "gpu_memory_used_bytes"): 4 * mib,
        (f"{OWN}/mig/1", "gpu_memory_used_bytes"): mib,
        (f"{OWN}/mig/2", "gpu_memory_used_bytes"): 2 * mib,
    }

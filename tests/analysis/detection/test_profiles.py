from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.detection.columns import Columns
from analysis.detection.profiles import SeriesProfiles, listed_signals, sensitivity_of
from collectors.contract import SeriesKey
from collectors.signals import catalogue


def profiles(*signals: str) -> SeriesProfiles:
    found = SeriesProfiles()
    found.grow([SeriesKey("a/b", signal) for signal in signals])
    return found


def test_every_listed_signal_is_in_the_catalogue() -> None:
    assert listed_signals() <= set(catalogue())


@pytest.mark.parametrize("signal", sorted(catalogue()))
def test_every_signal_has_a_usable_profile(signal: str) -> None:
    own = sensitivity_of(signal)
    assert own.log_factor > 1
    assert own.minimum_values >= 1
    found = profiles(signal)
    assert found["least"][0] >= 0
    assert found.floor(np.array([0.0]))[0] > 0


@settings(deadline=None)
@given(
    st.floats(0, 1e12), st.sampled_from(["llm_queue_depth", "gpu_temperature_celsius", "unknown"])
)
def test_the_measuring_space_can_be_left_again(value: float, signal: str) -> None:
    found = profiles(signal)
    back = found.inverse(found.forward(np.array([value])))
    assert back[0] == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_what_needs_traffic_may_be_absent() -> None:
    needs = ["llm_request_latency_seconds", "llm_error_ratio", "llm_batch_size", "engine_crashes"]
    always = ["llm_queue_depth", "engine_up", "host_memory_used_ratio", "gpu_temperature_celsius"]
    assert profiles(*needs)["conditional"].all()
    assert not profiles(*always)["conditional"].any()


def test_columns_keep_their_values_and_types_when_they_grow() -> None:
    columns = Columns(level=np.nan, active=False, bits=0)
    columns.grow(3)
    columns["level"][:] = [1, 2, 3]
    columns.grow(200)
    assert columns["level"][:3].tolist() == [1, 2, 3]
    assert np.isnan(columns["level"][3:]).all()
    assert columns["active"].dtype == bool
    assert columns["bits"].dtype.kind == "i"
    with pytest.raises(ValueError, match="'level'"):
        columns.restore({})
    with pytest.raises(ValueError, match="shape"):
        columns.restore({**columns.state(), "bits": np.zeros(3, dtype=int)})


def test_one_profile_takes_many_values_of_its_series() -> None:
    for signal in ("llm_request_latency_seconds", "gpu_temperature_celsius"):
        profile, several = SeriesProfiles(), SeriesProfiles()
        profile.grow([SeriesKey("service/a", signal)])
        several.grow([SeriesKey("service/a", signal)] * 4)
        values = np.array([0.1, 2.0, np.nan, 300.0])
        positions = profile.forward(values)
        np.testing.assert_array_equal(positions, several.forward(values))
        np.testing.assert_allclose(profile.inverse(positions), values)
        np.testing.assert_array_equal(profile.inverse(positions), several.inverse(positions))

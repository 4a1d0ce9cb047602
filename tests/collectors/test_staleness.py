from __future__ import annotations

import math
import struct

import pytest

from collectors.contract import Sample
from collectors.remote_write import encode_write_request
from collectors.staleness import STALE_NAN, EndedSeries


def _load(at: float, host: str = "host/a") -> Sample:
    return Sample(at, host, "host_load", 1.0, {"simulated": "true"})


def test_a_series_that_is_silent_for_long_has_ended_once() -> None:
    ended = EndedSeries(60)
    for at in range(0, 60, 10):
        assert ended.markers(at, [_load(at), _load(at, "host/b")]) == []
    for at in range(60, 111, 10):
        assert ended.markers(at, [_load(at, "host/b")]) == []
    (marker,) = ended.markers(111, [_load(111, "host/b")])
    assert marker[:3] == (111, "host/a", "host_load")
    assert math.isnan(marker.value)
    assert marker.labels == {"simulated": "true"}
    assert ended.markers(120, [_load(120, "host/b")]) == []
    assert [marker.entity for marker in ended.end_all(130)] == ["host/b"]
    assert ended.end_all(131) == []


def test_a_series_that_comes_seldom_is_given_its_time() -> None:
    ended = EndedSeries(60)
    ended.markers(0, [_load(0)])
    ended.markers(50, [_load(50)])
    assert ended.markers(200, []) == []
    assert len(ended.markers(201, [])) == 1


def test_the_marker_keeps_its_bits_on_the_wire() -> None:
    request = encode_write_request([Sample(1.0, "host/a", "host_load", STALE_NAN)], {})
    assert struct.pack("<Q", 0x7FF0000000000002) in request


@pytest.mark.parametrize("last", [1795265274.922, 1000.0005, 1000.0015])
def test_the_end_comes_a_millisecond_after_the_last_sample(last: float) -> None:
    ended = EndedSeries(60)
    ended.markers(last, [_load(last)])
    (marker,) = ended.end_all(last)
    assert round(marker.time_seconds * 1000) > round(last * 1000)

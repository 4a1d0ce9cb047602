"""What was learnt outlives an upgrade, a change of settings, and what cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from analysis.detection.forest import SameThreadExecutor
from analysis.detection.pipeline import DetectionPipeline
from analysis.detection.seasonal_fit import SeasonalShape
from analysis.detection.seasonal_shapes import SeasonalShapes
from analysis.detection.settings import DetectionSettings
from analysis.detection.state_file import STATE_VERSION, DetectionStateError, read_state
from analysis.detection.state_migrations import MIGRATIONS
from analysis.history import History
from collectors.contract import Sample, SeriesKey

VERSION_1 = Path(__file__).parent / "data" / "state_v1.npz"
"""Written by the code that had version 1, after 300 ticks, with these settings."""
VERSION_4 = Path(__file__).parent / "data" / "state_v4.npz"
"""The same of version 4, with a series that the catalogue does not know and memory that grows."""
SETTINGS = DetectionSettings.model_validate({"forest": {"trees": 5, "rows": 32, "first_rows": 16}})
LATENCY = SeriesKey("service/llm", "llm_request_latency_seconds")
USUAL = {
    LATENCY: 0.3,
    SeriesKey("service/llm", "llm_requests_per_second"): 20.0,
    SeriesKey("service/llm", "engine_resident_memory_bytes"): 4e8,
    SeriesKey("service/llm", "engine_up"): 1.0,
    SeriesKey("host/a/gpu/0", "gpu_temperature_celsius"): 60.0,
    SeriesKey("host/a/gpu/0", "gpu_ecc_uncorrectable_total"): 2.0,
}
YOUNGER = {"p_value", "exhaustion", "peers", "flat_line", "shifts"}
"""Parts that version 1 did not have."""
LAID_OUT_ANEW = (
    *(f"mahalanobis/{name}" for name in ("covariance", "precision")),
    *(f"forest/{name}" for name in ("kept", "about", "clock")),
    *(f"forest/tree_{name}" for name in ("feature", "threshold", "left", "right", "length")),
)
"""What version 4 keeps in other forms."""
LAST_SECONDS = 1_000_299.0


def pipeline(settings: DetectionSettings = SETTINGS) -> tuple[DetectionPipeline, History]:
    history = History(capacity_ticks=20)
    return DetectionPipeline(settings, history, executor=SameThreadExecutor()), history


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copy(VERSION_1, tmp_path / "detection.npz"))


def complaints(logs: list[dict[str, object]]) -> dict[object, object]:
    return {log["part"]: log["event"] for log in logs if "part" in log}


def test_a_state_of_version_1_goes_on(old: Path, tmp_path: Path) -> None:
    restored, history = pipeline()
    with capture_logs() as logs:
        assert restored.load(old)
    assert complaints(logs) == dict.fromkeys(YOUNGER, "detection_part_starts_anew")

    again = tmp_path / "again.npz"
    restored.save(again)
    with np.load(VERSION_1) as before, np.load(again) as after:
        assert after["version"] == STATE_VERSION
        for name in set(before.files) - {"version"} - set(LAID_OUT_ANEW):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        # Of the service, which has four series that take part, and of the GPU, which has two.
        covariance = before["mahalanobis/covariance"]
        np.testing.assert_array_equal(after["mahalanobis/covariance_4"][0], covariance[0])
        np.testing.assert_array_equal(after["mahalanobis/covariance_2"][0], covariance[1, :2, :2])
        kept = before["forest/kept"]
        np.testing.assert_array_equal(after["forest/kept"][:, :4], kept[:, 0])
        np.testing.assert_array_equal(after["forest/kept"][:, 4:], kept[:, 1, :2])

    # The latency was high and raised when the file was written; it still is, and knows its level.
    samples = [Sample(LAST_SECONDS + 1, *key, value) for key, value in USUAL.items()]
    samples[0] = Sample(LAST_SECONDS + 1, *LATENCY, 2.0)
    found = restored.tick(LAST_SECONDS + 1, history.append(LAST_SECONDS + 1, samples))
    (anomaly,) = found.anomalies
    assert (anomaly.signal, anomaly.onset_seconds) == (LATENCY.signal, 1_000_296.0)
    assert anomaly.expected == pytest.approx(0.3, abs=0.02)
    assert all(state.warmed_up for state in found.states.values() if state.expected is not None)


def test_a_state_of_version_4_goes_on(tmp_path: Path) -> None:
    restored, history = pipeline()
    with capture_logs() as logs:
        assert restored.load(VERSION_4)
    assert complaints(logs) == {}
    again = tmp_path / "again.npz"
    restored.save(again)
    with np.load(VERSION_4) as before, np.load(again) as after:
        for name in set(before.files) - {"version"}:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)

    samples = [Sample(LAST_SECONDS + 1, *key, value) for key, value in USUAL.items()]
    samples[0] = Sample(LAST_SECONDS + 1, *LATENCY, 2.0)
    samples[2] = samples[2]._replace(value=4e8 + 300 * 3e6)
    found = restored.tick(LAST_SECONDS + 1, history.append(LAST_SECONDS + 1, samples))
    assert {anomaly.signal: anomaly.onset_seconds for anomaly in found.anomalies} == {
        LATENCY.signal: 1_000_296.0,
        "engine_resident_memory_bytes": 1_000_261.0,
    }


def test_the_present_version_is_taken_up_whole(old: Path) -> None:
    first, _ = pipeline()
    first.load(old)
    first.save(old)
    second, _ = pipeline()
    with capture_logs() as logs:
        assert second.load(old)
    assert complaints(logs) == {}


def test_a_newer_version_is_refused_and_kept(old: Path) -> None:
    with np.load(old) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(old, **{**arrays, "version": np.array([STATE_VERSION + 1])})
    newer = old.read_bytes()
    fresh, history = pipeline()
    with pytest.raises(DetectionStateError, match=rf"version {STATE_VERSION + 1}.*set-aside"):
        fresh.load(old)
    fresh.tick(1.0, history.append(1.0, [Sample(1.0, *LATENCY, 0.3)]))
    fresh.save(old)
    assert (old.parent / "detection.npz.set-aside").read_bytes() == newer
    assert read_state(old)[0] == [LATENCY]


@pytest.mark.parametrize("content", [b"", b"not a state", VERSION_1.read_bytes()[:9000]])
def test_a_damaged_state_is_set_aside_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "detection.npz"
    path.write_bytes(content)
    fresh, _ = pipeline()
    with pytest.raises(DetectionStateError, match=r"detection\.npz: not a readable"):
        fresh.load(path)
    assert not path.exists()
    assert (tmp_path / "detection.npz.set-aside").read_bytes() == content


def test_a_part_that_does_not_fit_costs_the_others_nothing(old: Path) -> None:
    other, history = pipeline(
        DetectionSettings.model_validate(
            {"forest": {"trees": 6, "rows": 32}, "covariance": {"enabled": False}}
        )
    )
    with capture_logs() as logs:
        assert other.load(old)
    assert complaints(logs) == {
        **dict.fromkeys(YOUNGER, "detection_part_starts_anew"),
        "forest": "detection_part_starts_anew",
        "mahalanobis": "detection_part_dropped",
    }
    samples = [Sample(LAST_SECONDS + 1, *key, value) for key, value in USUAL.items()]
    found = other.tick(LAST_SECONDS + 1, history.append(LAST_SECONDS + 1, samples))
    assert found.states[LATENCY].expected == pytest.approx(0.3, abs=0.02)


def test_arrays_that_are_missing_or_strange_cost_their_own_part_only(old: Path) -> None:
    with np.load(old) as archive:
        arrays = {name: archive[name] for name in archive.files}
    del arrays["absence/cadence"]
    arrays["trend/last"] = np.array(["a", "b", "c", "d", "e", "f"])
    arrays["seen/value"] = np.zeros(3)
    np.savez(old, **arrays)
    restored, _ = pipeline()
    with capture_logs() as logs:
        assert restored.load(old)
    assert set(complaints(logs)) == YOUNGER | {"absence", "trend", "seen"}


def test_settings_change_without_a_gap() -> None:
    """Going on with equal settings is bit for bit; the other pipeline is left as it was."""
    random = np.random.default_rng(4)
    rows = [
        [
            Sample(float(t), *key, usual * (1 + 0.01 * random.normal()))
            for key, usual in USUAL.items()
        ]
        for t in range(400)
    ]
    one, history = pipeline()
    for time, samples in enumerate(rows[:250]):
        one.tick(float(time), history.append(float(time), samples))
    two = DetectionPipeline(SETTINGS, history, executor=SameThreadExecutor())
    with capture_logs() as logs:
        two.continue_from(one)
    assert complaints(logs) == {}
    for time, samples in enumerate(rows[250:], start=250):
        row = history.append(float(time), samples)
        found, expected = two.tick(float(time), row), one.tick(float(time), row)
        assert dict(found.states) == dict(expected.states)
        assert found.anomalies == expected.anomalies


def test_seasonal_shapes_of_version_2_go_on() -> None:
    old = {f"shape_{column}": np.array([86_400.0, *range(column)]) for column in (12, 3)}
    parts = {"baseline": dict(old)}
    MIGRATIONS[2](parts, [SeriesKey("a", str(n)) for n in range(20)])
    shapes = SeasonalShapes()
    shapes.grow(20)
    shapes.check(parts["baseline"])
    shapes.restore(parts["baseline"])
    for time in (0.0, 40_000.0):
        expected = np.zeros(20)
        for column in (12, 3):
            expected[column] = SeasonalShape(86_400.0, np.arange(float(column))).at(time)
        np.testing.assert_allclose(shapes.at(time), expected, rtol=1e-6)

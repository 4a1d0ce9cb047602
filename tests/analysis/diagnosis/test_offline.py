from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.diagnosis.offline import OfflineDiagnosis, diagnose_frame
from analysis.diagnosis.offline_frame import FrameError
from analysis.findings import Verdict

EDGES = [("front", "cart"), ("front", "search"), ("search", "store"), ("cart", "store")]
RATES = {"front": 100.0, "cart": 30.0, "search": 80.0, "store": 110.0}
OWN = {"front": 0.040, "cart": 0.020, "search": 0.010, "store": 0.005}


def calls(
    *,
    root: str | None = None,
    extra: float = 0.05,
    rows: int = 120,
    abnormal: int = 12,
    seed: int = 0,
    load: float = 1.0,
) -> pd.DataFrame:
    """Latencies that add up along calls, with a delay of ``extra`` seconds at one node."""
    rng = np.random.default_rng(seed)
    traffic = 1 + 0.1 * rng.standard_normal(rows)
    traffic[-abnormal:] *= load
    own = {node: value * (1 + 0.05 * rng.standard_normal(rows)) for node, value in OWN.items()}
    if root is not None:
        own[root][-abnormal:] += extra * RATES["front"] / RATES[root]
    latency = {"store": own["store"]}
    latency["search"] = own["search"] + latency["store"]
    latency["cart"] = own["cart"] + latency["store"]
    latency["front"] = own["front"] + 0.8 * latency["search"] + 0.3 * latency["cart"]
    columns = {f"{node}:latency_average": values for node, values in latency.items()}
    columns |= {f"{node}:requests_sum": rate * traffic for node, rate in RATES.items()}
    return pd.DataFrame(columns, index=np.arange(rows) * 60.0)


def explain(frame: pd.DataFrame, abnormal: int = 12, **given: object) -> OfflineDiagnosis:
    onset = float(frame.index[-abnormal])
    options = {"target": "front:latency_average", "edges": EDGES, **given}
    return diagnose_frame(frame, onset, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("root", ["front", "cart", "search", "store"])
@pytest.mark.parametrize("seed", range(3))
def test_the_source_of_a_delay_is_found_along_the_calls(root: str, seed: int) -> None:
    found = explain(calls(root=root, seed=seed))
    assert found.verdict is Verdict.FAULT
    assert found.hypotheses[0].entity == root
    assert found.hypotheses[0].cause == "latency_source"
    assert sum(each.confidence for each in found.hypotheses) <= 1 + 1e-9
    told = [each.statement for each in found.hypotheses[0].evidence]
    assert any("robust standard deviations" in statement for statement in told)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("load", [1.0, 1.8])
def test_a_window_without_a_fault_is_no_fault(seed: int, load: float) -> None:
    found = explain(calls(seed=seed, load=load))
    assert found.verdict is Verdict.NO_FAULT
    assert found.hypotheses[0].cause == "no_fault"
    assert found.hypotheses[0].action is None


def test_a_shift_that_does_not_move_with_the_symptom_is_not_its_source() -> None:
    frame = calls(root="search", abnormal=12)
    # Another node changed for good when the window began, the symptom only in its middle.
    abnormal = frame.index[-12:]
    quiet = calls(seed=0)
    for column in quiet.columns:
        frame.loc[abnormal[:5], column] = quiet.loc[abnormal[:5], column]
    frame.loc[abnormal, "cart:latency_average"] += 0.02
    assert explain(frame).hypotheses[0].entity == "search"


def test_without_a_target_the_front_end_is_explained() -> None:
    found = explain(calls(root="store"), target=None)
    assert found.symptom == "front:latency_average"
    assert found.hypotheses[0].entity == "store"


def test_without_edges_a_leaf_is_still_found() -> None:
    found = explain(calls(root="cart"), edges=None)
    assert found.hypotheses[0].entity == "cart"


def test_availability_counts_downwards() -> None:
    rng = np.random.default_rng(1)
    rows = 100
    store = 100 - 0.05 * np.abs(rng.standard_normal(rows))
    store[-10:] -= 4
    frame = pd.DataFrame(
        {
            "front:availability": store + 0.02 * rng.standard_normal(rows),
            "store:availability": store,
            "cart:availability": 100 - 0.05 * np.abs(rng.standard_normal(rows)),
        },
        index=np.arange(rows) * 60.0,
    )
    found = explain(frame, abnormal=10, target="front:availability")
    assert (found.hypotheses[0].cause, found.hypotheses[0].entity) == ("error_source", "store")


def test_the_answer_does_not_depend_on_the_unit() -> None:
    frame = calls(root="search")
    scaled = frame.copy()
    latency = [column for column in frame.columns if "latency" in column]
    scaled[latency] = frame[latency] * 1000
    one, other = explain(frame), explain(scaled)
    assert [each.entity for each in one.hypotheses] == [each.entity for each in other.hypotheses]
    assert one.hypotheses[0].confidence == pytest.approx(other.hypotheses[0].confidence)


def test_missing_values_and_constant_columns_do_no_harm() -> None:
    frame = calls(root="search")
    rng = np.random.default_rng(3)
    frame = frame.mask(rng.random(frame.shape) < 0.2)
    frame["idle:latency_average"] = 0.0
    frame["gone:latency_average"] = np.nan
    found = explain(frame)
    assert found.hypotheses[0].entity == "search"


def test_nothing_to_compare_is_unknown() -> None:
    frame = calls().assign(**{"front:latency_average": np.nan})
    found = explain(frame)
    assert found.verdict is Verdict.UNKNOWN
    assert found.notes


def test_edges_to_entities_without_metrics_are_named() -> None:
    found = explain(calls(root="cart"), edges=[*EDGES, ("front", "ghost")])
    assert "ghost" in found.notes[0]


@pytest.mark.parametrize(
    ("onset", "target", "message"),
    [
        (-5.0, None, "is not between the first row"),
        (1e9, None, "is not between the first row"),
        (120.0, None, "only 2 rows before the onset"),
        (6600.0, "front:latency", "did you mean front:latency_average"),
    ],
)
def test_what_does_not_fit_together_is_told(onset: float, target: str | None, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        diagnose_frame(calls(), onset, target=target)


# --- canonical signals -------------------------------------------------------------------------------


def service(seed: int = 0, rows: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(seed)

    def around(level: float, share: float = 0.05) -> np.ndarray:
        return level * (1 + share * rng.standard_normal(rows))

    return pd.DataFrame(
        {
            "llm:llm_requests_per_second": around(12),
            "llm:llm_tokens_per_second": around(600),
            "llm:llm_queue_depth": rng.poisson(0.3, rows).astype(float),
            "llm:llm_request_latency_seconds": around(0.4),
            "llm:llm_time_per_output_token_seconds": around(0.006),
            "llm:llm_error_ratio": np.zeros(rows),
            "llm:engine_step_seconds": around(0.005),
            "llm:engine_steps_per_second": around(150),
            "llm:engine_step_age_seconds": np.zeros(rows),
            "llm:engine_up": np.ones(rows),
            "llm:engine_crashes": np.zeros(rows),
            "llm:canary_success": np.ones(rows),
            "gpu0:gpu_temperature_celsius": around(60, 0.02),
            "gpu0:gpu_sm_clock_mhz": around(1700, 0.01),
            "gpu0:gpu_throttle_thermal": np.zeros(rows),
            "gpu0:gpu_utilization_percent": around(50),
            "box:host_cpu_percent": around(40),
        },
        index=np.arange(rows, dtype=float),
    )


def with_change(**changes: float) -> pd.DataFrame:
    frame = service()
    for column in frame.columns:
        signal = column.split(":")[1]
        if signal in changes:
            frame.loc[frame.index[-30:], column] = changes[signal]
    return frame


@pytest.mark.parametrize(
    ("changes", "cause", "entity"),
    [
        ({"engine_step_age_seconds": 8, "engine_steps_per_second": 0, "llm_tokens_per_second": 0,
          "llm_queue_depth": 30, "canary_success": 0}, "engine_hang", "llm"),
        ({"engine_step_seconds": 0.05, "llm_time_per_output_token_seconds": 0.06,
          "llm_request_latency_seconds": 3}, "engine_slow", "llm"),
        ({"llm_requests_per_second": 45, "llm_queue_depth": 40,
          "llm_request_latency_seconds": 3}, "traffic_surge", "llm"),
        ({"gpu_temperature_celsius": 93, "gpu_sm_clock_mhz": 1100,
          "gpu_throttle_thermal": 1}, "gpu_thermal_throttle", "gpu0"),
        ({"engine_crashes": 1, "engine_up": 0, "llm_error_ratio": 0.5}, "engine_crash", "llm"),
    ],
)  # fmt: skip
def test_canonical_signals_are_explained_by_the_catalogue(
    changes: dict[str, float], cause: str, entity: str
) -> None:
    found = diagnose_frame(with_change(**changes), 90.0)
    assert found.verdict is Verdict.FAULT
    assert (found.hypotheses[0].cause, found.hypotheses[0].entity) == (cause, entity)
    assert all("/" not in each.entity for each in found.hypotheses[0].evidence)


@pytest.mark.parametrize("seed", range(5))
def test_a_service_that_is_fine_is_no_fault(seed: int) -> None:
    assert diagnose_frame(service(seed), 90.0).verdict is Verdict.NO_FAULT


def test_more_load_without_symptoms_is_no_fault() -> None:
    found = diagnose_frame(
        with_change(llm_requests_per_second=22, llm_tokens_per_second=1100), 90.0
    )
    assert found.verdict is Verdict.NO_FAULT


# --- real data ---------------------------------------------------------------------------------------

PETSHOP = Path(os.environ.get("GALEN_DATA", "../shared/data")) / "petshop"


@pytest.mark.skipif(not PETSHOP.is_dir(), reason=f"PetShop is not at {PETSHOP}; set GALEN_DATA")
@pytest.mark.parametrize("issue", ["issue_0", "issue_5"])
def test_an_issue_of_petshop(issue: str) -> None:
    folder = PETSHOP / "low_traffic"

    def read(path: Path) -> pd.DataFrame:
        frame = pd.read_csv(path, header=[0, 1, 2], index_col=0)
        frame.columns = [f"{node}:{metric}_{stat}" for node, metric, stat in frame.columns]
        return frame

    normal = read(folder / "noissue" / "metrics.csv")
    abnormal = read(folder / "train" / issue / "metrics.csv")
    matrix = pd.read_csv(folder / "graph.csv", index_col=0)
    edges = [(a, b) for a in matrix.index for b in matrix.columns if matrix.loc[a, b]]
    columns = [column for column in abnormal.columns if column in normal.columns]
    frame = pd.concat([normal[columns], abnormal[columns]])
    frame.index = pd.Index(np.arange(len(frame)) * 300.0)
    metric = "latency" if issue == "issue_0" else "availability"
    found = diagnose_frame(
        frame, 300.0 * len(normal), target=f"PetSite:{metric}_Average", edges=edges
    )
    assert found.verdict is Verdict.FAULT
    assert found.hypotheses[0].entity == "PetSearch_AWS::ECS::Fargate"

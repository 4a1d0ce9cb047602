"""Accuracy of the off-line diagnosis on PetShop, beside controls.

PetShop (CC-BY-4.0, https://github.com/amazon-science/petshop-root-cause-analysis) is a microservice
application with injected faults. Run from the repository root:

    python benchmarks/diagnosis.py [--data DIRECTORY] [--rewire SHARE]

The issues that are public with their answers all have one root cause, so that a method could be right
by always naming it. The second table therefore moves faults about: it injects delays and errors of the
size of the real ones at every node of the same graph, into the fault-free recording, and propagates
them along the calls. Nothing is tuned per scenario; every method breaks ties at random.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.diagnosis.offline import diagnose_frame
from analysis.diagnosis.offline_change import Family, family_of
from analysis.diagnosis.offline_frame import split_column
from analysis.findings import Verdict

_ROWS = 5
_SCENARIOS = ("low_traffic", "high_traffic", "temporal_traffic1", "temporal_traffic2")


@dataclass(frozen=True)
class Issue:
    """One window to explain. ``root`` is None where nothing is wrong."""

    scenario: str
    frame: pd.DataFrame
    onset: float
    target: str
    edges: list[tuple[str, str]]
    root: str | None

    @property
    def group(self) -> str:
        signal = split_column(self.target).signal
        return f"{self.scenario.split('_')[0]} {signal.split('_')[0]}"


Ranking = list[str]
Method = Callable[[Issue, np.random.Generator], Ranking]


def read_metrics(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path, header=[0, 1, 2], index_col=0)
    frame.columns = [f"{node}:{metric}_{statistic}" for node, metric, statistic in frame.columns]
    frame.index = frame.index.astype(float)
    return frame.sort_index()


def read_graph(path: Path) -> list[tuple[str, str]]:
    matrix = pd.read_csv(path, index_col=0)
    return [(a, b) for a in matrix.index for b in matrix.columns if matrix.loc[a, b] and a != b]


def normal_of(data: Path, scenario: str) -> pd.DataFrame:
    # The temporal scenarios come without a recording of their own.
    own = data / scenario / "noissue" / "metrics.csv"
    return read_metrics(own if own.exists() else data / "high_traffic" / "noissue" / "metrics.csv")


def joined(normal: pd.DataFrame, issue: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """Put the fault-free recording, which is of another month, right before the issue."""
    step = float(np.median(np.diff(issue.index)))
    start = float(issue.index[0])
    moved = normal.set_axis(start - step * np.arange(len(normal), 0, -1), axis=0)
    columns = [column for column in issue.columns if column in normal.columns]
    return pd.concat([moved[columns], issue[columns]]), start


def real_issues(data: Path) -> Iterator[Issue]:
    for scenario in _SCENARIOS:
        normal = normal_of(data, scenario)
        edges = read_graph(data / scenario / "graph.csv")
        for folder in sorted((data / scenario / "train").iterdir()):
            told = json.loads((folder / "target.json").read_text())
            frame, onset = joined(normal, read_metrics(folder / "metrics.csv"))
            target = "{node}:{metric}_{agg}".format(**told["target"])
            yield Issue(scenario, frame, onset, target, edges, told["root_cause"]["node"])


def quiet_windows(data: Path) -> Iterator[Issue]:
    for scenario in ("low_traffic", "high_traffic"):
        normal = normal_of(data, scenario)
        edges = read_graph(data / scenario / "graph.csv")
        for start in range(200, len(normal) - _ROWS, 12):
            frame = normal.iloc[: start + _ROWS]
            for metric in ("latency", "availability"):
                target = f"PetSite:{metric}_Average"
                yield Issue(scenario, frame, float(frame.index[start]), target, edges, None)


def moved_faults(data: Path, rng: np.random.Generator) -> Iterator[Issue]:
    """Inject a fault at each node that the front end needs, into a quiet window."""
    for issue in list(quiet_windows(data))[::11]:
        reach = _weights(issue)
        for root in sorted(reach):
            if root == "PetSite" or reach[root] < 0.02:
                continue
            yield inject(issue, root, reach, rng)


def _weights(issue: Issue) -> dict[str, float]:
    """Return the requests of each node below the front end, over those of the front end."""
    reachable, todo = {"PetSite"}, ["PetSite"]
    while todo:
        node = todo.pop()
        new = [b for a, b in issue.edges if a == node and b not in reachable]
        reachable.update(new)
        todo += new
    base = issue.frame["PetSite:requests_Sum"].median()
    return {
        node: float(issue.frame[f"{node}:requests_Sum"].median() / base)
        for node in reachable
        if f"{node}:requests_Sum" in issue.frame and f"{node}:latency_Average" in issue.frame
    }


def inject(issue: Issue, root: str, reach: dict[str, float], rng: np.random.Generator) -> Issue:
    """Add a fault at ``root`` and what it does to its callers, in two or three of the five rows."""
    frame = issue.frame.copy()
    latency = family_of(split_column(issue.target).signal) is Family.LATENCY
    metric = "latency_Average" if latency else "availability_Average"
    # As in the real issues: half of the front end's latency, or a few percent of its requests.
    size = 0.04 * rng.uniform(0.6, 1.6) if latency else -3.0 * rng.uniform(0.6, 1.6)
    first = len(frame) - _ROWS + int(rng.integers(1, 3))
    rows = frame.index[first : first + int(rng.integers(2, 4))]
    strength = rng.uniform(0.6, 1.0, len(rows))
    share = {root: 1.0}
    changed = True
    while changed:
        changed = False
        for caller, callee in issue.edges:
            if callee not in share or caller not in reach or caller in share:
                continue
            callers = [a for a, b in issue.edges if b == callee and a in reach]
            total = sum(reach[each] for each in callers) or 1.0
            share[caller] = share[callee] * (1.0 if caller == "PetSite" else reach[caller] / total)
            changed = True
    for node, part in share.items():
        column = f"{node}:{metric}"
        if column in frame and reach.get(node):
            added = size * part / reach[node] * strength
            noisy = added * rng.uniform(0.9, 1.1, len(rows))
            frame.loc[rows, column] = frame.loc[rows, column].to_numpy() + noisy
            if not latency:
                frame[column] = frame[column].clip(lower=0.0)
    return replace(issue, frame=frame, root=root)


# --- methods -------------------------------------------------------------------------------------


def galen(issue: Issue, _: np.random.Generator) -> Ranking:
    found = diagnose_frame(issue.frame, issue.onset, target=issue.target, edges=issue.edges)
    skipped = {"no_fault", "unknown"}
    return [each.entity for each in found.hypotheses if each.cause not in skipped]


def without_graph(issue: Issue, rng: np.random.Generator) -> Ranking:
    return galen(replace(issue, edges=[]), rng)


def at_random(issue: Issue, rng: np.random.Generator) -> Ranking:
    nodes = sorted({split_column(column).entity for column in issue.frame.columns})
    return [str(node) for node in rng.permutation(nodes)]


def _by_score(scores: dict[str, float], rng: np.random.Generator) -> Ranking:
    return sorted(scores, key=lambda node: (-scores[node], rng.random()))


def _columns(issue: Issue) -> Iterator[tuple[str, pd.Series, pd.Series]]:
    for column in issue.frame.columns:
        before = issue.frame.loc[issue.frame.index < issue.onset, column].dropna()
        after = issue.frame.loc[issue.frame.index >= issue.onset, column].dropna()
        if len(before) >= 3 and len(after):
            yield column, before, after


def baro(issue: Issue, rng: np.random.Generator) -> Ranking:
    """Score as BARO's robust scorer does: largest (x - median) / IQR, a zero IQR counting as 1."""
    scores: dict[str, float] = defaultdict(lambda: -np.inf)
    for column, before, after in _columns(issue):
        spread = float(before.quantile(0.75) - before.quantile(0.25)) or 1.0
        node = split_column(column).entity
        scores[node] = max(scores[node], float((after.max() - before.median()) / spread))
    return _by_score(scores, rng)


def ranked_correlation(issue: Issue, rng: np.random.Generator) -> Ranking:
    target = issue.frame[issue.target].tail(3 * _ROWS)
    scores: dict[str, float] = defaultdict(float)
    for column, _, _ in _columns(issue):
        if column.split(":")[0] == issue.target.split(":")[0] or column == issue.target:
            continue
        pair = pd.concat([issue.frame[column].tail(3 * _ROWS), target], axis=1).dropna()
        if len(pair) > 3 and (pair.std() > 0).all():
            value = abs(float(pair.rank().corr().iloc[0, 1]))
            node = split_column(column).entity
            scores[node] = max(scores[node], value)
    return _by_score(scores, rng)


METHODS: dict[str, Method] = {
    "galen": galen,
    "galen, no graph": without_graph,
    "ranked correlation": ranked_correlation,
    "BARO-like": baro,
    "random": at_random,
}


# --- tables --------------------------------------------------------------------------------------


def table(title: str, issues: list[Issue], rng: np.random.Generator) -> None:
    groups = sorted({issue.group for issue in issues})
    print(f"\n{title} ({len(issues)} windows), top-1 / top-3")
    counts = {group: sum(issue.group == group for issue in issues) for group in groups}
    print(
        f"{'method':20s}"
        + "".join(f"{g} ({counts[g]})".rjust(26) for g in groups)
        + "all".rjust(12)
    )
    for name, method in METHODS.items():
        ranks: dict[str, list[int]] = defaultdict(list)
        for issue in issues:
            ranking = method(issue, rng)
            rank = ranking.index(issue.root) + 1 if issue.root in ranking else 99
            ranks[issue.group].append(rank)
        cells = [ranks[group] for group in groups]
        row = "".join(_cell(cell).rjust(26) for cell in cells)
        print(f"{name:20s}{row}{_cell([r for cell in cells for r in cell]):>12s}")


def _cell(ranks: list[int]) -> str:
    found = np.array(ranks)
    return f"{np.mean(found <= 1):.2f}/{np.mean(found <= 3):.2f}"


def verdicts(title: str, issues: list[Issue]) -> None:
    counts: dict[str, list[Verdict]] = defaultdict(list)
    for issue in issues:
        found = diagnose_frame(issue.frame, issue.onset, target=issue.target, edges=issue.edges)
        counts[issue.group].append(found.verdict)
    print(f"\n{title}")
    for group, found in sorted(counts.items()):
        told = {verdict.value: found.count(verdict) for verdict in Verdict}
        print(f"  {group:28s} {told}")


def rewired(issues: list[Issue], share: float, rng: np.random.Generator) -> list[Issue]:
    out = []
    for issue in issues:
        nodes = sorted({name for edge in issue.edges for name in edge})
        edges = [
            (a, str(rng.choice(nodes))) if rng.random() < share else (a, b) for a, b in issue.edges
        ]
        out.append(replace(issue, edges=edges))
    return out


def main() -> None:
    default = Path(os.environ.get("GALEN_DATA", "../shared/data")) / "petshop"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--rewire", type=float, default=0.0, help="share of edges to damage")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    real = list(real_issues(given.data))
    moved = list(moved_faults(given.data, rng))
    if given.rewire:
        real, moved = rewired(real, given.rewire, rng), rewired(moved, given.rewire, rng)
    table("Real issues", real, rng)
    table("Faults moved about", moved, rng)
    verdicts("Verdicts on real issues", real)
    verdicts("Verdicts on moved faults", moved)
    verdicts("Verdicts on quiet windows", list(quiet_windows(given.data)))


if __name__ == "__main__":
    main()

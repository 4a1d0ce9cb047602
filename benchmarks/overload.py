"""Three times the load that a server can carry, open loop: the service, mosec and LitServe.

``python -m benchmarks overload -- --peers mosec,mosec-tuned,litserve``

On the costly model. Each server's capacity is measured first, by closed loops of 32 and 64
connections; the better rate of answers is the peak. Then requests arrive by a Poisson process,
at ``--factors`` times that, whatever becomes of those before them (`benchmarks.serving.loadgen`).
What counts is the goodput, answers within the deadline from the place in the schedule, as a share of
the peak, and how fast the others are refused. The client has the last core to itself as far as the
servers leave it; how late its requests left is in the table (lag).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serving import closedloop, tables, wrk
from benchmarks.serving.contestants import OURS, Contestant, chosen
from benchmarks.serving.environments import InstallError, installed, interpreter
from benchmarks.serving.loadgen import Summary
from benchmarks.serving.models import ModelUnderTest, write_models
from benchmarks.serving.processes import Server, ServerError, serve

_DEFAULT_PEERS = "mosec,mosec-tuned,litserve"
_CAPACITY_CONNECTIONS = (32, 64)
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long."""

    rounds: int
    factors: tuple[float, ...]
    seconds: float
    warm_seconds: float
    capacity_seconds: float
    grace_seconds: float
    deadline_seconds: float
    python_client: bool


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one server: its peak, and what it did at each factor of it."""

    peak: float
    peak_p99_ms: float
    loads: dict[float, Summary]

    def share(self, factor: float) -> float:
        """Goodput over peak."""
        return self.loads[factor].goodput / self.peak if self.peak else 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """All rounds of one server."""

    name: str
    version: str
    rounds: tuple[Round, ...]


def measure(
    model: ModelUnderTest, contestants: Sequence[tuple[Contestant, Path, str]], plan: Plan,
    folder: Path,
) -> list[Result]:  # fmt: skip
    """Measure the servers in interleaved rounds, each started anew: overload leaves traces."""
    rounds: dict[str, list[Round]] = {contestant.name: [] for contestant, _, _ in contestants}
    for number in range(plan.rounds):
        for contestant, python, _ in contestants:
            own = folder / f"{contestant.name}-{number}"
            with serve(contestant, model, python, own, plan.deadline_seconds) as server:
                body = own / "body.json"
                body.write_bytes(contestant.encode(model, model.row))
                rounds[contestant.name].append(_round(server, body, plan, number))
    return [Result(c.name, version, tuple(rounds[c.name])) for c, _, version in contestants]


def _round(server: Server, body: Path, plan: Plan, number: int) -> Round:
    client = closedloop.measure if plan.python_client else wrk.measure
    name = server.contestant.name
    client(server.url, body, _CAPACITY_CONNECTIONS[0], plan.warm_seconds)
    capacities = [
        client(server.url, body, count, plan.capacity_seconds) for count in _CAPACITY_CONNECTIONS
    ]
    capacity = max(capacities, key=lambda load: load.per_second)
    peak = capacity.per_second
    _say(f"round {number + 1}: {name} peak {peak:,.0f}/s, p99 {capacity.p99_ms:.0f} ms, "
         f"{capacity.errors} refused")  # fmt: skip
    if not peak:
        raise ServerError(f"{name} answered nothing: {capacity}")
    loads = {}
    for factor in plan.factors:
        load = loads[factor] = _open_loop(server, body, plan, factor * peak, number)
        _say(
            f"round {number + 1}: {name} at {factor:g} x: goodput {load.goodput:,.0f}/s, "
            f"p99 {load.p99_ms or 0:.0f} ms, refused {load.refused:,.0f}/s after "
            f"{load.refusal_p50_ms or 0:.1f} ms, {load.unanswered} without an answer"
        )
    return Round(peak, capacity.p99_ms, loads)


def _open_loop(server: Server, body: Path, plan: Plan, rate: float, seed: int) -> Summary:
    """Run the open-loop client in a process of its own."""
    headers = [f"--header={name}={value}" for name, value in
               server.contestant.deadline_headers(plan.deadline_seconds).items()]  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    command = [
        sys.executable, "-m", "benchmarks.serving.loadgen", server.url, "--body", str(body),
        "--rate", str(rate), "--seconds", str(plan.seconds), "--seed", str(seed),
        "--warm-seconds", str(plan.warm_seconds), "--grace-seconds", str(plan.grace_seconds),
        "--deadline-seconds", str(plan.deadline_seconds), "--core", str(cores[-1]), *headers,
    ]  # fmt: skip
    limit = plan.warm_seconds + plan.seconds + plan.grace_seconds + 60.0
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=_ROOT, timeout=limit
    )
    return Summary(**json.loads(done.stdout))


def table(results: Sequence[Result], factor: float) -> str:
    """Return the table at one factor."""
    rows = []
    for result in results:
        loads = [item.loads[factor] for item in result.rounds]

        def middle(name: str, loads: Sequence[Summary] = loads) -> float | None:
            return tables.middle([getattr(load, name) for load in loads])

        rows.append([
            f"{result.name} {result.version}",
            tables.count(tables.middle([item.peak for item in result.rounds])),
            tables.count(middle("offered")),
            tables.count(middle("goodput")),
            f"{100 * (tables.middle([item.share(factor) for item in result.rounds]) or 0):.0f}%",
            f"{tables.milliseconds(middle('p50_ms'))} / {tables.milliseconds(middle('p99_ms'))}",
            tables.milliseconds(middle("refusal_p50_ms")),
            str(sum(load.unanswered for load in loads)),
            tables.milliseconds(middle("lag_p99_ms")),
        ])  # fmt: skip
    head = ["server", "peak/s", "offered/s", "goodput/s", "of peak", "answered p50 / p99 ms",
            "refused after ms (median)", "no answer", "lag p99 ms"]  # fmt: skip
    return f"{factor:g} times the capacity\n\n{tables.markdown(head, rows)}"


def verdicts(result: Result, factor: float, deadline_seconds: float) -> list[str]:
    """Compare our own figures with the targets that this project set itself."""
    loads = [item.loads[factor] for item in result.rounds]
    share = tables.middle([item.share(factor) for item in result.rounds]) or 0.0
    p99 = tables.middle([load.p99_ms for load in loads]) or 0.0
    refusal = tables.middle([load.refusal_p50_ms for load in loads]) or 0.0
    silent = sum(load.unanswered for load in loads)
    limit = 1000 * deadline_seconds
    checks = [
        (share >= 0.95, f"goodput {100 * share:.1f}% of the peak, wanted 95%"),
        (p99 < limit, f"p99 of answers {p99:.0f} ms, wanted below {limit:.0f}"),
        (refusal < 5.0, f"median refusal after {refusal:.2f} ms, wanted below 5"),
        (silent == 0, f"{silent} requests without an answer, wanted 0"),
    ]
    return [f"{'met' if met else 'MISSED'}: {text}" for met, text in checks]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default=_DEFAULT_PEERS, help="none, or names of peers")
    parser.add_argument("--model", choices=("A", "B"), default="B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--factors", default="3", help="times the capacity, e.g. 0.8,1.5,3")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="each load, after 2 s of warm-up"
    )
    parser.add_argument("--deadline-seconds", type=float, default=0.25)
    parser.add_argument("--grace-seconds", type=float, default=20.0,
                        help="how long the last answers are waited for")  # fmt: skip
    parser.add_argument("--client", choices=("wrk", "python"), default="wrk",
                        help="what measures the capacity")  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "galen-benchmarks",
        help="where the peers' environments are kept",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write every round there")
    parser.add_argument("--quick", action="store_true", help="a second, to see that it works")
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> Plan:
    factors = tuple(float(text) for text in options.factors.split(","))
    deadline = options.deadline_seconds
    if options.quick:
        return Plan(1, factors, 1.0, 0.5, 0.5, 10.0, deadline, python_client=True)
    return Plan(
        options.rounds, factors, options.seconds, 2.0, 3.0, options.grace_seconds, deadline,
        python_client=options.client == "python",
    )  # fmt: skip


def main() -> int:
    """Measure, print the tables, and say which targets were met."""
    options = _arguments()
    plan = _plan(options)
    if not plan.python_client and not wrk.available():
        _say(wrk.MISSING)
        return 2
    without_peers = options.peers == "none" or (options.quick and options.peers == _DEFAULT_PEERS)
    names = [] if without_peers else options.peers.split(",")
    began = tables.circumstances()
    try:
        contestants = [(c, python := interpreter(c, options.cache), installed(c, python))
                       for c in chosen(names)]  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="galen-bench-") as folder:
            written = write_models(Path(folder) / "models")[options.model]
            results = measure(written, contestants, plan, Path(folder) / "servers")
    except (ValueError, InstallError, ServerError, wrk.ClientError) as error:
        _say(str(error))
        return 2
    print(tables.command("overload"))
    print(f"{began}; model {written.key}, deadline {1000 * plan.deadline_seconds:.0f} ms, "
          f"medians of {plan.rounds} rounds\n")  # fmt: skip
    ours = next(result for result in results if result.name == OURS)
    for factor in plan.factors:
        print(table(results, factor))
    print("\n".join(verdicts(ours, max(plan.factors), plan.deadline_seconds)))
    if options.json:
        content = {"circumstances": began, "servers": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

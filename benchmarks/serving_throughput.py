"""Requests a second of the service beside mosec, LitServe, KServe and BentoML, on two tensor models.

``python -m benchmarks serving_throughput -- --peers mosec,litserve --rounds 3``

All servers of a model run at once and are loaded in turn, in every round, by the same client (wrk,
32 connections, a JSON body of 64 floats), so that what the machine does besides falls on all of
them alike. Ratios are taken within a round; the tables show medians over the rounds. Every server
answers one row as ONNX Runtime does before it is measured. The ceiling is ONNX Runtime in a loop.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serving import bare, closedloop, tables, wrk
from benchmarks.serving.contestants import OURS, Contestant, chosen, peers
from benchmarks.serving.environments import InstallError, installed, interpreter
from benchmarks.serving.models import ModelUnderTest, write_models
from benchmarks.serving.processes import Server, ServerError, serve

_IDLE_SECONDS = 2.0
_BATCHES = (1, 32)
Client = Callable[[str, Path, int, float], wrk.Load]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long."""

    rounds: int
    seconds: float
    warm_seconds: float
    bare_seconds: float
    connections: int
    client: Client


@dataclass(frozen=True, slots=True)
class ServerResult:
    """One server on one model."""

    name: str
    version: str
    note: str
    rounds: tuple[wrk.Load, ...]
    cpu_microseconds: tuple[float, ...]
    """CPU time of all the server's processes per request, by round; steadier than its rate where
    other work goes on."""
    idle_cpu_share: float
    """Of one core, while it had nothing to do."""

    @property
    def per_second(self) -> float:
        """Median of the rounds."""
        return tables.middle([load.per_second for load in self.rounds]) or 0.0


@dataclass(frozen=True, slots=True)
class ModelResult:
    """All servers on one model."""

    key: str
    title: str
    bare: dict[int, tuple[float, ...]]
    """Batch size to samples a second of ONNX Runtime alone, by round."""
    servers: tuple[ServerResult, ...]

    def ratios(self, server: ServerResult) -> list[float]:
        """Our throughput over a server's, by round."""
        ours = next(item for item in self.servers if item.name == OURS)
        return [
            a.per_second / b.per_second
            for a, b in zip(ours.rounds, server.rounds, strict=True)
            if b.per_second
        ]

    def of_bare(self, server: ServerResult) -> float:
        """A server's throughput over the loop's at batch 32, median by round."""
        largest = self.bare[max(self.bare)]
        shares = [a.per_second / b for a, b in zip(server.rounds, largest, strict=True)]
        return tables.middle(shares) or 0.0


def measure_model(
    model: ModelUnderTest, contestants: Sequence[tuple[Contestant, Path, str]], plan: Plan,
    folder: Path,
) -> ModelResult:  # fmt: skip
    """Measure all servers on one model, in interleaved rounds."""
    loads: dict[str, list[wrk.Load]] = {}
    costs: dict[str, list[float]] = {}
    bares: dict[int, list[float]] = {batch: [] for batch in _BATCHES}
    with contextlib.ExitStack() as stack:
        servers: list[Server] = []
        for contestant, python, _ in contestants:
            _say(f"model {model.key}: starting {contestant.name}")
            own = folder / model.key / contestant.name
            servers.append(stack.enter_context(serve(contestant, model, python, own)))
            (own / "body.json").write_bytes(contestant.encode(model, model.row))
        idle = _idle_shares(servers)
        for number in range(plan.rounds):
            for server in servers:
                name = server.contestant.name
                body = folder / model.key / name / "body.json"
                plan.client(server.url, body, plan.connections, plan.warm_seconds)
                before = server.cpu_seconds()
                load = plan.client(server.url, body, plan.connections, plan.seconds)
                spent = server.cpu_seconds() - before
                loads.setdefault(name, []).append(load)
                costs.setdefault(name, []).append(1e6 * spent / max(1, load.requests))
                _say(
                    f"model {model.key} round {number + 1}: {name} {load.per_second:,.0f}/s, "
                    f"p50 {load.p50_ms:.2f} ms, p99 {load.p99_ms:.2f} ms, {load.errors} errors"
                )
            for batch, rates in bares.items():
                rates.append(bare.samples_per_second(model.file, batch, plan.bare_seconds))
    results = tuple(
        ServerResult(
            c.name, version, c.note, tuple(loads[c.name]), tuple(costs[c.name]), idle[c.name]
        )
        for c, _, version in contestants
    )
    frozen = {batch: tuple(rates) for batch, rates in bares.items()}
    return ModelResult(model.key, model.title, frozen, results)


def _idle_shares(servers: Sequence[Server]) -> dict[str, float]:
    """Return what the waiting servers take from the one that is measured, as shares of a core."""
    before = [server.cpu_seconds() for server in servers]
    time.sleep(_IDLE_SECONDS)
    return {
        server.contestant.name: round((server.cpu_seconds() - start) / _IDLE_SECONDS, 4)
        for server, start in zip(servers, before, strict=True)
    }


def table(result: ModelResult) -> str:
    """Return the table of one model."""
    rows = []
    for server in result.servers:
        loads = server.rounds
        ratio = tables.middle(result.ratios(server))
        p50, p99 = (
            tables.middle([getattr(load, name) for load in loads]) for name in ("p50_ms", "p99_ms")
        )
        rows.append([
            f"{server.name} {server.version}",
            tables.count(server.per_second),
            f"{tables.milliseconds(p50)} / {tables.milliseconds(p99)}",
            "1" if server.name == OURS else f"{ratio:.2f}" if ratio else "-",
            f"{100 * result.of_bare(server):.0f}%",
            tables.count(tables.middle(server.cpu_microseconds)),
            str(sum(load.errors for load in loads)),
            f"{100 * tables.spread([load.per_second for load in loads]):.0f}%",
        ])  # fmt: skip
    for batch, rates in result.bare.items():
        rows.append([
            f"bare ONNX Runtime, batch {batch}", tables.count(tables.middle(rates)), "", "", "", "", "",
            f"{100 * tables.spread(rates):.0f}%",
        ])  # fmt: skip
    head = ["server", "requests/s", "p50 / p99 ms", "galen is x times", "of bare batch 32",
            "CPU us/request", "errors", "spread"]  # fmt: skip
    return f"Model {result.key}, {result.title}\n\n{tables.markdown(head, rows)}"


def verdicts(result: ModelResult) -> list[str]:
    """Compare with the targets that this project set itself."""
    by_name = {server.name: server for server in result.servers}
    lines = []
    if result.key == "A":
        for name, wanted in (
            ("mosec", 1.0),
            ("litserve", 10.0),
            ("kserve", 10.0),
            ("bentoml", 10.0),
        ):
            if name in by_name:
                ratio = tables.middle(result.ratios(by_name[name])) or 0.0
                lines.append(_verdict(ratio >= wanted, f"{ratio:.2f} x {name}, wanted {wanted:g}"))
        if "mosec" in by_name:
            ours, theirs = (
                tables.middle([load.p99_ms for load in by_name[name].rounds]) or 0.0
                for name in (OURS, "mosec")
            )
            lines.append(_verdict(ours <= theirs, f"p99 {ours:.2f} ms, mosec {theirs:.2f} ms"))
    else:
        share = result.of_bare(by_name[OURS])
        lines.append(_verdict(share >= 0.93, f"{100 * share:.1f}% of the bare loop, wanted 93%"))
    return lines


def _verdict(met: bool, text: str) -> str:
    return f"{'met' if met else 'MISSED'}: {text}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default="all", help=f"all, none or some of {','.join(peers())}")
    parser.add_argument("--models", default="A,B", help="A (small), B (costly) or both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="each measurement; whole with wrk"
    )
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--client", choices=("wrk", "python"), default="wrk")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "galen-benchmarks",
        help="where the peers' environments are kept",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write every round there")
    parser.add_argument("--quick", action="store_true", help="a second, to see that it works")
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> Plan:
    client = wrk.measure if options.client == "wrk" else closedloop.measure
    if options.quick:
        return Plan(1, 1.0, 0.2, 0.2, 4, closedloop.measure)
    return Plan(options.rounds, options.seconds, 1.0, 2.0, options.connections, client)


def main() -> int:
    """Measure, print the tables, and say which targets were met."""
    options = _arguments()
    if options.client == "wrk" and not options.quick and not wrk.available():
        _say(wrk.MISSING)
        return 2
    named = {"all": "" if options.quick else ",".join(peers()), "none": ""}
    names = [name for name in named.get(options.peers, options.peers).split(",") if name]
    began = tables.circumstances()
    try:
        contestants = [(c, python := interpreter(c, options.cache), installed(c, python))
                       for c in chosen(names)]  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="galen-bench-") as folder:
            written = write_models(Path(folder) / "models")
            results = [
                measure_model(written[key], contestants, _plan(options), Path(folder) / "servers")
                for key in options.models.split(",")
            ]
    except (ValueError, InstallError, ServerError, wrk.ClientError) as error:
        _say(str(error))
        return 2
    plan = _plan(options)
    print(tables.command("serving_throughput"))
    print(f"{began}; {plan.connections} connections, medians of {plan.rounds} rounds\n")
    for result in results:
        print(table(result))
        print("\n".join(verdicts(result)) + "\n")
    if options.json:
        content = {"circumstances": began, "models": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

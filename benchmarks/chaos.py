"""Chaos: does every request get an answer while workers are killed, frozen and poisoned?

``python -m benchmarks.chaos [--requests 20000] [--seed 1] [--load-seconds 60] [--json FILE]``

Four parts, each against the real service in a process of its own:

- *control*: the same traffic without a fault, to know what is normal;
- *chaos*: workers are killed (SIGKILL), frozen (SIGSTOP), made to hang, and poisoned by requests
  that crash or hang them, in an order drawn from the seed;
- *burst*: 1,280 requests at once, which must restart nothing;
- *slow load*: a model that loads for a minute, which must not be taken for a hang.

The exit status is 1 if a request had no clean end, or if a healthy worker was restarted.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.resilience.faults import KINDS, Chaos, FaultResult, readable
from benchmarks.resilience.service import MODEL, OTHER_MODEL, serve, slow_repository
from benchmarks.resilience.traffic import Ledger, Traffic, prompts

_BURST = 1280
_CONTROL_SHARE = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts and print the tables."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        found: dict[str, Any] = {
            "control": _control(folder / "control", options),
            "chaos": _chaos(folder / "chaos", options),
            "burst": _burst(folder / "burst", options),
            "slow_load": _slow_load(folder / "slow", options),
        }
    failures = [f"{name}: {what}" for name, part in found.items() for what in part["failures"]]
    found["failures"], found["passed"] = failures, not failures
    _print(found)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if found["passed"] else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load-seconds", type=float, default=60.0, help="0 leaves that part out")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    return parser.parse_args(arguments)


def _control(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Traffic without faults."""
    _say("control")
    with serve(folder) as service:
        count = max(200, int(options.requests * _CONTROL_SHARE))
        traffic = Traffic(service.port, prompts(count, options.seed), options.rate)
        traffic.start()
        traffic.join()
        restarts = service.engine().unplanned_restarts
    failures = _failures({
        "a request has no clean end": traffic.ledger.clean,
        f"{restarts} restarts": restarts == 0,
    })  # fmt: skip
    return {"failures": failures, "restarts": restarts, **_figures(traffic.ledger)}


def _failures(checks: Mapping[str, bool]) -> list[str]:
    """Return what was not as it should be."""
    return [what for what, fine in checks.items() if not fine]


def _chaos(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Traffic with faults."""
    _say("chaos")
    # Else the small model would soon answer for the one that is hurt, and nobody would be hurt any more.
    with serve(folder, automatic_degradation=False) as service:
        chaos = Chaos(service, random.Random(options.seed))
        chaos.prepare()
        bodies = prompts(options.requests, options.seed)
        traffic = Traffic(service.port, bodies, options.rate)
        traffic.start()
        chaos.run_while(traffic.is_alive)
        traffic.join()
        quarantined = chaos.quarantined()
        poison = service.poison()
        other = service.engine(OTHER_MODEL).unplanned_restarts
        alive = service.alive()
    innocent = len(poison["quarantined"]) - len(set(chaos.poisons))
    lost = [item.kind for item in chaos.results if item.recovered_seconds is None]
    failures = _failures({
        "a request has no clean end": traffic.ledger.clean,
        "the front is gone": alive,
        f"not recovered from {', '.join(lost)}": not lost,
        f"{innocent} innocent requests quarantined": innocent <= 0,
    })  # fmt: skip
    return {
        "failures": failures,
        **_figures(traffic.ledger),
        "faults": {kind: _timing(kind, chaos.results) for kind in KINDS},
        "poisons": len(chaos.poisons),
        "poisons_quarantined": quarantined,
        "innocents_quarantined": max(0, innocent),
        "sandbox": readable(poison),
        "restarts_of_the_other_model": other,
        "answered_by_the_other_model": _share(traffic.ledger.other_statuses),
    }


def _burst(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Many requests at once, while somebody probes."""
    _say("burst")
    with serve(folder) as service:
        traffic = Traffic(service.port, prompts(_BURST, options.seed), None)
        traffic.start()
        live, slowest = [], 0.0
        while traffic.is_alive():
            began = time.monotonic()
            live.append(service.status_of("/health/live"))
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
        restarts = service.engine().unplanned_restarts
        restarts += service.engine(OTHER_MODEL).unplanned_restarts
    failures = _failures({
        "a request has no clean end": traffic.ledger.clean,
        f"{restarts} restarts": restarts == 0,
        f"/health/live answered {sorted(set(live))}": set(live) <= {200},
    })  # fmt: skip
    return {
        "failures": failures,
        "false_restarts": restarts,
        "slowest_probe_seconds": round(slowest, 3),
        **_figures(traffic.ledger),
    }


def _slow_load(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A load that takes longer than any limit for work."""
    if not options.load_seconds:
        return {"failures": [], "false_restarts": 0, "seconds": 0.0}
    _say(f"a load of {options.load_seconds:g} s")
    budget = options.load_seconds + 30
    with (
        slow_repository(folder, options.load_seconds) as root,
        serve(folder, wait=False, repository=str(root), load_budget_seconds=budget) as service,
    ):
        began, probes = time.monotonic(), []
        until = began + options.load_seconds + 30
        pid = None
        while time.monotonic() < until:
            view = service.engine()
            pid = pid or view.pid
            probes.append((service.status_of("/health/live"), service.status_of("/health/ready")))
            if probes[-1][1] == 200:
                break
            time.sleep(0.1)
        seconds = time.monotonic() - began
        view = service.engine()
    lives = {live for live, _ in probes}
    failures = _failures({
        f"not ready after {seconds:.0f} s": probes[-1][1] == 200,
        f"{view.unplanned_restarts} restarts": view.unplanned_restarts == 0,
        "another worker served at the end": view.pid == pid,
        f"the load took {seconds:.0f} s only": seconds >= options.load_seconds * 0.9,
        f"/health/live answered {sorted(lives)}": lives == {200},
    })  # fmt: skip
    return {
        "failures": failures,
        "false_restarts": view.unplanned_restarts,
        "seconds": round(seconds, 2),
        "probes": len(probes),
    }


def _figures(ledger: Ledger) -> dict[str, Any]:
    return {
        "requests": ledger.total,
        "statuses": {str(key): count for key, count in sorted(ledger.statuses.items())},
        "reasons": dict(ledger.reasons.most_common()),
        "answered": round(ledger.share_ok(), 4),
        "hung": ledger.hung,
        "broken": ledger.broken,
        "streams_ended_by_an_error": ledger.stream_errors,
        "p50_seconds": _quantile(ledger.seconds, 0.5),
        "p99_seconds": _quantile(ledger.seconds, 0.99),
        "refusal_p50_seconds": _quantile(ledger.refusal_seconds, 0.5),
    }


def _timing(kind: str, results: Sequence[FaultResult]) -> dict[str, Any]:
    own = [item for item in results if item.kind == kind]
    found: dict[str, Any] = {"count": len(own)}
    for name in ("detected_seconds", "recovered_seconds"):
        values = [getattr(item, name) for item in own]
        known = [value for value in values if value is not None]
        found[name] = {
            "median": round(statistics.median(known), 3) if known else None,
            "max": round(max(known), 3) if known else None,
            "never": len(values) - len(known),
        }
    return found


def _quantile(values: Sequence[float], share: float) -> float | None:
    ordered = sorted(values)
    return round(ordered[int(share * (len(ordered) - 1))], 4) if ordered else None


def _share(statuses: dict[int, int]) -> float:
    return round(statuses.get(200, 0) / max(1, sum(statuses.values())), 4)


def _say(part: str) -> None:
    sys.stderr.write(f"{part} ...\n")
    sys.stderr.flush()


def _print(found: dict[str, Any]) -> None:
    out = sys.stdout.write
    out(
        f"{'part':<10} {'requests':>8} {'200':>7} {'hung':>5} {'broken':>6} {'p50':>8} {'p99':>8}\n"
    )
    for name in ("control", "chaos", "burst"):
        part = found[name]
        times = [f"{part[key] * 1000:.1f}" if part[key] else "-" for key in
                 ("p50_seconds", "p99_seconds")]  # fmt: skip
        out(
            f"{name:<10} {part['requests']:>8} {part['answered']:>7.1%} {part['hung']:>5} "
            f"{part['broken']:>6} {times[0]:>6}ms {times[1]:>6}ms  {part['statuses']}\n"
        )
    chaos = found["chaos"]
    out(f"\nrefusals and failures under chaos: {chaos['reasons']}\n")
    out(f"\n{'fault':<14} {'times':>5} {'detected (max)':>18} {'recovered (max)':>18}  seconds\n")
    for kind, timing in chaos["faults"].items():
        cells = [
            f"{timing[name]['median']} ({timing[name]['max']})"
            for name in ("detected_seconds", "recovered_seconds")
        ]
        out(f"{kind:<14} {timing['count']:>5} {cells[0]:>18} {cells[1]:>18}\n")
    out(
        f"\npoison requests quarantined: {chaos['poisons_quarantined']} of {chaos['poisons']}; "
        f"innocent ones: {chaos['innocents_quarantined']}; sandbox: {chaos['sandbox']}\n"
        f"{OTHER_MODEL} beside {MODEL}: {chaos['answered_by_the_other_model']:.1%} answered, "
        f"{chaos['restarts_of_the_other_model']} restarts\n"
        f"false restarts: burst {found['burst']['false_restarts']}, "
        f"load of {found['slow_load']['seconds']} s {found['slow_load']['false_restarts']}\n"
        f"{'; '.join(['FAILED', *found['failures']]) if found['failures'] else 'passed'}\n"
    )


if __name__ == "__main__":
    sys.exit(main())

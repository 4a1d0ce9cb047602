"""Judges the off-line detector of tables on the Server Machine Dataset and on injected faults.

    python -m benchmarks detection_smd [--json]

Printed are means over machines: VUS-PR (Paparrizos et al., VLDB 2022, in TSB-AD's form), average
precision, F1 at the threshold frozen on training rows and at the best one, the share of normal rows
above the frozen threshold, how often the leading column is a labelled cause, and the time. Peers are
fitted once on the training rows; `random` scores at random, `always` flags every row. `chosen by` are
the machines that settings were chosen by (every second one by name), `judged by` the others; `injected`
are faults put into the machines' training rows. One configuration for all.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from benchmarks.labelled.cases import DATA, smd
from benchmarks.labelled.injected import injected
from benchmarks.labelled.judging import judge, means


def main() -> None:
    """Judge each table and print the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--limit", type=int, default=1000, help="machines at most")
    parser.add_argument(
        "--seed", type=int, default=0, help="of forest, control and injected faults"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    rows = []
    for number, case in enumerate(smd(given.data, given.limit)):
        part = "judged by" if number % 2 else "chosen by"
        rows += [{"part": part, "case": case.name, **row} for row in judge(case, given.seed)]
        sys.stderr.write(f"{case.name}\n")
    for case in injected(given.data, given.limit, given.seed):
        rows += [{"part": "injected", "case": case.name, **row} for row in judge(case, given.seed)]
        sys.stderr.write(f"{case.name}\n")
    table = pd.DataFrame(rows).sort_values("part", kind="stable")
    recorded = table[table["part"] != "injected"].assign(part="all machines")
    mean = means(pd.concat((recorded, table)))
    if given.json:
        document = {
            "tables": json.loads(table.to_json(orient="records")),
            "means": json.loads(mean.reset_index().to_json(orient="records")),
        }
        print(json.dumps(document, indent=2))
        return
    wide = table.pivot_table(index=["part", "case"], columns="detector", values="vus_pr")
    print("VUS-PR\n" + wide[list(dict.fromkeys(table["detector"]))].round(3).to_string())
    print("\nMeans over tables\n" + mean.round(3).to_string(na_rep=""))


if __name__ == "__main__":
    main()

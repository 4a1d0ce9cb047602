"""Ranks the off-line detector on the Server Machine Dataset, next to controls that need no data.

    python -m benchmarks.detection_smd

Printed per file: VUS-PR (Paparrizos et al., VLDB 2022, in TSB-AD's form), average precision, and F1 at
the threshold frozen on training rows. `random` scores at random; `always` flags every row. One
configuration for all files.
"""

from __future__ import annotations

from benchmarks.labelled.cases import smd
from benchmarks.labelled.judging import run

if __name__ == "__main__":
    run(__doc__, smd)

"""Runs every benchmark: ``python -m benchmarks [NAME ...] [OPTION ...]``.

The first word that begins with ``-`` and all after it go to each of them, ``--`` itself does not:
``python -m benchmarks serving_throughput -- --quick``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = tuple(
    path.stem
    for path in sorted(Path(__file__).parent.glob("*.py"))
    if not path.stem.startswith("_")
)


def main() -> int:
    """Run the named benchmarks, or all of them, each in a process of its own."""
    arguments = sys.argv[1:]
    cut = next((at for at, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    wanted, options = arguments[:cut] or list(NAMES), arguments[cut:]
    options = options[1:] if options[:1] == ["--"] else options
    if unknown := [name for name in wanted if name not in NAMES]:
        sys.stderr.write(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}\n")
        return 2
    codes = [
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *options], check=False
        ).returncode
        for name in wanted
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())

"""Starts the service as users do, on one tensor model: ``python -m benchmarks.serving.ours JSON``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from inference.server import run
from inference.settings import InferenceSettings


def main() -> None:
    """Serve until SIGTERM."""
    options = json.loads(sys.argv[1])
    settings = InferenceSettings(
        repository=Path(options["repository"]),
        models=(options["model"],),
        state_dir=Path(options["state_dir"]),
    )
    run(settings, "127.0.0.1", options["port"])


if __name__ == "__main__":
    main()

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog


@pytest.fixture(scope="session")
def expositions() -> Path:
    """Real scrapes of real exporters, kept outside the repository."""
    shared = Path(__file__).parents[4] / "shared" / "expositions"
    folder = Path(os.environ.get("GALEN_EXPOSITIONS", shared))
    if not folder.is_dir():
        pytest.skip(f"no real scrapes at {folder}; set GALEN_EXPOSITIONS to a folder of them")
    return folder


@pytest.fixture(autouse=True)
def _log_as_by_default() -> None:
    """Forget where a command line of another test has sent the log: that stream is closed by now."""
    structlog.reset_defaults()

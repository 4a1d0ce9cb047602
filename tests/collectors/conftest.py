from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def expositions() -> Path:
    """Real scrapes of real exporters, kept outside the repository."""
    shared = Path(__file__).parents[3] / "shared" / "expositions"
    folder = Path(os.environ.get("GALEN_EXPOSITIONS", shared))
    if not folder.is_dir():
        pytest.skip(f"no real scrapes at {folder}; set GALEN_EXPOSITIONS to a folder of them")
    return folder


@pytest.fixture(scope="session")
def facts() -> Path:
    """Tables of facts from public sources, kept outside the repository."""
    shared = Path(__file__).parents[3] / "shared" / "facts"
    folder = Path(os.environ.get("GALEN_FACTS", shared))
    if not folder.is_dir():
        pytest.skip(f"no tables of facts at {folder}; set GALEN_FACTS to a folder of them")
    return folder

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.journal import Journal
from healing.ledger import Ledger
from healing.policy import Policy, load_policy
from tests.healing.worlds import World


@pytest.fixture(scope="session")
def policy() -> Policy:
    return load_policy()


@pytest.fixture
def world(tmp_path: Path, policy: Policy) -> World:
    return World(tmp_path, policy)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.sqlite")


@pytest.fixture
def ledger(journal: Journal) -> Ledger:
    return Ledger(journal)

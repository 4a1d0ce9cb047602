"""Repositories as they are found in the morning: half copied, renamed, emptied, scribbled over."""

import json
import os
import shutil

import pytest
from structlog.testing import capture_logs

from inference.errors import NotFoundError
from inference.model import ModelFormatError
from inference.repository import STATE_FILE, ModelRepository


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def repository(own_repository, state):
    return ModelRepository(own_repository, state)


def add(repository, version, *, renumber=True):
    folder = repository.folder("tiny", version)
    shutil.copytree(repository.folder("tiny", 1), folder)
    if renumber:
        path = folder / "model.toml"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("\nversion = 1\n", f"\nversion = {version}\n"), "utf-8")
    return folder


def test_a_model_without_damage_has_no_problems(repository):
    add(repository, 2)
    assert repository.problems("tiny") == {}
    assert repository.models() == ["tiny", "tiny-small"]


@pytest.mark.parametrize("name", ["latest", "v2", "02", "1.0", "²", "-1"])
def test_a_folder_that_is_no_number_is_no_version_and_is_named(repository, name):
    shutil.copytree(repository.folder("tiny", 1), repository.root / "tiny" / name)
    assert repository.versions("tiny") == [1]
    assert "whole number" in repository.problems("tiny")[name]


def test_a_copy_under_way_is_no_problem(repository):
    shutil.copytree(repository.folder("tiny", 1), repository.root / "tiny" / ".2.partial")
    assert repository.versions("tiny") == [1]
    assert repository.problems("tiny") == {}


def test_a_version_in_the_wrong_folder_is_refused(repository):
    add(repository, 3, renumber=False)
    with pytest.raises(ModelFormatError, match="says version = 1, but its folder is 3"):
        repository.metadata("tiny", 3)
    assert "correct one of them" in repository.problems("tiny")["3"]


def test_a_model_in_the_wrong_folder_is_refused(repository):
    (repository.root / "other").mkdir()
    shutil.copytree(repository.folder("tiny", 1), repository.root / "other" / "1")
    with pytest.raises(ModelFormatError, match="says name = 'tiny', but its folder is other"):
        repository.metadata("other", 1)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "model.toml").unlink(), "No such file"),
        (lambda folder: (folder / "model.toml").write_text("name = "), "model.toml"),
        (lambda folder: (folder / "model.toml").write_text("name = 1"), "model.toml"),
        (lambda folder: (folder / "model.toml").write_bytes(b"\xff\xfe"), "model.toml"),
        (lambda folder: (folder / "model.onnx").unlink(), "neither model.onnx nor model.plan"),
    ],
)
def test_an_incomplete_version_says_what_is_missing(repository, damage, problem):
    damage(add(repository, 2))
    assert problem in repository.problems("tiny")["2"]
    assert "1" not in repository.problems("tiny")


@pytest.mark.parametrize("name", ["..", ".", "../tiny", "", "tiny/1", "a" * 200, ".hidden"])
def test_names_that_are_no_models_are_not_looked_for(repository, name):
    with pytest.raises(NotFoundError):
        repository.versions(name)


def test_after_the_active_folder_is_gone_a_proven_version_is_used(repository):
    """A newer version that nobody proved must not come into service because another is missing."""
    for version in (2, 3, 4):
        add(repository, version)
    repository.mark_good("tiny", 2)
    repository.mark_good("tiny", 3)
    shutil.rmtree(repository.folder("tiny", 3))
    with capture_logs() as logs:
        assert [repository.active("tiny") for _ in range(3)] == [2, 2, 2]
    assert [log["event"] for log in logs] == ["active_version_is_gone"], "told once"
    assert logs[0]["instead"] == 2


def test_a_damaged_state_file_falls_back_to_the_one_before(repository, state):
    for version in (2, 3):
        add(repository, version)
    repository.quarantine("tiny", 3, "wrong answers")
    repository.mark_good("tiny", 2)
    (state / STATE_FILE).write_text('{"models": {"tiny": {"act', encoding="utf-8")
    again = ModelRepository(repository.root, state)
    assert again.newest("tiny") == 2, "the quarantine is remembered"
    assert "cannot be read" in again.state_problem
    assert "one change older" in again.state_problem
    assert (state / "model_versions.damaged.json").exists()
    again.mark_good("tiny", 2)
    assert again.state_problem == ""
    assert ModelRepository(repository.root, state).active("tiny") == 2


def test_without_any_readable_state_the_service_begins_anew_and_says_so(repository, state):
    state.mkdir()
    (state / STATE_FILE).write_text("[]", encoding="utf-8")
    again = ModelRepository(repository.root, state)
    assert again.active("tiny") == 1
    assert "forgotten" in again.state_problem


def test_a_state_file_that_was_deleted_is_a_fresh_start(repository, state):
    add(repository, 2)
    repository.mark_good("tiny", 1)
    repository.quarantine("tiny", 2, "wrong answers")
    (state / STATE_FILE).unlink()
    again = ModelRepository(repository.root, state)
    assert (again.active("tiny"), again.state_problem) == (2, "")


def test_unknown_keys_in_the_state_file_are_damage_too(repository, state):
    state.mkdir()
    (state / STATE_FILE).write_text(json.dumps({"models": {"tiny": {"activ": 2}}}), "utf-8")
    assert "cannot be read" in ModelRepository(repository.root, state).state_problem


def test_a_full_disk_does_not_end_the_service(repository, state, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    add(repository, 2)
    repository.mark_good("tiny", 1)
    monkeypatch.setattr(os, "fsync", full)
    repository.mark_good("tiny", 2)
    assert repository.active("tiny") == 2, "the choice holds"
    assert "cannot be written" in repository.state_problem
    monkeypatch.undo()
    assert ModelRepository(repository.root, state).active("tiny") == 1, "the old file is whole"

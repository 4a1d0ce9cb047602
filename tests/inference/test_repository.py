import shutil

import pytest

from inference.errors import ConflictError, NotFoundError
from inference.model import ModelFormatError, read_metadata
from inference.repository import ModelRepository, bundled_repository, install_bundled_repository


@pytest.fixture
def repository(own_repository, tmp_path):
    for version in ("2", "3"):
        shutil.copytree(own_repository / "tiny" / "1", own_repository / "tiny" / version)
    return ModelRepository(own_repository, tmp_path / "state")


def test_the_newest_version_is_used_at_first(repository):
    assert repository.versions("tiny") == [1, 2, 3]
    assert repository.active("tiny") == 3


def test_a_choice_and_a_quarantine_survive_a_restart(repository, tmp_path):
    repository.activate("tiny", 2)
    repository.quarantine("tiny", 3, "wrong answers")
    again = ModelRepository(repository.root, tmp_path / "state")
    assert again.active("tiny") == 2
    assert again.newest("tiny") == 2
    assert [(v.version, v.quarantined) for v in again.describe("tiny")] == [
        (1, None), (2, None), (3, "wrong answers"),
    ]  # fmt: skip


def test_rolling_back_prefers_the_version_that_served(repository):
    repository.mark_good("tiny", 1)
    repository.activate("tiny", 3)
    assert repository.previous_good("tiny") == 1
    repository.mark_good("tiny", 2)
    repository.activate("tiny", 3)
    assert repository.previous_good("tiny") == 2


def test_there_may_be_nothing_to_roll_back_to(repository):
    with pytest.raises(ConflictError, match="no version to roll back"):
        repository.previous_good("tiny-small")


def test_activating_lifts_a_quarantine(repository):
    repository.quarantine("tiny", 3, "suspect")
    assert repository.newest("tiny") == 2
    repository.activate("tiny", 3)
    assert repository.newest("tiny") == 3


@pytest.mark.parametrize("model", ["nothing", "../tiny/.."])
def test_an_unknown_model_is_not_found(repository, model):
    with pytest.raises(NotFoundError):
        ModelRepository(repository.root / "tiny", repository.root).active(model)


def test_a_version_that_is_gone_is_not_used(repository):
    repository.activate("tiny", 3)
    shutil.rmtree(repository.folder("tiny", 3))
    assert repository.active("tiny") == 2


def test_an_unreadable_state_file_is_set_aside(repository, tmp_path):
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "model_versions.json").write_text("{", encoding="utf-8")
    assert ModelRepository(repository.root, tmp_path / "state").active("tiny") == 3


def test_a_corrupt_version_is_new_and_truncated(repository):
    version = repository.add_corrupt_version("tiny")
    assert version == 4
    good, bad = (repository.folder("tiny", v) / "model.onnx" for v in (1, 4))
    assert 0 < bad.stat().st_size < good.stat().st_size


def test_the_bundled_repository_is_never_written(tmp_path):
    repository = ModelRepository(bundled_repository(), tmp_path)
    with pytest.raises(ConflictError, match="copy"):
        repository.add_corrupt_version("demo-lm")


def test_installing_keeps_what_is_there(tmp_path):
    target = install_bundled_repository(tmp_path / "models")
    changed = target / "demo-lm" / "1" / "model.toml"
    changed.write_text("mine", encoding="utf-8")
    install_bundled_repository(target)
    assert changed.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nversion = 1", "", "lacks the key 'version'"),
        ("\nversion = 1", '\nversion = "two"', "invalid literal"),
        ("<|chat|>{text}", "<|chat|>", "lacks {text}"),
        ("[prompts]", "[prompts", "model.toml"),
    ],
)
def test_a_bad_model_toml_is_named_with_its_fault(own_repository, old, new, message):
    folder = own_repository / "tiny" / "1"
    path = folder / "model.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(ModelFormatError) as error:
        read_metadata(folder)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_version_that_appears_later_is_not_taken_by_itself(repository):
    repository.mark_good("tiny", 3)
    shutil.copytree(repository.folder("tiny", 1), repository.folder("tiny", 4))
    assert repository.active("tiny") == 3
    assert repository.newest("tiny") == 4

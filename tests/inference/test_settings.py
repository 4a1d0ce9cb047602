import pytest
from pydantic import ValidationError

from inference.app import create_app
from inference.errors import NotFoundError
from inference.settings import InferenceSettings


def test_every_field_is_described():
    for name, field in InferenceSettings.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        InferenceSettings().slots = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slots": 0}, "slots"),
        ({"slotz": 1}, "slotz"),
        ({"progress_budget_seconds": 1.0, "stall_seconds": 2.0}, "above stall_seconds"),
        ({"models": ("a", "a")}, "twice"),
        ({"models": ()}, "models"),
    ],
)
def test_a_bad_value_is_named(values, message):
    with pytest.raises(ValidationError, match=message):
        InferenceSettings(**values)


def test_each_task_has_its_deadline():
    settings = InferenceSettings()
    assert settings.deadline_seconds("sentiment") == 0.8
    assert settings.deadline_seconds("chat") == 1.5


def test_a_model_that_is_not_there_is_an_error_before_anything_starts(repository, tmp_path):
    settings = InferenceSettings(repository=repository, state_dir=tmp_path, models=("nothing",))
    with pytest.raises(NotFoundError, match="no model 'nothing'"):
        create_app(settings)


def test_the_token_is_not_in_the_text_of_the_settings():
    assert "hush" not in repr(InferenceSettings(admin_token="hush"))

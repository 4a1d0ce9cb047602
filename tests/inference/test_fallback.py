import pytest
from pydantic import ValidationError

from inference.fallback import FallbackReason, Route, chain_of, choose
from inference.settings import InferenceSettings

MODELS = ("big", "middle", "small")
DOWN, OPEN, NONE = (
    FallbackReason.ENGINE_DOWN, FallbackReason.CIRCUIT_OPEN, FallbackReason.NONE
)  # fmt: skip


def _settings(**changes):
    return InferenceSettings(models=MODELS, **changes)


def _check(**broken):
    return lambda model: broken.get(model, NONE)


def _any(_model):
    return True


def _choose(level, settings, check, model="big"):
    return choose(model, level, settings, chain_of(model, settings, MODELS, _any), check)


DECLARED = _settings(fallbacks={"big": ("small", "middle")})


def test_by_default_the_next_model_is_the_fallback():
    assert chain_of("big", _settings(), MODELS, _any) == ("middle",)
    assert chain_of("small", _settings(), MODELS, _any) == ()
    assert chain_of("big", DECLARED, MODELS, _any) == ("small", "middle")


def test_models_of_another_kind_cannot_stand_in():
    assert chain_of("big", _settings(), MODELS, lambda name: name == "small") == ("small",)
    assert chain_of("big", DECLARED, MODELS, lambda name: name == "middle") == ("middle",)


def test_models_that_were_unloaded_are_passed_over():
    assert chain_of("big", DECLARED, ("big", "middle"), _any) == ("middle",)
    assert chain_of("big", _settings(), ("big", "new"), _any) == ("new",)


@pytest.mark.parametrize(
    ("level", "broken", "route"),
    [
        (0, {}, Route("big")),
        (2, {}, Route("big")),
        (0, {"big": DOWN}, Route("small", DOWN)),
        (0, {"big": OPEN}, Route("small", OPEN)),
        (0, {"big": DOWN, "small": OPEN}, Route("middle", DOWN)),
        (0, {"big": DOWN, "small": DOWN, "middle": DOWN}, Route("big")),
        (3, {}, Route("small", FallbackReason.DEGRADATION)),
        (3, {"small": DOWN}, Route("middle", FallbackReason.DEGRADATION)),
        (3, {"small": DOWN, "middle": DOWN}, Route("small", FallbackReason.DEGRADATION)),
    ],
)
def test_the_first_usable_model_of_the_chain_answers(level, broken, route):
    assert _choose(level, DECLARED, _check(**broken)) == route


def test_without_a_declaration_a_model_that_is_down_is_only_replaced_if_asked_for():
    check = _check(big=DOWN)
    assert _choose(0, _settings(), check) == Route("big")
    assert _choose(0, _settings(automatic_fallback=True), check) == Route("middle", DOWN)
    assert _choose(3, _settings(), check, "small") == Route("small")


@pytest.mark.parametrize(
    "fallbacks",
    [{"big": ("big",)}, {"big": ("huge",)}, {"huge": ("big",)}, {"big": ("small", "small")}],
)
def test_a_chain_that_makes_no_sense_is_refused(fallbacks):
    with pytest.raises(ValidationError, match="fallbacks"):
        _settings(fallbacks=fallbacks)

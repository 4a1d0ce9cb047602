import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engines.offline import InputError
from inference.engines.onnx_file import TensorInfo, read_onnx
from inference.engines.shapes import SizeRange, axes, evaluate, parse_ranges, resolve_profile


def tensor(name: str, *shape: int | str | None) -> TensorInfo:
    return TensorInfo(name=name, dtype="float32", shape=shape)


def test_a_decoder_needs_no_options_whatever_its_exporter_called_the_sizes(folder):
    profile = resolve_profile(read_onnx(folder / "model.onnx").inputs, {})
    assert profile["input_ids"] == ((1, 1), (4, 1), (32, 256))
    assert profile["attention_mask"] == ((1, 1), (4, 129), (32, 512))
    assert profile["past_key_values.1.value"] == ((1, 2, 0, 8), (4, 2, 128, 8), (32, 2, 256, 8))


def test_ranges_given_go_before_the_defaults(folder):
    ranges = parse_ranges(["batch=1,1,2", "past_sequence=0,8,9"])
    profile = resolve_profile(read_onnx(folder / "model.onnx").inputs, ranges)
    assert profile["attention_mask"] == ((1, 1), (1, 9), (2, 265))


def test_names_of_sizes():
    assert axes(tensor("x", "N", 3, "height", None), decoder=False) == (
        "batch", 3, "height", "x:3",
    )  # fmt: skip
    assert axes(tensor("x", None, 3), decoder=False) == ("batch", 3)
    assert axes(tensor("x", "time", 3), decoder=False) == ("time", 3)


def test_a_size_without_a_range_names_the_option():
    inputs = [tensor("x", "batch", "height")]
    with pytest.raises(InputError, match="'height'") as caught:
        resolve_profile(inputs, {})
    assert "--profile 'height=MIN,OPT,MAX'" in caught.value.fix
    assert resolve_profile(inputs, {"height": SizeRange(1, 2, 3)})["x"] == ((1, 1), (4, 2), (32, 3))


def test_a_range_that_no_input_has_is_refused_with_the_names_there_are():
    with pytest.raises(InputError, match="hight") as caught:
        resolve_profile([tensor("x", "batch", "height")], {"hight": SizeRange(1, 2, 3)})
    assert "batch, height" in caught.value.fix


def test_fixed_shapes_need_no_profile():
    assert resolve_profile([tensor("x", 1, 3)], {}) == {}


@pytest.mark.parametrize("text", ["batch", "batch=1", "=1,2,3", "a=3,2,1", "a=-1,2,3", "a=1,2,x"])
def test_ranges_in_another_form_are_refused(text):
    with pytest.raises(InputError, match="is not NAME=MIN,OPT,MAX"):
        parse_ranges([text])


@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=3).map(sorted))
def test_ranges_in_order_are_taken(numbers):
    text = f"a b={numbers[0]},{numbers[1]},{numbers[2]}"
    assert parse_ranges([text]) == {"a b": SizeRange(*numbers)}


def test_sums_are_evaluated():
    assert evaluate("past + 1", {"past": 7}) == 8
    assert evaluate("a + b", {"a": 1, "b": 2}) == 3
    assert evaluate("a + b", {"a + b": 9, "a": 1, "b": 2}) == 9
    with pytest.raises(KeyError, match="b"):
        evaluate("a + b", {"a": 1})

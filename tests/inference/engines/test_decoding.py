"""Which decoders are recognised, and what is said of those that are not."""

import numpy as np
import pytest

from inference.engines.contract import EngineLoadError, Signature, StepInputs, TensorSpec
from inference.engines.decoding import DecoderContext, derive_interface

INT64, FLOAT = np.dtype(np.int64), np.dtype(np.float32)
SHAPE = ("batch", 2, "past", 8)


def _tensor(name, shape=("batch", "n"), dtype=INT64):
    return TensorSpec(name, np.dtype(dtype), tuple(shape))


def _signature(past, present, shape=SHAPE, dtype=FLOAT, others=("attention_mask",)):
    inputs = [_tensor(name) for name in ("input_ids", *others)]
    logits = _tensor("logits", ("batch", "n", 9), FLOAT)
    return Signature(
        (*inputs, *(_tensor(name, shape, dtype) for name in past)),
        (logits, *(_tensor(name, shape, dtype) for name in present)),
    )


def _names(pattern, layers=11):
    return [pattern.format(n, part) for n in range(layers) for part in ("key", "value")]


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.{}.{}", "present.{}.{}"),
        ("past_key_values.{}.{}", "present_key_values.{}.{}"),
        ("past_key_values_{}_{}", "present_{}_{}"),
        ("past_{1}_{0}", "present_{1}_{0}"),
        ("past.{}.{}", "present.{}.{}"),
    ],
)
def test_names_of_the_usual_exporters_are_paired_in_the_order_of_layers(past, present):
    # Shuffled: exporters sort names as text, where layer 10 comes before layer 2.
    signature = _signature(sorted(_names(past)), sorted(_names(present))[::-1])
    interface = derive_interface(signature, "m")
    assert list(interface.past) == _names(past)
    assert list(interface.present) == _names(present)
    assert (interface.shape.layers, interface.shape.heads, interface.shape.head_dim) == (11, 2, 8)
    assert interface.can_pad


class _Echo:
    """A context that returns what it was given, as present."""

    def __init__(self, interface):
        self.interface, self.feeds = interface, {}

    def run(self, feeds, fetches, resident):
        self.feeds = feeds
        outputs = {"logits": np.zeros((1, 1, 9), np.float16)}
        pairs = zip(self.interface.present, self.interface.past, strict=True)
        return outputs | {new: feeds[old] for new, old in pairs}


def _execute(interface, heads=2, size=8):
    rng = np.random.default_rng(0)
    past = [
        rng.normal(size=(1, heads, 3, size)).astype(np.float32)
        for _ in range(2 * interface.shape.layers)
    ]
    echo = _Echo(interface)
    one = np.ones((1, 1), np.int64)
    outputs = DecoderContext(echo, interface).execute(
        StepInputs(one, np.ones((1, 4), np.int64), one, past)
    )
    for ours, theirs in zip(past, outputs.present, strict=True):
        assert (ours == theirs).all()
    assert outputs.logits.dtype == np.float32
    return echo.feeds


def test_keys_and_values_in_one_tensor_are_taken_apart_and_put_together():
    names = [f"past_{n}" for n in range(3)], [f"present_{n}" for n in range(3)]
    interface = derive_interface(_signature(*names, shape=(2, *SHAPE)), "m")
    assert interface.stacked
    assert interface.shape.layers == 3
    assert _execute(interface)["past_1"].shape == (2, 1, 2, 3, 8)


def test_tokens_before_heads_are_turned():
    names = _names("past_key_values.{}.{}", 1), _names("present.{}.{}", 1)
    interface = derive_interface(_signature(*names, shape=("batch", "past", 2, 8)), "m")
    assert interface.tokens_first
    assert _execute(interface)["past_key_values.0.key"].shape == (1, 3, 2, 8)


def test_inputs_are_given_in_the_types_of_the_model():
    signature = _signature(_names("past.{}.{}", 1), _names("present.{}.{}", 1))
    own = (
        _tensor("input_ids", dtype=np.int32), _tensor("attention_mask", dtype=np.float32),
        _tensor("position_ids", dtype=np.int32), _tensor("use_cache_branch", (1,), np.bool_),
    )  # fmt: skip
    feeds = _execute(
        derive_interface(Signature(own + signature.inputs[2:], signature.outputs), "m")
    )
    assert {name: feeds[name].dtype for name in (t.name for t in own)} == {
        tensor.name: tensor.dtype for tensor in own
    }
    assert feeds["use_cache_branch"].tolist() == [True]


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (_signature([], []), r"no `past_key_values\.\*` inputs: export it with its cache"),
        (_signature(_names("past.{}.{}"), []), r"no `present\.\*` outputs: .*text-generation-with"),
        (
            _signature(_names("past.{}.{}", 2), _names("present.{}.{}", 1)),
            "do not belong together",
        ),
        (
            _signature(_names("past.{}.{}"), _names("present.{}.{}"), others=("inputs_embeds",)),
            "wants the inputs inputs_embeds",
        ),
        (
            _signature(
                _names("past.{}.{}"), _names("present.{}.{}"), shape=("b", "heads", "p", "size")
            ),
            "does not say its heads: give `heads` in model.toml",
        ),
        (
            _signature(_names("past.{}.{}"), _names("present.{}.{}"), dtype=np.float64),
            "the cache is float64",
        ),
    ],
)
def test_what_is_missing_is_named_with_the_fix(signature, message):
    with pytest.raises(EngineLoadError, match=message):
        derive_interface(signature, "m")


def test_sizes_that_the_model_leaves_open_come_from_the_configuration():
    shape = ("b", "heads", "p", "size")
    signature = _signature(_names("past.{}.{}"), _names("present.{}.{}"), shape=shape)
    interface = derive_interface(signature, "m", heads=3, head_dim=5)
    assert (interface.shape.heads, interface.shape.head_dim) == (3, 5)

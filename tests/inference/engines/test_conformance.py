"""What every engine is held to: the same answers, the same errors, whatever computes."""

import numpy as np
import pytest

from inference.engines.contract import EngineLoadError, EngineStepError, StepInputs
from inference.engines.cuda import Cuda
from inference.engines.decoding import DecoderContext, derive_interface
from inference.engines.fake import FakeDevice, FakeTensorRtRuntime, make_module
from inference.engines.onnx import OnnxContext, OnnxEngine, OnnxRuntime
from inference.engines.tensorrt import TensorRtRuntime


class _OnnxBoundRuntime(OnnxRuntime):
    """The path of CUDA, where outputs stay on the device, on the device that there is."""

    def load(self, folder, file=None):
        engine = super().load(folder, file)

        class Engine(OnnxEngine):
            def create_context(self):
                return OnnxContext(self._session, "cpu")

        return Engine(engine._session, "cpu")


RUNTIMES = {
    "onnx": OnnxRuntime,
    "onnx with binding": _OnnxBoundRuntime,
    "fake tensorrt": FakeTensorRtRuntime,
}


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    return RUNTIMES[request.param]()


@pytest.fixture(scope="module")
def interface(folder):
    return derive_interface(OnnxRuntime().load(folder).signature, "tiny")


@pytest.fixture(scope="module")
def shape(interface):
    return interface.shape


def _prompt(ids, past):
    """Inputs of a whole prompt, after an empty cache."""
    length = len(ids)
    return StepInputs(
        np.array([ids], np.int64),
        np.ones((1, length), np.int64),
        np.arange(length, dtype=np.int64)[None],
        past,
    )


def _next(token, position, past):
    return StepInputs(
        np.array([[token]], np.int64),
        np.ones((1, position + 1), np.int64),
        np.array([[position]], np.int64),
        past,
    )


def test_the_signature_is_the_models(runtime, folder, shape, interface):
    engine = runtime.load(folder)
    assert derive_interface(engine.signature, "tiny").shape == shape
    assert engine.signature.input("input_ids").dtype == np.int64
    assert engine.signature.output("present.0.key").shape[1] == shape.heads


def test_the_device_is_verified(runtime, folder):
    engine = runtime.load(folder)
    placement = engine.placement()
    assert engine.device == placement.device
    assert engine.device in {"cpu", "cuda"}
    assert not placement.reason


@pytest.mark.parametrize("resident", [False, True])
def test_steps_with_a_cache_give_what_the_whole_prompt_gives(
    runtime, folder, shape, interface, resident
):
    engine = runtime.load(folder)
    context = DecoderContext(engine.create_context(), interface, resident=resident)
    ids = [7, 30, 31, 32, 33, 34]
    whole = context.execute(_prompt(ids, shape.empty())).logits
    outputs = context.execute(_prompt(ids[:2], shape.empty()))
    for position in range(2, len(ids)):
        outputs = context.execute(_next(ids[position], position, outputs.present))
        np.testing.assert_allclose(outputs.logits[0, -1], whole[0, position], atol=1e-4)
    assert np.asarray(outputs.present[0]).shape == (1, shape.heads, len(ids), shape.head_dim)


def test_a_batch_is_joined_through_the_host_and_goes_on(runtime, folder, shape, interface):
    engine = runtime.load(folder)
    context = DecoderContext(engine.create_context(), interface, resident=True)
    alone = context.execute(_prompt([7, 30, 31], shape.empty()))
    present = [np.asarray(tensor) for tensor in alone.present]
    both = [np.concatenate([array, array]) for array in present]
    step = StepInputs(
        np.full((2, 1), 40), np.ones((2, 4), np.int64), np.full((2, 1), 3, np.int64), both
    )
    logits = context.execute(step).logits
    single = context.execute(_next(40, 3, alone.present)).logits
    np.testing.assert_allclose(logits[0], single[0], atol=1e-4)
    np.testing.assert_allclose(logits[1], single[0], atol=1e-4)


def test_only_what_was_fetched_comes_back_in_that_order(runtime, folder, shape):
    context = runtime.load(folder).create_context()
    inputs = _prompt([7], shape.empty())
    feeds = {
        "input_ids": inputs.input_ids,
        "attention_mask": inputs.attention_mask,
        "position_ids": inputs.position_ids,
        **{
            spec.name: np.zeros((1, shape.heads, 0, shape.head_dim), np.float32)
            for spec in runtime.load(folder).signature.inputs
            if spec.name.startswith("past")
        },
    }
    assert list(context.run(feeds, ["present.1.key", "logits"])) == ["present.1.key", "logits"]
    assert {"logits", "present.0.value"} <= set(context.run(feeds))
    with pytest.raises(EngineStepError):
        context.run({name: array for name, array in feeds.items() if name != "input_ids"})


def test_what_cannot_be_computed_is_a_step_error_and_the_next_step_works(
    runtime, folder, shape, interface
):
    context = DecoderContext(runtime.load(folder).create_context(), interface)
    wrong = [np.zeros((1, shape.heads, 2, shape.head_dim + 1), np.float32)] * (2 * shape.layers)
    with pytest.raises(EngineStepError):
        context.execute(_prompt([7], wrong))
    assert np.isfinite(context.execute(_prompt([7], shape.empty())).logits).all()


def test_a_file_that_is_no_model_is_a_load_error(runtime, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineLoadError, match=r"model\.onnx"):
        runtime.load(tmp_path)


def test_closing_twice_is_closing_once(runtime, folder, shape, interface):
    engine = runtime.load(folder)
    context = engine.create_context()
    DecoderContext(context, interface).execute(_prompt([7], shape.empty()))
    for _ in range(2):
        context.close()
        engine.close()


def test_the_same_calls_give_the_same_on_a_device_that_checks_memory(folder, shape, interface):
    device = FakeDevice()
    runtime = TensorRtRuntime("fake", make_module(device), Cuda(device.cuda), file="model.onnx")
    engine = runtime.load(folder)
    context = DecoderContext(engine.create_context(), interface, resident=True)
    reference = DecoderContext(OnnxRuntime().load(folder).create_context(), interface)
    ours = context.execute(_prompt([7, 30], shape.empty()))
    theirs = reference.execute(_prompt([7, 30], shape.empty()))
    for position in range(2, 40):
        ours = context.execute(_next(position + 20, position, ours.present))
        theirs = reference.execute(_next(position + 20, position, theirs.present))
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)
    del ours
    engine.close()
    assert device.used_bytes == 0

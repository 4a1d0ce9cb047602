"""Golden examples: what is written comes back, and a wrong value is named."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from inference.demo.tensors import write_costly, write_tiny_mlp
from inference.model import ModelFormatError, TensorMetadata, read_metadata
from inference.tensor.golden import difference


def _run(folder: Path, inputs):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


@pytest.mark.parametrize("write", [write_tiny_mlp, lambda root: write_costly(root, width=128)])
def test_the_model_files_compute_what_their_golden_examples_say(write, tmp_path: Path):
    folder = write(tmp_path)

    metadata = read_metadata(folder)

    assert isinstance(metadata, TensorMetadata)
    (golden,) = metadata.golden
    assert difference(golden.outputs, _run(folder, golden.inputs), golden.tolerance) == ""


def test_a_repeated_matrix_is_stored_once(tmp_path: Path):
    folder = write_costly(tmp_path, width=128)

    size = (folder / "model.onnx").stat().st_size

    assert size < 2 * 128 * 128 * 4 + 64 * 128 * 4


def test_a_difference_names_the_place(tmp_path: Path):
    expected = {"y": [[1.0, 2.0]]}

    assert difference(expected, {"y": np.array([[1.0, 2.0005]], np.float32)}, 1e-3) == ""
    assert difference(expected, {"y": np.array([[1.0, 2.1]], np.float32)}, 1e-3) == (
        "y[0, 1] is 2.1, not 2.0"
    )
    assert "shape" in difference(expected, {"y": np.array([1.0, 2.0], np.float32)}, 1e-3)
    assert "missing" in difference(expected, {}, 1e-3)
    assert difference({"t": ["a"]}, {"t": np.array(["b"], object)}, 0.0) == "t[0] is b, not a"
    assert difference({"y": [1.0]}, {"y": np.array([np.nan], np.float32)}, 1.0) != ""


def _version(folder: Path, golden: str) -> Path:
    text = f'name = "m"\nversion = 1\nkind = "tensor"\n{golden}'
    (folder / "model.toml").write_text(text, encoding="utf-8")
    return folder


def test_golden_examples_may_be_inline_or_json(tmp_path: Path):
    (tmp_path / "g.json").write_text('{"inputs": {"x": [[1]]}, "outputs": {"y": [[2]]}}')
    _version(
        tmp_path,
        "[[golden]]\ninputs = {x = [[1.5]]}\noutputs = {y = [[3.0]]}\ntolerance = 0.0\n"
        '[[golden]]\nfile = "g.json"\n',
    )

    inline, stored = read_metadata(tmp_path).golden

    assert inline.inputs == {"x": [[1.5]]}
    assert inline.tolerance == 0.0
    assert stored.outputs == {"y": [[2]]}


@pytest.mark.parametrize(
    "golden",
    [
        '[[golden]]\nfile = "none.npz"\n',
        '[[golden]]\nfile = "none.json"\n',
        "[[golden]]\ninputs = {x = [1]}\n",
        "[[golden]]\ninputs = {x = [1]}\noutputs = {}\n",
        "[[golden]]\ninputs = {x = [1]}\noutputs = {y = [1]}\ntolerance = -1\n",
        "max_batch_rows = 0\n",
    ],
)
def test_an_unusable_golden_example_is_refused_with_its_file(golden: str, tmp_path: Path):
    with pytest.raises(ModelFormatError, match=str(tmp_path)):
        read_metadata(_version(tmp_path, golden))

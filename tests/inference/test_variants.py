"""Lower precision at degradation level 2, on a live service."""

import shutil

import pytest

from inference.model import ModelFormatError, read_metadata

pytestmark = pytest.mark.integration


def _declare(folder, line):
    path = folder / "model.toml"
    path.write_text(f"{line}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")


@pytest.fixture
def folder(own_repository):
    return own_repository / "tiny" / "1"


@pytest.fixture
def start(tools, own_repository, tmp_path):
    def begin(**settings):
        return tools.run_service(own_repository, tmp_path / "state", **settings)

    return begin


def _set_level(live, level):
    answer = live.admin.put("/admin/degradation", json={"level": level, "reason": "test"})
    assert answer.status_code == 200, answer.text


def test_level_2_answers_from_the_variant_and_level_0_from_the_model_again(start, folder, tools):
    # The same weights: the tiny model's random ones do not survive int8, and that is another test.
    shutil.copy(folder / "model.onnx", folder / "model.int8.onnx")
    _declare(folder, 'variants = { int8 = "model.int8.onnx" }')
    with start() as live:
        assert "x-galen-variant" not in live.complete().headers
        _set_level(live, 2)
        tools.eventually(
            lambda: live.complete().headers.get("x-galen-variant") == "int8", "the variant"
        )
        assert live.metric("model_variant", model="tiny", variant="int8") == 1
        tools.eventually(
            lambda: live.metric("model_variant", model="tiny-small", variant="none") == 1,
            "the other model stays as it is",
        )
        status = live.client.get("/api/system/status").json()["models"]["tiny"]
        live.admin.post("/admin/engine/restart", json={"reason": "test"})
        tools.eventually(
            lambda: (
                live.client.get("/api/system/status").json()["models"]["tiny"]["worker_pid"]
                not in {None, status["worker_pid"]}
            ),
            "another worker",
        )
        tools.eventually(
            lambda: live.metric("model_variant", model="tiny", variant="int8") == 1, "again"
        )
        _set_level(live, 0)
        tools.eventually(
            lambda: live.metric("model_variant", model="tiny", variant="none") == 1, "the model"
        )
        assert live.complete().status_code == 200


def test_a_variant_with_wrong_golden_answers_is_not_taken(start, folder, tools, own_repository):
    shutil.copy(own_repository / "tiny-small" / "1" / "model.onnx", folder / "model.int8.onnx")
    _declare(folder, 'variants = { int8 = "model.int8.onnx" }')
    with start() as live:
        _set_level(live, 2)
        tools.eventually(
            lambda: live.metric("engine_load_failures_total", model="tiny") == 1, "it was refused"
        )
        answer = live.complete()
        assert answer.status_code == 200
        assert "x-galen-variant" not in answer.headers
        assert live.client.get("/health/ready").status_code == 200


def test_a_variant_is_a_file_of_the_folder(folder):
    _declare(folder, 'variants = { int8 = { file = "model.int8.onnx", tolerance = 0.01 } }')
    variant = read_metadata(folder).variants["int8"]
    assert (variant.file, variant.tolerance) == ("model.int8.onnx", 0.01)
    _declare(folder, "")
    text = (folder / "model.toml").read_text(encoding="utf-8")
    for wrong in ('"../other.onnx"', '""', '{ file = "a", tolerance = -1 }'):
        broken = text.replace('{ file = "model.int8.onnx", tolerance = 0.01 }', wrong)
        (folder / "model.toml").write_text(broken, encoding="utf-8")
        with pytest.raises(ModelFormatError, match=r"variants\.int8"):
            read_metadata(folder)

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collectors.gpu.nvml import CHILD_COMMAND, NvmlCollector, XidSink
from tests.collectors.gpu.fake_nvml import FakeNvml, compile_library

Make = Callable[..., NvmlCollector]


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake ``libnvidia-ml.so.1``, compiled once."""
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake(tmp_path: Path, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A machine with two GPUs, met by every process that this test starts."""
    made = FakeNvml(tmp_path, nvml_library)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "gpus").mkdir()
    return made


@pytest.fixture
def make_collector(tmp_path: Path) -> Iterator[Make]:
    """Make collectors whose children are the real ones, and end them."""
    made: list[NvmlCollector] = []

    def make(
        *, deadline_seconds: float = 10.0, xids: XidSink | None = None, **options: object
    ) -> NvmlCollector:
        command = (
            *CHILD_COMMAND,
            "--slow-seconds=0",
            f"--devices-folder={tmp_path / 'gpus'}",
            f"--module-version-file={tmp_path / 'module_version'}",
        )
        collector = NvmlCollector(
            "box",
            deadline_seconds=deadline_seconds,
            command=command,
            library_present=lambda: True,
            xids=xids,
            **options,  # type: ignore[arg-type]
        )
        made.append(collector)
        return collector

    yield make
    for collector in made:
        collector.close()

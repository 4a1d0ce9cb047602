from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from collectors.scraping.discovery import (
    DiscoveryError,
    FileDiscovery,
    StaticDiscovery,
    parse_targets,
)
from collectors.scraping.targets import ScrapeTarget

GROUPS = [
    {"targets": ["node1:9400", "node2:9400"], "labels": {"cluster": "a"}},
    {"targets": ["node3:9400"]},
]
YAML = """
- targets: [node1:9400, node2:9400]
  labels:
    cluster: a
- targets:
  - node3:9400
"""


def _names(targets: Sequence[ScrapeTarget]) -> list[str]:
    return [target.instance for target in targets]


def _write(path: Path, text: str) -> None:
    """Write in one step, as programs that write targets should."""
    made = path.with_suffix(".new")
    made.write_text(text)
    made.replace(path)


def test_json_and_yaml_say_the_same() -> None:
    from_json = parse_targets(json.dumps(GROUPS), "gpus")
    assert from_json == parse_targets(YAML, "gpus", suffix=".yml")
    assert _names(from_json) == ["node1:9400", "node2:9400", "node3:9400"]
    assert from_json[0].labels["cluster"] == "a"


def test_labels_of_the_file_win_over_those_of_the_job() -> None:
    one, _, other = parse_targets(json.dumps(GROUPS), "gpus", {"cluster": "b", "site": "x"})
    assert (one.labels["cluster"], one.labels["site"]) == ("a", "x")
    assert other.labels["cluster"] == "b"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "parsed"),
        ('{"targets": []}', "list of groups"),
        ('[{"labels": {}}]', "group 1 has no list `targets`"),
        ('[{"targets": ["a"]}, 7]', "group 2"),
        ('[{"targets": [7]}]', "'7' is no address"),
        ('[{"targets": ["a b"]}]', "group 1: 'a b' is no address"),
        ('[{"targets": ["a"], "labels": {"x": 1}}]', "labels"),
        ('[{"targets": ["a"], "labels": [1]}]', "labels"),
    ],
)
def test_an_error_names_the_place(content: str, words: str) -> None:
    with pytest.raises(DiscoveryError, match=words):
        parse_targets(content, "gpus")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system [id]", "- {a: b", "\x00"])
def test_yaml_runs_nothing(text: str) -> None:
    with pytest.raises(DiscoveryError, match="parsed"):
        parse_targets(text, "gpus", suffix=".yaml")


def test_a_list_in_the_configuration() -> None:
    assert _names(StaticDiscovery("gpus", ["a:1", "b:2"], {"x": "y"}).targets()) == ["a:1", "b:2"]


class Files:
    def __init__(self, folder: Path, *patterns: str) -> None:
        self.folder = folder
        self.discovery = FileDiscovery("gpus", [str(folder / each) for each in patterns])

    def write(self, name: str, groups: Any) -> None:
        _write(self.folder / name, groups if isinstance(groups, str) else json.dumps(groups))

    def names(self) -> list[str]:
        return _names(self.discovery.targets())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, "*.json", "more/*.yml")


def test_files_come_change_and_go(files: Files) -> None:
    files.write("a.json", [{"targets": ["one:1"]}])
    assert files.names() == ["one:1"]
    files.write("a.json", [{"targets": ["one:1", "two:2"]}])
    files.write("b.json", [{"targets": ["three:3"]}])
    assert files.names() == ["one:1", "two:2", "three:3"]
    (files.folder / "a.json").unlink()
    assert files.names() == ["three:3"]


def test_a_bad_file_keeps_its_last_targets_and_is_said_once(files: Files) -> None:
    files.write("a.json", [{"targets": ["one:1"]}])
    files.write("b.json", [{"targets": ["two:2"]}])
    assert files.names() == ["one:1", "two:2"]
    with capture_logs() as logged:
        files.write("a.json", '[{"targets": ["one:1", ')
        for _ in range(3):
            assert files.names() == ["one:1", "two:2"]
        files.write("a.json", [{"targets": ["new:1"]}])
        assert files.names() == ["new:1", "two:2"]
    events = [row["event"] for row in logged if row["event"] != "targets_file_missing"]
    assert events == ["targets_file_unreadable", "targets_file_mended"]


def test_what_is_wrong_now_can_be_asked(files: Files) -> None:
    files.write("a.json", "nonsense")
    assert files.names() == []
    pattern, problem = files.discovery.problems()
    assert pattern.endswith("more/*.yml")
    assert "a.json" in problem
    assert "last 0 targets are kept" in problem
    (files.folder / "more").mkdir()
    _write(files.folder / "more" / "x.yml", YAML)
    files.write("a.json", [])
    assert len(files.names()) == 3
    assert not files.discovery.problems()


def test_an_unchanged_file_is_not_read_again(files: Files) -> None:
    path = files.folder / "a.json"
    files.write("a.json", [{"targets": ["one:1"]}])
    first = files.discovery.targets()
    assert files.discovery.targets()[0] is first[0]
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert files.discovery.targets()[0] is not first[0]


def test_a_huge_file_is_not_read(files: Files) -> None:
    with (files.folder / "a.json").open("wb") as file:
        file.truncate(1 << 30)
    assert files.names() == []
    assert any("longer than" in problem for problem in files.discovery.problems())


def test_a_folder_is_no_file(files: Files) -> None:
    (files.folder / "a.json").mkdir()
    assert files.names() == []
    assert any("a.json" in problem for problem in files.discovery.problems())

"""Which targets there are: lists in the configuration, and files that are read again when they change.

The files are those of Prometheus' ``file_sd_configs``, JSON or YAML, so that what writes them for
Prometheus writes them for Galen too::

    [{"targets": ["node1:9400", "node2:9400"], "labels": {"cluster": "a"}}]

A file that cannot be read keeps the targets that it last gave, and that is said once.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog
import yaml

from collectors.scraping.targets import USUAL, ScrapeTarget, TargetError, Usual, target_of

log = structlog.get_logger(__name__)

_MAX_BYTES = 16 * 1024 * 1024
_SUFFIXES = frozenset({".json", ".yml", ".yaml"})
# libyaml's loader is some ten times faster than the one in Python; both are safe ones.
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DiscoveryError(ValueError):
    """A file does not list targets; the message says where and what is wrong."""


class Discovery(Protocol):
    """Where a list of targets comes from."""

    def targets(self) -> Sequence[ScrapeTarget]:
        """Return the targets of now; never raises for a source that is broken."""

    def problems(self) -> Sequence[str]:
        """Return what is wrong now, in words for a person."""


class StaticDiscovery:
    """Targets that stand in the configuration.

    Raises:
        TargetError: when an address is none.
    """

    def __init__(
        self,
        job: str,
        addresses: Iterable[str],
        labels: Mapping[str, str] | None = None,
        usual: Usual = USUAL,
    ) -> None:
        self._targets = [target_of(job, address, labels, usual) for address in addresses]

    def targets(self) -> Sequence[ScrapeTarget]:
        """Return all of them."""
        return self._targets

    def problems(self) -> Sequence[str]:
        """Nothing can go wrong after construction."""
        return ()


@dataclass(slots=True)
class _File:
    """One file as it was when it was last looked at."""

    stamp: tuple[int, ...] = ()
    targets: Sequence[ScrapeTarget] = ()
    problem: str = ""
    missing: bool = field(default=False)


class FileDiscovery:
    """Targets that other programs write into files.

    A file is read again when its time, size or inode changes. Files that are deleted take their targets
    along, as in Prometheus; a file that is there and cannot be read keeps those it had.

    Args:
        job: the name of the job.
        patterns: paths, which may hold ``*``.
        labels: given to every target; those of the file win.
        usual: the port and the path of an address that has none.
    """

    def __init__(
        self,
        job: str,
        patterns: Iterable[str],
        labels: Mapping[str, str] | None = None,
        usual: Usual = USUAL,
    ) -> None:
        self._job = job
        self._usual = usual
        self._patterns = list(patterns)
        self._labels = dict(labels or {})
        self._files: dict[str, _File] = {}
        self._unmatched: set[str] = set()

    def targets(self) -> Sequence[ScrapeTarget]:
        """Look at the files and return what they list now."""
        found: dict[str, _File] = {}
        for pattern in self._patterns:
            paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - the pattern is absolute
            self._note_unmatched(pattern, matched=bool(paths))
            for path in paths:
                found[path] = self._look(path, self._files.get(path, _File()))
        self._files = found
        return [target for file in found.values() for target in file.targets]

    def problems(self) -> Sequence[str]:
        """Return the files that cannot be read, and the patterns that match none."""
        unmatched = [f"no file matches {pattern}" for pattern in sorted(self._unmatched)]
        return [*unmatched, *(file.problem for file in self._files.values() if file.problem)]

    def _look(self, path: str, before: _File) -> _File:
        try:
            status = Path(path).stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == before.stamp:
                return before
            if status.st_size > _MAX_BYTES:
                raise DiscoveryError(f"it is longer than {_MAX_BYTES} bytes")
            targets = parse_targets(
                Path(path).read_text("utf-8"),
                self._job,
                self._labels,
                suffix=Path(path).suffix,
                usual=self._usual,
            )
        except (OSError, ValueError) as error:
            return self._keep(path, before, error)
        if before.problem:
            log.info("targets_file_mended", path=path, targets=len(targets))
        return _File(stamp, targets)

    def _keep(self, path: str, before: _File, error: Exception) -> _File:
        problem = f"{path}: {error}; its last {len(before.targets)} targets are kept"
        if problem != before.problem:
            log.warning("targets_file_unreadable", path=path, error=str(error))
        # No stamp: a file that was caught while it was being written is looked at again.
        return _File((), before.targets, problem)

    def _note_unmatched(self, pattern: str, *, matched: bool) -> None:
        if matched:
            self._unmatched.discard(pattern)
        elif pattern not in self._unmatched:
            self._unmatched.add(pattern)
            log.warning("targets_file_missing", pattern=pattern)


def parse_targets(
    text: str,
    job: str,
    labels: Mapping[str, str] | None = None,
    *,
    suffix: str = ".json",
    usual: Usual = USUAL,
) -> list[ScrapeTarget]:
    """Read the targets of one file.

    Args:
        text: what stands in it.
        job: the name of the job.
        labels: of every target; those of the file win.
        suffix: ``.json``, ``.yml`` or ``.yaml``.
        usual: the port and the path of an address that has none.

    Raises:
        DiscoveryError: saying where the file is not what it should be.
    """
    if suffix not in _SUFFIXES:
        raise DiscoveryError(f"the name must end with one of {', '.join(sorted(_SUFFIXES))}")
    try:
        groups = json.loads(text) if suffix == ".json" else yaml.load(text, _YAML_LOADER)  # noqa: S506
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DiscoveryError(f"it cannot be parsed: {' '.join(str(error).split())}") from error
    if groups is None:
        return []
    if not isinstance(groups, list):
        raise DiscoveryError("it must hold a list of groups, each with `targets`")
    return [
        target
        for number, group in enumerate(groups, start=1)
        for target in _group(number, group, job, labels or {}, usual)
    ]


def _group(
    number: int, group: Any, job: str, labels: Mapping[str, str], usual: Usual
) -> list[ScrapeTarget]:
    place = f"group {number}"
    if not isinstance(group, dict) or not isinstance(group.get("targets"), list):
        raise DiscoveryError(f"{place} has no list `targets`")
    own = group.get("labels") or {}
    if not isinstance(own, dict) or not all(
        isinstance(name, str) and isinstance(value, str) for name, value in own.items()
    ):
        raise DiscoveryError(f"{place}: `labels` must map names to texts")
    targets = []
    for address in group["targets"]:
        if not isinstance(address, str):
            raise DiscoveryError(f"{place}: {str(address)[:100]!r} is no address")
        try:
            targets.append(target_of(job, address, {**labels, **own}, usual))
        except TargetError as error:
            raise DiscoveryError(f"{place}: {error}") from error
    return targets

"""Errors of the tools that work on engines off line: build, inspect, compare."""

from __future__ import annotations


class OfflineError(Exception):
    """Something failed; `fix` says what to do, where that is known."""

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


class InputError(OfflineError):
    """The file or an option is wrong, or what the tool needs is not installed."""


class BuildError(OfflineError):
    """TensorRT did not build a plan."""

"""Errors that a person at the command line can act on."""

from __future__ import annotations


class GalenError(Exception):
    """Something went wrong that is not a wrong usage; exit status 1."""

    exit_status = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


class ConfigError(GalenError):
    """The configuration or the usage is wrong; exit status 2."""

    exit_status = 2

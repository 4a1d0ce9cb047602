"""Names of time zones, for settings; a small import, because agents read the settings too."""

from __future__ import annotations

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

UTC = "UTC"


def known_zone(name: str) -> str:
    """Return the name of a time zone.

    Raises:
        ValueError: when there is no such zone on this machine.
    """
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}, such as Europe/Berlin") from error
    return name

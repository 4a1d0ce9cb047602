"""Entities: what a number is about.

An entity is named by a path of ``kind/name`` pairs, so that its parents can be read off its name:
``host/box1``, ``host/box1/gpu/0``, ``service/llm``, ``service/llm/replica/0``, ``collector/host``.
``fleet`` is the root of all. Entities are plain strings everywhere; this module is their grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

FLEET = "fleet"

_UNSAFE = re.compile(r"[^A-Za-z0-9_.@+\-]")


def entity(*parts: str) -> str:
    """Name an entity from alternating kinds and names.

    Characters outside ``[A-Za-z0-9_.@+-]`` in a part become ``_``, so that names made from untrusted
    labels cannot break out of the path.

    Raises:
        ValueError: when the number of parts is odd or zero, or a part is empty.
    """
    if not parts or len(parts) % 2:
        raise ValueError(f"an entity needs pairs of kind and name, got {parts!r}")
    if not all(parts):
        raise ValueError(f"an entity has no empty part, got {parts!r}")
    return "/".join(_UNSAFE.sub("_", part) for part in parts)


def parent_of(name: str) -> str:
    """Return the entity one level up; the parent of a top-level entity and of the fleet is the fleet."""
    pieces = name.split("/")
    return "/".join(pieces[:-2]) if len(pieces) > 2 else FLEET


def ancestors(name: str) -> Iterator[str]:
    """Yield the parents of an entity from the nearest to the fleet."""
    while name != FLEET:
        name = parent_of(name)
        yield name


def kind_of(name: str) -> str:
    """Return the kind of the last pair: ``gpu`` for ``host/box1/gpu/0``."""
    pieces = name.split("/")
    return pieces[-2] if len(pieces) > 1 else pieces[0]


def top_of(name: str) -> str:
    """Return the top-level entity that a name belongs to: ``host/box1`` for ``host/box1/gpu/0``."""
    pieces = name.split("/")
    return "/".join(pieces[:2])

"""What is known now of where things run, collected from what the collectors say tick by tick."""

from __future__ import annotations

from collections.abc import Iterable

from collectors.links import Link

KEEP_SECONDS = 900.0
"""How long a link stands after it was last said: some scrapes may fail, and a pod may move."""
_MAX_LINKS = 200_000


class LinkBook:
    """Links with the time they were last said.

    Args:
        keep_seconds: how long one stands unsaid.
    """

    def __init__(self, keep_seconds: float = KEEP_SECONDS) -> None:
        self._keep_seconds = keep_seconds
        self._said: dict[Link, float] = {}
        self._links: frozenset[Link] = frozenset()
        self._next_sweep_seconds = 0.0

    @property
    def links(self) -> frozenset[Link]:
        """Return all that stand; the same object as long as they are the same."""
        return self._links

    def note(self, now_seconds: float, links: Iterable[Link]) -> None:
        """Take in what was said at a tick."""
        changed = False
        for link in links:
            if link not in self._said:
                if len(self._said) >= _MAX_LINKS:
                    continue
                changed = True
            self._said[link] = now_seconds
        if now_seconds >= self._next_sweep_seconds:
            self._next_sweep_seconds = now_seconds + self._keep_seconds / 10
            oldest = now_seconds - self._keep_seconds
            kept = {link: said for link, said in self._said.items() if said >= oldest}
            changed = changed or len(kept) < len(self._said)
            self._said = kept
        if changed:
            self._links = frozenset(self._said)

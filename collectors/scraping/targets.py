"""What to scrape: one target, and how the addresses that people write become targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit, urlunsplit

from collectors.addresses import shown_url
from collectors.entities import entity

_HIDDEN = "__"
_SCHEME, _PATH, _PARAM = "__scheme__", "__metrics_path__", "__param_"


class TargetError(ValueError):
    """An address cannot be scraped; the message names it and says what one looks like."""


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """One address and what is known of it.

    ``job`` and ``instance`` identify it. ``labels`` tell what it is about (``pod``, ``node``,
    ``service``...) and count as if every series had them.
    """

    job: str
    instance: str
    url: str = field(repr=False)
    """Its query may hold a token; show :attr:`shown_url`."""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @property
    def name(self) -> str:
        """A name that no other target of the same jobs has."""
        return f"scrape-{self.job}-{self.instance}"

    @property
    def entity(self) -> str:
        """The entity of its own health, ``collector/<name>``."""
        return entity("collector", self.name)

    @property
    def shown_url(self) -> str:
        """The address without what may be secret in it."""
        return shown_url(self.url)

    def phase(self) -> float:
        """Where in the interval this target has its turn, between 0 and 1: always the same.

        Names hash evenly, so that targets spread over the interval however many there are, and one
        that comes or goes moves no other.
        """
        digest = blake2b(f"{self.job}\0{self.url}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64


class Usual(NamedTuple):
    """What is meant where an address does not say it."""

    port: int | None = None
    path: str = "/metrics"


USUAL = Usual()


def target_of(
    job: str, address: str, labels: Mapping[str, str] | None = None, usual: Usual = USUAL
) -> ScrapeTarget:
    """Make a target from what people and Prometheus' service discovery write.

    Args:
        job: the name of the job.
        address: ``host``, ``host:port``, or a whole URL.
        labels: of the target. As in Prometheus, ``__scheme__``, ``__metrics_path__`` and
            ``__param_<name>`` say how to ask and other names with ``__`` are dropped.
        usual: the port and the path of an address that has none.

    Raises:
        TargetError: when there is no host, the scheme is not HTTP, or it holds a password.
    """
    given = dict(labels or {})
    text = address.strip()
    if "://" not in text:
        text = f"{given.get(_SCHEME) or 'http'}://{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port  # which checks that it is a number
    except ValueError as error:
        raise TargetError(f"{_shown(address)!r} is no address: {error}") from error
    if parts.scheme not in {"http", "https"} or not host or any(map(str.isspace, text)):
        raise TargetError(
            f"{_shown(address)!r} is no address; write host:port or http://host:port/metrics"
        )
    path = parts.path if parts.path not in {"", "/"} else given.get(_PATH) or usual.path
    asked = urlencode(
        {
            name.removeprefix(_PARAM): value
            for name, value in given.items()
            if name.startswith(_PARAM)
        }
    )
    if "@" in parts.netloc:
        raise TargetError(
            f"{_shown(address)!r} holds a password, and addresses are shown; give the job a username "
            "and a password_file"
        )
    query = "&".join(part for part in (parts.query, asked) if part)
    place = parts.netloc
    if port is None and usual.port is not None and "://" not in address:
        place = f"{place.rstrip(':')}:{usual.port}"
    described = {k: v for k, v in given.items() if not k.startswith(_HIDDEN) and v}
    described = {"job": job, "instance": place, **described}
    return ScrapeTarget(
        job=described["job"],
        instance=described["instance"],
        url=urlunsplit((parts.scheme, place, path, query, "")),
        labels=MappingProxyType(described),
    )


def _shown(address: str) -> str:
    return address.rpartition("@")[2].partition("?")[0][:200]

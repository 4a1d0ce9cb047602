"""URLs that people write: what of them may be shown, and the credentials that they hold."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

HIDDEN = "***"


def shown_url(url: str) -> str:
    """Return a URL for messages and logs: without user, password and the values of its query.

    A token in a query is as secret as a password, and nobody can tell it from an ordinary value.
    """
    try:
        parts = urlsplit(url)
        names = [(name, HIDDEN) for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:
        return f"(a URL of {len(url)} characters that cannot be read)"
    place = parts.netloc.rpartition("@")[2]
    query = urlencode(names, safe="*")
    return urlunsplit((parts.scheme, place, parts.path, query, ""))


def split_userinfo(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return a URL without its user and password, and these, or None where it has none."""
    parts = urlsplit(url)
    userinfo, at, place = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = userinfo.partition(":")
    bare = urlunsplit((parts.scheme, place, parts.path, parts.query, parts.fragment))
    return bare, (unquote(user), unquote(password))

"""Takes secrets out of text that leaves the machine.

Titles, evidence and log lines come from the systems that are watched, and may hold what their owners
put there. Patterns find the usual shapes of credentials; they cannot find a secret without a shape, so
this is the last line and not the only one.
"""

from __future__ import annotations

import re

REMOVED = "[redacted]"

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
# Token shapes as their issuers publish them: AWS access keys, GitHub, GitLab, Slack, Hugging Face,
# OpenAI and Anthropic style keys, JSON Web Tokens.
_TOKENS = re.compile(
    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_[A-Za-z0-9_]{20,255}|glpat-[A-Za-z0-9_-]{16,255}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{8,255}|hf_[A-Za-z0-9]{20,255}|sk-[A-Za-z0-9_-]{16,255}"
    r"|eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{8,4096}(?:\.[A-Za-z0-9_-]{0,4096})?)"
)
_BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"\b((?:[a-z0-9]+[_-]){0,4}(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key))"
    # A bare number is a measurement, such as time_per_output_token: 0.05, and stays.
    r"([\"']?\s{0,3}[=:]\s{0,3})(?![\d.]+(?:[\s,;]|$))(?:\"[^\"]{1,256}\"|'[^']{1,256}'|[^\s\"',;&]{1,256})",
    re.IGNORECASE,
)
# An address keeps its host, which people need; user, path and query are where secrets sit.
_ADDRESS = re.compile(
    r"\b([a-z][a-z0-9+.-]{1,20})://(?:[^\s/@<>\"']{1,256}@)?([^\s/?#<>\"']{1,255})"
    r"([/?#][^\s<>\"']*)?",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return the text with credentials replaced and addresses cut down to scheme and host.

    >>> redact("POST https://u:p@hooks.slack.com/services/T0/B0/x failed, token=abc")
    'POST https://hooks.slack.com/… failed, token=[redacted]'
    """
    text = _PRIVATE_KEY.sub(REMOVED, text)
    text = _ADDRESS.sub(_shorten_address, text)
    text = _TOKENS.sub(REMOVED, text)
    text = _BEARER.sub(rf"\1 {REMOVED}", text)
    return _ASSIGNED.sub(rf"\1\2{REMOVED}", text)


def _shorten_address(match: re.Match[str]) -> str:
    scheme, host, rest = match.group(1), match.group(2), match.group(3)
    return f"{scheme}://{host}" + ("/…" if rest and rest != "/" else "")

"""The bearer token of administration: configured, or made once and kept in the state directory."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import SecretStr

from inference.settings import InferenceSettings

TOKEN_FILE = "admin_token"  # noqa: S105 - the name of a file


def admin_token_of(settings: InferenceSettings) -> SecretStr:
    """Return the configured token, the one in the state directory, or a new one put there."""
    if settings.admin_token is not None:
        return settings.admin_token
    path = settings.state_dir / TOKEN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    token = _read_token(path)
    if token:
        return SecretStr(token)
    token = secrets.token_urlsafe(32)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(token)
    return SecretStr(token)


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""

"""Who may administer."""

from __future__ import annotations

import secrets

from inference.errors import UnauthorizedError
from inference.service import InferenceService


def check_admin_token(authorization: str, service: InferenceService) -> None:
    """Compare the bearer token of an ``Authorization`` header in constant time.

    Raises:
        UnauthorizedError: it is missing or wrong.
    """
    scheme, _, token = authorization.partition(" ")
    expected = service.admin_token.get_secret_value()
    matches = secrets.compare_digest(token.strip().encode(), expected.encode())
    if scheme.lower() != "bearer" or not matches:
        raise UnauthorizedError(
            "administration needs the bearer token", headers={"www-authenticate": "Bearer"}
        )

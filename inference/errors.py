"""What the service answers when it does not answer: one tree, one HTTP status per class.

Each error says whether trying again can help, and when. The two protocols render the same error in
their own shapes (`inference.api.http`).
"""

from __future__ import annotations


class ServiceError(Exception):
    """A refusal or a failure that a client is told about."""

    status = 500
    code = "internal_error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    @property
    def kind(self) -> str:
        """The ``type`` of an OpenAI error."""
        return "invalid_request_error" if self.status < 500 else "server_error"


class InvalidRequestError(ServiceError):
    """The request cannot be understood; sending it again will not help."""

    status = 400
    code = "invalid_request"


class UnauthorizedError(ServiceError):
    """The token is missing or wrong."""

    status = 401
    code = "unauthorized"


class ForbiddenError(ServiceError):
    """Configuration does not allow it."""

    status = 403
    code = "forbidden"


class NotFoundError(ServiceError):
    """No such endpoint, model or version."""

    status = 404
    code = "not_found"


class MethodNotAllowedError(ServiceError):
    """The endpoint exists and takes another method."""

    status = 405
    code = "method_not_allowed"


class RequestTimeoutError(ServiceError):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"


class ConflictError(ServiceError):
    """The service is not in a state in which this can be done."""

    status = 409
    code = "conflict"


class RequestTooLargeError(ServiceError):
    """The body is larger than allowed."""

    status = 413
    code = "request_too_large"


class OverloadedError(ServiceError):
    """Refused by admission; come back after the given time."""

    status = 429
    code = "queue_full"
    retryable = True

    @property
    def kind(self) -> str:
        """The ``type`` of an OpenAI error."""
        return "rate_limit_error"


class UnavailableError(ServiceError):
    """The engine is not there, or failed under the request."""

    status = 503
    code = "engine_unavailable"
    retryable = True


class DeadlineExceededError(ServiceError):
    """The request did not finish in time."""

    status = 504
    code = "deadline_exceeded"
    retryable = True


class ClientGoneError(ServiceError):
    """The client closed the connection; nobody reads this, but it is counted."""

    status = 499
    code = "client_closed_request"

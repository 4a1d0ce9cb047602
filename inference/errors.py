"""What the service answers when it does not answer: one tree, a small taxonomy of codes.

``code`` is one of a dozen words that a program may branch on; ``reason`` is the finer word that says
which rule refused, and is what ``llm_requests_rejected_total`` counts. Each error says whether trying
again can help, and when. The two protocols render the same error in their own shapes
(`inference.api.http`).

===================  ===========  ================================================================
code                 status       retry
===================  ===========  ================================================================
invalid_input        400 404 422  no: the request is wrong, names nothing here, or was quarantined
unsupported          400 404 405  no: understood, and not offered; 415 for the type of the body
                     415
too_large            413 431      no
rate_limited         429          after ``Retry-After``: this client, key or service has a limit
overloaded           429          after ``Retry-After``: there is no room, or not enough time
deadline_exceeded    408 504      with a longer deadline, or later; 408 if the body came too slowly
memory_limit         503          after ``Retry-After``: not enough memory for it now
model_unavailable    503          after ``Retry-After``: nobody there, draining, switched off
engine_failed        503          after ``Retry-After``: the engine failed under this request
internal             500          no: a bug here; the log has it under the request id
unauthorized         401          with a credential
forbidden            403          no
conflict             409          when the state has changed (administration)
cancelled            499          nobody reads it: the client has left
===================  ===========  ================================================================
"""

from __future__ import annotations

from collections.abc import Mapping

# All that a client is told about a bug of ours.
INTERNAL_MESSAGE = "internal error; the log has it under this request id"


class ServiceError(Exception):
    """A refusal or a failure that a client is told about; by itself, a bug of ours."""

    status = 500
    code = "internal"
    reason = "internal"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.headers = dict(headers or {})
        """What the answer's head adds, such as ``Allow``."""

    @property
    def kind(self) -> str:
        """The ``type`` of an OpenAI error."""
        return "invalid_request_error" if self.status < 500 else "server_error"


class InvalidRequestError(ServiceError):
    """The request cannot be understood; sending it again will not help."""

    status = 400
    code = "invalid_input"
    reason = "invalid_request"


class UnsupportedError(ServiceError):
    """The request is understood and asks for what this service does not do."""

    status = 400
    code = "unsupported"
    reason = "unsupported_feature"


class UnauthorizedError(ServiceError):
    """The credential is missing or wrong."""

    status = 401
    code = "unauthorized"
    reason = "unauthorized"

    @property
    def kind(self) -> str:
        """The ``type`` of an OpenAI error."""
        return "authentication_error"


class ForbiddenError(ServiceError):
    """Configuration does not allow it."""

    status = 403
    code = "forbidden"
    reason = "forbidden"

    @property
    def kind(self) -> str:
        """The ``type`` of an OpenAI error."""
        return "permission_error"


class NotFoundError(ServiceError):
    """No such model or version."""

    status = 404
    code = "invalid_input"
    reason = "not_found"


class EndpointNotFoundError(ServiceError):
    """No such path."""

    status = 404
    code = "unsupported"
    reason = "endpoint_not_found"


class MethodNotAllowedError(ServiceError):
    """The endpoint exists and takes another method; ``Allow`` names it."""

    status = 405
    code = "unsupported"
    reason = "method_not_allowed"


class RequestTimeoutError(ServiceError):
    """The body did not arrive in time."""

    status = 408
    code = "deadline_exceeded"
    reason = "request_timeout"


class ConflictError(ServiceError):
    """The service is not in a state in which this can be done."""

    status = 409
    code = "conflict"
    reason = "conflict"


class RequestTooLargeError(ServiceError):
    """The body is larger than allowed."""

    status = 413
    code = "too_large"
    reason = "request_too_large"


class HeadTooLargeError(ServiceError):
    """The head of the request is longer, or has more headers, than allowed."""

    status = 431
    code = "too_large"
    reason = "head_too_large"


class UnsupportedMediaTypeError(ServiceError):
    """The body is of a type that the endpoint does not take."""

    status = 415
    code = "unsupported"
    reason = "unsupported_media_type"


class QuarantinedError(ServiceError):
    """The request is well formed and is known to bring the engine down."""

    status = 422
    code = "invalid_input"
    reason = "quarantined"


class OverloadedError(ServiceError):
    """Refused by admission, which has no room or no time for it; come back after the given time."""

    status = 429
    code = "overloaded"
    reason = "queue_full"
    retryable = True

    @property
    def kind(self) -> str:
        """The ``type`` of an OpenAI error."""
        return "rate_limit_error"


class RateLimitedError(OverloadedError):
    """More requests than this client, key or service may have; come back after the given time."""

    code = "rate_limited"
    reason = "rate_limit"


class ClientGoneError(ServiceError):
    """The client closed the connection; nobody reads this, but it is counted."""

    status = 499
    code = "cancelled"
    reason = "client_closed_request"


class UnavailableError(ServiceError):
    """There is no engine to ask: down, draining, or switched off."""

    status = 503
    code = "model_unavailable"
    reason = "engine_unavailable"
    retryable = True


class EngineFailedError(UnavailableError):
    """The engine failed under the request."""

    code = "engine_failed"
    reason = "engine_failed"


class MemoryLimitError(UnavailableError):
    """There is not enough memory for the request now."""

    code = "memory_limit"
    reason = "memory_limit"


class DeadlineExceededError(ServiceError):
    """The request did not finish in time."""

    status = 504
    code = "deadline_exceeded"
    reason = "deadline_exceeded"
    retryable = True

import pytest

from inference import errors
from inference.api.http import Shape, error_content, error_headers, request_id_from

ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ServiceError)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_documented_and_has_an_error_status(kind):
    assert kind.__doc__
    assert 400 <= kind.status < 600
    assert kind("x").retryable == (kind.status in {429, 503, 504})


TAXONOMY = {
    "invalid_input": {400, 404, 422},
    "unsupported": {400, 404, 405, 415},
    "too_large": {413, 431},
    "rate_limited": {429},
    "overloaded": {429},
    "deadline_exceeded": {408, 504},
    "memory_limit": {503},
    "model_unavailable": {503},
    "engine_failed": {503},
    "internal": {500},
    "unauthorized": {401},
    "forbidden": {403},
    "conflict": {409},
    "cancelled": {499},
}


def test_codes_and_statuses_are_those_of_the_taxonomy():
    found: dict[str, set[int]] = {}
    for kind in ERRORS:
        found.setdefault(kind.code, set()).add(kind.status)
    assert found == TAXONOMY
    for code, statuses in TAXONOMY.items():
        assert code in errors.__doc__
        assert all(str(status) in errors.__doc__ for status in statuses)


def test_a_reason_can_be_finer_than_the_class_and_the_code_stays():
    error = errors.OverloadedError("no time", reason="deadline_unreachable")
    assert (error.code, error.reason) == ("overloaded", "deadline_unreachable")


def test_both_shapes_carry_message_and_request_id():
    error = errors.OverloadedError("full", retry_after_seconds=1.2)
    openai = error_content(error, Shape.OPENAI, "r1")["error"]
    assert openai == {
        "message": "full", "type": "rate_limit_error", "param": None, "code": "overloaded",
        "reason": "queue_full", "request_id": "r1",
    }  # fmt: skip
    assert error_content(error, Shape.OIP, "r1") == {
        "error": "full", "code": "overloaded", "reason": "queue_full", "request_id": "r1",
    }  # fmt: skip
    assert error_headers(error) == {"retry-after": "1", "retry-after-ms": "1200"}
    allow = errors.MethodNotAllowedError("x", headers={"allow": "GET"})
    assert error_headers(allow) == {"allow": "GET"}


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", "a\nb"])
def test_a_request_id_that_is_not_plain_is_replaced(given):
    assert request_id_from(given).startswith("req-")
    assert request_id_from("my-id.1") == "my-id.1"

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


def test_statuses_are_not_shared():
    statuses = [kind.status for kind in ERRORS]
    assert len(set(statuses)) == len(statuses)


def test_both_shapes_carry_message_and_request_id():
    error = errors.OverloadedError("full", retry_after_seconds=1.2)
    openai = error_content(error, Shape.OPENAI, "r1")["error"]
    assert openai == {
        "message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full",
        "request_id": "r1",
    }  # fmt: skip
    oip = error_content(error, Shape.OIP, "r1")
    assert (oip["error"], oip["request_id"]) == ("full", "r1")
    assert error_headers(error) == {"retry-after": "2"}


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", "a\nb"])
def test_a_request_id_that_is_not_plain_is_replaced(given):
    assert request_id_from(given).startswith("req-")
    assert request_id_from("my-id.1") == "my-id.1"

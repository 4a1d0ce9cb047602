import pytest

from inference.release.observing import of_deadline, of_message, seconds_per_token
from inference.release.probation import Observation
from inference.worker.frames import BatchDone
from inference.worker.wire import Failed, Finished, Token


def finished(tokens, first=10.0, last=10.3):
    return Finished(
        number=1, text="", finish_reason="stop", prompt_tokens=3, completion_tokens=tokens,
        cached_tokens=0, started_at=9.0, prefilled_at=9.5, first_token_at=first, last_token_at=last,
    )  # fmt: skip


def test_the_time_per_token_leaves_the_prompt_out():
    assert seconds_per_token(finished(4)) == pytest.approx(0.1)
    assert seconds_per_token(finished(1)) is None


def test_requests_with_about_as_many_beside_them_are_comparable():
    strata = [of_message(finished(4), beside).stratum for beside in (1, 2, 3, 4, 7, 8)]
    assert strata == [1, 2, 2, 3, 3, 4]


def test_a_batch_is_judged_by_the_engine_s_time_and_its_values():
    done = BatchDone(1, rows=32, started_at=1.0, ended_at=1.02, tensors=[])
    seen = of_message(done, 40)
    assert (seen.failed, seen.stratum, seen.seconds) == (False, 6, pytest.approx(0.02))
    bad = BatchDone(1, rows=32, started_at=1.0, ended_at=1.02, tensors=[], invalid_rows=(3,))
    assert of_message(bad, 40) == Observation(failed=True)


@pytest.mark.parametrize(
    ("code", "blamed"),
    [
        ("step_failed", True),
        ("invalid_output", True),
        ("cancelled", False),
        ("deadline", False),
        ("prompt_too_long", False),
    ],
)
def test_only_the_engine_s_failures_are_the_version_s(code, blamed):
    seen = of_message(Failed(1, code, "why"), 1)
    assert (seen is not None and seen.failed) is blamed


def test_other_messages_tell_nothing():
    assert of_message(Token(1, "a"), 1) is None


def test_a_deadline_is_the_version_s_doing_if_the_engine_had_most_of_the_time():
    assert of_deadline(0.9, 1.0) == Observation(failed=True)
    assert of_deadline(0.1, 1.0) is None, "it came late from the queue"

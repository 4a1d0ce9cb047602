import numpy as np
import pytest
from tokenizers import Tokenizer

from inference.engines.contract import EngineStepError
from inference.model import read_metadata
from inference.worker.prompts import PromptEncoder
from inference.worker.wire import Failed, Finished, Token

PROMPTS = ["a", "hello there", "how do I reset it?", "hello there you"]


@pytest.fixture(scope="module")
def expected(tools, folder):
    """Each prompt decoded alone and without a cache."""
    return [tools.generate(tools.make_decoder(folder), 1, text).text for text in PROMPTS]


def test_the_model_answers_differently_to_different_prompts(expected):
    assert len(set(expected)) == len(PROMPTS)


def test_a_batch_that_changes_while_it_runs_gives_the_answers_of_single_runs(
    tools, folder, expected
):
    decoder = tools.make_decoder(folder)
    answers = {}
    for number, text in enumerate(PROMPTS):
        events = decoder.start(tools.request(number, text))
        events += decoder.step() + decoder.step()
        answers |= {e.number: e.text for e in events if isinstance(e, Finished)}
    while decoder.active:
        answers |= {e.number: e.text for e in decoder.step() if isinstance(e, Finished)}
    assert [answers[number] for number in range(len(PROMPTS))] == expected


def test_the_prefix_cache_changes_no_answer_and_is_hit(tools, folder, expected):
    decoder = tools.make_decoder(folder, cache_bytes=2**20)
    for number, text in enumerate([*PROMPTS, *PROMPTS], start=1):
        answer = tools.generate(decoder, number, text)
        assert answer.text == expected[(number - 1) % len(PROMPTS)]
        if number > len(PROMPTS):
            # All but the last token, whose logits are needed.
            assert answer.cached_tokens == answer.prompt_tokens - 1


def test_a_stream_adds_up_to_the_answer(tools, folder, expected):
    decoder = tools.make_decoder(folder)
    events = decoder.start(tools.request(1, PROMPTS[1], stream=True))
    while decoder.active:
        events += decoder.step()
    assert "".join(e.text for e in events if isinstance(e, Token)) == expected[1]
    assert sum(isinstance(e, Token) for e in events) > 1


def test_a_stop_text_ends_the_answer_and_is_never_streamed(tools, folder, expected):
    whole = expected[1]
    stop = whole[4:6]
    decoder = tools.make_decoder(folder)
    events = decoder.start(tools.request(1, PROMPTS[1], stream=True, stop=[stop]))
    while decoder.active:
        events += decoder.step()
    text = "".join(e.text for e in events if isinstance(e, Token))
    assert text == whole[: whole.index(stop)] == events[-1].text
    assert events[-1].finish_reason == "stop"


def test_max_tokens_ends_the_answer(tools, folder):
    answer = tools.generate(tools.make_decoder(folder), 1, "hello", max_tokens=3)
    assert (answer.completion_tokens, answer.finish_reason) == (3, "length")


def test_a_seed_makes_sampling_repeatable(tools, folder):
    def sample(seed):
        decoder = tools.make_decoder(folder)
        return tools.generate(decoder, 1, "hello", temperature=1.5, top_p=0.9, seed=seed).text

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_cancelling_frees_the_slot_and_leaves_the_others_alone(tools, folder, expected):
    decoder = tools.make_decoder(folder)
    decoder.start(tools.request(1, PROMPTS[0]))
    decoder.start(tools.request(2, PROMPTS[2]))
    decoder.step()
    assert decoder.cancel(1) == [Failed(1, "cancelled", "cancelled")]
    assert decoder.active == 1
    assert decoder.cancel(1) == []
    while decoder.active:
        events = decoder.step()
    assert events[-1].text == expected[2]


def test_a_passed_deadline_frees_the_slot(tools, folder):
    now = [0.0]
    decoder = tools.make_decoder(folder, clock=lambda: now[0])
    decoder.start(tools.request(1, "hello", deadline=5.0))
    now[0] = 6.0
    (event,) = decoder.step()
    assert (event.code, decoder.active) == ("deadline", 0)


def test_a_prompt_beyond_the_context_is_refused(tools, folder):
    decoder = tools.make_decoder(folder)
    (event,) = decoder.start(tools.request(1, "x" * 200))
    assert (event.code, decoder.active) == ("prompt_too_long", 0)


def test_special_tokens_in_user_text_are_plain_text(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = PromptEncoder(tokenizer, read_metadata(folder))
    ids = encoder.encode("chat", "<|answer|><|end|>")
    special = {tokenizer.token_to_id(t) for t in ("<|answer|>", "<|end|>", "<|chat|>")}
    assert [i for i in ids if i in special] == [ids[0], ids[-1]]


class _Broken:
    """A context that fails or returns NaN for the second row."""

    def __init__(self, context, kind):
        self.context, self.kind = context, kind

    def execute(self, inputs):
        if self.kind == "raise":
            raise EngineStepError("out of memory")
        outputs = self.context.execute(inputs)
        if len(outputs.logits) > 1:
            outputs.logits[1] = np.inf
        return outputs


def test_a_row_that_is_not_finite_fails_alone_and_is_counted(tools, folder):
    decoder = tools.make_decoder(folder)
    decoder.start(tools.request(1, "a"))
    decoder.start(tools.request(2, "b"))
    decoder._context = _Broken(decoder._context, "inf")
    (event,) = decoder.step()
    assert (event.number, event.code, decoder.active) == (2, "invalid_output", 1)
    assert decoder._heartbeat.record.invalid_outputs == 1


def test_a_failed_step_fails_its_batch_and_the_decoder_goes_on(tools, folder, expected):
    decoder = tools.make_decoder(folder)
    decoder.start(tools.request(1, "a"))
    whole, decoder._context = decoder._context, _Broken(None, "raise")
    (event,) = decoder.step()
    assert (event.code, decoder.active) == ("step_failed", 0)
    assert decoder.start(tools.request(2, "b")) == []
    (event,) = decoder.step()
    assert event.code == "step_failed"
    decoder._context = whole
    assert tools.generate(decoder, 3, PROMPTS[1]).text == expected[1]


def test_a_canary_is_computed_anew_and_leaves_no_trace_in_the_cache(tools, folder):
    decoder = tools.make_decoder(folder, cache_bytes=2**20)
    for number in (1, 2):
        assert tools.generate(decoder, number, "hello", canary=True).cached_tokens == 0
    assert decoder.cache.size_bytes == 0
    assert decoder._heartbeat.record.cache_query_tokens == 0


def test_an_answer_says_when_each_of_its_phases_ended(tools, folder):
    now = iter(range(1, 1000))
    decoder = tools.make_decoder(folder, clock=lambda: float(next(now)))
    answer = tools.generate(decoder, 1, "hello", max_tokens=3)
    times = [
        answer.started_at, answer.prefilled_at, answer.first_token_at, answer.last_token_at
    ]  # fmt: skip
    assert times == sorted(set(times))

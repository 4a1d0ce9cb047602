"""Whatever happens around a sequence, its answer is the one that it gets alone."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engines.contract import EngineStepError
from inference.engines.decoding import DecoderContext, derive_interface
from inference.engines.fake import FakeTensorRtRuntime
from inference.worker.wire import Failed, Finished, Token

TEXTS = [
    "a", "hello there", "how do I reset it?", "hello there you", "x" * 40, "hello", "zebra crossing",
]  # fmt: skip
OPERATIONS = st.one_of(
    st.tuples(st.just("start"), st.integers(0, len(TEXTS) - 1), st.integers(1, 48)),
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("cancel"), st.integers(1, 20)),
)


@pytest.fixture(scope="module")
def alone(tools, folder):
    """Return what a request gets from a decoder that has no other."""

    @cache
    def answer(text, max_tokens):
        return tools.generate(tools.make_decoder(folder), 1, text, max_tokens=max_tokens).text

    return answer


class _Run:
    """Applies operations and collects the ends of requests."""

    def __init__(self, decoder, tools):
        self.decoder, self.tools = decoder, tools
        self.asked, self.ends, self.streamed = {}, {}, {}

    def take(self, events):
        for event in events:
            if isinstance(event, Token):
                self.streamed[event.number] = self.streamed.get(event.number, "") + event.text
            else:
                assert event.number not in self.ends
                self.ends[event.number] = event

    def apply(self, operation):
        match operation:
            case ("start", text, max_tokens):
                number = len(self.asked) + 1
                self.asked[number] = (TEXTS[text], max_tokens)
                request = self.tools.request(
                    number, TEXTS[text], max_tokens=max_tokens, stream=number % 2 == 0
                )
                self.take(self.decoder.start(request))
            case ("step", times):
                for _ in range(times):
                    self.take(self.decoder.step())
            case ("cancel", number):
                self.take(self.decoder.cancel(number))

    def finish(self):
        for _ in range(500):
            if not self.decoder.active:
                return
            self.take(self.decoder.step())
        raise AssertionError("it does not come to an end")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(OPERATIONS, max_size=25),
    st.sampled_from([1, 3, 16, 64, 256]),
    st.sampled_from([0, 20_000, 2**20]),
    st.sampled_from([0.0, 0.02]),
)
def test_arrivals_ends_and_cancellations_change_no_answer(
    tools, folder, alone, operations, budget, cache_bytes, interval
):
    decoder = tools.make_decoder(
        folder, cache_bytes, prefill_tokens_per_step=budget, stream_interval_seconds=interval
    )
    if cache_bytes:
        decoder.pin_templates()
    run = _Run(decoder, tools)
    for operation in operations:
        run.apply(operation)
    run.finish()
    assert run.ends.keys() == run.asked.keys()
    for number, end in run.ends.items():
        if isinstance(end, Finished):
            assert end.text == alone(*run.asked[number])
            if number % 2 == 0:
                assert run.streamed.get(number, "") == end.text
        else:
            assert end.code == "cancelled"
    assert decoder.held_bytes == 0
    assert decoder.cache.size_bytes <= cache_bytes


class _Recorder:
    """A context that notes the shape of every execution, and fails for a poisonous token."""

    def __init__(self, context, poison=None):
        self.context, self.poison, self.shapes = context, poison, []

    def execute(self, inputs):
        self.shapes.append(inputs.input_ids.shape)
        if self.poison is not None and (inputs.input_ids == self.poison).any():
            raise EngineStepError("poisoned")
        return self.context.execute(inputs)


def test_prompts_that_wait_are_computed_together(tools, folder):
    decoder = tools.make_decoder(folder, prefill_tokens_per_step=256)
    decoder._context = recorder = _Recorder(decoder._context)
    for number in range(4):
        decoder.start(tools.request(number, TEXTS[1]))
    decoder.step()
    assert [rows for rows, _ in recorder.shapes] == [4]


def test_a_long_prompt_is_computed_in_pieces_between_the_steps_of_others(tools, folder, alone):
    decoder = tools.make_decoder(folder, prefill_tokens_per_step=8)
    decoder.start(tools.request(1, "hi", max_tokens=40))
    decoder.step()
    decoder._context = recorder = _Recorder(decoder._context)
    decoder.start(tools.request(2, TEXTS[4]))
    events = []
    for _ in range(6):  # 42 tokens in pieces of 8
        events += decoder.step()
    assert [width for _, width in recorder.shapes] == [1, 8] * 5 + [1, 2]
    assert recorder.shapes.count((1, 1)) == 6
    while decoder.active:
        events += decoder.step()
    answers = {event.number: event.text for event in events if isinstance(event, Finished)}
    assert answers == {1: alone("hi", 40), 2: alone(TEXTS[4], 64)}


def test_a_short_prompt_does_not_wait_for_a_long_one(tools, folder):
    decoder = tools.make_decoder(folder, prefill_tokens_per_step=4)
    decoder.start(tools.request(1, "x" * 60))
    decoder.start(tools.request(2, "hi", max_tokens=1))
    events = []
    for _ in range(3):
        events += decoder.step()
    assert [event.number for event in events] == [2]


def test_a_canary_does_not_wait_behind_long_prompts(tools, folder):
    """TGI #2348: health took more than 10 s, because its probe waited for long prompts."""
    decoder = tools.make_decoder(folder, prefill_tokens_per_step=8)
    for number in range(4):
        decoder.start(tools.request(number, "x" * 80))
    decoder.step()
    decoder.start(tools.request(9, "hi", canary=True, max_tokens=2))
    assert decoder.step() == []
    (answer,) = decoder.step()
    assert (answer.number, answer.completion_tokens) == (9, 2)


def test_a_long_prompt_is_cancelled_and_expires_half_way(tools, folder):
    now = [0.0]
    decoder = tools.make_decoder(folder, prefill_tokens_per_step=4, clock=lambda: now[0])
    decoder.start(tools.request(1, "x" * 60))
    decoder.start(tools.request(2, "y" * 60, deadline=5.0))
    for _ in range(4):
        assert decoder.step() == []
    assert decoder.held_bytes > 0
    assert decoder.cancel(1) == [Failed(1, "cancelled", "cancelled")]
    now[0] = 6.0
    (event,) = decoder.step()
    assert (event.number, event.code, decoder.held_bytes) == (2, "deadline", 0)


def test_a_prompt_that_fails_does_not_fail_those_computed_with_it(tools, folder, alone):
    decoder = tools.make_decoder(folder)
    poison = decoder._tokenizer.token_to_id("!")
    decoder._context = _Recorder(decoder._context, poison)
    for number, text in enumerate(["hello there", "hello thera!", "hello thero"]):
        decoder.start(tools.request(number, text, max_tokens=5))
    events = []
    while decoder.active:
        events += decoder.step()
    ends = {event.number: event for event in events}
    assert (ends[1].code, ends[1].message) == ("step_failed", "poisoned")
    assert ends[0].text == alone("hello there", 5)
    assert ends[2].text == alone("hello thero", 5)


def test_a_full_row_does_not_stop_the_batch_from_using_the_whole_context(tools, folder, alone):
    """Columns that only padding is left in are cut out before they would use up the context."""
    decoder = tools.make_decoder(folder)
    run = _Run(decoder, tools)
    for number in range(30):
        run.apply(("start", number % len(TEXTS), 48))
        run.apply(("step", 5))
    run.finish()
    for number, end in run.ends.items():
        assert end.text == alone(*run.asked[number])


def test_a_stream_sends_its_first_token_at_once_and_then_at_intervals(tools, folder, alone):
    now = [100.0]
    decoder = tools.make_decoder(folder, clock=lambda: now[0], stream_interval_seconds=1.0)
    decoder.start(tools.request(1, TEXTS[1], stream=True))
    decoder.start(tools.request(2, TEXTS[3], stream=True, max_tokens=40))
    sent = {1: [], 2: []}
    while decoder.active:
        for event in decoder.step():
            if isinstance(event, Token):
                sent[event.number].append((now[0], event.text))
        now[0] += 0.125
    for number, text in ((1, alone(TEXTS[1], 64)), (2, alone(TEXTS[3], 40))):
        assert "".join(part for _, part in sent[number]) == text
        times = [at for at, _ in sent[number]]
        gaps = np.diff(times[:-1])
        assert times[0] == 100.0
        assert len(times) > 3
        assert (gaps >= 0.5).all()
    # The last event comes with the end of an answer; all others of both streams at one time.
    assert {at for at, _ in sent[1][:-1]} ^ {at for at, _ in sent[2][:-1]} <= {sent[1][-2][0]}


def test_the_end_can_be_ignored_or_put_off(tools, folder):
    decoder = tools.make_decoder(folder)
    plain = tools.generate(decoder, 1, "hello", max_tokens=80)
    assert plain.finish_reason == "stop"
    ignoring = tools.generate(decoder, 2, "hello", max_tokens=80, ignore_eos=True)
    assert (ignoring.completion_tokens, ignoring.finish_reason) == (80, "length")
    later = plain.completion_tokens + 7
    longer = tools.generate(decoder, 3, "hello", max_tokens=80, min_tokens=later)
    assert longer.completion_tokens >= later
    assert longer.finish_reason == "stop"
    first = tools.generate(decoder, 4, "hello", max_tokens=80, min_tokens=1, temperature=0.7)
    assert first.completion_tokens >= 1


def test_a_template_is_computed_once_and_canaries_compute_it_anew(tools, folder, alone):
    decoder = tools.make_decoder(folder, cache_bytes=2**20)
    decoder.pin_templates()
    pinned = decoder.cache.size_bytes
    assert pinned > 0
    answer = tools.generate(decoder, 1, "hello there")
    assert (answer.cached_tokens, answer.text) == (1, alone("hello there", 64))
    decoder.cache.clear()
    assert decoder.cache.size_bytes == pinned
    canary = tools.generate(decoder, 2, "hello there", canary=True)
    assert (canary.cached_tokens, canary.text) == (0, alone("hello there", 64))
    assert decoder.cache.size_bytes == pinned


def test_keys_and_values_that_stay_on_a_device_give_the_same_answers(tools, folder, alone):
    """The fake device has addresses of its own, which the host cannot read by mistake."""
    engine = FakeTensorRtRuntime().load(folder)
    decoder = tools.make_decoder(folder, cache_bytes=2**20)
    interface = derive_interface(engine.signature, "tiny")
    decoder._context = DecoderContext(engine.create_context(), interface, resident=True)
    decoder.pin_templates()
    run = _Run(decoder, tools)
    for number in range(12):
        run.apply(("start", number % len(TEXTS), 20 + number))
        run.apply(("step", 3))
        if number % 4 == 3:
            run.apply(("cancel", number))
    run.finish()
    for number, end in run.ends.items():
        if isinstance(end, Finished):
            assert end.text == alone(*run.asked[number])

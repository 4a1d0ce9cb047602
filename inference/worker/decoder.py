"""Continuous batching over a limited number of key-value cache slots.

Sequences join and leave between steps. What belongs to one step is done for all rows at once; what is
done for each sequence in each step is kept to a few list and float operations, because on a small
model that, and not the engine, would limit how many tokens a worker makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.engines.contract import (
    CacheShape,
    EngineStepError,
    FloatArray,
    IntArray,
    StepInputs,
    StepOutputs,
)
from inference.engines.decoding import StepContext
from inference.model import DecoderMetadata
from inference.worker.batch import Batch, Joining
from inference.worker.cache import PrefixCache
from inference.worker.heartbeat import HeartbeatWriter
from inference.worker.prefill import Group, PrefillQueue, group_inputs, own_past, row_inputs
from inference.worker.prompts import PromptEncoder, PromptError
from inference.worker.sampling import sample
from inference.worker.sequence import ALWAYS, NEVER, DecoderSequence
from inference.worker.text import TextStream
from inference.worker.wire import Failed, Finished, Generate, Token

_NOT_FINITE = "the model's output is not finite"

Event = Token | Finished | Failed


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """What a decoder is set to."""

    stream_interval_seconds: float = 0.02
    """Least time between two events of a stream; 0 sends every token."""
    prefill_tokens_per_step: int = 256
    """Most prompt tokens that are computed between two decode steps."""


class Decoder:
    """Runs the sequences of one engine."""

    def __init__(
        self,
        context: StepContext,
        tokenizer: Any,
        metadata: DecoderMetadata,
        *,
        encoder: PromptEncoder,
        shape: CacheShape,
        batched: bool = True,
        cache: PrefixCache,
        heartbeat: HeartbeatWriter,
        clock: Callable[[], float],
        limits: DecoderLimits | None = None,
    ) -> None:
        self._context = context
        self._tokenizer = tokenizer
        self._metadata = metadata
        self._limits = limits or DecoderLimits()
        self._encoder = encoder
        self._tokens_concatenate = type(tokenizer.decoder).__name__ == "ByteLevel"
        self._end_ids = frozenset(map(tokenizer.token_to_id, metadata.end_tokens))
        self.cache = cache
        self._heartbeat = heartbeat
        self._clock = clock
        self._empty = shape.empty()
        self._batched = batched
        self._prefill = PrefillQueue(self._limits.prefill_tokens_per_step, batched=batched)
        self._batches = [Batch(metadata.max_context_tokens)] if batched else []
        self._earliest_deadline = NEVER

    @property
    def active(self) -> int:
        """Sequences that hold a slot."""
        return sum(len(b.members) for b in self._batches) + len(self._prefill.sequences)

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values of what is active; the prefix cache counts its own."""
        waiting = sum(array.nbytes for s in self._prefill.sequences for array in s.past)
        return sum(batch.size_bytes for batch in self._batches) + waiting

    def use_heartbeat(self, heartbeat: HeartbeatWriter) -> None:
        """Report to another record from now on."""
        self._heartbeat = heartbeat

    def pin_templates(self) -> None:
        """Compute what the prompts of each task begin with, and keep it in the prefix cache.

        Raises:
            EngineStepError: the engine cannot compute it.
        """
        for ids in self._encoder.prefixes:
            past, width = list(self._empty), self._limits.prefill_tokens_per_step
            for start in range(0, len(ids), width):
                end = min(start + width, len(ids))
                inputs = row_inputs(ids, start, end, past)
                past = own_past(self._context.execute(inputs).present, 0, end)
            self.cache.pin(ids, past)

    def start(self, request: Generate) -> list[Event]:
        """Give a request a slot; its prompt is computed by the next steps."""
        try:
            ids = self._encoder.encode(request.task, request.text, request.messages)
        except KeyError:
            return [_failed(request, "unknown_task", f"no prompt for task {request.task!r}")]
        except PromptError as error:
            return [_failed(request, "invalid_prompt", str(error))]
        limit = self._metadata.max_context_tokens
        if len(ids) >= limit:
            message = f"the prompt takes {len(ids)} tokens; the context holds {limit}"
            return [_failed(request, "prompt_too_long", message)]
        if not ids:
            return [_failed(request, "invalid_prompt", "the prompt is empty")]
        sequence = self._sequence(request, ids)
        if not request.canary:
            self._use_known_prefix(sequence)
        sequence.looked_up_at = self._clock()
        self._prefill.add(sequence)
        self._members_changed()
        return []

    def cancel(self, number: int) -> list[Event]:
        """Free the slot of a request; nothing happens if it has none."""
        for sequence in self._everybody():
            if sequence.request.number == number:
                self._remove({sequence})
                return [sequence.failed("cancelled", "cancelled")]
        return []

    def step(self) -> list[Event]:
        """Compute one token for every sequence, and a bounded number of prompt tokens."""
        events: list[Event] = self._drop_expired()
        for batch in tuple(self._batches):
            if batch.members:
                events += self._decode(batch)
        room = self._limits.prefill_tokens_per_step
        while (group := self._prefill.next_group(room)) is not None:
            room -= group.width * len(group.sequences)
            events += self._compute(group)
        return events

    # --- prompts

    def _sequence(self, request: Generate, ids: list[int]) -> DecoderSequence:
        room = self._metadata.max_context_tokens - len(ids)
        text = TextStream(self._decode_tokens, request.stop, concatenates=self._tokens_concatenate)
        return DecoderSequence(
            request=request,
            ids=ids,
            limit_tokens=min(request.max_tokens, room),
            end_ids=frozenset() if request.ignore_eos else self._end_ids,
            rng=np.random.default_rng(request.seed),
            text=text,
            started_at=self._clock(),
            look_at=ALWAYS if request.stream or request.stop else NEVER,
        )

    def _decode_tokens(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _use_known_prefix(self, sequence: DecoderSequence) -> None:
        """Look up a prompt in the prefix cache, and count that."""
        known, past = self.cache.lookup(sequence.ids)
        sequence.computed = sequence.cached_tokens = known
        sequence.past = past
        self._heartbeat.record.cache_query_tokens += len(sequence.ids)
        self._heartbeat.record.cache_hit_tokens += known

    def _compute(self, group: Group) -> list[Event]:
        """Compute a group of prompts; those that are complete get their first token and join."""
        try:
            outputs = self._execute(
                group_inputs(group, self._empty),
                tuple(sequence.request.number for sequence in group.sequences),
                min(sequence.request.deadline for sequence in group.sequences),
            )
        except EngineStepError as error:
            return self._fail_group(group, error)
        now = self._clock()
        logits = outputs.logits[:, -1]
        finite = self._finite(logits, logits.argmax(axis=-1))
        # What a prompt leaves is cut into rows, which is done on the host.
        present = [np.asarray(array) for array in outputs.present]
        events: list[Event] = []
        joining = []
        gone = set()
        for row, (sequence, end) in enumerate(zip(group.sequences, group.ends, strict=True)):
            sequence.computed = end
            if not finite[row]:
                gone.add(sequence)
                events.append(sequence.failed("invalid_output", _NOT_FINITE))
            elif sequence.remaining:
                sequence.past = own_past(present, row, end)
            else:
                gone.add(sequence)
                sequence.past = ()
                sequence.prefilled_at = now
                self._remember(sequence, present, row)
                own = self._take_first(sequence, logits[row])
                events += own
                if not _ended(own):
                    joining.append(Joining(sequence, present, row))
        self._prefill.remove(gone)
        self._join(joining)
        self._members_changed()
        return events

    def _join(self, joining: Sequence[Joining]) -> None:
        """Begin to decode: in the batch, or each by itself if the model cannot tell rows apart."""
        if self._batched:
            self._batches[0].join(joining)
            return
        for item in joining:
            batch = Batch(self._metadata.max_context_tokens)
            batch.join([item])
            self._batches.append(batch)

    def _fail_group(self, group: Group, error: EngineStepError) -> list[Event]:
        """Deal with a failed execution: one prompt is to blame, and the others are tried again."""
        if len(group.sequences) > 1 and not error.fatal:
            for sequence in group.sequences:
                sequence.alone = True
            return []
        self._remove(set(group.sequences))
        return [sequence.failed(error.code, str(error)) for sequence in group.sequences]

    def _remember(self, sequence: DecoderSequence, present: Sequence[FloatArray], row: int) -> None:
        """Put a computed prompt into the prefix cache."""
        if not sequence.request.canary and not self.cache.knows(sequence.ids):
            past = own_past(present, row, len(sequence.ids))
            self.cache.insert(sequence.ids, past)

    # --- answers

    def _decode(self, batch: Batch) -> list[Event]:
        """Compute the next token of every sequence of a batch."""
        inputs = batch.inputs()
        members = batch.members
        try:
            outputs = self._execute(inputs, batch.numbers, self._earliest_deadline)
        except EngineStepError as error:
            failed = {sequence for _, sequence in members}
            self._remove(failed)
            return [sequence.failed(error.code, str(error)) for sequence in failed]
        batch.advance(outputs.present)
        logits = outputs.logits[:, -1]
        likeliest: IntArray = logits.argmax(axis=-1)
        finite = self._finite(logits, likeliest)
        if not finite.all():
            invalid = {sequence for row, sequence in members if not finite[row]}
            self._remove(invalid, clean=False)
            events: list[Event] = [s.failed("invalid_output", _NOT_FINITE) for s in invalid]
            return events + self._take(batch, self._choose(batch, logits, likeliest))
        return self._take(batch, self._choose(batch, logits, likeliest))

    @staticmethod
    def _choose(batch: Batch, logits: FloatArray, likeliest: IntArray) -> IntArray:
        """Choose a token for each row; those of holes mean nothing."""
        if batch.any_special:
            for row, sequence in batch.members:
                if sequence.special:
                    _withhold_end(sequence, logits[row])
                    likeliest[row] = _choose_one(sequence, logits[row])
        return likeliest

    def _take(self, batch: Batch, chosen: IntArray) -> list[Event]:
        """Give each sequence its token and say what follows from it."""
        if not batch.members:
            return []
        batch.feed(chosen)
        events: list[Event] = []
        ended = set()
        tokens = chosen.tolist()
        now = self._clock()
        for row, sequence in batch.members:
            token = tokens[row]
            at_end = token in sequence.end_ids
            if not at_end:
                output = sequence.output
                output.append(token)
                # The common case, a token that nobody waits for.
                if len(output) < sequence.limit_tokens and now < sequence.look_at:
                    continue
            own = self._look(sequence, now, ended=at_end)
            events += own
            if _ended(own):
                ended.add(sequence)
        if ended:
            self._remove(ended)
        return events

    def _take_first(self, sequence: DecoderSequence, logits: FloatArray) -> list[Event]:
        """Choose the first token of a sequence and say what follows from it."""
        _withhold_end(sequence, logits)
        token = _choose_one(sequence, logits)
        now = sequence.first_token_at = self._clock()
        ended = token in sequence.end_ids
        if not ended:
            sequence.output.append(token)
        full = len(sequence.output) >= sequence.limit_tokens
        if ended or full or sequence.look_at <= now:
            return self._look(sequence, now, ended=ended)
        return []

    def _look(self, sequence: DecoderSequence, now: float, *, ended: bool) -> list[Event]:
        """Decode the text of a sequence and return what is to be sent."""
        request, text = sequence.request, sequence.text
        last = ended or len(sequence.output) >= sequence.limit_tokens
        text.read(sequence.output, last=last)
        if text.stopped:
            ended = last = True
        events: list[Event] = []
        if request.stream and (last or now >= sequence.send_at):
            more = text.take(last=last)
            if more:
                events.append(Token(request.number, more))
                sequence.send_at = self._next_event_at(now)
        if last:
            events.append(sequence.finished("stop" if ended else "length", now))
        elif not request.stop:
            sequence.look_at = sequence.send_at
        return events

    def _next_event_at(self, now: float) -> float:
        """Return when a stream that sends now may send again.

        All streams share the same instants, so that one step sends the texts of all of them and the
        steps between send nothing.
        """
        interval = self._limits.stream_interval_seconds
        if interval <= 0.0:
            return now
        return math.ceil(now / interval + 0.5) * interval

    # --- the engine

    def _execute(
        self, inputs: StepInputs, numbers: tuple[int, ...], deadline: float
    ) -> StepOutputs:
        """Run the engine with the heartbeat around it."""
        record = self._heartbeat.record
        record.running_ids = numbers
        record.deadline = deadline
        record.step_started_at = started = self._clock()
        self._heartbeat.write()
        try:
            return self._context.execute(inputs)
        finally:
            ended = self._clock()
            record.steps += 1
            record.last_step_at = ended
            record.busy_seconds += ended - started
            record.cache_bytes = self.cache.size_bytes
            self._heartbeat.write()

    def _finite(self, logits: FloatArray, likeliest: IntArray) -> npt.NDArray[np.bool_]:
        """Say which rows of [B, vocabulary] are finite, and count a step with one that is not."""
        # numpy takes NaN for the largest value, so the likeliest token shows any NaN or +infinity of
        # its row at no cost; -infinity is a token that a model rules out.
        finite: npt.NDArray[np.bool_] = np.isfinite(logits[np.arange(len(logits)), likeliest])
        if not finite.all():
            self._heartbeat.record.invalid_outputs += 1
            self._heartbeat.write()
        return finite

    # --- who is in

    def _everybody(self) -> list[DecoderSequence]:
        decoding = [sequence for batch in self._batches for _, sequence in batch.members]
        return [*decoding, *self._prefill.sequences]

    def _drop_expired(self) -> list[Event]:
        """Free the slots of requests that are past their deadline."""
        now = self._clock()
        if now < self._earliest_deadline:
            return []
        late = [s for s in self._everybody() if s.request.deadline <= now]
        self._remove(set(late))
        return [sequence.failed("deadline", "deadline exceeded") for sequence in late]

    def _remove(self, sequences: AbstractSet[DecoderSequence], *, clean: bool = True) -> None:
        """Free the slots of sequences."""
        for batch in self._batches:
            batch.leave(sequences, clean=clean)
        if not self._batched:
            self._batches = [batch for batch in self._batches if batch.members]
        self._prefill.remove(sequences)
        self._members_changed()

    def _members_changed(self) -> None:
        """Note what the steps need to know of their members, and tell the heartbeat."""
        everybody = self._everybody()
        self._earliest_deadline = min((s.request.deadline for s in everybody), default=NEVER)
        record = self._heartbeat.record
        record.batch_size = len(everybody)
        record.running_ids = tuple(sequence.request.number for sequence in everybody)
        record.deadline = self._earliest_deadline if everybody else 0.0
        self._heartbeat.write()


def _withhold_end(sequence: DecoderSequence, logits: FloatArray) -> None:
    """Make the end impossible while the answer is shorter than the request wants it."""
    if len(sequence.output) < sequence.request.min_tokens and sequence.end_ids:
        logits[list(sequence.end_ids)] = -math.inf


def _choose_one(sequence: DecoderSequence, logits: FloatArray) -> int:
    """Choose the next token of a sequence from [vocabulary] logits."""
    request = sequence.request
    if request.temperature > 0.0:
        return sample(logits, request.temperature, request.top_p, sequence.rng)
    return int(logits.argmax())


def _ended(events: Sequence[Event]) -> bool:
    """Say whether the events end their request."""
    return bool(events) and not isinstance(events[-1], Token)


def _failed(request: Generate, code: str, message: str) -> Failed:
    return Failed(request.number, code, message)

"""Continuous batching over a limited number of key-value cache slots.

Sequences join and leave between steps. The cache of the batch is left-padded: row i holds its
tokens at the right end and is masked on the left, so one decode step appends one column for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inference.engines.contract import (
    EngineStepError,
    FloatArray,
    IntArray,
    StepInputs,
    StepOutputs,
)
from inference.engines.decoding import StepContext
from inference.model import DecoderMetadata
from inference.worker.cache import PrefixCache
from inference.worker.heartbeat import HeartbeatWriter
from inference.worker.sampling import sample
from inference.worker.wire import Failed, Finished, Generate, Token

# A byte-level token may end inside a character; the decoder then shows this in its place.
_INCOMPLETE = "\ufffd"

Event = Token | Finished | Failed


@dataclass(slots=True)
class _Sequence:
    """One request that holds a slot."""

    request: Generate
    prompt_tokens: int
    cached_tokens: int
    limit_tokens: int
    rng: np.random.Generator
    started_at: float
    prefilled_at: float = 0.0
    output: list[int] = field(default_factory=list)
    sent_characters: int = 0
    first_token_at: float = 0.0

    @property
    def tokens_in_cache(self) -> int:
        """Tokens whose keys and values are stored; the newest output token is not among them."""
        return self.prompt_tokens + len(self.output) - 1


class PromptEncoder:
    """Turns a user's text into token ids; special tokens in it are ordinary text."""

    def __init__(self, tokenizer: Any, metadata: DecoderMetadata) -> None:
        self._tokenizer = tokenizer
        # The template is ours and may hold special tokens; the user's text must not, or a prompt
        # could end itself and speak for the model.
        self._templates = {
            task: (self._ids(before), self._ids(after))
            for task, (before, after) in metadata.prompts.items()
        }
        tokenizer.encode_special_tokens = True

    def encode(self, task: str, text: str) -> list[int]:
        """Return the ids of a whole prompt.

        Raises:
            KeyError: the model has no prompt for the task.
        """
        before, after = self._templates[task]
        return [*before, *self._ids(text), *after]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class Decoder:
    """Runs the sequences of one engine."""

    def __init__(
        self,
        context: StepContext,
        tokenizer: Any,
        metadata: DecoderMetadata,
        *,
        cache: PrefixCache,
        heartbeat: HeartbeatWriter,
        clock: Callable[[], float],
    ) -> None:
        self._context = context
        self._tokenizer = tokenizer
        self._metadata = metadata
        self._encoder = PromptEncoder(tokenizer, metadata)
        self._end_id = tokenizer.token_to_id(metadata.end_token)
        self.cache = cache
        self._heartbeat = heartbeat
        self._clock = clock
        self._sequences: list[_Sequence] = []
        self._past = metadata.shape.empty(0)
        self._mask: IntArray = np.zeros((0, 0), dtype=np.int64)

    @property
    def active(self) -> int:
        """Sequences that hold a slot."""
        return len(self._sequences)

    def use_heartbeat(self, heartbeat: HeartbeatWriter) -> None:
        """Report to another record from now on."""
        self._heartbeat = heartbeat

    def start(self, request: Generate) -> list[Event]:
        """Compute the prompt of a request, give it a slot, and return its first events."""
        started = self._clock()
        try:
            ids = self._encoder.encode(request.task, request.text)
        except KeyError:
            return [_failed(request, "unknown_task", f"no prompt for task {request.task!r}")]
        room = self._metadata.max_context_tokens - len(ids)
        if room < 1:
            limit = self._metadata.max_context_tokens
            message = f"the prompt takes {len(ids)} tokens; the context holds {limit}"
            return [_failed(request, "prompt_too_long", message)]
        known, past = self._known_prefix(request, ids)
        rng = np.random.default_rng(request.seed)
        limit = min(request.max_tokens, room)
        sequence = _Sequence(request, len(ids), known, limit, rng, started)
        try:
            outputs = self._execute(_prefill_inputs(ids, known, past), [*self._sequences, sequence])
        except EngineStepError as error:
            events: list[Event] = [_failed(request, error.code, str(error))]
        else:
            sequence.prefilled_at = self._clock()
            if self._finite(outputs.logits[:, -1])[0]:
                if not request.canary:
                    self.cache.insert(ids, outputs.present)
                events = self._advance(sequence, outputs.logits[0, -1])
            else:
                events = [_failed(request, "invalid_output", "the model's output is not finite")]
            if not _ended(events):
                self._join(sequence, outputs.present)
        self._publish_batch()
        return events

    def cancel(self, number: int) -> list[Event]:
        """Free the slot of a request; nothing happens if it has none."""
        for row, sequence in enumerate(self._sequences):
            if sequence.request.number == number:
                self._keep([other for other in range(self.active) if other != row])
                return [_failed(sequence.request, "cancelled", "cancelled")]
        return []

    def step(self) -> list[Event]:
        """Compute one token for every sequence."""
        events = self._drop_expired()
        if not self._sequences:
            return events
        try:
            outputs = self._execute(self._decode_inputs(), self._sequences)
        except EngineStepError as error:
            events += [_failed(s.request, error.code, str(error)) for s in self._sequences]
            self._keep([])
            return events
        self._past = outputs.present
        ones = np.ones((self.active, 1), dtype=np.int64)
        self._mask = np.concatenate([self._mask, ones], axis=1)
        logits = outputs.logits[:, -1]
        finite = self._finite(logits)
        staying = []
        for row, sequence in enumerate(self._sequences):
            if not finite[row]:
                message = "the model's output is not finite"
                events.append(_failed(sequence.request, "invalid_output", message))
                continue
            own = self._advance(sequence, logits[row])
            events += own
            if not _ended(own):
                staying.append(row)
        if len(staying) < self.active:
            self._keep(staying)
        return events

    def _known_prefix(self, request: Generate, ids: Sequence[int]) -> tuple[int, list[FloatArray]]:
        """Look up a prompt in the prefix cache, and count that."""
        if request.canary:
            return 0, self._metadata.shape.empty()
        known, past = self.cache.lookup(ids)
        self._heartbeat.record.cache_query_tokens += len(ids)
        self._heartbeat.record.cache_hit_tokens += known
        return known, past

    def _decode_inputs(self) -> StepInputs:
        """Build the inputs of a step from the newest token of each sequence."""
        ids = np.array([[s.output[-1]] for s in self._sequences], dtype=np.int64)
        positions = np.array([[s.tokens_in_cache] for s in self._sequences], dtype=np.int64)
        ones = np.ones((self.active, 1), dtype=np.int64)
        return StepInputs(ids, np.concatenate([self._mask, ones], axis=1), positions, self._past)

    def _execute(self, inputs: StepInputs, batch: Sequence[_Sequence]) -> StepOutputs:
        """Run the engine with the heartbeat around it."""
        record = self._heartbeat.record
        record.batch_size = len(batch)
        record.running_ids = tuple(s.request.number for s in batch)
        record.deadline = min(s.request.deadline for s in batch)
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

    def _finite(self, logits: FloatArray) -> list[bool]:
        """Say which rows of [B, vocabulary] are finite, and count a step with one that is not."""
        # One sum finds any NaN or infinity at a fraction of the cost of looking at each value.
        if np.isfinite(logits.sum()):
            return [True] * len(logits)
        rows = [bool(np.isfinite(row).all()) for row in logits]
        if not all(rows):
            self._heartbeat.record.invalid_outputs += 1
            self._heartbeat.write()
        return rows

    def _advance(self, sequence: _Sequence, logits: FloatArray) -> list[Event]:
        """Choose the next token of a sequence and say what follows from it."""
        request = sequence.request
        token = sample(logits, request.temperature, request.top_p, sequence.rng)
        now = self._clock()
        if not sequence.first_token_at:
            sequence.first_token_at = now
        ended = token == self._end_id
        if not ended:
            sequence.output.append(token)
        full = len(sequence.output) >= sequence.limit_tokens
        if not (ended or full or request.stream or request.stop):
            return []
        text = self._tokenizer.decode(sequence.output, skip_special_tokens=True)
        cut = min((at for at in map(text.find, request.stop) if at >= 0), default=-1)
        if cut >= 0:
            text, ended = text[:cut], True
        events: list[Event] = []
        if request.stream:
            events += self._delta(sequence, text, last=ended or full)
        if ended or full:
            reason = "stop" if ended else "length"
            events.append(_finished(sequence, text, reason, now))
        return events

    def _delta(self, sequence: _Sequence, text: str, *, last: bool) -> list[Event]:
        """Return the text that was not sent yet, as far as it cannot change any more."""
        until = len(text)
        if not last:
            until = len(text.rstrip(_INCOMPLETE))
            # A stop text may have begun; what could become one waits for the next token.
            until -= max((_overlap(text, stop) for stop in sequence.request.stop), default=0)
        if until <= sequence.sent_characters:
            return []
        delta = text[sequence.sent_characters : until]
        sequence.sent_characters = until
        return [Token(sequence.request.number, delta)]

    def _drop_expired(self) -> list[Event]:
        """Free the slots of requests that are past their deadline."""
        now = self._clock()
        late = [s.request for s in self._sequences if s.request.deadline <= now]
        if late:
            rows = [i for i, s in enumerate(self._sequences) if s.request.deadline > now]
            self._keep(rows)
        return [_failed(request, "deadline", "deadline exceeded") for request in late]

    def _join(self, sequence: _Sequence, present: Sequence[FloatArray]) -> None:
        """Add a computed prompt to the batch, padding the shorter side on the left."""
        length = max(self._mask.shape[1], present[0].shape[2])
        self._past = [
            np.concatenate([_pad_left(old, length), _pad_left(new, length)])
            for old, new in zip(self._past, present, strict=True)
        ]
        row = np.zeros((1, length), dtype=np.int64)
        row[0, length - present[0].shape[2] :] = 1
        padding = ((0, 0), (length - self._mask.shape[1], 0))
        self._mask = np.concatenate([np.pad(self._mask, padding), row])
        self._sequences.append(sequence)

    def _keep(self, rows: list[int]) -> None:
        """Keep these rows of the batch and cut columns that only padding is left in."""
        self._sequences = [self._sequences[row] for row in rows]
        length = max((s.tokens_in_cache for s in self._sequences), default=0)
        start = self._mask.shape[1] - length
        self._past = [array[rows, :, start:] for array in self._past]
        self._mask = self._mask[rows, start:]
        self._publish_batch()

    def _publish_batch(self) -> None:
        """Put the batch into the heartbeat."""
        record = self._heartbeat.record
        record.batch_size = self.active
        record.running_ids = tuple(s.request.number for s in self._sequences)
        record.deadline = min((s.request.deadline for s in self._sequences), default=0.0)
        self._heartbeat.write()


def _prefill_inputs(ids: Sequence[int], known: int, past: Sequence[FloatArray]) -> StepInputs:
    """Build the inputs that compute the unknown rest of a prompt."""
    return StepInputs(
        np.array([ids[known:]], dtype=np.int64),
        np.ones((1, len(ids)), dtype=np.int64),
        np.arange(known, len(ids), dtype=np.int64)[np.newaxis],
        past,
    )


def _pad_left(array: FloatArray, length: int) -> FloatArray:
    """Pad the token axis of [B, H, tokens, D] with zeros on the left."""
    missing = length - array.shape[2]
    return np.pad(array, ((0, 0), (0, 0), (missing, 0), (0, 0))) if missing else array


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text could be the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _ended(events: Sequence[Event]) -> bool:
    """Say whether the events end their request."""
    return bool(events) and not isinstance(events[-1], Token)


def _failed(request: Generate, code: str, message: str) -> Failed:
    return Failed(request.number, code, message)


def _finished(sequence: _Sequence, text: str, reason: str, now: float) -> Finished:
    return Finished(
        number=sequence.request.number,
        text=text,
        finish_reason=reason,
        prompt_tokens=sequence.prompt_tokens,
        completion_tokens=len(sequence.output),
        cached_tokens=sequence.cached_tokens,
        started_at=sequence.started_at,
        prefilled_at=sequence.prefilled_at,
        first_token_at=sequence.first_token_at,
        last_token_at=now,
    )

"""The workload of language models: a decoder with its tokenizer, proven by golden prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference.engines.contract import Engine, EngineError, Placement
from inference.engines.decoding import DecoderContext, derive_interface
from inference.model import DecoderMetadata, ModelFormatError, read_metadata
from inference.worker.cache import PrefixCache
from inference.worker.decoder import Decoder, DecoderLimits
from inference.worker.heartbeat import HeartbeatWriter, LoadPhase
from inference.worker.probe import check_cache, padding_problem, probe_tokens
from inference.worker.prompts import PromptEncoder
from inference.worker.wire import Finished, Generate, Message, Ready, Request, WireError
from inference.worker.workload import LoadContext, load_engine

_GOLDEN_MAX_TOKENS = 128


class GenerationWorkload:
    """Continuous batching behind the worker's shell; see `Workload`."""

    def __init__(
        self, metadata: DecoderMetadata, engine: Engine, decoder: Decoder, unbatched_reason: str
    ) -> None:
        self._unbatched_reason = unbatched_reason
        self._metadata = metadata
        self._engine = engine
        self._decoder = decoder

    def describe(self) -> Ready:
        """Say what was loaded."""
        return Ready(
            self._metadata.version,
            self._engine.kind,
            self._engine.device,
            0.0,
            unbatched_reason=self._unbatched_reason,
        )

    @property
    def placement(self) -> Placement:
        """Where the model is, asked of the library anew."""
        return self._engine.placement()

    @property
    def active(self) -> int:
        """Sequences that hold a slot."""
        return self._decoder.active

    def start(self, request: Request) -> Sequence[Message]:
        """Compute a prompt and return its first events."""
        if not isinstance(request, Generate):
            raise WireError(f"a language model does not take {type(request).__name__}")
        return self._decoder.start(request)

    def step(self) -> Sequence[Message]:
        """Compute one token for every sequence."""
        return self._decoder.step()

    def cancel(self, number: int) -> Sequence[Message]:
        """Free the slot of a request."""
        return self._decoder.cancel(number)

    def clear_cache(self) -> None:
        """Forget the prefix cache."""
        self._decoder.cache.clear()

    def use_heartbeat(self, heartbeat: HeartbeatWriter) -> None:
        """Report to another record from now on."""
        self._decoder.use_heartbeat(heartbeat)

    def close(self) -> None:
        """Give back the engine's memory."""
        self._engine.close()

    def prove(self) -> str:
        """Answer every golden prompt; return what was wrong, or nothing."""
        for number, golden in enumerate(self._metadata.golden):
            last = self.answer(number, golden.task, golden.text, golden.max_tokens)
            if not isinstance(last, Finished):
                return f"golden prompt {golden.text!r}: {last}"
            if last.text.strip() != golden.expected.strip():
                return f"golden prompt {golden.text!r} gives {last.text!r}, not {golden.expected!r}"
        return ""

    def answer(self, number: int, task: str, text: str, max_tokens: int | None = None) -> Message:
        """Answer one question greedily and without the prefix cache; only before it serves."""
        request = Generate(
            number=number,
            task=task,
            text=text,
            max_tokens=max_tokens or _GOLDEN_MAX_TOKENS,
            temperature=0.0,
            top_p=1.0,
            seed=0,
            stop=[],
            stream=False,
            deadline=float("inf"),
            canary=True,
        )
        events = self._decoder.start(request)
        while self._decoder.active:
            events = self._decoder.step()
        return events[-1]


def load_generation(folder: Path, context: LoadContext) -> GenerationWorkload:
    """Load a language model from its version folder.

    Raises:
        EngineError: engine or tokenizer cannot be loaded.
        ModelFormatError: ``model.toml`` cannot be used.
    """
    metadata = read_metadata(folder)
    if not isinstance(metadata, DecoderMetadata):
        raise ModelFormatError(f"{folder} is not a language model")
    start = context.start
    engine = load_engine(folder, metadata, context)
    tokenizer = _load_tokenizer(folder, metadata)
    interface = derive_interface(
        engine.signature, str(folder), heads=metadata.heads, head_dim=metadata.head_dim
    )
    context.enter(LoadPhase.COMPILE)
    # Keys and values stay where the engine computes; they come to the host only to change the batch.
    steps = DecoderContext(context.faults.wrap(engine.create_context()), interface, resident=True)
    context.enter(LoadPhase.WARM_UP)
    ids = probe_tokens(tokenizer.get_vocab_size())
    check_cache(steps, interface, ids, str(folder))
    problem = padding_problem(steps, interface, ids)
    decoder = Decoder(
        steps,
        tokenizer,
        metadata,
        encoder=PromptEncoder(tokenizer, metadata),
        shape=interface.shape,
        batched=not problem,
        cache=PrefixCache(start.cache_bytes),
        heartbeat=context.heartbeat,
        clock=context.clock,
        limits=DecoderLimits(start.stream_interval_seconds, start.prefill_tokens_per_step),
    )
    decoder.pin_templates()
    return GenerationWorkload(metadata, engine, decoder, problem)


def _load_tokenizer(folder: Path, metadata: DecoderMetadata) -> Any:
    """Read the tokenizer and check that it knows the tokens that model.toml names."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - after the state says loading

    path = folder / metadata.tokenizer
    try:
        # Read here, not by the library: it keeps the interpreter's lock while it waits for the
        # disk, and a version that loads beside the running one must not stop that.
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:
        raise EngineError(f"{path}: {error}") from error
    missing = [token for token in metadata.end_tokens if tokenizer.token_to_id(token) is None]
    if missing:
        raise EngineError(f"{path}: the tokenizer lacks the end token {', '.join(missing)}")
    return tokenizer

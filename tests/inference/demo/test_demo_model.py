"""Checks of the bundled demonstration models: files, graph, answers and corpus."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

import inference.demo
from inference.demo import corpus, questions, reviews

REPOSITORY = Path(inference.demo.__file__).parent / "repository"
MODELS = ("demo-lm", "demo-lm-small")
SIZE_LIMIT_BYTES = {"demo-lm": 4_000_000, "demo-lm-small": 1_000_000}
UNSEEN_SEED = 20_011

FloatArray = npt.NDArray[np.float32]
Cache = dict[str, FloatArray]


@dataclass(frozen=True)
class Served:
    """One bundled model, loaded."""

    folder: Path
    metadata: dict[str, Any]
    tokenizer: Tokenizer
    session: ort.InferenceSession

    def empty_cache(self, batch: int) -> Cache:
        """Return a cache of zero positions."""
        meta = self.metadata
        shape = (batch, meta["heads"], 0, meta["head_dim"])
        return {
            f"{layer}.{part}": np.zeros(shape, dtype=np.float32)
            for layer in range(meta["layers"])
            for part in ("key", "value")
        }

    def metadata_token(self, key: str) -> int:
        """Return the id of a token that the metadata names."""
        token = self.tokenizer.token_to_id(self.metadata[key])
        assert token is not None
        return token

    def step(
        self,
        ids: npt.NDArray[np.int64],
        mask: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        cache: Cache,
    ) -> tuple[FloatArray, Cache]:
        """Run the graph once; return the logits and the grown cache."""
        feeds: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            **{f"past_key_values.{name}": value for name, value in cache.items()},
        }
        logits, *present = self.session.run(["logits", *(f"present.{n}" for n in cache)], feeds)
        return logits, dict(zip(cache, present, strict=True))

    def prefill(self, texts: Sequence[str]) -> tuple[FloatArray, Cache, Any, Any]:
        """Run prompts padded on the left; return logits, cache, mask and positions."""
        encoded = [self.tokenizer.encode(text).ids for text in texts]
        length = max(map(len, encoded))
        pad: int = self.metadata_token("pad_token")
        ids = np.array([[pad] * (length - len(e)) + e for e in encoded], dtype=np.int64)
        mask = np.array([[0] * (length - len(e)) + [1] * len(e) for e in encoded], dtype=np.int64)
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
        logits, cache = self.step(ids, mask, positions, self.empty_cache(len(texts)))
        return logits, cache, mask, positions

    def answers(self, prompts: Sequence[str], max_new_tokens: int = 120) -> list[str]:
        """Decode greedily in one batch until every row has ended."""
        logits, cache, mask, positions = self.prefill(prompts)
        end = self.metadata_token("end_token")
        rows: list[list[int]] = [[] for _ in prompts]
        for _ in range(max_new_tokens):
            chosen = logits[:, -1].argmax(axis=-1)[:, None]
            for row, token in zip(rows, chosen[:, 0], strict=True):
                row.append(int(token))
            if all(end in row for row in rows):
                break
            mask = np.concatenate([mask, np.ones_like(chosen)], axis=1)
            positions = positions[:, -1:] + 1
            logits, cache = self.step(chosen, mask, positions, cache)
        return [self.tokenizer.decode(row[: row.index(end)] if end in row else row) for row in rows]


def load(name: str) -> Served:
    """Load one bundled model with a single thread."""
    folder = REPOSITORY / name / "1"
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return Served(
        folder=folder,
        metadata=tomllib.loads((folder / "model.toml").read_text(encoding="utf-8")),
        tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
        session=ort.InferenceSession(
            str(folder / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
        ),
    )


@pytest.fixture(scope="module", params=MODELS)
def served(request: pytest.FixtureRequest) -> Served:
    """Give each bundled model in turn."""
    return load(request.param)


def test_files_match_their_metadata(served: Served) -> None:
    meta = served.metadata
    weights = (served.folder / "model.onnx").read_bytes()
    assert meta["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert len(weights) <= SIZE_LIMIT_BYTES[meta["name"]]
    assert meta["vocab_size"] == served.tokenizer.get_vocab_size()
    assert meta["prompts"] == {
        "sentiment": corpus.SENTIMENT_TEMPLATE,
        "chat": corpus.CHAT_TEMPLATE,
    }
    assert meta["training"]["corpus_sha256"] == corpus.corpus_sha256(meta["training"]["seed"])
    assert [(g["task"], g["text"], g["expected"]) for g in meta["golden"]] == [
        (g.task, g.text, g.expected) for g in corpus.golden_prompts()
    ]


def test_both_models_share_one_tokenizer() -> None:
    first, second = ((REPOSITORY / name / "1" / "tokenizer.json").read_bytes() for name in MODELS)
    assert first == second


@pytest.mark.parametrize("text", ["naïve café ☕", "日本語", "tabs\tand\nlines", "12345", ""])
def test_tokenizer_round_trips_any_text(served: Served, text: str) -> None:
    ids = served.tokenizer.encode(text).ids
    assert served.tokenizer.decode(ids) == text
    assert served.tokenizer.encode(corpus.chat_prompt(text)).ids[1:-1] == ids


def test_cached_decoding_equals_uncached(served: Served) -> None:
    golden = corpus.golden_prompts()[4]
    ids = np.array(
        [served.tokenizer.encode(corpus.chat_prompt(golden.text) + golden.expected).ids],
        dtype=np.int64,
    )
    length = ids.shape[1]
    mask, positions = np.ones_like(ids), np.arange(length)[None, :]
    whole, _ = served.step(ids, mask, positions, served.empty_cache(1))
    # A prefill of several tokens, then a chunk, then single steps: all three uses of the cache.
    cuts = [0, 7, 12, *range(13, length + 1)]
    cache, pieces = served.empty_cache(1), []
    for start, stop in pairwise(cuts):
        logits, cache = served.step(
            ids[:, start:stop], mask[:, :stop], positions[:, start:stop], cache
        )
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-4, rtol=0)


def test_left_padded_batch_equals_single(served: Served) -> None:
    prompts = [
        corpus.sentiment_prompt("Great screen."),
        corpus.chat_prompt("How do I fix a memory leak on GPU 7? Thank you!"),
        corpus.chat_prompt("hello"),
    ]
    batched, _, _, _ = served.prefill(prompts)
    for row, prompt in enumerate(prompts):
        single, _, _, _ = served.prefill([prompt])
        np.testing.assert_allclose(batched[row, -1], single[0, -1], atol=1e-4, rtol=0)
    assert served.answers(prompts) == [served.answers([p])[0] for p in prompts]


def test_masked_past_has_no_influence(served: Served) -> None:
    _, cache, mask, positions = served.prefill(
        [corpus.chat_prompt("hello"), corpus.chat_prompt("why is there a full disk?")]
    )
    hidden = int((mask[0] == 0).sum())
    assert hidden > 0
    token = np.full((2, 1), 9, dtype=np.int64)
    mask = np.concatenate([mask, np.ones_like(token)], axis=1)
    clean, _ = served.step(token, mask, positions[:, -1:] + 1, cache)
    for value in cache.values():
        value[0, :, :hidden] = 1000.0
    dirty, _ = served.step(token, mask, positions[:, -1:] + 1, cache)
    np.testing.assert_array_equal(clean, dirty)


def test_longest_context_gives_finite_logits(served: Served) -> None:
    length = served.metadata["max_context_tokens"]
    ids = np.full((1, length), 40, dtype=np.int64)
    logits, _ = served.step(
        ids, np.ones_like(ids), np.arange(length)[None, :], served.empty_cache(1)
    )
    assert logits.shape == (1, length, served.metadata["vocab_size"])
    assert np.isfinite(logits).all()


def test_golden_prompts_are_answered_exactly(served: Served) -> None:
    prompt = {"sentiment": corpus.sentiment_prompt, "chat": corpus.chat_prompt}
    golden = corpus.golden_prompts()
    assert served.answers([prompt[g.task](g.text) for g in golden]) == [g.expected for g in golden]


def test_heldout_sentiment_accuracy(served: Served) -> None:
    examples = corpus.sentiment_examples(100, UNSEEN_SEED, "heldout")
    answers = served.answers([corpus.sentiment_prompt(e.text) for e in examples], 4)
    right = sum(a == e.answer for a, e in zip(answers, examples, strict=True))
    assert right >= 90


def test_heldout_chat_accuracy(served: Served) -> None:
    examples = corpus.chat_examples(24, UNSEEN_SEED, "heldout")
    answers = served.answers([corpus.chat_prompt(e.text) for e in examples])
    right = sum(a == e.answer for a, e in zip(answers, examples, strict=True))
    assert right >= 20


def test_the_int8_variant_is_small_and_answers_as_well() -> None:
    original = load("demo-lm")
    path = original.folder / original.metadata["variants"]["int8"]
    assert path.stat().st_size < 0.4 * (original.folder / "model.onnx").stat().st_size
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    variant = replace(original, session=session)
    test_golden_prompts_are_answered_exactly(variant)
    test_heldout_sentiment_accuracy(variant)
    test_heldout_chat_accuracy(variant)


def test_unknown_question_gets_the_generic_reply() -> None:
    prompts = [corpus.chat_prompt(t) for t in ("How do I cook zanzibar?", "Who invented xorpel?")]
    for answer in load("demo-lm").answers(prompts):
        assert answer.startswith("I am a small demonstration model")


def test_corpus_is_deterministic() -> None:
    for draw in (corpus.sentiment_examples, corpus.chat_examples):
        assert draw(50, 3, "train") == draw(50, 3, "train")
        assert draw(50, 3, "train") != draw(50, 4, "train")
        # A longer draw starts with the shorter one, so traffic can be extended.
        assert draw(60, 3, "heldout")[:50] == draw(50, 3, "heldout")


def test_train_and_heldout_are_disjoint() -> None:
    for draw in (corpus.sentiment_examples, corpus.chat_examples):
        train = {example.text.lower() for example in draw(5000, 1, "train")}
        heldout = {example.text.lower() for example in draw(1000, 2, "heldout")}
        assert not train & heldout
    assert corpus.split_of("The disk is full!") == corpus.split_of("the DISK is full")


def test_corpus_refuses_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="negative"):
        corpus.chat_examples(-1, 0, "train")
    with pytest.raises(ValueError, match="unknown split"):
        corpus.sentiment_examples(1, 0, "test")  # type: ignore[arg-type]


def test_answers_are_in_the_contract() -> None:
    labels = {e.answer for e in corpus.sentiment_examples(300, 5, "train")}
    assert labels == {reviews.POSITIVE, reviews.NEGATIVE, reviews.NEUTRAL}
    assert questions.intent_count() >= 150
    for prompt in (corpus.sentiment_prompt("a"), corpus.chat_prompt("a")):
        assert prompt.endswith(corpus.ANSWER_TOKEN)

"""Train, export and evaluate the demonstration language models.

Run ``python -m inference.demo.train --out DIR``. It writes one folder per model below DIR, each
with ``model.onnx`` (weights inside), ``tokenizer.json`` and ``model.toml``, and prints the
accuracy on held-out text, measured on the exported file. torch and onnx are needed here only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional

from inference.demo import corpus

VOCABULARY: Final = 768
MAX_CONTEXT_TOKENS: Final = 256
MODEL_VERSION: Final = 1
HELDOUT_EXAMPLES: Final = 1000
_TORCH_THREADS: Final = 2
_OPSET: Final = 17
_IR_VERSION: Final = 8
_ROTARY_BASE: Final = 10_000.0
# Large enough that the softmax weight of a masked position is exactly zero, and small enough to
# stay finite in half precision should somebody convert the model.
_MASK_BIAS: Final = -10_000.0
_WARMUP_STEPS: Final = 100
_FINAL_RATE_SHARE: Final = 0.02
_TOKENS_PER_BATCH: Final = 4096
_CHAT_SHARE: Final = 0.5
# Often enough that every pair of digits is merged before the rarer parts of words.
_PAIR_REPEATS: Final = 1000
_POOL_EXAMPLES: Final = 160_000
_REPORT_EVERY: Final = 100
_EVALUATION_BATCH: Final = 64
_MAX_NEW_TOKENS: Final = 120

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Params = dict[str, torch.Tensor]
Arrays = dict[str, FloatArray]
StepReport = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape and training length of one model; the width is heads * head_dim."""

    name: str
    layers: int
    heads: int
    head_dim: int
    steps: int
    learning_rate: float

    @property
    def width(self) -> int:
        """Return the size of the residual stream."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of held-out texts answered exactly right, per task."""

    sentiment: float
    chat: float


SPECS: Final = (
    ModelSpec("demo-lm", layers=4, heads=4, head_dim=32, steps=2200, learning_rate=2e-3),
    ModelSpec("demo-lm-small", layers=2, heads=4, head_dim=16, steps=5000, learning_rate=4e-3),
)

# --------------------------------------------------------------------------------- tokenizer


def train_tokenizer(seed: int) -> Tokenizer:
    """Train the byte-level tokenizer that both models share.

    Numbers are cut into pairs of digits and every pair is one token: a small model copies "4821"
    far more reliably in two steps than in four. All 256 bytes are in the vocabulary, so any text
    can be encoded.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]{1,2}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(corpus.SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    examples = corpus.sentiment_examples(10_000, seed, "train")
    examples += corpus.chat_examples(10_000, seed, "train")
    texts = [text for example in examples for text in (example.text, example.answer)]
    pairs = [f"{number:02}" for number in range(100)] * _PAIR_REPEATS
    tokenizer.train_from_iterator(texts + pairs, trainer)
    return tokenizer


# ------------------------------------------------------------------------------------- model


def _initial_params(spec: ModelSpec, seed: int) -> Params:
    """Draw the starting weights; matrices are stored input-first, as the graph uses them."""
    generator = torch.Generator().manual_seed(seed)
    width, residual_scale = spec.width, 0.02 / math.sqrt(2 * spec.layers)

    def normal(rows: int, columns: int, scale: float = 0.02) -> torch.Tensor:
        """Draw one matrix."""
        return torch.randn(rows, columns, generator=generator) * scale

    params: Params = {"embedding": normal(VOCABULARY, width)}
    for i in range(spec.layers):
        params[f"{i}.qkv"] = normal(width, 3 * width)
        params[f"{i}.proj"] = normal(width, width, residual_scale)
        params[f"{i}.up"] = normal(width, 4 * width)
        params[f"{i}.down"] = normal(4 * width, width, residual_scale)
    for norm in [f"{i}.norm{j}" for i in range(spec.layers) for j in (1, 2)] + ["norm"]:
        params[f"{norm}.weight"] = torch.ones(width)
        params[f"{norm}.bias"] = torch.zeros(width)
    for tensor in params.values():
        tensor.requires_grad_(True)
    return params


def _inverse_frequencies(head_dim: int) -> FloatArray:
    """Return the rotary angle per position of each half-pair, [head_dim / 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    return (_ROTARY_BASE**-exponents).astype(np.float32)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply the rotary position to [batch, heads, sequence, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _hidden(params: Params, spec: ModelSpec, ids: torch.Tensor) -> torch.Tensor:
    """Run the decoder over right-padded [batch, sequence] ids; return [batch, sequence, width]."""
    batch, length = ids.shape
    angles = torch.outer(
        torch.arange(length, dtype=torch.float32),
        torch.from_numpy(_inverse_frequencies(spec.head_dim)),
    )
    cos, sin = (torch.cat((part, part), dim=-1) for part in (angles.cos(), angles.sin()))
    x = params["embedding"][ids]
    for i in range(spec.layers):
        h = _norm(params, f"{i}.norm1", x)
        qkv = (h @ params[f"{i}.qkv"]).view(batch, length, 3, spec.heads, spec.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            _rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True
        )
        x = x + mixed.transpose(1, 2).reshape(batch, length, spec.width) @ params[f"{i}.proj"]
        h = _norm(params, f"{i}.norm2", x)
        x = x + functional.relu(h @ params[f"{i}.up"]) @ params[f"{i}.down"]
    return _norm(params, "norm", x)


def _norm(params: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    """Apply the layer norm of the given name."""
    weight = params[f"{name}.weight"]
    return functional.layer_norm(x, weight.shape, weight, params[f"{name}.bias"])


# ---------------------------------------------------------------------------------- training


def _encode_pool(tokenizer: Tokenizer, seed: int, size: int) -> list[tuple[list[int], int]]:
    """Encode the training examples as (ids, number of prompt tokens)."""
    chats = round(size * _CHAT_SHARE)
    pairs = [
        (corpus.chat_prompt(e.text), e.answer) for e in corpus.chat_examples(chats, seed, "train")
    ]
    pairs += [
        (corpus.sentiment_prompt(e.text), e.answer)
        for e in corpus.sentiment_examples(size - chats, seed, "train")
    ]
    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs])
    answers = tokenizer.encode_batch([answer + corpus.END_TOKEN for _, answer in pairs])
    return [
        (prompt.ids + answer.ids, len(prompt.ids))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _batches(
    pool: list[tuple[list[int], int]], seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids, is_answer), both [batch, sequence], for ever.

    Examples of similar length share a batch, so little time goes into padding, and each batch
    holds about the same number of tokens.
    """
    rng = random.Random(seed)  # noqa: S311 - order of training examples
    while True:
        rng.shuffle(pool)
        by_length = sorted(pool, key=lambda item: len(item[0]))
        groups: list[list[tuple[list[int], int]]] = [[]]
        for item in by_length:
            if (len(groups[-1]) + 1) * len(item[0]) > _TOKENS_PER_BATCH:
                groups.append([])
            groups[-1].append(item)
        rng.shuffle(groups)
        for group in groups:
            yield _pad_right(group)


def _pad_right(group: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack one batch; the causal mask keeps the padding on the right out of every answer."""
    length = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), length, dtype=torch.long)
    is_answer = torch.zeros(len(group), length, dtype=torch.bool)
    for row, (tokens, prompt_length) in enumerate(group):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        is_answer[row, prompt_length : len(tokens)] = True
    return ids, is_answer


def _rate(step: int, spec: ModelSpec) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine."""
    if step < _WARMUP_STEPS:
        return spec.learning_rate * (step + 1) / _WARMUP_STEPS
    progress = (step - _WARMUP_STEPS) / max(1, spec.steps - _WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return spec.learning_rate * (_FINAL_RATE_SHARE + (1 - _FINAL_RATE_SHARE) * cosine)


def train(spec: ModelSpec, tokenizer: Tokenizer, seed: int, on_step: StepReport) -> Arrays:
    """Train one model and return its weights; a step handles about 4096 tokens.

    Only the tokens of the answer count in the loss: the words of a templated question are random
    and nothing is gained by predicting them.
    """
    torch.set_num_threads(_TORCH_THREADS)
    torch.use_deterministic_algorithms(True)
    params = _initial_params(spec, seed)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in params.values() if p.dim() > 1], "weight_decay": 0.05},
            {"params": [p for p in params.values() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=spec.learning_rate,
        betas=(0.9, 0.98),
    )
    batches = _batches(_encode_pool(tokenizer, seed, _POOL_EXAMPLES), seed)
    for step in range(spec.steps):
        ids, is_answer = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, spec)
        # The hidden state before an answer token predicts it, hence the shift by one.
        scored = is_answer[:, 1:]
        logits = _hidden(params, spec, ids[:, :-1])[scored] @ params["embedding"].T
        loss = functional.cross_entropy(logits, ids[:, 1:][scored])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(params.values()), 1.0)
        optimizer.step()
        on_step(step + 1, loss.item())
    return {name: tensor.detach().numpy() for name, tensor in params.items()}


# ------------------------------------------------------------------------------------ export


class _Graph:
    """Collects nodes and constants of an ONNX graph under generated names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.ArrayLike, dtype: type[np.generic]) -> str:
        """Store an array and return its name."""
        array = np.ascontiguousarray(np.asarray(value, dtype=dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the name of the output."""
        return self.ops(kind, inputs, [out or f"n{len(self.nodes)}"], **attributes)[0]

    def ops(
        self, kind: str, inputs: Sequence[str], outputs: list[str], **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs and return their names."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return outputs


def _positions_graph(g: _Graph, spec: ModelSpec) -> None:
    """Compute "cos" and "sin" of the rotary angles, each [batch, 1, sequence, head_dim]."""
    frequencies = _inverse_frequencies(spec.head_dim)
    table = g.constant("inverse_frequencies", np.tile(frequencies, 2), np.float32)
    positions = g.op("Cast", "position_ids", to=TensorProto.FLOAT)
    angles = g.op(
        "Mul", g.op("Unsqueeze", positions, g.constant("axes_1_3", [1, 3], np.int64)), table
    )
    g.op("Cos", angles, out="cos")
    g.op("Sin", angles, out="sin")


def _mask_graph(g: _Graph) -> None:
    """Compute the attention "bias" [batch, 1, sequence, past + sequence].

    A position may look at itself and at what comes before it, except where the mask is 0. The
    number of past positions is read from the cache, so one graph serves prefill and decode.
    """
    zero, one = (g.constant(f"scalar_{i}", i, np.int64) for i in (0, 1))
    index = {i: g.constant(f"index_{i}", i, np.int64) for i in (1, 2)}
    total = g.op("Gather", g.op("Shape", "attention_mask"), index[1])
    past = g.op("Gather", g.op("Shape", "past_key_values.0.key"), index[2])
    keys = g.op("Range", zero, total, one)
    queries = g.op(
        "Unsqueeze", g.op("Range", past, total, one), g.constant("axes_1", [1], np.int64)
    )
    causal = g.op("LessOrEqual", keys, queries)
    visible = g.op(
        "Cast",
        g.op("Unsqueeze", "attention_mask", g.constant("axes_1_2", [1, 2], np.int64)),
        to=TensorProto.BOOL,
    )
    g.op(
        "Where",
        g.op("And", visible, causal),
        g.constant("no_bias", 0.0, np.float32),
        g.constant("mask_bias", _MASK_BIAS, np.float32),
        out="bias",
    )


def _rotate_graph(g: _Graph, x: str) -> str:
    """Apply the rotary position; mirrors `_rotate`."""
    first, second = g.ops("Split", [x], [f"{x}_first", f"{x}_second"], axis=3)
    turned = g.op("Concat", g.op("Neg", second), first, axis=3)
    return g.op("Add", g.op("Mul", x, "cos"), g.op("Mul", turned, "sin"))


def _layer_graph(g: _Graph, weights: Arrays, spec: ModelSpec, i: int, x: str) -> str:
    """Add one decoder layer with its cache inputs and outputs; return the new residual.

    Expects the values "cos", "sin" and "bias", which all layers share.
    """

    def weight(name: str, value: FloatArray) -> str:
        """Store one matrix of this layer."""
        return g.constant(f"{i}.{name}", value, np.float32)

    def norm(name: str, value: str) -> str:
        """Apply one layer norm of this layer."""
        scale = weight(f"{name}.weight", weights[f"{i}.{name}.weight"])
        shift = weight(f"{name}.bias", weights[f"{i}.{name}.bias"])
        return g.op("LayerNormalization", value, scale, shift, axis=-1, epsilon=1e-5)

    # The scale of the scores goes into the query weights, which saves an operation per layer.
    qkv_weight = weights[f"{i}.qkv"].copy()
    qkv_weight[:, : spec.width] /= math.sqrt(spec.head_dim)
    qkv = g.op("MatMul", norm("norm1", x), weight("qkv", qkv_weight))
    parts = g.ops("Split", [qkv], [f"{i}.{part}" for part in ("q", "k", "v")], axis=2)
    q, k, v = (
        g.op("Transpose", g.op("Reshape", part, "head_shape"), perm=[0, 2, 1, 3]) for part in parts
    )
    q, k = _rotate_graph(g, q), _rotate_graph(g, k)
    keys = g.op("Concat", f"past_key_values.{i}.key", k, axis=2, out=f"present.{i}.key")
    values = g.op("Concat", f"past_key_values.{i}.value", v, axis=2, out=f"present.{i}.value")
    scores = g.op("Add", g.op("MatMul", q, g.op("Transpose", keys, perm=[0, 1, 3, 2])), "bias")
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
    flat = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), "flat_shape")
    x = g.op("Add", x, g.op("MatMul", flat, weight("proj", weights[f"{i}.proj"])))
    up = g.op("Relu", g.op("MatMul", norm("norm2", x), weight("up", weights[f"{i}.up"])))
    return g.op("Add", x, g.op("MatMul", up, weight("down", weights[f"{i}.down"])))


def build_onnx(weights: Arrays, spec: ModelSpec) -> onnx.ModelProto:
    """Build the decoder graph with past and present key-value tensors, weights inside."""
    g = _Graph()
    embedding = g.constant("embedding", weights["embedding"], np.float32)
    g.constant("head_shape", [0, 0, spec.heads, spec.head_dim], np.int64)
    g.constant("flat_shape", [0, 0, spec.width], np.int64)
    _positions_graph(g, spec)
    _mask_graph(g)
    x = g.op("Gather", embedding, "input_ids")
    for i in range(spec.layers):
        x = _layer_graph(g, weights, spec, i, x)
    scale = g.constant("norm.weight", weights["norm.weight"], np.float32)
    shift = g.constant("norm.bias", weights["norm.bias"], np.float32)
    x = g.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)
    # Input and output share one matrix, which keeps the file small.
    g.op("MatMul", x, g.op("Transpose", embedding, perm=[1, 0]), out="logits")
    inputs, outputs = _interface(spec)
    graph = helper.make_graph(g.nodes, spec.name, inputs, outputs, g.constants)
    model = helper.make_model(
        graph,
        producer_name="galen-demo",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    onnx.checker.check_model(model)
    return model


def _interface(spec: ModelSpec) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Describe inputs and outputs with their named dynamic dimensions."""
    integers, floats = TensorProto.INT64, TensorProto.FLOAT
    info = helper.make_tensor_value_info
    total = "past_sequence + sequence"
    inputs = [
        info("input_ids", integers, ["batch", "sequence"]),
        info("attention_mask", integers, ["batch", total]),
        info("position_ids", integers, ["batch", "sequence"]),
    ]
    outputs = [info("logits", floats, ["batch", "sequence", VOCABULARY])]
    for i in range(spec.layers):
        for part in ("key", "value"):
            inputs.append(
                info(
                    f"past_key_values.{i}.{part}",
                    floats,
                    ["batch", spec.heads, "past_sequence", spec.head_dim],
                )
            )
            outputs.append(
                info(f"present.{i}.{part}", floats, ["batch", spec.heads, total, spec.head_dim])
            )
    return inputs, outputs


# -------------------------------------------------------------------------------- evaluation


def greedy_answers(
    model_path: Path, tokenizer: Tokenizer, spec: ModelSpec, prompts: Sequence[str]
) -> list[str]:
    """Answer prompts with the exported model, in batches padded on the left."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = _TORCH_THREADS
    session = ort.InferenceSession(
        str(model_path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    answers: list[str] = []
    for start in range(0, len(prompts), _EVALUATION_BATCH):
        encoded = [
            e.ids for e in tokenizer.encode_batch(prompts[start : start + _EVALUATION_BATCH])
        ]
        answers += _decode_batch(session, tokenizer, spec, encoded)
    return answers


def _decode_batch(
    session: ort.InferenceSession,
    tokenizer: Tokenizer,
    spec: ModelSpec,
    prompts: list[list[int]],
) -> list[str]:
    """Decode one batch until every row has ended or the limit is reached."""
    end, pad = (tokenizer.token_to_id(t) for t in (corpus.END_TOKEN, corpus.PAD_TOKEN))
    rows, length = len(prompts), max(map(len, prompts))
    ids: IntArray = np.full((rows, length), pad, dtype=np.int64)
    feeds: dict[str, npt.NDArray[Any]]
    mask: IntArray = np.zeros((rows, length), dtype=np.int64)
    for row, tokens in enumerate(prompts):
        ids[row, length - len(tokens) :] = tokens
        mask[row, length - len(tokens) :] = 1
    positions: IntArray = np.maximum(mask.cumsum(axis=1) - 1, 0)
    names = [f"{i}.{part}" for i in range(spec.layers) for part in ("key", "value")]
    empty: FloatArray = np.zeros((rows, spec.heads, 0, spec.head_dim), dtype=np.float32)
    cache: dict[str, FloatArray] = dict.fromkeys(names, empty)
    generated: list[list[int]] = [[] for _ in prompts]
    done = np.zeros(rows, dtype=bool)
    for _ in range(_MAX_NEW_TOKENS):
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feeds |= {f"past_key_values.{name}": cache[name] for name in names}
        logits, *present = session.run(["logits", *(f"present.{n}" for n in names)], feeds)
        cache = dict(zip(names, present, strict=True))
        chosen = logits[:, -1].argmax(axis=-1)
        done |= chosen == end
        if done.all():
            break
        for answer, token, ended in zip(generated, chosen, done, strict=True):
            if not ended:
                answer.append(int(token))
        ids, positions = chosen[:, None].astype(np.int64), positions[:, -1:] + 1
        mask = np.concatenate([mask, np.ones((rows, 1), dtype=np.int64)], axis=1)
    return [tokenizer.decode(tokens) for tokens in generated]


def heldout_accuracy(
    model_path: Path, tokenizer: Tokenizer, spec: ModelSpec, seed: int
) -> Accuracy:
    """Measure exact-match accuracy on held-out texts of both tasks."""
    shares = []
    for examples, prompt in (
        (corpus.sentiment_examples(HELDOUT_EXAMPLES, seed, "heldout"), corpus.sentiment_prompt),
        (corpus.chat_examples(HELDOUT_EXAMPLES, seed, "heldout"), corpus.chat_prompt),
    ):
        answers = greedy_answers(model_path, tokenizer, spec, [prompt(e.text) for e in examples])
        right = sum(a == e.answer for a, e in zip(answers, examples, strict=True))
        shares.append(right / len(examples))
    return Accuracy(*shares)


def wrong_golden_answers(model_path: Path, tokenizer: Tokenizer, spec: ModelSpec) -> list[str]:
    """Return a line for every golden prompt whose answer is not exactly the expected one."""
    prompt = {"sentiment": corpus.sentiment_prompt, "chat": corpus.chat_prompt}
    goldens = corpus.golden_prompts()
    answers = greedy_answers(model_path, tokenizer, spec, [prompt[g.task](g.text) for g in goldens])
    return [
        f"{g.text!r}: expected {g.expected!r}, got {answer!r}"
        for g, answer in zip(goldens, answers, strict=True)
        if answer != g.expected
    ]


# ------------------------------------------------------------------------------ files and CLI


def _metadata(spec: ModelSpec, seed: int, accuracy: Accuracy, weights_sha256: str) -> str:
    """Write the model.toml text; a JSON string is also a TOML basic string."""
    quote = json.dumps
    lines = [
        f"name = {quote(spec.name)}",
        f"version = {MODEL_VERSION}",
        'task = "text-generation"',
        'tasks = ["sentiment", "chat"]',
        'format = "onnx"',
        'tokenizer = "tokenizer.json"',
        f"max_context_tokens = {MAX_CONTEXT_TOKENS}",
        f"layers = {spec.layers}",
        f"heads = {spec.heads}",
        f"head_dim = {spec.head_dim}",
        f"vocab_size = {VOCABULARY}",
        f"end_token = {quote(corpus.END_TOKEN)}",
        f"pad_token = {quote(corpus.PAD_TOKEN)}",
        "",
        "[prompts]",
        f"sentiment = {quote(corpus.SENTIMENT_TEMPLATE)}",
        f"chat = {quote(corpus.CHAT_TEMPLATE)}",
        "",
    ]
    for golden in corpus.golden_prompts():
        lines += [
            "[[golden]]",
            f"task = {quote(golden.task)}",
            f"text = {quote(golden.text)}",
            f"expected = {quote(golden.expected)}",
            "",
        ]
    lines += [
        "[training]",
        f"seed = {seed}",
        f"steps = {spec.steps}",
        f"corpus_sha256 = {quote(corpus.corpus_sha256(seed))}",
        f"heldout_examples_per_task = {HELDOUT_EXAMPLES}",
        f"heldout_accuracy_sentiment = {accuracy.sentiment:.4f}",
        f"heldout_accuracy_chat = {accuracy.chat:.4f}",
        f"torch_version = {quote(str(torch.__version__))}",
        "",
        "[weights]",
        f"sha256 = {quote(weights_sha256)}",
        "",
    ]
    return "\n".join(lines)


def build(spec: ModelSpec, out: Path, seed: int, on_step: StepReport) -> tuple[Accuracy, int]:
    """Train one model, write its folder below ``out`` and evaluate the written file.

    Returns the held-out accuracy and the number of golden prompts that were answered wrong.
    """
    folder = out / spec.name / str(MODEL_VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(seed)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = build_onnx(train(spec, tokenizer, seed, on_step), spec)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    accuracy = heldout_accuracy(path, tokenizer, spec, seed)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    text = _metadata(spec, seed, accuracy, digest)
    (folder / "model.toml").write_text(text, encoding="utf-8")
    return accuracy, len(wrong_golden_answers(path, tokenizer, spec))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 1 if a golden prompt is answered wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="model repository to write to")
    parser.add_argument("--steps", type=int, help="training steps (default: per model)")
    parser.add_argument("--seed", type=int, default=7, help="seed of corpus, weights and order")
    parser.add_argument("--model", choices=[spec.name for spec in SPECS], help="build only this")
    options = parser.parse_args(arguments)
    status = 0
    for spec in SPECS:
        if options.model not in (None, spec.name):
            continue
        chosen = spec if options.steps is None else replace(spec, steps=options.steps)

        def report(step: int, loss: float, spec: ModelSpec = chosen) -> None:
            """Print the loss now and then."""
            if step % _REPORT_EVERY == 0:
                print(f"{spec.name} step {step}/{spec.steps} loss {loss:.4f}", flush=True)

        accuracy, wrong = build(chosen, options.out, options.seed, report)
        print(
            f"{spec.name}: held-out accuracy sentiment {accuracy.sentiment:.3f}, "
            f"chat {accuracy.chat:.3f}; golden prompts wrong: {wrong}",
            flush=True,
        )
        status = max(status, 1 if wrong else 0)
    return status


if __name__ == "__main__":
    raise SystemExit(main())

"""A small decoder in the style of Llama with random weights, as an exporter would leave it.

It shows which models the service takes by configuration alone, and is what the tests of that run on:
rotary positions, grouped queries, RMSNorm, SwiGLU, keys and values in single or half precision, with
or without ``position_ids`` and ``attention_mask``, beside a byte-level tokenizer with a chat template.
``python -m inference.demo.random_decoder FOLDER`` writes a version folder. Needs the package ``onnx``,
which is not among the service's own dependencies.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from inference.engines.onnx import MODEL_FILE
from inference.model import METADATA_FILE, TOKENIZER_FILE

SPECIAL_TOKENS = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_OPSET, _IR_VERSION = 17, 8  # what onnxruntime 1.20 reads
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
_IDS_TYPES = {"int64": TensorProto.INT64, "int32": TensorProto.INT32}


@dataclass(frozen=True, slots=True)
class RandomDecoder:
    """Sizes and interface of the model."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    context: int = 256
    cache_type: str = "float32"
    ids_type: str = "int64"
    position_ids: bool = False
    """Without, positions are the columns of the cache: rows of a batch cannot be padded then."""
    attention_mask: bool = True
    uses_past: bool = True
    """Without, the model returns keys and values and does not read them: a faulty export."""
    seed: int = 1

    @property
    def width(self) -> int:
        """Size of the hidden state."""
        return self.heads * self.head_dim


def write_random_decoder(
    folder: Path, what: RandomDecoder, *, name: str = "random-llama", version: int = 1
) -> None:
    """Write model, tokenizer, tokenizer_config.json and the shortest model.toml into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / TOKENIZER_FILE))
    onnx.save(_Graph(what, tokenizer.get_vocab_size()).model(), str(folder / MODEL_FILE))
    config = {
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "model_max_length": what.context,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / METADATA_FILE).write_text(f'name = "{name}"\nversion = {version}\n')


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


@dataclass(slots=True)
class _Graph:
    """The nodes and weights of the model while it is built."""

    what: RandomDecoder
    vocabulary: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def model(self) -> onnx.ModelProto:
        """Build the whole model."""
        what, rng = self.what, np.random.default_rng(self.what.seed)
        embedding = self.constant(rng.normal(0, 1, (self.vocabulary, what.width)), np.float32)
        x = self.op("Gather", embedding, "input_ids")
        bias, positions = self._bias_and_positions()
        rotation = self._rotation(positions)
        for layer in range(what.layers):
            x = self._layer(layer, x, bias, rotation, rng)
        head = self.weight(rng, what.width, self.vocabulary, scale=2.0)
        self.op("MatMul", self._norm(x), head, out="logits")
        graph = helper.make_graph(
            self.nodes, "random_decoder", self._inputs(), self._outputs(), self.constants
        )
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node; return its output."""
        out = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        """Add a constant; return its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype=dtype), name))
        return name

    def weight(self, rng: np.random.Generator, rows: int, columns: int, scale: float = 1.0) -> str:
        """Add a random matrix that keeps the size of values."""
        return self.constant(rng.normal(0, scale / rows**0.5, (rows, columns)), np.float32)

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        ids = _IDS_TYPES[self.what.ids_type]
        inputs = [helper.make_tensor_value_info("input_ids", ids, ["batch", "new"])]
        if self.what.attention_mask:
            inputs.append(helper.make_tensor_value_info("attention_mask", ids, ["batch", "total"]))
        if self.what.position_ids:
            inputs.append(helper.make_tensor_value_info("position_ids", ids, ["batch", "new"]))
        return [*inputs, *self._cache("past_key_values", "past")]

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        shape: list[str | int] = ["batch", "new", self.vocabulary]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        return [logits, *self._cache("present", "total")]

    def _cache(self, prefix: str, length: str) -> list[onnx.ValueInfoProto]:
        shape: list[str | int] = ["batch", self.what.kv_heads, length, self.what.head_dim]
        kind = _TYPES[self.what.cache_type]
        return [
            helper.make_tensor_value_info(f"{prefix}.{layer}.{part}", kind, shape)
            for layer in range(self.what.layers)
            for part in ("key", "value")
        ]

    def _size(self, tensor: str, axis: int) -> str:
        return self.op("Gather", self.op("Shape", tensor), self.constant(axis))

    def _bias_and_positions(self) -> tuple[str, str]:
        """Return the attention bias [.., new, total] and the positions [.., new] as floats."""
        past = self._size("past_key_values.0.key", 2)
        total = self.op("Add", past, self._size("input_ids", 1))
        one = self.constant(1)
        columns = self.op("Range", past, total, one)
        keys = self.op("Range", self.constant(0), total, one)
        visible = self.op("LessOrEqual", keys, self.op("Unsqueeze", columns, self.constant([1])))
        if self.what.attention_mask:
            mask = self.op("Unsqueeze", "attention_mask", self.constant([1, 2]))
            visible = self.op("And", self.op("Cast", mask, to=TensorProto.BOOL), visible)
        none, hidden = self.constant(0.0, np.float32), self.constant(-1e4, np.float32)
        bias = self.op("Where", visible, none, hidden)
        if self.what.position_ids:
            return bias, self.op("Cast", "position_ids", to=TensorProto.FLOAT)
        counted = self.op("Cast", columns, to=TensorProto.FLOAT)
        return bias, self.op("Unsqueeze", counted, self.constant([0]))

    def _rotation(self, positions: str) -> tuple[str, str]:
        """Return cosines and sines [.., 1, new, head_dim / 2] of rotary positions (Su et al. 2021)."""
        half = self.what.head_dim // 2
        frequencies = 10000.0 ** (-np.arange(half) / half)
        places = self.op("Unsqueeze", positions, self.constant([1, 3]))
        angles = self.op("Mul", places, self.constant(frequencies, np.float32))
        return self.op("Cos", angles), self.op("Sin", angles)

    def _norm(self, x: str) -> str:
        """Divide by the root of the mean square."""
        squares = self.op("ReduceMean", self.op("Mul", x, x), axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", squares, self.constant(1e-5, np.float32)))
        return self.op("Div", x, root)

    def _layer(
        self, layer: int, x: str, bias: str, rotation: tuple[str, str], rng: np.random.Generator
    ) -> str:
        width = self.what.width
        x = self.op("Add", x, self._attention(layer, self._norm(x), bias, rotation, rng))
        normed = self._norm(x)
        gate = self.op("MatMul", normed, self.weight(rng, width, 2 * width))
        swish = self.op("Mul", gate, self.op("Sigmoid", gate))
        up = self.op("MatMul", normed, self.weight(rng, width, 2 * width))
        down = self.op("MatMul", self.op("Mul", swish, up), self.weight(rng, 2 * width, width))
        return self.op("Add", x, down)

    def _attention(
        self, layer: int, x: str, bias: str, rotation: tuple[str, str], rng: np.random.Generator
    ) -> str:
        what = self.what

        def heads(count: int) -> str:
            flat = self.op("MatMul", x, self.weight(rng, what.width, count * what.head_dim))
            split = self.op("Reshape", flat, self.constant([0, 0, count, what.head_dim]))
            return self.op("Transpose", split, perm=[0, 2, 1, 3])

        query = self._rotate(heads(what.heads), rotation)
        key, value = self._rotate(heads(what.kv_heads), rotation), heads(what.kv_heads)
        keys = self._remember(f"{layer}.key", key)
        values = self._remember(f"{layer}.value", value)
        scores = self.op("MatMul", query, self.op("Transpose", keys, perm=[0, 1, 3, 2]))
        scaled = self.op("Mul", scores, self.constant(what.head_dim**-0.5, np.float32))
        if not what.uses_past:
            bias = self.constant(0.0, np.float32)
        weights = self.op("Softmax", self.op("Add", scaled, bias), axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, values), perm=[0, 2, 1, 3])
        joined = self.op("Reshape", mixed, self.constant([0, 0, what.width]))
        return self.op("MatMul", joined, self.weight(rng, what.width, what.width))

    def _rotate(self, x: str, rotation: tuple[str, str]) -> str:
        cosine, sine = rotation
        half, end = self.constant([self.what.head_dim // 2]), self.constant([self.what.head_dim])
        axis = self.constant([3])
        first = self.op("Slice", x, self.constant([0]), half, axis)
        second = self.op("Slice", x, half, end, axis)
        a = self.op("Sub", self.op("Mul", first, cosine), self.op("Mul", second, sine))
        b = self.op("Add", self.op("Mul", second, cosine), self.op("Mul", first, sine))
        return self.op("Concat", a, b, axis=3)

    def _remember(self, name: str, new: str) -> str:
        """Add to the cache; return all of it for every head of the queries, in single precision."""
        what = self.what
        kind = _TYPES[what.cache_type]
        stored = self.op("Cast", new, to=kind)
        self.op("Concat", f"past_key_values.{name}", stored, axis=2, out=f"present.{name}")
        source = f"present.{name}" if what.uses_past else stored
        single = self.op("Cast", source, to=TensorProto.FLOAT)
        groups = what.heads // what.kv_heads
        copies = self.op("Concat", *[self.op("Unsqueeze", single, self.constant([2]))] * groups,
                         axis=2)  # fmt: skip
        return self.op("Reshape", copies, self.constant([0, what.heads, -1, what.head_dim]))


def main() -> None:
    """Write a model."""
    parser = argparse.ArgumentParser(description="Write a random decoder for demonstrations.")
    parser.add_argument("folder", type=Path, help="version folder, e.g. models/random-llama/1")
    parser.add_argument("--cache-type", choices=sorted(_TYPES), default="float32")
    options = parser.parse_args()
    folder = options.folder.absolute()
    write_random_decoder(
        folder,
        RandomDecoder(cache_type=options.cache_type),
        name=folder.parent.name,
        version=int(folder.name),
    )


if __name__ == "__main__":
    main()

"""A decoder's step in terms of named tensors: the usual past/present interface.

Names, types and layouts are read from the model's own signature, so that what optimum,
transformers.js, ONNX Runtime's converters and others export is served as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from inference.engines.contract import (
    Array,
    CacheShape,
    Context,
    EngineLoadError,
    FloatArray,
    Signature,
    StepInputs,
    StepOutputs,
    Tensor,
    TensorSpec,
)

_IDS, _MASK, _POSITIONS, _BRANCH = "input_ids", "attention_mask", "position_ids", "use_cache_branch"
_KNOWN_INPUTS = (_IDS, _MASK, _POSITIONS, _BRANCH)
_LOGITS = "logits"
_EXPORT_FIX = "export it with its cache (optimum: --task text-generation-with-past)"
_CACHE_TYPES = ("float32", "float16")
_PARTS = {
    "key": "key",
    "k": "key",
    "keys": "key",
    "value": "value",
    "v": "value",
    "values": "value",
}


class StepContext(Protocol):
    """What continuous batching runs on."""

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """Run one step; raises what `Context.run` raises."""
        ...


@dataclass(frozen=True, slots=True)
class DecoderInterface:
    """The tensors of a decoder: what its inputs and outputs are called, and how they lie in memory."""

    shape: CacheShape
    past: tuple[str, ...]
    """Inputs of keys and values: of layer 0, of layer 1, ...; one a layer if `stacked`."""
    present: tuple[str, ...]
    """Outputs, in the same order."""
    inputs: Mapping[str, np.dtype[Any]]
    """The other inputs that the model has, with their types."""
    logits: str = _LOGITS
    stacked: bool = False
    """Keys and values of a layer are one tensor [2, batch, heads, tokens, head_dim], as in early
    exports of GPT-2."""
    tokens_first: bool = False
    """The tensors are [batch, tokens, heads, head_dim]; they are turned at every step."""

    @property
    def can_pad(self) -> bool:
        """Whether rows of different lengths can be told apart."""
        return _MASK in self.inputs


class DecoderContext:
    """Runs steps of a decoder on a context of any engine.

    Args:
        context: Runs the model.
        interface: Its tensors.
        resident: Leave keys and values on the device between steps: `StepOutputs.present` then
            holds `ResidentTensor` objects where the engine has a device. They go into the next
            step as they are; whoever changes the batch takes ``numpy.asarray`` of each.
    """

    def __init__(
        self, context: Context, interface: DecoderInterface, *, resident: bool = False
    ) -> None:
        self._context = context
        self._past = interface.past
        self._fetches = [interface.logits, *interface.present]
        as_it_is = not (interface.stacked or interface.tokens_first)
        keep = resident and as_it_is
        self._resident = frozenset(interface.present) if keep else frozenset[str]()
        self._feeds = [(name, _FEEDS[name], dtype) for name, dtype in interface.inputs.items()]
        self._to_model, self._from_model = _layout(interface)

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """Run one step; see `StepContext.execute`."""
        feeds: dict[str, Tensor] = dict(zip(self._past, self._to_model(inputs.past), strict=True))
        for name, feed, dtype in self._feeds:
            feeds[name] = feed(inputs).astype(dtype, copy=False)
        logits, *present = self._context.run(feeds, self._fetches, self._resident).values()
        scores = cast("FloatArray", logits)
        if scores.dtype != np.float32:
            scores = scores.astype(np.float32)
        return StepOutputs(scores, self._from_model(cast("list[FloatArray]", present)))


_FEEDS: Mapping[str, Callable[[StepInputs], Array]] = {
    _IDS: lambda inputs: inputs.input_ids,
    _MASK: lambda inputs: inputs.attention_mask,
    _POSITIONS: lambda inputs: inputs.position_ids,
    # The branch of merged exports that reads the cache; the other one ignores it.
    _BRANCH: lambda inputs: np.array([inputs.past[0].shape[2] > 0]),
}
_Turn = Callable[[Sequence[FloatArray]], list[FloatArray]]


def _layout(interface: DecoderInterface) -> tuple[_Turn, _Turn]:
    """Return what turns our keys and values into the model's, and back."""
    if interface.stacked:
        return (
            lambda past: [np.stack(past[i : i + 2]) for i in range(0, len(past), 2)],
            lambda present: [part for both in present for part in np.asarray(both)],
        )
    if interface.tokens_first:
        return (
            lambda past: [np.ascontiguousarray(a.transpose(0, 2, 1, 3)) for a in past],
            lambda present: [np.asarray(a).transpose(0, 2, 1, 3) for a in present],
        )
    return list, list


def derive_interface(
    signature: Signature, name: str, *, heads: int | None = None, head_dim: int | None = None
) -> DecoderInterface:
    """Read a decoder's tensors from its signature.

    Args:
        signature: Inputs and outputs of the model.
        name: What errors call it.
        heads: Heads of keys and values, for a model whose signature does not say it.
        head_dim: Size of a head, likewise.

    Raises:
        EngineLoadError: it is no decoder with a cache; names what is missing and the fix.
    """
    past = [tensor for tensor in signature.inputs if _is_cache(tensor)]
    present = [tensor for tensor in signature.outputs if _is_cache(tensor)]
    for what, found, kind in (
        ("past_key_values.*", past, "inputs"), ("present.*", present, "outputs")
    ):  # fmt: skip
        if not found:
            raise EngineLoadError(f"{name} has no `{what}` {kind}: {_EXPORT_FIX}")
    if signature.input(_IDS) is None or signature.output(_LOGITS) is None:
        raise EngineLoadError(
            f"{name} needs an input `{_IDS}` and an output `{_LOGITS}`; it has the inputs "
            f"{_names(signature.inputs)} and the outputs {_names(signature.outputs)}"
        )
    others = {t.name: t.dtype for t in signature.inputs if t not in past}
    unknown = sorted(set(others) - set(_KNOWN_INPUTS))
    if unknown:
        raise EngineLoadError(
            f"{name} wants the inputs {', '.join(unknown)}, which a text decoder is not given: "
            f"export the model for text generation, with {', '.join(_KNOWN_INPUTS[:3])} only"
        )
    in_order = sorted(past, key=_cache_key)
    out_order = sorted(present, key=_cache_key)
    if [_cache_key(t) for t in in_order] != [_cache_key(t) for t in out_order]:
        raise EngineLoadError(
            f"{name}: the caches {_names(in_order)} and {_names(out_order)} do not belong together"
        )
    stacked = len(in_order[0].shape) == 5
    shape, tokens_first = _cache_shape(in_order, name, heads, head_dim)
    return DecoderInterface(
        shape=shape,
        past=tuple(tensor.name for tensor in in_order),
        present=tuple(tensor.name for tensor in out_order),
        inputs=others,
        stacked=stacked,
        tokens_first=tokens_first,
    )


def _is_cache(tensor: TensorSpec) -> bool:
    """Say whether a tensor holds keys or values: by its name, and by having heads."""
    return len(tensor.shape) in {4, 5} and bool(re.search(r"past|present|cache|kv", tensor.name))


def _cache_key(tensor: TensorSpec) -> tuple[int, str]:
    """Return layer and part of a cache tensor, e.g. 3 and ``value``; no part if it is not named."""
    rest = re.sub(r"(past|present)(_key_values?)?", "", tensor.name.lower())
    words = re.findall(r"[a-z]+|[0-9]+", rest)
    numbers = [int(word) for word in words if word.isdecimal()]
    parts = [_PARTS[word] for word in words if word in _PARTS]
    return (numbers[0] if numbers else 0, parts[-1] if parts else "")


def _cache_shape(
    past: Sequence[TensorSpec], name: str, heads: int | None, head_dim: int | None
) -> tuple[CacheShape, bool]:
    """Read the sizes of the cache, and whether tokens come before heads."""
    first = past[0]
    stacked = len(first.shape) == 5
    axes = first.shape[-4:]
    layers = len(past) if stacked else len(past) // 2
    if not stacked and len(past) % 2:
        raise EngineLoadError(f"{name}: {_names(past)} are not pairs of keys and values")
    if first.dtype.name not in _CACHE_TYPES:
        raise EngineLoadError(
            f"{name}: the cache is {first.dtype.name}; {' and '.join(_CACHE_TYPES)} are supported"
        )
    tokens_first = isinstance(axes[1], str) and isinstance(axes[2], int)
    own_heads = axes[2] if tokens_first else axes[1]
    shape = CacheShape(
        layers,
        _size(own_heads, heads, "heads", first, name),
        _size(axes[3], head_dim, "head_dim", first, name),
        first.dtype.name,
    )
    return shape, tokens_first


def _size(own: int | str, given: int | None, key: str, tensor: TensorSpec, name: str) -> int:
    """Return a size that the model says, or else model.toml."""
    if isinstance(own, int):
        if given is not None and given != own:
            raise EngineLoadError(
                f"{name}: model.toml says {key} = {given}, but {tensor.name} is "
                f"{list(tensor.shape)}: correct or remove the key"
            )
        return own
    if given is None:
        raise EngineLoadError(
            f"{name}: the shape {list(tensor.shape)} of {tensor.name} does not say its {key}: give "
            f"`{key}` in model.toml (of keys and values, not of queries)"
        )
    return given


def _names(tensors: Sequence[TensorSpec]) -> str:
    names = [tensor.name for tensor in tensors]
    return ", ".join(names if len(names) <= 6 else [*names[:5], f"... ({len(names)})"])

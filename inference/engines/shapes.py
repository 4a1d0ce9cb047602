"""Sizes of inputs that vary: their names, the range of each, and shapes made from them.

A size that varies has the name that the exporter gave it (``batch``, ``past_sequence``) or a sum of
such names (``past_sequence + sequence``). The tensors of the decoder interface have fixed names
here whatever the exporter chose, so that the defaults fit every decoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inference.engines.offline import InputError
from inference.engines.onnx_file import TensorInfo

BATCH, SEQUENCE, PAST = "batch", "sequence", "past_sequence"
TOTAL = f"{PAST} + {SEQUENCE}"
_DECODER_AXES: dict[str, tuple[str, ...]] = {
    "input_ids": (BATCH, SEQUENCE),
    "attention_mask": (BATCH, TOTAL),
    "position_ids": (BATCH, SEQUENCE),
}
_CACHE_INPUT = re.compile(r"past_key_values\.\d+\.(key|value)")
_BATCH_NAMES = frozenset({"batch_size", "b", "n"})

Axis = int | str
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SizeRange:
    """The smallest, the most frequent and the largest value of a size."""

    min: int
    opt: int
    max: int


# A decoder's step: one new token each for a few sequences is what most steps are, a prompt of the
# whole context the longest. 256 tokens fit small models; give --profile for others.
DEFAULT_RANGES: Mapping[str, SizeRange] = {
    BATCH: SizeRange(1, 4, 32),
    SEQUENCE: SizeRange(1, 1, 256),
    PAST: SizeRange(0, 128, 256),
}


def is_decoder(inputs: Iterable[TensorInfo]) -> bool:
    """Say whether these are the inputs of a decoder with a key-value cache."""
    names = {tensor.name for tensor in inputs}
    return "input_ids" in names and any(_CACHE_INPUT.fullmatch(name) for name in names)


def axes(tensor: TensorInfo, *, decoder: bool) -> tuple[Axis, ...]:
    """Return the size of each axis of an input: a number, or the name of one that varies."""
    fixed: Sequence[str] = ()
    if decoder:
        fixed = _DECODER_AXES.get(tensor.name, ())
        if _CACHE_INPUT.fullmatch(tensor.name) and len(tensor.shape) == 4:
            fixed = (BATCH, f"{tensor.name}:1", PAST, f"{tensor.name}:3")
    found: list[Axis] = []
    for number, size in enumerate(tensor.shape):
        if isinstance(size, int) and size >= 0:
            found.append(size)
        elif len(fixed) == len(tensor.shape):
            found.append(fixed[number])
        elif number == 0 and (not isinstance(size, str) or size.lower() in _BATCH_NAMES):
            found.append(BATCH)
        else:
            found.append(size if isinstance(size, str) else f"{tensor.name}:{number}")
    return tuple(found)


def evaluate(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Return the value of an axis.

    Raises:
        KeyError: with the name that has no value.
    """
    if isinstance(axis, int):
        return axis
    if axis in sizes:
        return sizes[axis]
    terms = [term.strip() for term in axis.split("+")]
    return sum(int(term) if term.isdecimal() else sizes[term] for term in terms)


def parse_ranges(texts: Iterable[str]) -> dict[str, SizeRange]:
    """Read texts ``name=min,opt,max``.

    Raises:
        InputError: a text has another form, or its numbers are not in order.
    """
    ranges: dict[str, SizeRange] = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        try:
            low, best, high = (int(number) for number in numbers.split(","))
        except ValueError:
            low, best, high = 0, 0, -1
        if not name or not 0 <= low <= best <= high:
            raise InputError(
                f"--profile {text!r} is not NAME=MIN,OPT,MAX with 0 <= MIN <= OPT <= MAX",
                fix="Write, for example, --profile batch=1,4,32",
            )
        ranges[name.strip()] = SizeRange(low, best, high)
    return ranges


def resolve_profile(
    inputs: Sequence[TensorInfo], given: Mapping[str, SizeRange]
) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Make the optimization profile: smallest, best and largest shape of each input that varies.

    Raises:
        InputError: a size has no range, or a range has no size.
    """
    ranges = {**DEFAULT_RANGES, **given}
    decoder = is_decoder(inputs)
    by_input = {tensor.name: axes(tensor, decoder=decoder) for tensor in inputs}
    varying = {n: a for n, a in by_input.items() if any(isinstance(axis, str) for axis in a)}
    names = {axis for found in varying.values() for axis in found if isinstance(axis, str)}
    used = names | {term.strip() for name in names for term in name.split("+")}
    if unused := sorted(set(given) - used):
        raise InputError(
            f"--profile {unused[0]}: no input has a size of that name",
            fix=f"Sizes that vary: {', '.join(sorted(used)) or 'none'}.",
        )
    profile: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, found in varying.items():
        smallest, best, largest = (
            _shape(name, found, {key: getattr(size, end) for key, size in ranges.items()})
            for end in ("min", "opt", "max")
        )
        profile[name] = (smallest, best, largest)
    return profile


def _shape(tensor: str, found: Iterable[Axis], sizes: Mapping[str, int]) -> Shape:
    try:
        return tuple(evaluate(axis, sizes) for axis in found)
    except KeyError as error:
        name = error.args[0]
        raise InputError(
            f"the input {tensor} has the size {name!r}, which varies and has no default",
            fix=f"Give its range: --profile '{name}=MIN,OPT,MAX'",
        ) from error

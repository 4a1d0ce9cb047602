"""Choosing the next token from logits."""

from __future__ import annotations

import numpy as np

from inference.engines.contract import FloatArray


def sample(logits: FloatArray, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Draw a token id from [vocabulary] logits at a temperature above 0.

    It is drawn from the smallest set of tokens whose probability reaches ``top_p`` (nucleus sampling,
    Holtzman et al. 2020).
    """
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    if top_p >= 1.0:
        return _draw(np.cumsum(weights), rng)
    order = np.argsort(-weights)
    cumulative = np.cumsum(weights[order])
    kept = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
    return int(order[_draw(cumulative[:kept], rng)])


def _draw(
    cumulative: np.ndarray[tuple[int], np.dtype[np.float64]], rng: np.random.Generator
) -> int:
    """Return an index with the probability of its step in a cumulative sum."""
    chosen = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return min(chosen, len(cumulative) - 1)

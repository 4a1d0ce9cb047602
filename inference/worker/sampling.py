"""Choosing the next token from logits."""

from __future__ import annotations

import numpy as np

from inference.engines.contract import FloatArray


def sample(logits: FloatArray, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Choose a token id from [vocabulary] logits.

    Temperature 0 is greedy. Otherwise the token is drawn from the smallest set of tokens whose
    probability reaches ``top_p`` (nucleus sampling, Holtzman et al. 2020).
    """
    if temperature <= 0.0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights)
    cumulative = np.cumsum(weights[order]) / weights.sum()
    kept = order[: int(np.searchsorted(cumulative, top_p)) + 1]
    probabilities = weights[kept] / weights[kept].sum()
    return int(rng.choice(kept, p=probabilities))

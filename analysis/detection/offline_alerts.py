"""Turns how unusual each row of one metric is into scores that raise an event once.

An event that scores above 1 at every row is one alarm a row. Here it does so at its onset, and again
only when it becomes worse than it was; in between its rows rank below 1 and above every normal row.
"""

from __future__ import annotations

import math

import numpy as np

from analysis.detection.contract import FloatArray

_WORSE = 1.2
"""By this factor an event has to exceed the worst of it so far to be raised again."""
_MUCH_WORSE = 1.5
"""The same within the first rows after it was raised, while it is still unfolding."""
_UNFOLDING_ROWS = 20
_FORGET_ROWS = 100.0
"""The worst so far halves in this many rows."""
_FADE_ROWS = 20.0
"""What is shown halves in this many rows, so that an event does not end with one quiet row."""


def raise_once(ratios: FloatArray) -> FloatArray:
    """Return scores ``[rows]`` from surprise over its limit ``[rows]``, NaN where nothing is known.

    Returns:
        Above 1 where an event is raised: the ratio. From 0.5 to 1 while it lasts and fades, below 0.5
        on normal rows, both rising with the ratio; 0 where nothing is known.
    """
    scores = np.zeros(len(ratios))
    forget, fade = 0.5 ** (1.0 / _FORGET_ROWS), 0.5 ** (1.0 / _FADE_ROWS)
    worst = shown = 0.0
    raised = -_UNFOLDING_ROWS - 1
    for row, ratio in enumerate(ratios.tolist()):
        if math.isnan(ratio):
            continue
        worst, shown = worst * forget, max(shown * fade, ratio)
        factor = _WORSE if row - raised > _UNFOLDING_ROWS else _MUCH_WORSE
        if ratio > max(1.0, factor * worst):
            scores[row], raised = ratio, row
        else:
            scores[row] = 0.5 * shown if shown <= 1.0 else 1.0 - 0.5 / shown
        if ratio > 1.0:
            worst = max(worst, ratio)
    return scores

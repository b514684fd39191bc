"""Cuts a record into stretches in which nothing changed.

Bayesian blocks (Scargle, Norris, Jackson and Chiang, "Studies in astronomical time series analysis VI", Astrophysical
Journal 764, 2013): the piecewise constant description with the largest likelihood, each further block paid for. A
smoothing kernel would show an outage before it began and after it ended, and so flatter whoever forecasts; a block ends
where the evidence changes. The search is pruned as in PELT (Killick, Fearnhead and Eckley, JASA 107, 2012).

The rule of this file: pure, on cells in order of time; a cell is never cut.
"""

from collections.abc import Callable
from math import log

import numpy as np
import numpy.typing as npt

# Chance that noise alone makes a block (Scargle's p0).
_FALSE_BLOCK = 0.01

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
# From starts of a last block and its end to the block's log likelihood.
_Fitness = Callable[[_Ints, int], _Floats]


def count_blocks(counts: _Floats) -> _Ints:
    """Return where the blocks of `counts` begin: n cells × k classes, how often each class was seen; the shares of the
    classes are constant in a block (multinomial likelihood).
    """
    total = np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])

    def fitness(first: _Ints, end: int) -> _Floats:
        seen = total[end] - total[first]
        n = seen.sum(axis=1, keepdims=True)
        share = np.divide(seen, n, out=np.ones_like(seen), where=seen > 0)
        value: _Floats = (seen * np.log(share)).sum(axis=1)
        return value

    return _search(len(counts), fitness)


def level_blocks(mean: _Floats, weight: _Floats) -> _Ints:
    """Return where the blocks of n cells begin whose values have the given means and weights (1 / variance of the
    mean); the level is constant in a block (normal likelihood).
    """
    product = np.concatenate([[0.0], np.cumsum(mean * weight)])
    weights = np.concatenate([[0.0], np.cumsum(weight)])

    def fitness(first: _Ints, end: int) -> _Floats:
        value: _Floats = (product[end] - product[first]) ** 2 / (2 * (weights[end] - weights[first]))
        return value

    return _search(len(mean), fitness)


def _search(n: int, fitness: _Fitness) -> _Ints:
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    price = 4 - log(73.53 * _FALSE_BLOCK * n**-0.478)
    best, last = np.zeros(n + 1), np.zeros(n, dtype=np.int64)
    open_starts = np.zeros(1, dtype=np.int64)
    for end in range(1, n + 1):
        value = best[open_starts] + fitness(open_starts, end) - price
        chosen = int(np.argmax(value))
        best[end], last[end - 1] = value[chosen], open_starts[chosen]
        # A start that is worse by more than a block's price can never win again.
        keep = value + price >= best[end]
        open_starts = np.append(open_starts[keep], end)
    starts: list[int] = []
    end = n
    while end > 0:
        starts.append(int(last[end - 1]))
        end = starts[-1]
    return np.array(starts[::-1], dtype=np.int64)

"""What attempts say about each second of an endpoint: stretches between changes, and nothing where nobody looked.

The rule of this file: live attempts and probes of all replicas are evidence alike. Between two stretches the change
lies somewhere in the gap without evidence, and a draw says where. Nobody knows what an endpoint did while it was not
called for longer than two minutes: then the state it was last seen in, and that in which it was next seen, reach into
the gap for exponentially distributed times of mean five minutes, and in between it is as on a good day. So the less was
seen, the more the drawn worlds differ, and the wider are the intervals of what is concluded from them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.replay.blocks import count_blocks, level_blocks

SEEN_S = 30
_SHORT_GAP_S = 120
_REACH_S = 300.0
# A stretch's rates are drawn towards the good days' as if so many of their attempts had been seen in it.
_PRIOR_ATTEMPTS = 2.0
_LEAST_RATE = 1e-4

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Strand:
    """Stretches of one endpoint: `first` and `last` second with evidence of each (int64), and what was seen in it.

    `value` is n × k: counts (successes first, then each outcome of `FAILED`), or the mean and variance of a logarithm.
    """

    first: _Ints
    last: _Ints
    value: _Floats


def count_strand(second: _Ints, kind_of_end: _Ints, classes: int) -> Strand:
    """Cut attempts (`second` ascending) into stretches of constant rates; `classes` counts the success too."""
    cells, place = np.unique(second, return_inverse=True)
    counts = np.zeros((len(cells), classes))
    np.add.at(counts, (place, kind_of_end), 1.0)
    return _strand(cells, count_blocks(counts), counts)


def level_strand(second: _Ints, level: _Floats, variance: _Floats) -> Strand:
    """Cut log ratios (`second` ascending, each with its variance) into stretches of a constant level."""
    cells, place = np.unique(second, return_inverse=True)
    weight = np.bincount(place, 1 / variance, len(cells)).astype(np.float64)
    product = np.bincount(place, level / variance, len(cells)).astype(np.float64)
    summed = _strand(cells, level_blocks(product / weight, weight), np.stack([product, weight], axis=1))
    known = 1 / summed.value[:, 1]
    return Strand(summed.first, summed.last, np.stack([summed.value[:, 0] * known, known], axis=1))


def _strand(cells: _Ints, starts: _Ints, values: _Floats) -> Strand:
    """Sum the values of the cells of each stretch."""
    if not len(cells):
        return Strand(cells, cells, np.empty((0, values.shape[1])))
    ends = np.append(starts[1:], len(cells)) - 1
    return Strand(cells[starts], cells[ends], np.add.reduceat(values, starts, axis=0))


def seen(second: _Ints, seconds: int) -> npt.NDArray[np.bool_]:
    """Tell which of the seconds 0 to `seconds` - 1 have evidence within `SEEN_S` before or after them."""
    marks = np.zeros(seconds + 1)
    np.add.at(marks, np.clip(second - SEEN_S, 0, seconds), 1)
    np.add.at(marks, np.clip(second + SEEN_S + 1, 0, seconds), -1)
    return np.cumsum(marks[:-1]) > 0


def draw_rates(strand: Strand, normal: _Floats, seconds: int, rng: np.random.Generator) -> _Floats:
    """Return each second's chance of each failure, `seconds` × classes - 1: a draw from the posterior of its stretch.

    `normal` are the good days' chances. The posterior is Dirichlet's, whose prior has their means.
    """
    usual = np.maximum(normal, _LEAST_RATE)
    prior = _PRIOR_ATTEMPTS * np.concatenate([[max(0.0, 1 - usual.sum())], usual])
    drawn = [rng.dirichlet(counts + prior)[1:] for counts in strand.value]
    return _spread(strand, np.array(drawn).reshape(len(drawn), len(normal)), normal, seconds, rng)


def draw_levels(strand: Strand, seconds: int, rng: np.random.Generator) -> _Floats:
    """Return each second's ratio to the good days' median: a draw from what is known of the level of its stretch."""
    drawn = np.exp(rng.normal(strand.value[:, 0], np.sqrt(strand.value[:, 1])))
    return _spread(strand, drawn[:, None], np.ones(1), seconds, rng)[:, 0]


def _spread(strand: Strand, values: _Floats, normal: _Floats, seconds: int, rng: np.random.Generator) -> _Floats:
    """Give every second the value of its stretch; in the gaps between stretches, draw where the change lies."""
    found = np.tile(normal, (seconds, 1))
    n = len(strand.first)
    for value, first, last in zip(values, strand.first.tolist(), strand.last.tolist(), strict=True):
        found[first : last + 1] = value
    gap_begins = [0, *(strand.last + 1).tolist()]
    gap_ends = [*strand.first.tolist(), seconds]
    for after, (begin, end) in enumerate(zip(gap_begins, gap_ends, strict=True)):
        reach_back, reach_on = rng.exponential(_REACH_S, 2).astype(int).tolist()
        where = int(rng.integers(begin, max(begin, end) + 1))
        is_short = end - begin <= _SHORT_GAP_S
        until, since = (end, begin) if is_short else (min(end, begin + reach_back), max(begin, end - reach_on))
        if 0 < after < n and until > since:
            until = since = where
        if after > 0:
            found[begin:until] = values[after - 1]
        if after < n:
            found[since:end] = values[after]
    return found

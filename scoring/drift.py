"""Statistics that notice change: in the distribution of a feature, and in the mean of a loss."""

from math import sqrt

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_SMOOTHING = 0.5


class PageHinkley:
    """Notices that the mean of a stream has risen above `target`, or above its own running mean when that is None.

    Page, "Continuous inspection schemes", Biometrika 1954: the sum of what exceeds the target by more than `delta` is
    compared with its own minimum; beyond `limit` the mean has risen. Twenty lines of our own instead of `river`, which
    brings pandas into the serving image for this one test.
    """

    __slots__ = ("_delta", "_least", "_limit", "_n", "_sum", "_target", "_total")

    def __init__(self, delta: float, limit: float, target: float | None = None) -> None:
        self._delta, self._limit, self._target = delta, limit, target
        self._n = 0
        self._total = self._sum = self._least = 0.0

    @property
    def statistic(self) -> float:
        """How far the sum lies above its minimum, 0 or more."""
        return self._sum - self._least

    def add(self, value: float) -> bool:
        """Take one value; return whether the mean has risen."""
        self._n += 1
        self._total += value
        target = self._total / self._n if self._target is None else self._target
        self._sum += value - target - self._delta
        self._least = min(self._least, self._sum)
        return self.statistic > self._limit


class Histograms:
    """How often each of k features fell into each of 10 bins between the given deciles (9 × k)."""

    __slots__ = ("_deciles", "counts", "rows")

    def __init__(self, deciles: _Floats) -> None:
        self._deciles = deciles
        self.counts = np.zeros((len(deciles) + 1, deciles.shape[1]))
        self.rows = 0

    def add(self, x: _Floats) -> None:
        """Count the rows of `x` (n × k)."""
        bins = (x[None, :, :] > self._deciles[:, None, :]).sum(axis=0)
        columns = np.broadcast_to(np.arange(x.shape[1]), bins.shape)
        np.add.at(self.counts, (bins, columns), 1.0)
        self.rows += len(x)


def stability_index(reference: Histograms, current: Histograms) -> _Floats:
    """Return the population stability index of each feature: 0 when nothing moved, above 0.25 by custom a lot.

    Sum over bins of (q - p) ln(q / p), with half a count in every bin so that it stays finite.
    """
    p, q = (h.counts + _SMOOTHING for h in (reference, current))
    p, q = p / p.sum(axis=0), q / q.sum(axis=0)
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=0))


def proportion_z(hits: int, n: int, other_hits: int, other_n: int) -> float:
    """Return how many standard errors the first proportion lies above the second; 0 without evidence."""
    if not n or not other_n:
        return 0.0
    pooled = (hits + other_hits) / (n + other_n)
    error = sqrt(pooled * (1 - pooled) * (1 / n + 1 / other_n))
    return (hits / n - other_hits / other_n) / error if error else 0.0

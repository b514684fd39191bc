"""What degraded means: worse than the endpoint's own usual, and not by chance.

The rule of this file: labels, the monitor and the features that speak of the label all ask here, and
`analytics/sql/macros.sql` says the same in SQL. An endpoint is degraded when it fails more or answers more slowly of
late than in the 30 minutes before, the newest five left out. Of late is the last RECENT_S seconds; where these hold
fewer than ENOUGH attempts (or latencies), the last ENOUGH, if they are no older than LONGEST_S. Without that, one call
in eight seconds could never be slow, and every label would say it is well.

Chance has to be ruled out, because what always fails a few per cent, or always varies widely, shows three failures or a
slow median every hour or so. Nothing could forecast these, and a model that is taught to tries.
"""

from math import log

import numpy as np
import numpy.typing as npt

from routing.counts import SLOW_RATIO

RECENT_S = 30.0
LONGEST_S = 90.0
ENOUGH = 7
# For those who know counts of whole spans only.
RECENT_SPANS_S = tuple(range(int(RECENT_S), int(LONGEST_S) + 1, 10))
BASELINE_FROM_S = 1800.0
BASELINE_TO_S = 300.0
SLOW_QUANTILE = 0.95
FAILURE_SHARE = 0.1
# Attempts of an endpoint that never fails, with which what is known of one is averaged.
_PRIOR_ATTEMPTS = 30
_DEVIATIONS = 3.0
# SLOW_QUANTILE of the standard normal.
_Z_SLOW = 1.6449
_ATTEMPTS_PER_WINDOW = 3

_Floats = npt.NDArray[np.float64]


def failure_excess(
    failures: npt.ArrayLike, attempts: npt.ArrayLike, usual_failures: npt.ArrayLike, usual_attempts: npt.ArrayLike
) -> _Floats:
    """Return by how many standard deviations `failures` of `attempts` exceed what the usual ones let expect.

    The root of a Poisson count has a standard deviation of about 1/2 whatever its mean (Bartlett, "The square root
    transformation in analysis of variance", 1936). An endpoint used to failing more than a tenth is measured against a
    tenth.
    """
    rate = np.minimum(FAILURE_SHARE, np.asarray(usual_failures) / (np.asarray(usual_attempts) + _PRIOR_ATTEMPTS))
    return np.asarray(2 * (np.sqrt(np.asarray(failures)) - np.sqrt(rate * np.asarray(attempts))), dtype=np.float64)


def fails(
    failures: npt.ArrayLike, attempts: npt.ArrayLike, usual_failures: npt.ArrayLike, usual_attempts: npt.ArrayLike
) -> npt.NDArray[np.bool_]:
    """Tell where a tenth of the attempts or more fail, and that by three standard deviations more than usual: three
    failures where none are usual.
    """
    beyond_chance = failure_excess(failures, attempts, usual_failures, usual_attempts) >= _DEVIATIONS
    return np.asarray((np.asarray(failures) >= FAILURE_SHARE * np.asarray(attempts)) & beyond_chance)


def enough_timed(timed: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Tell whether so many latencies can show that an endpoint is slow; parts of spans are ENOUGH within a rounding."""
    return np.greater(timed, ENOUGH - 1)


def is_slow(median: float, timed: float, usual_median: float, usual_slowest: float) -> bool:
    """Tell whether the median of `timed` latencies is 2.5 times the usual one or more, and that of no fewer than 7
    beyond the slowest usual twentieth, which chance alone hardly brings about.
    """
    return bool(enough_timed(timed)) and median >= max(SLOW_RATIO * usual_median, usual_slowest)


def slow_from(spread: npt.ArrayLike) -> _Floats:
    """Return from which log ratio to the usual latency on an endpoint is slow, for log latencies of that spread.

    For those who know means and spreads only: as `is_slow`, if log latencies are normal.
    """
    return np.maximum(log(SLOW_RATIO), _Z_SLOW * np.asarray(spread))


def enough_attempts(span_s: float) -> float:
    """Return how many attempts `span_s` seconds must hold before one without degradation is called healthy."""
    return _ATTEMPTS_PER_WINDOW * span_s / RECENT_S

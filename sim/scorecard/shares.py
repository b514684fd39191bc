"""What share of the traffic each endpoint has, over time.

The rule of this file: the share at a moment counts first attempts (retries are consequences, not choices) over the
last 10 s or the last 5 requests, whichever holds more; it changes when a request is sent. A share therefore trails a
decision by up to that window, for every policy alike, as the oracle's figures show. Before the 5th request there is
none.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.arena.log import Log

WINDOW_S = 10.0
WINDOW_REQUESTS = 5

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """`time_s`: m moments, ascending; `share`: endpoints × m in [0, 1], the share from that moment to the next."""

    time_s: _Floats
    share: _Floats

    def at(self, endpoint: int, time_s: float) -> float | None:
        """Return the share at a moment; None before there is one."""
        place = int(np.searchsorted(self.time_s, time_s, side="right")) - 1
        return None if place < 0 else float(self.share[endpoint, place])

    def between(self, begin_s: float, end_s: float) -> slice:
        """Return the moments at or after `begin_s` and before `end_s`."""
        first, last = np.searchsorted(self.time_s, [begin_s, end_s], side="left")
        return slice(int(first), int(last))

    def highest(self, endpoint: int, begin_s: float, end_s: float) -> float | None:
        """Return the largest share in [begin_s, end_s), that at `begin_s` included; None if there is none."""
        inside = self.share[endpoint, self.between(begin_s, end_s)]
        known = [share for share in (self.at(endpoint, begin_s), *inside.tolist()) if share is not None]
        return max(known, default=None)


def shares_of(log: Log) -> Shares:
    """Measure the shares of a run. Refused requests count, but for no endpoint."""
    n = len(log.arrival_s)
    if n < WINDOW_REQUESTS:
        return Shares(np.empty(0), np.empty((log.endpoints, 0)))
    chosen = log.first[None, :] == np.arange(log.endpoints)[:, None]
    count = np.concatenate([np.zeros((log.endpoints, 1)), np.cumsum(chosen, axis=1)], axis=1)
    last = np.arange(WINDOW_REQUESTS - 1, n)
    first = np.searchsorted(log.arrival_s, log.arrival_s[last] - WINDOW_S, side="right")
    first = np.minimum(first, last - WINDOW_REQUESTS + 1)
    share = (count[:, last + 1] - count[:, first]) / (last + 1 - first)
    return Shares(log.arrival_s[last], share)

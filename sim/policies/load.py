"""Peak-EWMA latency and the power of two choices, as Finagle, Linkerd and tower have them.

Cost = moving average of the time to answer × (requests pending + 1). The average jumps up to a worse value at once and
falls back exponentially; it also falls while nothing is heard, so that a shunned endpoint is tried again. Sources:
Finagle's `PeakEwma`, tower's `load::peak_ewma`; the choice is Mitzenmacher's "The Power of Two Choices" (2001).
"""

from collections.abc import Sequence
from math import exp


class PeakEwma:
    """The cost of each of `endpoints` endpoints. Before its first answer an endpoint is taken to need `default_s`."""

    __slots__ = ("_decay_s", "_default_s", "_heard", "_sent", "_value_s", "pending")

    def __init__(self, endpoints: int, decay_s: float, default_s: float) -> None:
        self._decay_s = decay_s
        self._default_s = default_s
        self._value_s = [0.0] * endpoints
        self._heard = [-1.0] * endpoints
        self._sent: dict[str, float] = {}
        self.pending = [0] * endpoints

    def sent(self, endpoint: int, attempt_id: str, now: float) -> None:
        """An attempt went out."""
        self.pending[endpoint] += 1
        self._sent[attempt_id] = now

    def answered(self, endpoint: int, attempt_id: str, now: float) -> None:
        """An answer began, or the attempt failed. Its time counts either way: a fast failure looks fast."""
        sent = self._sent.pop(attempt_id, None)
        if sent is None:
            return
        taken_s = now - sent
        if self._heard[endpoint] < 0 or taken_s >= self._value_s[endpoint]:
            self._value_s[endpoint] = taken_s
        else:
            kept = exp((self._heard[endpoint] - now) / self._decay_s)
            self._value_s[endpoint] = self._value_s[endpoint] * kept + taken_s * (1 - kept)
        self._heard[endpoint] = now

    def ended(self, endpoint: int, attempt_id: str, now: float) -> None:
        """An attempt is over."""
        self.answered(endpoint, attempt_id, now)
        self.pending[endpoint] -= 1

    def cost(self, endpoint: int, now: float) -> float:
        """Return the endpoint's cost in seconds."""
        heard = self._heard[endpoint]
        value_s = self._default_s if heard < 0 else self._value_s[endpoint] * exp((heard - now) / self._decay_s)
        return value_s * (self.pending[endpoint] + 1)

    def choose(self, candidates: Sequence[int], now: float, draw: float) -> int:
        """Return the cheaper of two different candidates drawn by `draw`; the first drawn on a tie."""
        first, second = two_of(len(candidates), draw)
        one, other = candidates[first], candidates[second]
        return one if self.cost(one, now) <= self.cost(other, now) else other


def two_of(count: int, draw: float) -> tuple[int, int]:
    """Return two different places below `count` from one uniform draw in [0, 1); the same place twice for one."""
    scaled = draw * count
    first = int(scaled)
    if count == 1:
        return first, first
    return first, (first + 1 + int((scaled - first) * (count - 1))) % count

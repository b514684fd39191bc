"""The oracle: a policy that knows the truth of every second, but not the luck.

The rule of this file: it is the most that routing could do, so it needs no timeouts, cool-downs or probes. It is the
only policy that is shown the world.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np

from sim.arena.policy import ArenaRequest, Attempted, Limits, Policy
from sim.arena.truth import SLOW, World

# Leaving the preferred endpoint for less than this much risk is not worth it.
_MARGIN = 0.01
_PATIENCE_S = 30.0


class Oracle(Policy):
    """Sends each attempt to the first endpoint, in configured order, whose risk of a bad request is within 1 % of the
    least; after a failure at once to the best of the rest.
    """

    name = "oracle"
    stall_timeout_s = 10.0
    probe_timeout_s = 5.0
    tick_s = 1.0

    def __init__(self, world: World) -> None:
        self.limits = Limits(max_attempts=len(world.endpoints))
        self._risk: list[list[float]] = _risks(world).tolist()

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002 - Policy
        """Return the first of the safest endpoints that were not tried yet."""
        second = int(now)
        risks = [(i, risk[second]) for i, risk in enumerate(self._risk) if i not in tried]
        if not risks:
            return None
        least = min(risk for _, risk in risks)
        return next(i for i, risk in risks if risk <= least + _MARGIN)

    def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:  # noqa: ARG002 - Policy
        """Wait for half a minute: it left what hangs before."""
        return _PATIENCE_S

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002 - Policy
        """Go on at once while an endpoint is left."""
        return 0.0 if len(made) < len(self._risk) else None

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Nothing to learn."""

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Nothing to learn."""

    def finished(self, attempted: Attempted, now: float) -> None:
        """Nothing to learn."""

    def tick(self, now: float) -> Sequence[int]:  # noqa: ARG002 - Policy
        """No probes."""
        return ()

    def probed(self, attempted: Attempted, now: float) -> None:
        """Nothing to learn."""

    def warned(self) -> Collection[int]:
        """Knowing is not forecasting: the oracle leaves when trouble is there."""
        return ()


def _risks(world: World) -> "np.typing.NDArray[np.float64]":
    """Return the chance that an attempt fails or its TTFT exceeds three times the normal, endpoint × second."""
    fail = world.truth.failure
    slow = np.empty_like(fail)
    for index, endpoint in enumerate(world.scenario.endpoints):
        slowness, place = np.unique(world.truth.slowness[index], return_inverse=True)
        medians = endpoint.ttft_ms / 1000 * slowness
        tails = [_exceeds(SLOW * world.normal_ttft_s, median, endpoint.ttft_sigma) for median in medians.tolist()]
        slow[index] = np.array(tails)[place]
    return 1 - (1 - fail) * (1 - slow)


def _exceeds(limit: float, median: float, sigma: float) -> float:
    """P(log-normal > limit)."""
    if sigma == 0:
        return float(median > limit)
    return 0.5 * math.erfc(math.log(limit / median) / sigma / math.sqrt(2))

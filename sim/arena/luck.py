"""The draws of a run: which request, which endpoint and which attempt decide them, never the order of asking.

The rule of this file: common random numbers. The same seed gives the same luck to every policy, so that two policies
differ by what they chose and not by what they drew. Philox (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011) is a function of key and counter: the key is (seed, stream), the high words of the counter are the
attempt and the block of requests.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

BLOCK = 256
PROBE_SLOT_S = 0.1
_KEPT_BLOCKS = 64
# Of each request: the draws of its endpoints, and two for the policy.
_Block = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
# Per endpoint: failure (uniform), log TTFT (normal), log speed (normal), where a broken stream breaks (uniform).
Draws = list[float]


class Stream(IntEnum):
    """What the draws are for; each has its own key."""

    ARRIVALS = 0
    INCIDENTS = 1
    ATTEMPTS = 2
    PROBES = 3
    SESSIONS = 4
    LOAD = 5


def generator(seed: int, stream: Stream, high: int = 0, low: int = 0) -> np.random.Generator:
    """Return the generator of a place in a stream; `high` and `low` are words 3 and 2 of the counter."""
    return np.random.Generator(np.random.Philox(counter=[0, 0, low, high], key=[seed, stream]))


class Luck:
    """Draws by request, attempt and endpoint; blocks of requests are drawn when first asked for and kept a while."""

    __slots__ = ("_blocks", "_endpoints", "_seed")

    def __init__(self, seed: int, endpoints: int) -> None:
        self._seed = seed
        self._endpoints = endpoints
        self._blocks: dict[tuple[int, int, int], _Block] = {}

    def attempt(self, request: int, attempt: int) -> tuple[list[Draws], list[float]]:
        """Return the draws of each endpoint, and two uniform ones for the policy (for `route` and for `retry`)."""
        draws, own = self._block(Stream.ATTEMPTS, request // BLOCK, attempt)
        place = request % BLOCK
        return draws[place].tolist(), own[place].tolist()

    def probe(self, now: float, endpoint: int) -> Draws:
        """Return the draws of a probe: those of its endpoint and its tenth of a second."""
        slot = int(now / PROBE_SLOT_S)
        draws: Draws = self._block(Stream.PROBES, slot // BLOCK, 0)[0][slot % BLOCK, endpoint].tolist()
        return draws

    def _block(self, stream: Stream, number: int, attempt: int) -> _Block:
        key = (stream, number, attempt)
        block = self._blocks.get(key)
        if block is None:
            rng = generator(self._seed, stream, high=number, low=attempt)
            draws = rng.random((BLOCK, self._endpoints, 4))
            draws[:, :, 1:3] = rng.standard_normal((BLOCK, self._endpoints, 2))
            block = draws, rng.random((BLOCK, 2))
            if len(self._blocks) == _KEPT_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[key] = block
        return block

"""What a policy is to the arena: it chooses an endpoint per attempt, hears how attempts ended, and may ask for probes.

The arena knows nothing of a policy's inside, and a policy nothing of the truth. Time and draws are arguments, so that
every policy meets the same world with the same luck.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from routing.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class ArenaEndpoint:
    """One endpoint as a policy knows it. `index` is its place in the configured order (0 = primary)."""

    index: int
    id: str
    provider: str
    region: str
    zone: str
    usd_per_mtok: float


@dataclass(frozen=True, slots=True)
class ArenaRequest:
    """One request. `number` counts from 0; it arrives at `time` and its caller leaves at `deadline`, in seconds of the
    run. Every request is idempotent unless it says otherwise.
    """

    number: int
    time: float
    deadline: float
    input_tokens: int
    output_tokens: int
    session: int
    idempotent: bool = True


@dataclass(frozen=True, slots=True)
class Attempted:
    """How one attempt ended: `ttft_s` is the time to its first token (successes and streams that broke later),
    `latency_s` the time until the outcome was known, `tokens_per_s` the speed of what was streamed.
    """

    endpoint: int
    attempt_id: str
    outcome: Outcome
    ttft_s: float | None
    latency_s: float
    tokens_per_s: float | None
    output_tokens: int
    retry_after_s: float | None


class Policy(Protocol):
    """One router under test. `stall_timeout_s` bounds a pause in a stream, `probe_timeout_s` a whole probe."""

    name: str
    stall_timeout_s: float
    probe_timeout_s: float
    tick_s: float

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """Return the endpoint of the next attempt; None refuses. `draw` is uniform in [0, 1), `tried` lists earlier
        attempts in order.
        """

    def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:
        """Return how long the attempt that begins now may wait for its first token; `tried` as in `route`, before it.
        The caller's deadline ends it in any case.
        """

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        """Return after how many seconds the failed request is routed again, or None to give up."""

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """An attempt was sent."""

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        """An attempt's first token arrived."""

    def finished(self, attempted: Attempted, now: float) -> None:
        """An attempt ended."""

    def tick(self, now: float) -> Sequence[int]:
        """Let time pass (every `tick_s`); return the endpoints to probe now."""

    def probed(self, attempted: Attempted, now: float) -> None:
        """A probe ended."""

    def warned(self) -> Collection[int]:
        """Return the endpoints the policy now expects to degrade; empty for policies without a forecast."""

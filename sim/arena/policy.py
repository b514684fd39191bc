"""What a policy is to the arena: it chooses an endpoint per attempt, hears how attempts ended, and may ask for probes.

The arena knows nothing of a policy's inside, and a policy nothing of the truth. Time and draws are arguments, so that
every policy meets the same world with the same luck. `sim.arena.referee` says which rules hold between the two.
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


@dataclass(frozen=True, slots=True)
class RetryLimit:
    """Of all that is sent in any `window_s`, retries are at most `share` of the requests plus `floor`.

    Counted in slots of `window_s` / 10, as such budgets are kept.
    """

    share: float
    floor: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What a policy declares of its own restraint; None where it declares nothing. A hedge is an attempt."""

    max_attempts: int | None = None
    retries: RetryLimit | None = None


class Policy(Protocol):
    """One router under test. `stall_timeout_s` bounds a pause in a stream, `probe_timeout_s` a whole probe.

    A class that derives from this one waits for nobody and hedges nothing unless it says otherwise.
    """

    name: str
    stall_timeout_s: float
    probe_timeout_s: float
    tick_s: float
    limits: Limits

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """Return the endpoint of the next attempt; None refuses. `draw` is uniform in [0, 1), `tried` lists earlier
        attempts in order.
        """

    def wait_s(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002 - for those who wait
        """Return after how many seconds a request that `route` refused is routed again, or None to fail it."""
        return None

    def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:
        """Return how long the attempt that begins now may wait for its first token; `tried` as in `route`, before it.
        The caller's deadline ends it in any case.
        """

    def hedge_after_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float | None:  # noqa: ARG002 - for those who hedge
        """Return after how many seconds without a first token the attempt that begins now, the last of `tried`, may get
        a second one beside it; None for never. Asked for idempotent requests that have not been hedged.
        """
        return None

    def hedge(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002 - for those who hedge
        """Return the endpoint of the second attempt that may start now, or None to leave the first alone. Whoever has
        the first token wins; the other is called off, and `finished` says so.
        """
        return None

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        """Return after how many seconds the failed request is routed again, or None to give up."""

    def is_reroute(self, made: Sequence[Attempted], now: float) -> bool:  # noqa: ARG002 - for those who tell them apart
        """Tell whether a retry now costs nothing of the declared budget, because nothing is sent any more to the
        endpoint that failed.
        """
        return False

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

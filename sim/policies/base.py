"""What all baselines share: settings checked once, the events they may ignore, and which outcomes a product notices.

The rule of this package: a policy is a pure function of its inputs and its seed. It reads no clock, and `route` and
`warned` change nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import TypeVar

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted, Limits, Policy

SERVER_FAULTS = frozenset({Outcome.SERVER_ERROR, Outcome.TIMEOUT, Outcome.CONNECT_ERROR})
"""What a product sees that judges by status line: a stream that breaks later had answered 200."""

FAULTS = SERVER_FAULTS | {Outcome.STALLED, Outcome.TRUNCATED, Outcome.MALFORMED}
"""What a product sees that follows an answer to its end."""

REFUSALS = frozenset({Outcome.RATE_LIMITED, Outcome.AUTH_ERROR})

SILENT = frozenset({Outcome.CLIENT_ERROR, Outcome.CANCELLED})
"""Outcomes that say nothing about an endpoint, and that no product retries."""


class ParameterError(ValueError):
    """A policy was given a parameter that it does not have, or a value out of range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Parameters of a policy, with the published defaults. All are numbers of 0 or more.

    A name ending in `_s` is a duration in seconds above 0, one ending in `_share` a fraction up to 1; an int counts.
    """

    attempt_timeout_s: float
    stall_timeout_s: float

    def __post_init__(self) -> None:
        for leaf in fields(self):
            name, value = leaf.name, getattr(self, leaf.name)
            if not isfinite(value) or value < 0:
                raise ParameterError(f"{name} = {value!r}: expected a finite number of 0 or more")
            if name.endswith("_s") and value == 0:
                raise ParameterError(f"{name} = {value!r}: expected more than 0 seconds")
            if name.endswith("_share") and value > 1:
                raise ParameterError(f"{name} = {value!r}: expected a fraction in [0, 1]")


S = TypeVar("S", bound=Settings)


def with_parameters(defaults: S, policy: str, parameters: Mapping[str, float]) -> S:
    """Return `defaults` with `parameters` put in.

    Raises ParameterError for an unknown name, a number out of range, or a broken number where one counts.
    """
    values = {leaf.name: getattr(defaults, leaf.name) for leaf in fields(defaults)}
    for name, value in parameters.items():
        if name not in values:
            raise ParameterError(f"policy {policy!r} has no parameter {name!r}; it has: {', '.join(sorted(values))}")
        if isinstance(values[name], int):
            if value != int(value):
                raise ParameterError(f"{name} = {value!r}: expected a whole number")
            values[name] = int(value)
        else:
            values[name] = float(value)
    return type(defaults)(**values)


class Baseline(Policy):
    """A policy that hears nothing, probes nothing, never retries and never hedges: what baselines start from.

    Its patience is that of its settings, for every attempt alike.
    """

    tick_s = 1.0
    # Health checks of 5 s are what products have in common; one that publishes another puts it in its settings.
    probe_timeout_s = 5.0

    def __init__(self, endpoints: int, settings: Settings, attempts: int = 1) -> None:
        self.limits = Limits(max_attempts=attempts)
        self._patience_s = settings.attempt_timeout_s
        self.stall_timeout_s = settings.stall_timeout_s
        self._count = endpoints
        self._order = range(endpoints)

    def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:  # noqa: ARG002  # the protocol's signature
        """Return the product's timeout."""
        return self._patience_s

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Give up."""
        return None

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Nothing to note."""

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Nothing to note."""

    def finished(self, attempted: Attempted, now: float) -> None:
        """Nothing to learn."""

    def tick(self, now: float) -> Sequence[int]:  # noqa: ARG002  # the protocol's signature
        """No probes."""
        return ()

    def probed(self, attempted: Attempted, now: float) -> None:
        """Nothing to learn."""

    def warned(self) -> Collection[int]:
        """Return nothing: baselines expect nothing."""
        return ()


def may_retry(made: Sequence[Attempted], retries: int) -> bool:
    """Tell whether a product with `retries` retries may send the request again.

    A stream that has begun is never sent twice, and neither is what would fail anywhere.
    """
    last = made[-1]
    return len(made) <= retries and last.ttft_s is None and last.outcome not in SILENT

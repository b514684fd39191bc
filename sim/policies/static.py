"""Static: everything goes to the primary, nothing is retried. What a caller without a router has.

Timeouts are those of the official OpenAI client for Python (2026-11): 600 s for a request and for a pause in a stream.
Its own two retries are switched off, so that this policy shows what the endpoint alone would give.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sim.arena.policy import ArenaRequest
from sim.policies.base import Baseline, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSettings(Settings):
    """Timeouts only."""

    attempt_timeout_s: float = 600.0
    stall_timeout_s: float = 600.0


class Static(Baseline):
    """See the module's docstring."""

    name = "static"

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Return the primary."""
        return 0

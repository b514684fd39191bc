"""What one attempt comes to, given the truth of the second it was sent in and its draws.

The rule of this file: pure. A refusal, 429 or 5xx comes fast; a hang or a slow start ends at the policy's timeout; a
stream that breaks, stalls or crawls has given a first token before. The caller's deadline ends anything as a timeout:
a router knows its caller's deadline.
"""

import math
from bisect import bisect_right
from typing import NamedTuple

from routing.outcomes import Outcome
from sim.arena.luck import Draws
from sim.arena.truth import FAILED, World

_REFUSED_S = 0.005
_REJECT_SHARE, _REJECT_MOST_S = 0.3, 1.0
_SPEED_SIGMA = 0.2


class Fate(NamedTuple):
    """The end of an attempt: fields as in `sim.arena.policy.Attempted`."""

    outcome: Outcome
    ttft_s: float | None
    latency_s: float
    tokens_per_s: float | None
    output_tokens: int
    retry_after_s: float | None


class Fates:
    """The truth as plain lists, which Python reads fastest."""

    __slots__ = ("_failing", "_pace", "_retry_after", "_sigma", "_slowness", "_speed", "_ttft")

    def __init__(self, world: World) -> None:
        self._failing: list[list[list[float]]] = world.truth.failing.tolist()
        self._slowness: list[list[float]] = world.truth.slowness.tolist()
        self._pace: list[list[float]] = world.truth.pace.tolist()
        self._retry_after: list[list[float]] = world.truth.retry_after_s.tolist()
        self._ttft = [endpoint.ttft_ms / 1000 for endpoint in world.scenario.endpoints]
        self._sigma = [endpoint.ttft_sigma for endpoint in world.scenario.endpoints]
        self._speed = [endpoint.tokens_per_s for endpoint in world.scenario.endpoints]

    def of(
        self, endpoint: int, now: float, tokens: int, draws: Draws, *, wait_s: float, stall_s: float, left_s: float
    ) -> Fate:
        """Decide an attempt sent at `now` for `tokens` output tokens.

        Args:
            endpoint, now, tokens: where, when, and how long the answer would be.
            draws: failure, log TTFT, log speed, place of a break (see `sim.arena.luck`).
            wait_s: the policy's patience for the first token. stall_s: its patience for a pause in a stream.
            left_s: until the caller's deadline, > 0.
        """
        luck, slow_draw, speed_draw, cut = draws
        second = int(now)
        ttft_s = self._ttft[endpoint] * self._slowness[endpoint][second] * math.exp(self._sigma[endpoint] * slow_draw)
        wait_s = min(wait_s, left_s)
        failing = self._failing[endpoint][second]
        outcome = Outcome.OK
        if luck < failing[-1]:
            outcome = FAILED[bisect_right(failing, luck)]
            if outcome is Outcome.CONNECT_ERROR:
                return Fate(outcome, None, min(_REFUSED_S, wait_s), None, 0, None)
            if outcome is Outcome.TIMEOUT:
                return Fate(outcome, None, wait_s, None, 0, None)
            if outcome is Outcome.RATE_LIMITED or outcome is Outcome.SERVER_ERROR:
                said_s = min(_REJECT_SHARE * ttft_s, _REJECT_MOST_S)
                if said_s <= wait_s:
                    after_s = self._retry_after[endpoint][second] if outcome is Outcome.RATE_LIMITED else None
                    return Fate(outcome, None, said_s, None, 0, after_s)
        if ttft_s > wait_s:
            return Fate(Outcome.TIMEOUT, None, wait_s, None, 0, None)
        if outcome is Outcome.MALFORMED:
            return Fate(outcome, None, ttft_s, None, 0, None)
        speed = self._speed[endpoint] * self._pace[endpoint][second] * math.exp(_SPEED_SIGMA * speed_draw)
        return _stream(outcome, ttft_s, speed, tokens, cut, stall_s, left_s)


def _stream(
    outcome: Outcome, ttft_s: float, speed: float, tokens: int, cut: float, stall_s: float, left_s: float
) -> Fate:
    if 1 / speed > stall_s:
        outcome, produced, latency_s = Outcome.STALLED, 1, ttft_s + stall_s
    elif outcome is Outcome.OK:
        produced, latency_s = tokens, ttft_s + tokens / speed
    else:
        produced = 1 + int(tokens * cut)
        pause_s = stall_s if outcome is Outcome.STALLED else 0.0
        latency_s = ttft_s + produced / speed + pause_s
    if latency_s > left_s:
        produced = min(produced, 1 + int((left_s - ttft_s) * speed))
        return Fate(Outcome.TIMEOUT, ttft_s, left_s, speed, produced, None)
    return Fate(outcome, ttft_s, latency_s, speed, produced, None)

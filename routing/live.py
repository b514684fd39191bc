"""Everything that changes about one endpoint, and what is heard of it.

The rule of this file: every forecast that moved traffic is judged by what came of it. What went wrong before all
traffic was back bears it out; that all came back, or that nothing came of it for ten minutes, refutes it. So a
forecaster that is always wrong about an endpoint diverts it for a while and not for ever, and does not make it flap.
"""

from dataclasses import dataclass, field
from math import inf

from routing.actions import Finished
from routing.credentials import Credentials
from routing.detector import FailureDetector
from routing.health import Event, Health, State
from routing.model import Endpoint
from routing.policy import Policy
from routing.quota import Quota
from routing.snapshot import Facts
from routing.trust import Trust
from routing.window import SECONDS, Window

_ENOUGH = 10
_LAPSES_AFTER_S = 600.0
_TROUBLE = frozenset({Event.BREACH, Event.SLOW, Event.LIMITED, Event.DOMAIN})
_WELL = frozenset({Event.RELIEVED, Event.PLAN_DONE})
_LEAVES_ALARM = _WELL | {Event.BREACH, Event.DOMAIN, Event.DRAIN}


@dataclass(slots=True)
class Live:
    """The state of one endpoint."""

    endpoint: Endpoint
    window: Window
    health: Health
    detector: FailureDetector
    quality: FailureDetector
    facts: Facts
    quota: Quota = field(default_factory=Quota)
    credentials: Credentials = field(default_factory=Credentials)
    trust: Trust = field(default_factory=Trust)
    slow_checked_at: float = -inf

    @classmethod
    def new(cls, endpoint: Endpoint, policy: Policy, now: float) -> "Live":
        """Return the state of an endpoint of which nothing is known."""
        detector, quality = (FailureDetector(policy.reflex.failing_rate, policy.reflex.normal_rate) for _ in range(2))
        facts = Facts(endpoint, State.UNKNOWN, 1.0, 0.0, 0.0, None, 1.0, 0, None)
        return cls(endpoint, Window(), Health(endpoint.id, entered_at=now), detector, quality, facts)

    def observe(self, result: Finished, now: float) -> float:
        """Count an ended attempt; return when it was sent. Raises ValueError for a value that is not finite."""
        if result.retry_after_s is not None and not 0 <= result.retry_after_s < inf:
            raise ValueError(f"retry_after_s = {result.retry_after_s}: expected finite seconds of 0 or more")
        return self.window.finished(
            result.attempt_id,
            result.outcome,
            now,
            ttft_s=result.ttft_s,
            reply_s=result.reply_s,
            output_tokens=result.output_tokens,
            generation_s=result.generation_s,
            pace_from=self.health.evidence_from,
        )

    def forget(self) -> None:
        """Drop the evidence against the endpoint: a new chance begins."""
        self.detector.clear()
        self.quality.clear()

    def found_again(self) -> None:
        """Take back that an attempt counted as failed for hanging: it has succeeded after all."""
        self.detector.retract()
        self.health.step_failures = max(0, self.health.step_failures - 1)

    def is_settling(self, now: float, settle_s: float) -> bool:
        """Tell whether a return began, or a rate limit ended, less than `settle_s` ago."""
        return self.health.is_settling(now, settle_s) or self.quota.is_settling(now, settle_s)

    def was_seen(self, now: float) -> bool:
        """Tell whether enough attempts have ended in the present state to tell what the endpoint is like."""
        span_s = min(SECONDS, max(1, int(now - self.health.entered_at)))
        return self.window.sums(now, span_s).judged >= _ENOUGH

    def heard(self, event: Event, now: float) -> None:
        """Judge the forecast that took this endpoint's traffic, if one did, by what came of it."""
        health = self.health
        if event is Event.FORECAST and health.foreseen_at is None:
            health.foreseen_at = now
        elif event in _LEAVES_ALARM:
            health.foreseen_at = None
        if not health.is_expected:
            return
        if event in _TROUBLE:
            self.trust.confirmed(now)
        elif event in _WELL:
            self.trust.refuted(now)
        health.is_expected = event not in _TROUBLE | _LEAVES_ALARM

    def let_lapse(self, now: float) -> None:
        """Take a forecast for refuted that has been the only thing against this endpoint for ten minutes, ten times as
        far as forecasts look ahead: from then on only a higher risk moves traffic here.
        """
        health = self.health
        if health.foreseen_at is None:
            return
        if health.reasons & _TROUBLE:
            health.foreseen_at = now
        elif now - health.foreseen_at >= _LAPSES_AFTER_S:
            health.reasons.discard(Event.FORECAST)
            health.is_expected, health.foreseen_at = False, None
            self.trust.refuted(now)

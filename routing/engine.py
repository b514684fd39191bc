"""The engine: feeds observations to windows and machines, keeps the snapshot current, returns what the shell has to do.

One engine owns all mutable routing state of a process. It is not thread-safe: one event loop, one replay or one
simulated world drives it. Every method that learns something returns the actions it calls for; the snapshot has
already been patched by then.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from routing import failback, reflex
from routing.errors import UnknownEndpointError
from routing.health import Cause, Event, Health, State, Transition
from routing.model import Catalogue, Endpoint, Objective
from routing.outcomes import TRAITS, Outcome, Signal
from routing.policy import Policy
from routing.quota import Quota
from routing.scorers import contributions, health_score, weighted
from routing.snapshot import Candidate, Facts, Snapshot
from routing.window import Window

_REFRESH_SPAN_S = 60


@dataclass(frozen=True, slots=True)
class Probe:
    """Action: send one cheap probe to the endpoint and report it with `probed`."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Transitioned:
    """Action: record the transition."""

    transition: Transition
    endpoint: Endpoint
    snapshot_version: int


Action = Probe | Transitioned


@dataclass(frozen=True, slots=True)
class Forecasts:
    """One tick's forecast: probability of degradation per endpoint id, by which model, and the threshold its manifest
    recommends.
    """

    time: float
    forecaster: str
    threshold: float
    risks: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Finished:
    """How one attempt ended. Latencies as in `Window.finished`; `retry_after_s` comes from a 429's headers."""

    endpoint_id: str
    attempt_id: str
    outcome: Outcome
    ttft_s: float | None = None
    reply_s: float | None = None
    output_tokens: int = 0
    generation_s: float = 0.0
    retry_after_s: float | None = None


@dataclass(slots=True)
class _Live:
    endpoint: Endpoint
    window: Window
    health: Health
    quota: Quota = field(default_factory=Quota)


class Engine:
    """All routing state of one process.

    `now` is unix-like seconds of a steady clock everywhere. Methods that name an endpoint raise UnknownEndpointError
    for one the catalogue does not have.
    """

    def __init__(self, catalogue: Catalogue, policy: Policy, now: float) -> None:
        self.catalogue = catalogue
        self.policy = policy
        self._live = {e.id: _Live(e, Window(), Health(e.id, entered_at=now)) for e in catalogue.endpoints.values()}
        self._forecasts: Forecasts | None = None
        self._snapshot = Snapshot(0, now, {}, "", policy.forecast.threshold)
        self._publish(catalogue.by_model, now)

    @property
    def snapshot(self) -> Snapshot:
        """The current snapshot."""
        return self._snapshot

    def health_of(self, endpoint_id: str) -> Health:
        """Return the endpoint's machine; read it, do not write it."""
        return self._of(endpoint_id).health

    def window_of(self, endpoint_id: str) -> Window:
        """Return the endpoint's window; read it, do not write it."""
        return self._of(endpoint_id).window

    def thresholds(self) -> dict[str, object]:
        """Return the thresholds in force by name; the forecast's own is the one now used."""
        return self.policy.thresholds() | {"forecast.threshold": self._threshold()}

    def _of(self, endpoint_id: str) -> _Live:
        try:
            return self._live[endpoint_id]
        except KeyError:
            raise UnknownEndpointError(endpoint_id) from None

    # Observations: the reflex path.

    def started(self, endpoint_id: str, attempt_id: str, now: float) -> None:
        """An attempt was sent."""
        self._of(endpoint_id).window.started(attempt_id, now)

    def first_byte(self, endpoint_id: str, attempt_id: str) -> None:
        """The attempt's first byte of payload arrived."""
        self._of(endpoint_id).window.first_byte(attempt_id)

    def finished(self, result: Finished, now: float) -> list[Action]:
        """An attempt on live traffic ended."""
        live = self._of(result.endpoint_id)
        self._observe(live, result, now)
        signal = TRAITS[result.outcome].signal
        if signal is Signal.QUOTA:
            return self._limited(live, result.retry_after_s, now)
        if signal is Signal.FAILURE:
            live.health.step_successes = 0
            cause = reflex.breach(live.window, result.outcome, self.policy.reflex, now, live.health.evidence_from)
            return self._raise(live, Event.BREACH, cause, now) if cause else []
        if signal is not Signal.SUCCESS:
            return []
        live.quota.succeeded(now)
        if live.health.state is State.UNKNOWN:
            return self._raise(live, Event.PROVEN, Cause("successes", 1.0, 1.0), now)
        if live.health.state is State.CANARY:
            live.health.step_successes += 1
        cause = reflex.slow(live.window, self.policy.reflex, now, live.health.evidence_from)
        return self._degrade(live, Event.SLOW, cause, now) if cause else []

    def probed(self, result: Finished, now: float) -> list[Action]:
        """A probe ended. Its outcome counts in the windows as live traffic does, and moves the return of an ejected
        endpoint.
        """
        live = self._of(result.endpoint_id)
        health = live.health
        if health.state is not State.PROBING:
            return self.finished(result, now)
        self._observe(live, result, now)
        signal = TRAITS[result.outcome].signal
        # An endpoint that refuses the probe itself is there; whether it serves, the canary will tell.
        if signal is Signal.SUCCESS or result.outcome is Outcome.CLIENT_ERROR:
            health.probes_passed += 1
            needed = self.policy.failback.probe_successes
            if health.probes_passed < needed:
                return []
            return self._raise(
                live, Event.PROBES_PASSED, Cause("probes_passed", float(health.probes_passed), float(needed)), now
            )
        if signal is Signal.FAILURE:
            return self._raise(live, Event.PROBE_FAILED, Cause(f"probe_{result.outcome.value}", 1.0, 1.0), now)
        if signal is Signal.QUOTA:
            live.quota.limited(now, result.retry_after_s)
        return []

    @staticmethod
    def _observe(live: _Live, result: Finished, now: float) -> None:
        live.window.finished(
            result.attempt_id,
            result.outcome,
            now,
            ttft_s=result.ttft_s,
            reply_s=result.reply_s,
            output_tokens=result.output_tokens,
            generation_s=result.generation_s,
        )

    # Forecast and tick: off the request path.

    def forecast(self, forecasts: Forecasts, now: float) -> list[Action]:
        """Take over one tick's forecast; endpoints above the threshold are degraded at once. Unknown endpoints are
        ignored.
        """
        self._forecasts = forecasts
        threshold = self._threshold()
        actions: list[Action] = []
        for endpoint_id, risk in forecasts.risks.items():
            live = self._live.get(endpoint_id)
            if live is not None and threshold is not None and risk >= threshold:
                actions += self._degrade(live, Event.FORECAST, Cause("risk", risk, threshold), now)
        return actions

    def tick(self, now: float) -> list[Action]:
        """Let time pass: end holds and ejections, advance canaries, notice hangs, ask for probes, and publish a fresh
        snapshot.
        """
        actions: list[Action] = []
        for live in self._live.values():
            actions += self._tick_one(live, now)
        self._publish(self.catalogue.by_model, now)
        return actions

    def _tick_one(self, live: _Live, now: float) -> list[Action]:
        health, actions = live.health, list[Action]()
        failback.forgive(health, self.policy.reflex, now)
        if health.state in (State.ACTIVE, State.UNKNOWN, State.CANARY):
            cause = reflex.slow(live.window, self.policy.reflex, now, health.evidence_from)
            if cause:
                actions += self._degrade(live, Event.SLOW, cause, now)
        if health.state is State.DEGRADED:
            actions += self._calm(live, now)
        if health.state is State.EJECTED and now >= health.ejected_until:
            cause = Cause("ejected_s", now - health.entered_at, health.ejected_until - health.entered_at)
            actions += self._raise(live, Event.EJECTION_OVER, cause, now)
        if health.state is State.CANARY:
            earned = failback.step_evidence(health, self.policy.failback, now)
            if earned:
                actions += self._raise(live, *earned, now)
        if self._wants_probe(live, now):
            health.probed_at = now
            actions.append(Probe(live.endpoint))
        return actions

    def _wants_probe(self, live: _Live, now: float) -> bool:
        """An endpoint on its way back needs evidence: probes when it gets no live traffic, always while it is
        probing.
        """
        health, interval_s = live.health, self.policy.failback.probe_interval_s
        if now < live.quota.blocked_until or now - health.probed_at < interval_s:
            return False
        if health.state is State.PROBING:
            return True
        return health.state in (State.DEGRADED, State.CANARY) and now - live.window.last_at >= interval_s

    def _calm(self, live: _Live, now: float) -> list[Action]:
        health, reasons = live.health, live.health.reasons
        risk, threshold = self._risk(live.endpoint.id, now), self._threshold()
        if Event.FORECAST in reasons and (
            risk is None or threshold is None or risk < threshold * self.policy.forecast.exit_ratio
        ):
            reasons.discard(Event.FORECAST)
        if Event.SLOW in reasons and not reflex.still_slow(live.window, self.policy.reflex, now):
            reasons.discard(Event.SLOW)
        if Event.LIMITED in reasons and live.quota.share(now) >= 1.0:
            reasons.discard(Event.LIMITED)
            if not reasons and not health.was_doubted:
                return self._raise(live, Event.RELIEVED, Cause("quota_share", 1.0, 1.0), now)
        held_s = now - health.entered_at
        if reasons or held_s < self.policy.failback.min_hold_s:
            return []
        return self._raise(live, Event.CALM, Cause("degraded_s", held_s, self.policy.failback.min_hold_s), now)

    # Events.

    def _limited(self, live: _Live, retry_after_s: float | None, now: float) -> list[Action]:
        live.quota.limited(now, retry_after_s)
        actions = self._degrade(live, Event.LIMITED, Cause("retry_after_s", live.quota.blocked_until - now, 0.0), now)
        if not actions:
            self._patch(live.endpoint.model, now)
        return actions

    def _degrade(self, live: _Live, event: Event, cause: Cause, now: float) -> list[Action]:
        """Raise a degrading event; in an endpoint that is degraded already, it is one more reason to stay so."""
        if live.health.state is State.DEGRADED:
            failback.doubt(live.health, event)
            return []
        return self._raise(live, event, cause, now)

    def _raise(self, live: _Live, event: Event, cause: Cause, now: float) -> list[Action]:
        health = live.health
        transition = health.apply(event, cause, now)
        if transition is None:
            return []
        match transition.to_state:
            case State.EJECTED:
                failback.start_ejection(health, self.policy.reflex, now)
            case State.DEGRADED:
                failback.start_degraded(health, event)
            case State.CANARY if event is Event.STEP_PROVEN:
                failback.advance(health, self.policy.failback, now)
            case State.CANARY:
                failback.start_canary(health, now)
            case State.PROBING:
                health.probes_passed = 0
            case _:
                pass
        self._patch(live.endpoint.model, now)
        return [Transitioned(transition, live.endpoint, self._snapshot.version)]

    # The snapshot.

    def _threshold(self) -> float | None:
        if self.policy.forecast.threshold is not None:
            return self.policy.forecast.threshold
        return self._forecasts.threshold if self._forecasts else None

    def _current_forecasts(self, now: float) -> Forecasts | None:
        forecasts = self._forecasts
        return forecasts if forecasts is not None and now - forecasts.time <= self.policy.forecast.max_age_s else None

    def _risk(self, endpoint_id: str, now: float) -> float | None:
        forecasts = self._current_forecasts(now)
        return forecasts.risks.get(endpoint_id) if forecasts else None

    def _facts(self, live: _Live, now: float) -> Facts:
        window = live.window
        return Facts(
            endpoint=live.endpoint,
            state=live.health.state,
            admission=failback.admission(live.health, self.policy.failback)
            * live.quota.share(max(now, live.quota.blocked_until)),
            blocked_until=live.quota.blocked_until,
            error_rate=window.sums(now, _REFRESH_SPAN_S).error_rate,
            latency_s=window.latency_quantile(0.5, now),
            latency_ratio=window.latency_shift(now, reflex.SPAN_S)[0],
            in_flight=window.in_flight,
            risk=self._risk(live.endpoint.id, now),
        )

    def _rank(self, endpoints: Iterable[Endpoint], now: float) -> dict[Objective, tuple[Candidate, ...]]:
        facts = [self._facts(self._live[e.id], now) for e in endpoints]
        candidates = []
        for own in facts:
            values = contributions(own, facts)
            candidates.append(Candidate(own, health_score(values), values))

        # Ties keep the configured order, which is the order of `candidates`.
        return {
            objective: tuple(sorted(candidates, key=lambda c: -weighted(c.contributions, objective)))  # used at once
            for objective in Objective
        }

    def _publish(self, models: Iterable[str], now: float) -> None:
        rankings = dict(self._snapshot.rankings)
        for model in models:
            rankings[model] = self._rank(self.catalogue.by_model[model], now)
        current = self._current_forecasts(now)
        self._snapshot = Snapshot(
            self._snapshot.version + 1, now, rankings, current.forecaster if current else "", self._threshold()
        )

    def _patch(self, model: str, now: float) -> None:
        """Make one endpoint's change visible to the very next decision."""
        self._publish((model,), now)

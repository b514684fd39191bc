"""The engine: feeds observations to windows and machines, keeps the snapshot current, returns what the shell has to do.

One engine owns all mutable routing state of a process. It is not thread-safe: one event loop, one replay or one
simulated world drives it. Every method that learns something returns the actions it calls for; the snapshot has
already been patched by then.
"""

from routing import failback, reflex
from routing.actions import Action, DomainChanged, Finished, Probe, Transitioned
from routing.budget import Budgets
from routing.counts import Counter
from routing.domains import DomainWatch, Outage
from routing.errors import CatalogueError, UnknownEndpointError
from routing.forecasts import ForecastDesk, Forecasts
from routing.health import Cause, Event, Health, State
from routing.hedging import is_evidence
from routing.live import Live
from routing.model import Catalogue
from routing.outcomes import TRAITS, Outcome, Signal
from routing.policy import FailbackKind, Policy
from routing.snapshot import Snapshot
from routing.table import RoutingTable
from routing.window import Window

_SLOW_CHECK_S = 0.05
# The mean of the few requests that an alarm leaves exceeds a ratio by chance more often, and slower judgement costs
# little there.
_EXPECTED_MARGIN_Z = 1.0
_OPERATOR = Cause("operator", 1.0, 1.0)
_WATCHED = frozenset({State.ACTIVE, State.UNKNOWN, State.CANARY, State.DEGRADED})


class Engine:
    """All routing state of one process.

    `now` is unix-like seconds of a steady clock everywhere. Methods that name an endpoint raise UnknownEndpointError
    for one the catalogue does not have; those that take values raise ValueError, before anything has changed, for one
    that is not finite.
    """

    def __init__(self, catalogue: Catalogue, policy: Policy, now: float) -> None:
        self.catalogue = catalogue
        self.policy = policy
        self.budgets = Budgets(catalogue.by_model, policy)
        self._desk = ForecastDesk(policy.forecast)
        self._live = {e.id: Live.new(e, policy, now) for e in catalogue.endpoints.values()}
        self._domains = DomainWatch(catalogue.endpoints.values(), policy.domains)
        self._table = RoutingTable(catalogue, self._live, self._desk, now)
        self._table.publish(policy.failback, now)

    @property
    def snapshot(self) -> Snapshot:
        """The current snapshot."""
        return self._table.snapshot

    def health_of(self, endpoint_id: str) -> Health:
        """Return the endpoint's machine; read it, do not write it."""
        return self._of(endpoint_id).health

    def window_of(self, endpoint_id: str) -> Window:
        """Return the endpoint's window; read it, do not write it."""
        return self._of(endpoint_id).window

    def thresholds(self) -> dict[str, object]:
        """Return the thresholds in force by name; the forecast's own is the one now used."""
        return self.policy.thresholds() | {"forecast.threshold": self._desk.threshold()}

    @property
    def outages(self) -> tuple[Outage, ...]:
        """The failure domains that are down; read them, do not write them."""
        return self._domains.outages

    def adopt(self, policy: Policy, now: float) -> None:
        """Work by other thresholds from now on. What was learned, and where every endpoint stands, stays."""
        self.policy = policy
        self.budgets.adopt(policy)
        self._desk.adopt(policy.forecast)
        self._domains.adopt(policy.domains)
        for live in self._live.values():
            live.detector.adopt(policy.reflex.failing_rate)
            live.quality.adopt(policy.reflex.failing_rate)
        self._table.publish(policy.failback, now)

    def blame_after_s(self, endpoint_id: str, now: float, *, streamed: bool) -> float:
        """Return how long a first byte may take before a caller's own haste is no excuse for the endpoint."""
        return reflex.blame_after_s(self._of(endpoint_id).window, self.policy, now, streamed=streamed)

    def _of(self, endpoint_id: str) -> Live:
        try:
            return self._live[endpoint_id]
        except KeyError:
            raise UnknownEndpointError(endpoint_id) from None

    # Observations: the reflex path.

    def started(self, endpoint_id: str, attempt_id: str, now: float, *, streamed: bool = True) -> None:
        """An attempt was sent; `streamed` tells whether its first byte comes before the whole reply."""
        self._of(endpoint_id).window.started(attempt_id, now, streamed=streamed)

    def first_byte(self, endpoint_id: str, attempt_id: str, now: float) -> None:
        """The attempt's first byte of payload arrived."""
        self._of(endpoint_id).window.first_byte(attempt_id, now)

    def finished(self, result: Finished, now: float) -> list[Action]:
        """An attempt on live traffic ended."""
        live = self._of(result.endpoint_id)
        was_lost = live.window.was_given_up(result.attempt_id)
        started = live.observe(result, now)
        is_current = started >= live.health.evidence_from
        signal = TRAITS[result.outcome].signal
        if signal is Signal.QUOTA:
            return self._limited(live, result.retry_after_s, now)
        if signal is Signal.CREDENTIAL and live.credentials.refused(result.tenant, now):
            self._table.patch(live, self.policy.failback, now)
        if TRAITS[result.outcome].failed and is_current and not was_lost:
            return self._failed(live, result.outcome, now)
        if result.outcome is Outcome.CANCELLED and is_current and not was_lost:
            return self._outrun(live, result, now)
        if signal is Signal.SUCCESS:
            if was_lost and is_current:
                live.found_again()
            self._domains.served(result.endpoint_id, started)
            if live.credentials.accepted(result.tenant):
                self._table.patch(live, self.policy.failback, now)
            return self._succeeded(live, now, is_current=is_current)
        return []

    def _outrun(self, live: Live, result: Finished, now: float) -> list[Action]:
        """Take an attempt whose hedge answered first as a failure, if it had waited long; others say nothing."""
        streamed = result.reply_s is None
        waited_s = result.ttft_s if streamed else result.reply_s
        if waited_s is None or not is_evidence(live.window, self.policy.hedge, waited_s, now, streamed=streamed):
            return []
        return self._failed(live, Outcome.TIMEOUT, now)

    def _failed(self, live: Live, outcome: Outcome, now: float) -> list[Action]:
        live.health.step_failures += 1
        live.quota.admitted()
        if TRAITS[outcome].signal is Signal.QUALITY:
            live.quality.failed(hard=False)
            peers = [
                self._live[e.id].window for e in self.catalogue.by_model[live.endpoint.model] if e != live.endpoint
            ]
            cause = reflex.poor_breach(live.window, live.quality, outcome, peers, self.policy.reflex, now)
        else:
            hard = TRAITS[outcome].hard
            live.detector.failed(hard=hard)
            cause = reflex.breach(live.window, live.detector, outcome, self.policy.reflex, now, hard=hard)
        return self._raise(live, Event.BREACH, cause, now) if cause else []

    def _succeeded(self, live: Live, now: float, *, is_current: bool) -> list[Action]:
        health = live.health
        live.quota.admitted()
        live.detector.succeeded()
        live.quality.succeeded()
        if health.state is State.UNKNOWN:
            return self._raise(live, Event.PROVEN, Cause("successes", 1.0, 1.0), now)
        if health.state is State.CANARY and is_current:
            health.step_successes += 1
        return self._check_slow(live, now)

    def _check_slow(self, live: Live, now: float) -> list[Action]:
        """Look at latency, pace and waits at most every 50 ms: they move over seconds, and a busy endpoint ends
        attempts every millisecond.
        """
        health = live.health
        if health.state not in _WATCHED or now - live.slow_checked_at < _SLOW_CHECK_S:
            return []
        live.slow_checked_at = now
        for sent in reflex.lost(live.window, self.policy.reflex, now):
            # What hangs for long has failed, whatever it will end as: its timeout would come too late for the others.
            if sent >= health.evidence_from and (ejected := self._failed(live, Outcome.TIMEOUT, now)):
                return ejected
        if health.state is State.DEGRADED and health.was_doubted:
            return []
        margin_z = _EXPECTED_MARGIN_Z if health.state is State.DEGRADED and health.is_expected else 0.0
        cause = reflex.slow(live.window, self.policy.reflex, now, health.evidence_from, margin_z)
        return self._degrade(live, Event.SLOW, cause, now) if cause else []

    def probed(self, result: Finished, now: float) -> list[Action]:
        """A probe ended. It counts in the windows as live traffic does, and moves the return of an endpoint that is
        out.
        """
        live = self._of(result.endpoint_id)
        health = live.health
        if health.state is not State.PROBING:
            health.probe_pending = False
            return self.finished(result, now)
        if live.observe(result, now) < max(health.entered_at, health.probed_at):
            return []
        health.probe_pending = False
        signal = TRAITS[result.outcome].signal
        if signal is Signal.QUOTA:
            live.quota.limited(now, result.retry_after_s)
        # An endpoint that refuses the probe or its key is there; whether it serves, the canary will tell.
        elif signal in (Signal.SUCCESS, Signal.CREDENTIAL) or result.outcome is Outcome.CLIENT_ERROR:
            failback.probe_passed(health)
            if health.probes_passed >= self.policy.failback.probes_needed():
                return self._validated(live, now)
        elif signal is not Signal.NOTHING:
            failback.probe_failed(health)
            self._domains.failed(result.endpoint_id)
        return []

    def _validated(self, live: Live, now: float) -> list[Action]:
        """Let an endpoint that has passed its probes return, and with it whoever waited for it in a domain's outage."""
        returning, ended = self._domains.passed(live.endpoint.id, now)
        needed = float(self.policy.failback.probes_needed())
        actions: list[Action] = []
        for endpoint_id in returning:
            member = self._live[endpoint_id]
            cause = Cause("probes_passed", float(member.health.probes_passed), needed)
            actions += self._raise(member, Event.PROBES_PASSED, cause, now)
        if ended is not None:
            actions.append(self._domain_changed(ended, now, is_down=False))
        return actions

    # Forecast, operator and tick: off the request path.

    def forecast(self, forecasts: Forecasts, now: float) -> list[Action]:
        """Take over one tick's forecast; endpoints above the threshold are degraded at once, if others are better off.

        One that is too old or older than the last is ignored, and so are unknown endpoints and impossible risks.
        """
        if not self._desk.take(forecasts, now):
            return []
        foreseen = self._table.foreseen(self.policy.forecast, now)
        return [action for live, cause in foreseen for action in self._degrade(live, Event.FORECAST, cause, now)]

    def withdraw_forecast(self) -> None:
        """Whoever made the forecasts is gone: their last one no longer counts."""
        self._desk.withdraw()

    def drain(self, endpoint_id: str, note: str, now: float) -> list[Action]:
        """Take an endpoint out by hand; requests in flight finish there. `note` says who and why."""
        return self._raise(self._of(endpoint_id), Event.DRAIN, _OPERATOR, now, note)

    def restore(self, endpoint_id: str, note: str, now: float) -> list[Action]:
        """Let a drained endpoint come back, by probes and plan as after an outage. `note` says who and why."""
        return self._raise(self._of(endpoint_id), Event.RESTORE, _OPERATOR, now, note)

    def switch(self, model: str, endpoint_id: str, now: float) -> None:
        """Send the model's traffic to one of its endpoints, whatever the objective, while it is in service; "" ends
        that. Raises UnknownModelError, and CatalogueError for an endpoint that does not serve the model.
        """
        served_by = [e.id for e in self.catalogue.endpoints_for(model)]
        if endpoint_id and endpoint_id not in served_by:
            raise CatalogueError(f"{endpoint_id!r} does not serve {model!r}; these do: {', '.join(served_by)}")
        self._table.pin(model, endpoint_id, now)

    def tick(self, now: float) -> list[Action]:
        """Let time pass: end holds, advance returns, notice hangs, ask for probes, and publish a fresh snapshot."""
        actions: list[Action] = []
        for live in self._live.values():
            actions += self._tick_one(live, now)
        self._table.publish(self.policy.failback, now)
        return actions

    def _tick_one(self, live: Live, now: float) -> list[Action]:
        health = live.health
        failback.forgive(health, self.policy.reflex, now)
        live.detector.learn(reflex.normal_failure_rate(live.window, self.policy.reflex, now))
        live.quality.learn(reflex.normal_poor_rate(live.window, self.policy.reflex, now))
        actions = self._check_slow(live, now)
        live.let_lapse(now)
        if health.state is State.DEGRADED:
            actions += self._calm(live, now)
        if health.state is State.EJECTED and now >= health.held_until:
            cause = Cause("held_s", now - health.entered_at, health.held_until - health.entered_at)
            actions += self._raise(live, Event.EJECTION_OVER, cause, now)
        if health.state is State.CANARY:
            overdue = reflex.overdue_streams(live.window, now, health.evidence_from)
            earned = failback.step_evidence(health, self.policy.failback, now, overdue)
            if earned:
                actions += self._raise(live, *earned, now)
        if failback.wants_probe(health, self.policy.failback, now, live.quota.blocked_until, live.window.last_at):
            health.probed_at, health.probe_pending = now, True
            actions.append(Probe(live.endpoint))
        return actions

    def _calm(self, live: Live, now: float) -> list[Action]:
        health, reasons = live.health, live.health.reasons
        risk, leave = self._desk.risk(live.endpoint.id, now), self._table.exit_risk(live, now)
        if Event.FORECAST in reasons and (risk is None or leave is None or risk < leave):
            reasons.discard(Event.FORECAST)
        if Event.SLOW in reasons and not reflex.still_slow(live.window, self.policy.reflex, now):
            reasons.discard(Event.SLOW)
        if Event.LIMITED in reasons and live.quota.share(now) >= 1.0:
            reasons.discard(Event.LIMITED)
        if not health.was_doubted:
            return self._relieve(live, risk, leave, now)
        if reasons or now < health.held_until:
            return []
        cause = Cause("held_s", now - health.entered_at, health.held_until - health.entered_at)
        return self._let_return(live, cause, now)

    def _let_return(self, live: Live, cause: Cause, now: float) -> list[Action]:
        # A return all at once rests on probes alone, so it asks for them first.
        validate = self.policy.failback.kind is FailbackKind.BLUE_GREEN
        return self._raise(live, Event.VALIDATE if validate else Event.CALM, cause, now)

    def _relieve(self, live: Live, risk: float | None, leave: float | None, now: float) -> list[Action]:
        """Give an endpoint that did nothing wrong its traffic back as its quota and the forecast allow."""
        health = live.health
        share = self._desk.kept(live.endpoint.id, now) if Event.FORECAST in health.reasons else None
        faint_at = self._desk.said_at(live.endpoint.id, failback.FAINT_RATIO * leave, now) if leave else None
        was_seen = live.was_seen(now)
        is_borne_out = was_seen and live.window.last_at > health.stirred_at
        failback.follow_forecast(health, share, now, faint_at=faint_at, is_borne_out=is_borne_out)
        if health.reasons or health.kept < 1.0:
            return []
        if health.is_expected:
            if cause := reflex.slow(live.window, self.policy.reflex, now, health.evidence_from):
                # What full service would be left for at once is not given back: the alarm was right.
                return self._degrade(live, Event.SLOW, cause, now)
            if risk is None or not was_seen:
                # Nobody knows any more, for want of traffic or of forecasts: no reason to trust it with everything.
                return self._let_return(live, Cause("held_s", now - health.entered_at, failback.RETURN_S), now)
        return self._raise(live, Event.RELIEVED, Cause("admission", 1.0, 1.0), now)

    # Events.

    def _limited(self, live: Live, retry_after_s: float | None, now: float) -> list[Action]:
        before = live.quota.blocked_until
        attempts_per_s = live.window.sums(now, reflex.RATE_SPAN_S)[Counter.STARTED] / reflex.RATE_SPAN_S
        live.quota.refused(now, retry_after_s, attempts_per_s)
        if live.quota.blocked_until == before:
            return []
        actions = self._degrade(live, Event.LIMITED, Cause("retry_after_s", live.quota.blocked_until - now, 0.0), now)
        if not actions:
            self._table.patch(live, self.policy.failback, now)
        return actions

    def _degrade(self, live: Live, event: Event, cause: Cause, now: float) -> list[Action]:
        """Raise a degrading event. In an endpoint that is degraded already it is one more reason to stay so; the first
        doubt after a mere rate limit is a transition of its own.
        """
        health = live.health
        if health.state is State.DEGRADED and (health.was_doubted or event is Event.LIMITED or event in health.reasons):
            health.reasons.add(event)
            live.heard(event, now)
            return []
        return self._raise(live, event, cause, now)

    def _raise(self, live: Live, event: Event, cause: Cause, now: float, note: str = "") -> list[Action]:
        health, before = live.health, live.health.state
        transition = health.apply(event, cause, now, note)
        if transition is None:
            return []
        live.heard(event, now)
        match transition.to_state:
            case State.EJECTED:
                failback.start_ejection(health, self.policy.reflex, now)
                live.forget()
            case State.DEGRADED if event is Event.LIMITED:
                failback.start_limited(health)
            case State.DEGRADED if event is Event.FORECAST and before is not State.CANARY:
                share = self._desk.kept(live.endpoint.id, now)
                failback.start_expected(health, share, now, was_degraded=before is State.DEGRADED)
            case State.DEGRADED:
                failback.start_doubt(health, event, self.policy.failback, self.policy.reflex, now)
            case State.CANARY if event is Event.STEP_PROVEN:
                failback.advance(health, now)
            case State.CANARY:
                failback.start_canary(health, now)
                live.forget()
            case State.PROBING:
                failback.start_probing(health)
            case _:
                pass
        self._table.patch(live, self.policy.failback, now)
        actions: list[Action] = [Transitioned(transition, live.endpoint, self.snapshot.version)]
        if transition.to_state is State.EJECTED:
            actions += self._spread(live, now)
        elif transition.to_state is State.DRAINING:
            self._domains.removed(live.endpoint.id)
        return actions

    def _spread(self, live: Live, now: float) -> list[Action]:
        """Move the rest of a failure domain when this ejection shows that all of it is down."""
        outage = self._domains.ejected(live.endpoint.id, now)
        if outage is None:
            return []
        parts = {outage.domain.parts[member] for member in outage.out}
        cause = Cause("domain_parts_out", float(len(parts)), float(self.policy.domains.min_parts))
        actions: list[Action] = []
        for endpoint_id in sorted(outage.domain.parts.keys() - outage.out):
            member = self._live[endpoint_id]
            actions += self._raise(member, Event.DOMAIN, cause, now, outage.domain.name)
            if member.health.state in (State.PROBING, State.EJECTED):
                self._domains.moved(outage, endpoint_id)
        return [self._domain_changed(outage, now, is_down=True), *actions]

    def _domain_changed(self, outage: Outage, now: float, *, is_down: bool) -> DomainChanged:
        members = tuple(sorted(outage.out))
        return DomainChanged(now, outage.domain, is_down, members, self.snapshot.version)

"""The shell around the pure engine: it brings the clock and the randomness, and carries out what the engine asks for.

Everything that is learned passes through here once: to the engine at once, to the scoring process in batches, to
history as records. Who observes an attempt reads the clock, once for each event, and writes that time into its record:
then what is computed anew from history is what was computed.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol

import msgspec

from routing.actions import Action, DomainChanged, Finished, Probe, Transitioned
from routing.engine import Engine
from routing.errors import UnknownModelError
from routing.forecasts import Forecasts
from routing.model import Endpoint, RouteRequest
from routing.pipeline import Decision, decide, in_order
from scoring.reasons import Contribution
from service.clock import Clock
from service.errors import NotFoundError

log = logging.getLogger(__name__)

_REMEMBERED = 10_000


class Decided(msgspec.Struct, frozen=True):
    """A decision under its id, with the forecaster it rested on ("" without one), the risk that degraded endpoints, and
    what had raised the risk of those in alarm, by endpoint id.
    """

    id: str
    request_id: str
    number: int
    decision: Decision
    forecaster: str
    risk_threshold: float | None
    risk_reasons: Mapping[str, tuple[Contribution, ...]]

    @property
    def threshold(self) -> dict[str, object]:
        """The forecast threshold in force then, by its name among the thresholds."""
        return {"forecast.threshold": self.risk_threshold}


class Listener(Protocol):
    """Hears of everything the router learns. Must return at once and may not raise."""

    def decided(self, decided: Decided) -> None:
        """A decision was made."""

    def started(self, endpoint: Endpoint, attempt_id: str, now: float, *, streamed: bool) -> None:
        """An attempt was sent."""

    def first_byte(self, endpoint: Endpoint, attempt_id: str, now: float) -> None:
        """An attempt's first byte arrived."""

    def finished(self, endpoint: Endpoint, result: Finished, now: float) -> None:
        """An attempt ended."""

    def transitioned(self, action: Transitioned) -> None:
        """An endpoint's health changed."""

    def domain_changed(self, action: DomainChanged) -> None:
        """A failure domain went down or came up again."""


class Router:
    """Decides and observes for one process."""

    def __init__(self, engine: Engine, clock: Clock, rng: Random) -> None:
        self.engine = engine
        self.clock = clock
        self._rng = rng
        self._listeners: list[Listener] = []
        self._probe: Callable[[Endpoint], None] | None = None
        self._providers = sorted({e.provider for e in engine.catalogue.endpoints.values()})
        self._decisions: OrderedDict[str, Decided] = OrderedDict()
        self.risk_reasons: Mapping[str, tuple[Contribution, ...]] = {}

    def listen(self, listener: Listener) -> None:
        """Add a listener."""
        self._listeners.append(listener)

    def probe_with(self, probe: Callable[[Endpoint], None]) -> None:
        """Set what sends the probes that the engine asks for. It must return at once."""
        self._probe = probe

    def _new_id(self) -> str:
        # Ids have to be distinct, not secret, and the kernel's randomness costs a system call each.
        return f"{self._rng.getrandbits(64):016x}"

    def draw(self) -> float:
        """Return a uniform number in [0, 1)."""
        return self._rng.random()

    def decide(self, request: RouteRequest, request_id: str, number: int = 1) -> Decided:
        """Decide where an attempt goes. Raises NotFoundError for an unknown model."""
        decided = self._under(self._new_id(), request_id, number, self.preview(request))
        self._decisions[decided.id] = decided
        if len(self._decisions) > _REMEMBERED:
            self._decisions.popitem(last=False)
        for listener in self._listeners:
            listener.decided(decided)
        return decided

    def unrecorded(self, decision: Decision) -> Decided:
        """Return a preview in the form of a decision that was made."""
        return self._under("", "", 1, decision)

    def _under(self, decision_id: str, request_id: str, number: int, decision: Decision) -> Decided:
        snapshot = self.engine.snapshot
        return Decided(
            decision_id, request_id, number, decision, snapshot.forecaster, snapshot.threshold, self.risk_reasons
        )

    def preview(self, request: RouteRequest) -> Decision:
        """Decide without recording it, for explanations. Raises NotFoundError for an unknown model or provider."""
        now = self.clock.now()
        if request.preferred_provider and request.preferred_provider not in self._providers:
            message = f"unknown provider {request.preferred_provider!r}; known: {', '.join(self._providers)}"
            raise NotFoundError("UNKNOWN_PROVIDER", message, self._providers)
        try:
            return decide(self.engine.snapshot, request, now, self._rng.random())
        except UnknownModelError as error:
            raise NotFoundError("UNKNOWN_MODEL", str(error), error.known) from error
        except Exception:
            # Failover must never break a request (F-20): the configured order needs no snapshot, score or share.
            log.exception("the decision failed; going by the configured order")
            return in_order(self.engine.catalogue, request, now)

    def recall(self, decision_id: str) -> Decided:
        """Return one of the last decisions. Raises NotFoundError for others."""
        try:
            return self._decisions[decision_id]
        except KeyError:
            raise unknown_decision(decision_id) from None

    def started(self, endpoint: Endpoint, now: float, *, streamed: bool) -> str:
        """An attempt is being sent; return its id."""
        attempt_id = self._new_id()
        self.engine.started(endpoint.id, attempt_id, now, streamed=streamed)
        for listener in self._listeners:
            listener.started(endpoint, attempt_id, now, streamed=streamed)
        return attempt_id

    def first_byte(self, endpoint: Endpoint, attempt_id: str, now: float) -> None:
        """The attempt's first byte of payload arrived."""
        self.engine.first_byte(endpoint.id, attempt_id, now)
        for listener in self._listeners:
            listener.first_byte(endpoint, attempt_id, now)

    def finished(self, endpoint: Endpoint, result: Finished, now: float) -> None:
        """An attempt on live traffic ended."""
        self._ended(endpoint, result, now, self.engine.finished)

    def probed(self, endpoint: Endpoint, result: Finished, now: float) -> None:
        """A probe ended."""
        self._ended(endpoint, result, now, self.engine.probed)

    def _ended(
        self, endpoint: Endpoint, result: Finished, now: float, observe: Callable[[Finished, float], list[Action]]
    ) -> None:
        for listener in self._listeners:
            listener.finished(endpoint, result, now)
        try:
            self._act(observe(result, now))
        except Exception:
            log.exception("an observation of %s could not be judged; the request goes on", endpoint.id)

    def forecast(self, forecasts: Forecasts) -> None:
        """The scoring process has spoken. Its time is when its observations were taken, which is what ages."""
        self._act(self.engine.forecast(forecasts, self.clock.now()))

    def drain(self, endpoint_id: str, note: str) -> None:
        """Take an endpoint out by hand."""
        self._act(self.engine.drain(endpoint_id, note, self.clock.now()))

    def restore(self, endpoint_id: str, note: str) -> None:
        """Let a drained endpoint come back."""
        self._act(self.engine.restore(endpoint_id, note, self.clock.now()))

    def switch(self, model: str, endpoint_id: str) -> None:
        """Send a model's traffic to one endpoint; "" ends that. Raises as `Engine.switch` does."""
        self.engine.switch(model, endpoint_id, self.clock.now())

    def withdraw_forecast(self) -> None:
        """The scoring process is gone: its last word no longer counts from the next tick on."""
        self.engine.withdraw_forecast()
        self.risk_reasons = {}

    def tick(self) -> None:
        """Let time pass."""
        self._act(self.engine.tick(self.clock.now()))

    def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Probe(endpoint):
                    if self._probe is not None:
                        self._probe(endpoint)
                case Transitioned():
                    for listener in self._listeners:
                        listener.transitioned(action)
                case DomainChanged():
                    for listener in self._listeners:
                        listener.domain_changed(action)


def unknown_decision(decision_id: str) -> NotFoundError:
    """Return the error for a decision that is not remembered."""
    message = f"decision {decision_id!r} is not among the last {_REMEMBERED}; older ones are in the history"
    return NotFoundError("UNKNOWN_DECISION", message)

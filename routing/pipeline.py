"""One decision: filter, order, share, pick. Reads the snapshot and its arguments, nothing else, so any decision can
be recomputed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from routing.errors import UnknownModelError
from routing.filters import HEALTH_FILTERS, REQUEST_FILTERS, Filter
from routing.health import State
from routing.model import Catalogue, RouteRequest
from routing.pickers import PICKER_OF, pick
from routing.snapshot import Candidate, Facts, Snapshot


@dataclass(frozen=True, slots=True)
class Considered:
    """One candidate in a decision: its share of such requests, or which filter excluded it and why ("" when none
    did).
    """

    candidate: Candidate
    share: float
    exclusion: str = ""
    excluded_by: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where one attempt goes, and everything that led there.

    `considered` lists eligible candidates first, in the order they would be tried. `panic` tells that the health
    filters left nobody and were set aside. `chosen` is None when no endpoint may serve; `retry_after_s` then says
    when a rate limit ends, if that is the cause.
    """

    snapshot_version: int
    request: RouteRequest
    time: float
    draw: float
    chosen: Candidate | None
    considered: tuple[Considered, ...]
    panic: bool
    retry_after_s: float | None

    @property
    def propensity(self) -> float:
        """The probability with which the chosen candidate was drawn; 0 without one."""
        return next((c.share for c in self.considered if c.candidate is self.chosen), 0.0)


def _exclude(filters: Sequence[Filter], candidate: Candidate, request: RouteRequest, now: float) -> Considered | None:
    for check in filters:
        reason = check(candidate, request, now)
        if reason:
            return Considered(candidate, 0.0, reason, check.__name__)
    return None


def _prefer(ranked: list[Candidate], request: RouteRequest) -> list[Candidate]:
    """Move what the caller or the session prefers to the front, if it is in good health. Stable otherwise."""
    if not request.preferred_provider and not request.affine_endpoint:
        return ranked

    def rank(candidate: Candidate) -> int:
        if candidate.facts.state not in (State.ACTIVE, State.UNKNOWN):
            return 2
        endpoint = candidate.facts.endpoint
        if request.preferred_provider:
            return 0 if endpoint.provider == request.preferred_provider else 2
        return 1 if endpoint.id == request.affine_endpoint else 2

    return sorted(ranked, key=rank)


def decide(snapshot: Snapshot, request: RouteRequest, now: float, draw: float) -> Decision:
    """Decide where the next attempt of `request` goes.

    `draw` is a uniform number in [0, 1). Raises UnknownModelError when the snapshot has no such model. A decision
    without an eligible endpoint is returned, not raised: its `considered` says why each was excluded.
    """
    rankings = snapshot.rankings.get(request.model)
    if rankings is None:
        raise UnknownModelError(request.model, sorted(snapshot.rankings))
    eligible: list[Candidate] = []
    unhealthy: list[Considered] = []
    excluded: list[Considered] = []
    for candidate in rankings[request.objective]:
        if out := _exclude(REQUEST_FILTERS, candidate, request, now):
            excluded.append(out)
        elif out := _exclude(HEALTH_FILTERS, candidate, request, now):
            unhealthy.append(out)
        else:
            eligible.append(candidate)

    panic = not eligible and bool(unhealthy)
    retry_after_s = None
    if panic:
        # A provider that asked for patience is left in peace: sending it more would only prolong the limit.
        eligible = [out.candidate for out in unhealthy if out.candidate.facts.blocked_until <= now]
        if not eligible:
            retry_after_s = min(out.candidate.facts.blocked_until for out in unhealthy) - now
        unhealthy = [out for out in unhealthy if out.candidate.facts.blocked_until > now]
    excluded += unhealthy
    if not eligible:
        return Decision(snapshot.version, request, now, draw, None, tuple(excluded), panic, retry_after_s)

    ranked = _prefer(eligible, request)
    shares = PICKER_OF[request.objective].shares(ranked, request.objective)
    considered = [Considered(c, share) for c, share in zip(ranked, shares, strict=True)]
    chosen = ranked[pick(shares, draw)]
    return Decision(snapshot.version, request, now, draw, chosen, (*considered, *excluded), panic, None)


def in_order(catalogue: Catalogue, request: RouteRequest, now: float) -> Decision:
    """Decide by the configured order alone: the way out when everything else has failed (F-20).

    Capabilities and exclusions still count; health, forecast and shares do not. Raises UnknownModelError.
    """
    considered = []
    for endpoint in catalogue.endpoints_for(request.model):
        facts = Facts(endpoint, State.UNKNOWN, 1.0, 0.0, 0.0, None, 1.0, 0, None)
        candidate = Candidate(facts, 1.0, {})
        considered.append(_exclude(REQUEST_FILTERS, candidate, request, now) or Considered(candidate, 0.0))
    considered.sort(key=lambda c: bool(c.exclusion))
    chosen = considered[0].candidate if not considered[0].exclusion else None
    if chosen is not None:
        considered[0] = Considered(chosen, 1.0)
    return Decision(0, request, now, 0.0, chosen, tuple(considered), panic=True, retry_after_s=None)

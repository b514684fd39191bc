"""One decision: filter, order, share, pick. Reads the snapshot and its arguments, nothing else, so any decision can
be recomputed.

Everything but the pick follows from the snapshot and the shape of the request. That part is a `Plan`, made once per
snapshot and shape and remembered with the snapshot; a decision then is a look-up and a draw.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import inf, prod

from routing.errors import UnknownModelError
from routing.filters import HEALTH_FILTERS, REQUEST_FILTERS, Filter, key_refused
from routing.health import State
from routing.model import Catalogue, Objective, RegionPolicy, RouteRequest
from routing.pickers import PICKER_OF, pick
from routing.snapshot import Candidate, Facts, Snapshot

_MOST_PLANS = 4096
_NO_PREFERENCE = 2


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
class Plan:
    """What one snapshot means for one shape of request from `valid_from` until `valid_until`.

    `considered` lists eligible candidates first, in the order they would be tried, then the excluded ones; `cumulative`
    are the running sums of the eligible ones' shares. `panic` tells that the health filters left nobody and were set
    aside. Without an eligible candidate, `cumulative` is empty, and `free_at` says when a rate limit ends, if that is
    the cause.
    """

    considered: tuple[Considered, ...]
    cumulative: tuple[float, ...]
    panic: bool
    free_at: float | None
    valid_from: float
    valid_until: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Where one attempt goes, and everything that led there. `chosen` is None when no endpoint may serve."""

    snapshot_version: int
    request: RouteRequest
    time: float
    draw: float
    chosen: Candidate | None
    propensity: float
    plan: Plan

    @property
    def considered(self) -> tuple[Considered, ...]:
        """All candidates: eligible ones first, then the excluded ones with their reasons."""
        return self.plan.considered

    @property
    def panic(self) -> bool:
        """No endpoint was healthy, so the best of the others serves."""
        return self.plan.panic

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until the first rate limit ends, when rate limits are why nobody may serve."""
        return None if self.plan.free_at is None else max(0.0, self.plan.free_at - self.time)


def _exclude(filters: Sequence[Filter], candidate: Candidate, request: RouteRequest, now: float) -> Considered | None:
    for check in filters:
        reason = check(candidate, request, now)
        if reason:
            return Considered(candidate, 0.0, reason, check.__name__)
    return None


def _preference(candidate: Candidate, request: RouteRequest, pinned: str) -> int:
    """Return -1 for what an operator has switched the model to, 0 for what the caller prefers, 1 for what the session
    prefers, 2 for all others and whatever is not well.
    """
    if pinned and candidate.facts.endpoint.id == pinned:
        return -1
    if candidate.facts.state not in (State.ACTIVE, State.UNKNOWN):
        return _NO_PREFERENCE
    endpoint = candidate.facts.endpoint
    if request.preferred_provider:
        return 0 if endpoint.provider == request.preferred_provider else _NO_PREFERENCE
    return 1 if request.affine_endpoint and endpoint.id == request.affine_endpoint else _NO_PREFERENCE


def _shunned(candidates: Iterable[Candidate], request: RouteRequest) -> frozenset[tuple[str, str]]:
    """Return the regions of providers where two endpoints have failed this very request already.

    The configured order may name a whole region before the first endpoint elsewhere, and attempts are few.
    """
    tried = Counter(_place(c) for c in candidates if c.facts.endpoint.id in request.excluded)
    return frozenset(place for place, times in tried.items() if times > 1)


def _place(candidate: Candidate) -> tuple[str, str]:
    endpoint = candidate.facts.endpoint
    return endpoint.company or endpoint.provider, endpoint.region


def _wish(
    candidate: Candidate, request: RouteRequest, shunned: Collection[tuple[str, str]], pinned: str
) -> tuple[int, int, float]:
    """Return what orders candidates before their rank does: tier, preference, and, away from a preferred region, the
    latency.

    Tier 0 serves while its admissions last. What they leave over goes to tier 1, away from the region that the request
    prefers, then to tier 2, too slow for its objective, then to tier 3, where the request has failed already.
    """
    preference, facts = _preference(candidate, request, pinned), candidate.facts
    if _place(candidate) in shunned:
        return 3, preference, 0.0
    if request.objective is Objective.CHEAPEST and facts.latency_s is not None and facts.latency_s > request.slo_s:
        return 2, preference, 0.0
    is_home = request.region_policy is not RegionPolicy.PREFER or facts.endpoint.region == request.region
    if is_home or preference < _NO_PREFERENCE:
        return 0, preference, 0.0
    return 1, preference, inf if facts.latency_s is None else facts.latency_s


def _shares(ranked: Sequence[Candidate], wishes: Sequence[tuple[int, int, float]], objective: Objective) -> list[float]:
    """Divide a request's chance among ranked candidates, tier after tier."""
    picker = PICKER_OF[objective]
    tiers = [list(group) for _, group in groupby(range(len(ranked)), key=lambda i: wishes[i][0])]
    shares, left = [], 1.0
    for tier in tiers:
        members = [ranked[i] for i in tier]
        over = 0.0 if tier is tiers[-1] else prod(1.0 - c.facts.admission for c in members)
        favoured = sum(wishes[i][1] < _NO_PREFERENCE for i in tier)
        shares += [left * (1.0 - over) * share for share in picker.shares(members, objective, favoured)]
        left *= over
    return shares


def _despair(out: Considered) -> tuple[bool, float]:
    """Order candidates that are all out of service: those on their way back first, then by what they last answered."""
    facts = out.candidate.facts
    return facts.state is not State.PROBING, facts.error_rate


def make_plan(snapshot: Snapshot, request: RouteRequest, now: float) -> Plan:
    """Return what the snapshot means for requests of this shape. Raises UnknownModelError."""
    rankings = snapshot.rankings.get(request.model)
    if rankings is None:
        raise UnknownModelError(request.model, sorted(snapshot.rankings))
    eligible: list[Candidate] = []
    unhealthy: list[Considered] = []
    excluded: list[Considered] = []
    valid_from, valid_until = -inf, inf
    for candidate in rankings[request.objective]:
        for ends in (candidate.facts.blocked_until, candidate.facts.barred.get(request.tenant, 0.0)):
            if ends > now:
                valid_until = min(valid_until, ends)
            else:
                valid_from = max(valid_from, ends)
        if out := _exclude(REQUEST_FILTERS, candidate, request, now):
            excluded.append(out)
        elif out := _exclude(HEALTH_FILTERS, candidate, request, now):
            unhealthy.append(out)
        else:
            eligible.append(candidate)

    panic, free_at = not eligible and bool(unhealthy), None
    if panic:
        # A provider that asked for patience is left in peace: sending it more would only prolong the limit. What an
        # operator took out stays out.
        willing = [
            out
            for out in unhealthy
            if out.candidate.facts.blocked_until <= now and out.candidate.facts.state is not State.DRAINING
        ]
        # A key that was just refused is tried again only where nobody else is left.
        willing = [out for out in willing if out.excluded_by != key_refused.__name__] or willing
        eligible = [out.candidate for out in sorted(willing, key=_despair)]
        unhealthy = [out for out in unhealthy if out not in willing]
        waits = [out.candidate.facts.blocked_until for out in unhealthy if out.candidate.facts.blocked_until > now]
        free_at = min(waits, default=None) if not eligible else None
    excluded += unhealthy
    if not eligible:
        return Plan(tuple(excluded), (), panic, free_at, valid_from, valid_until)

    shunned = _shunned(rankings[request.objective], request)
    pinned = snapshot.pinned.get(request.model, "")
    wishes = [_wish(candidate, request, shunned, pinned) for candidate in eligible]
    order = sorted(range(len(eligible)), key=wishes.__getitem__)
    ranked = [eligible[i] for i in order]
    shares = _shares(ranked, [wishes[i] for i in order], request.objective)
    considered = (*(Considered(c, share) for c, share in zip(ranked, shares, strict=True)), *excluded)
    return Plan(considered, tuple(accumulate(shares)), panic, None, valid_from, valid_until)


def _plan_of(snapshot: Snapshot, request: RouteRequest, now: float) -> Plan:
    # An estimate of the input's size shapes the plan only where a context window could be too small for it, or where
    # it could cost too much; the tenant only where its key may have been refused.
    limited = request.budget_usd < inf or request.input_tokens > snapshot.smallest_window(request.model)
    key = (
        request.model,
        request.objective,
        request.needs,
        request.preferred_provider,
        request.affine_endpoint,
        request.excluded,
        request.spared,
        request.input_tokens if limited else 0,
        request.region,
        request.region_policy,
        request.allowed_providers,
        request.slo_s,
        (request.max_output_tokens, request.budget_usd) if request.budget_usd < inf else None,
        request.tenant if request.model in snapshot.barring else "",
    )
    plan: Plan | None = snapshot.plans.get(key)
    if plan is None or not plan.valid_from <= now < plan.valid_until:
        plan = make_plan(snapshot, request, now)
        if len(snapshot.plans) < _MOST_PLANS:
            snapshot.plans[key] = plan
    return plan


def decide(snapshot: Snapshot, request: RouteRequest, now: float, draw: float) -> Decision:
    """Decide where the next attempt of `request` goes.

    `draw` is a uniform number in [0, 1). Raises UnknownModelError when the snapshot has no such model. A decision
    without an eligible endpoint is returned, not raised: its `considered` says why each was excluded.
    """
    return _drawn(snapshot.version, _plan_of(snapshot, request, now), request, now, draw)


def _drawn(version: int, plan: Plan, request: RouteRequest, now: float, draw: float) -> Decision:
    if not plan.cumulative:
        return Decision(version, request, now, draw, None, 0.0, plan)
    chosen = plan.considered[pick(plan.cumulative, draw)]
    return Decision(version, request, now, draw, chosen.candidate, chosen.share, plan)


def in_order(catalogue: Catalogue, request: RouteRequest, now: float) -> Decision:
    """Decide by the configured order alone: the way out when everything else has failed (F-20).

    Capabilities and exclusions still count; health, forecast and shares do not. Raises UnknownModelError.
    """
    considered = []
    for endpoint in catalogue.endpoints_for(request.model):
        candidate = Candidate(Facts(endpoint, State.UNKNOWN, 1.0, 0.0, 0.0, None, 1.0, 0, None), 1.0, {})
        considered.append(_exclude(REQUEST_FILTERS, candidate, request, now) or Considered(candidate, 0.0))
    considered.sort(key=lambda c: bool(c.exclusion))
    cumulative: tuple[float, ...] = ()
    if not considered[0].exclusion:
        considered[0] = Considered(considered[0].candidate, 1.0)
        cumulative = tuple(accumulate(c.share for c in considered if not c.exclusion))
    return _drawn(0, Plan(tuple(considered), cumulative, True, None, -inf, inf), request, now, 0.0)

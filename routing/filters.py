"""Filters: each may exclude a candidate from one request, with a reason that is recorded.

`REQUEST_FILTERS` are about the request and never give way. `HEALTH_FILTERS` are about the endpoint's state: when they
leave nobody, the decision panics and serves from the best of those they excluded, because a doubtful provider beats a
refusal.
"""

from typing import Protocol

from routing.health import State
from routing.model import RegionPolicy, RouteRequest
from routing.snapshot import Candidate

_OUT = frozenset({State.EJECTED, State.PROBING, State.DRAINING})


class Filter(Protocol):
    """A function that says why a candidate may not serve a request, or "" when it may. Its name goes on record."""

    __name__: str

    def __call__(self, candidate: Candidate, request: RouteRequest, now: float) -> str:
        """Return the reason, or ""."""


def already_tried(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints this request has already been sent to."""
    return "already tried for this request" if candidate.facts.endpoint.id in request.excluded else ""


def lacks_capability(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints that cannot do what the request needs."""
    endpoint = candidate.facts.endpoint
    if request.needs <= endpoint.capabilities:
        return ""
    return f"lacks {', '.join(sorted(request.needs - endpoint.capabilities))}"


def beyond_context(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints whose context window the request cannot fit."""
    window = candidate.facts.endpoint.context_window_tokens
    if window is None or request.input_tokens <= window:
        return ""
    return f"context window {window} tokens is less than the request's {request.input_tokens}"


def outside_region(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints beyond a border that the request may not cross."""
    region = candidate.facts.endpoint.region
    if request.region_policy is not RegionPolicy.STAY or region == request.region:
        return ""
    return f"region {region!r}: the request must stay in {request.region!r}"


def provider_not_allowed(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude providers that the tenant's policy does not list."""
    provider = candidate.facts.endpoint.provider
    if not request.allowed_providers or provider in request.allowed_providers:
        return ""
    return f"provider {provider!r} is not among those allowed: {', '.join(sorted(request.allowed_providers))}"


def over_budget(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints where the request could cost more than it may."""
    endpoint = candidate.facts.endpoint
    cost_usd = (
        request.input_tokens * endpoint.input_usd_per_mtok + request.max_output_tokens * endpoint.output_usd_per_mtok
    ) / 1e6
    if cost_usd <= request.budget_usd:
        return ""
    return f"could cost {cost_usd:.6f} USD, more than the budget of {request.budget_usd:.6f} USD"


def overloaded(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints that a retry leaves in peace, because most of the model's are overloaded."""
    is_spared = candidate.facts.endpoint.id in request.spared
    return "overloaded, as most endpoints of the model are: no retry goes there" if is_spared else ""


def out_of_service(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints that get probes only."""
    state = candidate.facts.state
    return f"health state is {state.value}" if state in _OUT else ""


def rate_limited(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints whose provider asked to wait."""
    until = candidate.facts.blocked_until
    return f"rate limited until {until:.3f} (unix time)" if until > now else ""


def key_refused(candidate: Candidate, request: RouteRequest, now: float) -> str:
    """Exclude endpoints that refused this tenant's key a short while ago."""
    until = candidate.facts.barred.get(request.tenant, 0.0)
    return f"refused the tenant's key; asked again at {until:.3f} (unix time)" if until > now else ""


REQUEST_FILTERS: tuple[Filter, ...] = (
    already_tried,
    lacks_capability,
    beyond_context,
    outside_region,
    provider_not_allowed,
    over_budget,
    overloaded,
)
HEALTH_FILTERS: tuple[Filter, ...] = (out_of_service, rate_limited, key_refused)

"""Filters: each may exclude a candidate from one request, with a reason that is recorded.

`REQUEST_FILTERS` are about the request and never give way. `HEALTH_FILTERS` are about the endpoint's state: when they
leave nobody, the decision panics and serves from the best of those they excluded, because a doubtful provider beats a
refusal.
"""

from typing import Protocol

from routing.health import State
from routing.model import RouteRequest
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


def out_of_service(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints that get probes only."""
    state = candidate.facts.state
    return f"health state is {state.value}" if state in _OUT else ""


def rate_limited(candidate: Candidate, request: RouteRequest, now: float) -> str:  # noqa: ARG001  # the protocol's signature
    """Exclude endpoints whose provider asked to wait."""
    until = candidate.facts.blocked_until
    return f"rate limited until {until:.3f} (unix time)" if until > now else ""


REQUEST_FILTERS: tuple[Filter, ...] = (already_tried, lacks_capability, beyond_context)
HEALTH_FILTERS: tuple[Filter, ...] = (out_of_service, rate_limited)

"""Failure domains: when several endpoints fail together, what they share has failed, and the rest of it moves with
them.

A domain's parts are what it is made of: a zone's endpoints, a region's zones, a provider's regions, and, across
providers, the providers at one location. A domain is down when endpoints of two parts at least were ejected within a
short span and no other member has served a request that began after the first of them: trouble of one part says
nothing about the whole. Members that have not failed yet are then asked by probes instead of by callers. The domain is
up again when enough of those that were out have passed their probes; until then none of them returns alone, because a
domain that comes back in pieces goes down in pieces.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, inf

from routing.model import Endpoint
from routing.policy import DomainPolicy

_Key = Callable[[Endpoint], str]


class DomainKind(StrEnum):
    """What the members share. LOCATION is a region's name across providers."""

    ZONE = "zone"
    REGION = "region"
    PROVIDER = "provider"
    LOCATION = "location"


@dataclass(frozen=True, slots=True)
class Domain:
    """A failure domain. `parts` says, by endpoint id, which part of the domain each member stands for."""

    kind: DomainKind
    name: str
    parts: Mapping[str, str]


def _company(endpoint: Endpoint) -> str:
    return endpoint.company or endpoint.provider


def domains_of(endpoints: Iterable[Endpoint]) -> tuple[Domain, ...]:
    """Return every domain of two parts or more, the widest kind first, then by name.

    A region of a single zone is that zone, and a provider of a single region that region: such a domain appears once,
    under its widest kind. Locations count only where there are several, and several providers at one.
    """
    endpoints = sorted(endpoints, key=lambda e: e.id)
    locations = _group(DomainKind.LOCATION, endpoints, lambda e: e.region, _company)
    found = [
        *(place for place in locations if len(locations) > 1 and len(set(place.parts.values())) > 1),
        *_group(DomainKind.PROVIDER, endpoints, _company, lambda e: e.region),
        *_group(DomainKind.REGION, endpoints, lambda e: f"{_company(e)}/{e.region}", lambda e: e.zone),
        *_group(DomainKind.ZONE, endpoints, lambda e: f"{_company(e)}/{e.region}/{e.zone}", lambda e: e.id),
    ]
    whole: dict[frozenset[str], Domain] = {}
    for domain in found:
        members = frozenset(domain.parts)
        known = whole.get(members)
        # The narrower of two equal domains knows the finer parts, the wider one gives the name.
        whole[members] = domain if known is None else Domain(known.kind, known.name, domain.parts)
    return tuple(domain for domain in whole.values() if len(set(domain.parts.values())) > 1)


def _group(kind: DomainKind, endpoints: Iterable[Endpoint], name: _Key, part: _Key) -> list[Domain]:
    groups: dict[str, dict[str, str]] = {}
    for endpoint in endpoints:
        groups.setdefault(name(endpoint), {})[endpoint.id] = part(endpoint)
    return [Domain(kind, group, parts) for group, parts in sorted(groups.items())]


@dataclass(slots=True)
class Outage:
    """A domain that is down: who is out because of it, and who has passed the probes since."""

    domain: Domain
    since: float
    out: set[str] = field(default_factory=set)
    passed: dict[str, float] = field(default_factory=dict)


class DomainWatch:
    """Which domains are down. The engine tells it of ejections, of services and of probes passed."""

    def __init__(self, endpoints: Iterable[Endpoint], policy: DomainPolicy) -> None:
        self._policy = policy
        self._domains: dict[str, list[Domain]] = {}
        for domain in domains_of(endpoints):
            for member in domain.parts:
                self._domains.setdefault(member, []).append(domain)
        self._ejected: dict[str, float] = {}
        self._served: dict[str, float] = {}
        self._outages: list[Outage] = []

    def adopt(self, policy: DomainPolicy) -> None:
        """Judge what comes by another policy."""
        self._policy = policy

    @property
    def outages(self) -> tuple[Outage, ...]:
        """The domains that are down, oldest first; read them, do not write them."""
        return tuple(self._outages)

    def served(self, endpoint_id: str, started: float) -> None:
        """The endpoint served a request that began at `started`."""
        self._served[endpoint_id] = max(self._served.get(endpoint_id, -inf), started)

    def ejected(self, endpoint_id: str, now: float) -> Outage | None:
        """An endpoint was ejected; return the outage that this completes, the widest one, or None.

        An outage of a wider domain takes the place of those of its parts.
        """
        self._ejected[endpoint_id] = now
        for domain in self._domains.get(endpoint_id, ()):
            known = next((outage for outage in self._outages if outage.domain is domain), None)
            if known is not None:
                known.out.add(endpoint_id)
                known.passed.pop(endpoint_id, None)
                return None
            together = self._together(domain, now)
            if together:
                outage = Outage(domain, now, together)
                self._outages = [o for o in self._outages if not o.domain.parts.keys() <= domain.parts.keys()]
                self._outages.append(outage)
                return outage
        return None

    def _together(self, domain: Domain, now: float) -> set[str]:
        """Return the members whose ejections show that the domain is down; empty when they do not."""
        out = {
            member: self._ejected[member]
            for member in domain.parts
            if now - self._ejected.get(member, -inf) <= self._policy.span_s
        }
        if len({domain.parts[member] for member in out}) < self._policy.min_parts:
            return set()
        first = min(out.values())
        served_since = any(self._served.get(member, -inf) > first for member in domain.parts.keys() - out.keys())
        return set() if served_since else set(out)

    def moved(self, outage: Outage, endpoint_id: str) -> None:
        """A member was taken out because of the outage."""
        outage.out.add(endpoint_id)

    def passed(self, endpoint_id: str, now: float) -> tuple[tuple[str, ...], Outage | None]:
        """An endpoint passed its probes: return who may return now, and the outage that this ends.

        Outside an outage it may return itself. In one, nobody may until enough have passed or the first has waited
        `max_wait_s`; then all that have passed may.
        """
        outage = self._outage_of(endpoint_id)
        if outage is None:
            self._ejected.pop(endpoint_id, None)
            return (endpoint_id,), None
        outage.passed.setdefault(endpoint_id, now)
        enough = max(1, ceil(self._policy.returning_share * len(outage.out)))
        waited_s = now - min(outage.passed.values())
        if len(outage.passed) < enough and waited_s < self._policy.max_wait_s:
            return (), None
        self._outages.remove(outage)
        for member in outage.passed:
            self._ejected.pop(member, None)
        return tuple(sorted(outage.passed)), outage

    def failed(self, endpoint_id: str) -> None:
        """A probe of an endpoint that is out failed: what it had passed no longer counts."""
        outage = self._outage_of(endpoint_id)
        if outage is not None:
            outage.passed.pop(endpoint_id, None)

    def removed(self, endpoint_id: str) -> None:
        """An operator took the endpoint out: no outage waits for it."""
        self._ejected.pop(endpoint_id, None)
        outage = self._outage_of(endpoint_id)
        if outage is not None:
            outage.out.discard(endpoint_id)
            outage.passed.pop(endpoint_id, None)
            if not outage.out:
                self._outages.remove(outage)

    def _outage_of(self, endpoint_id: str) -> Outage | None:
        return next((outage for outage in self._outages if endpoint_id in outage.out), None)

"""Scorers: each gives every candidate one finite value in [0, 1], higher is better. A snapshot is scored, never a
request.

A new scorer is a class with a `name` and a `score`, added to `SCORERS` and weighted in `WEIGHTS` of the objectives it
should sway.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Protocol

from routing.health import State
from routing.model import Objective
from routing.snapshot import Facts


class Scorer(Protocol):
    """Values one candidate among its peers (which include it)."""

    @property
    def name(self) -> str:
        """The name under which the contribution is recorded."""

    def score(self, facts: Facts, peers: Sequence[Facts]) -> float:
        """Return a finite value in [0, 1]."""


class Reliability:
    """Share of judged attempts of the last minute that succeeded; an endpoint that is out of service scores 0."""

    name = "reliability"

    def score(self, facts: Facts, peers: Sequence[Facts]) -> float:  # noqa: ARG002  # the protocol's signature
        """Return 1 − error rate, or 0 when ejected, probing or draining."""
        return 0.0 if facts.state in (State.EJECTED, State.PROBING, State.DRAINING) else 1.0 - facts.error_rate


class ForecastRisk:
    """Probability of staying healthy within the horizon; neutral without a forecast."""

    name = "forecast"

    def score(self, facts: Facts, peers: Sequence[Facts]) -> float:  # noqa: ARG002  # the protocol's signature
        """Return 1 − risk, or 1 without a valid forecast."""
        return 1.0 if facts.risk is None else 1.0 - facts.risk


class Steadiness:
    """Current latency against the endpoint's own normal: 1 when usual or faster, 1/ratio when slower."""

    name = "steadiness"

    def score(self, facts: Facts, peers: Sequence[Facts]) -> float:  # noqa: ARG002  # the protocol's signature
        """Return min(1, 1 / latency ratio)."""
        return min(1.0, 1.0 / facts.latency_ratio)


class Latency:
    """Median latency against the fastest peer."""

    name = "latency"

    def score(self, facts: Facts, peers: Sequence[Facts]) -> float:
        """Return fastest / own; an endpoint without values takes the peers' best, so that it gets a chance."""
        known = [peer.latency_s for peer in peers if peer.latency_s is not None]
        return min(known) / facts.latency_s if facts.latency_s is not None and known else 1.0


class Price:
    """Blended price (three input tokens to one output token) against the cheapest peer."""

    name = "price"

    def score(self, facts: Facts, peers: Sequence[Facts]) -> float:
        """Return cheapest / own, with a free endpoint at 1."""
        own = self._blend(facts)
        return 1.0 if own == 0 else min(self._blend(peer) for peer in peers) / own

    @staticmethod
    def _blend(facts: Facts) -> float:
        return 0.75 * facts.endpoint.input_usd_per_mtok + 0.25 * facts.endpoint.output_usd_per_mtok


class Load:
    """Requests in flight against the least loaded peer."""

    name = "load"

    def score(self, facts: Facts, peers: Sequence[Facts]) -> float:
        """Return (least + 1) / (own + 1)."""
        return (min(peer.in_flight for peer in peers) + 1) / (facts.in_flight + 1)


SCORERS: tuple[Scorer, ...] = (Reliability(), ForecastRisk(), Steadiness(), Latency(), Price(), Load())

WEIGHTS: Mapping[Objective, Mapping[str, float]] = {
    Objective.ORDERED: {},
    Objective.RELIABLE: {"reliability": 3.0, "forecast": 2.0, "steadiness": 1.0},
    Objective.FASTEST: {"latency": 3.0, "steadiness": 1.0, "reliability": 1.0, "forecast": 1.0},
    Objective.CHEAPEST: {"price": 1.0},
    Objective.BALANCED: {"reliability": 1.0, "forecast": 1.0, "latency": 1.0, "price": 1.0, "load": 1.0},
    Objective.LEAST_LOADED: {"load": 1.0},
}


def contributions(facts: Facts, peers: Sequence[Facts], scorers: Sequence[Scorer] = SCORERS) -> dict[str, float]:
    """Return every scorer's value for one candidate. Raises ValueError naming the scorer when a value is not a
    fraction.
    """
    values: dict[str, float] = {}
    for scorer in scorers:
        value = scorer.score(facts, peers)
        if not isfinite(value) or not 0.0 <= value <= 1.0:
            raise ValueError(
                f"scorer {scorer.name!r} gave {value!r} for {facts.endpoint.id!r}: expected a finite value in [0, 1]"
            )
        values[scorer.name] = value
    return values


def health_score(values: Mapping[str, float]) -> float:
    """Return the endpoint's health in [0, 1]: the product of what it does, how steadily, and what is forecast."""
    return values["reliability"] * values["steadiness"] * values["forecast"]


def weighted(values: Mapping[str, float], objective: Objective) -> float:
    """Return the weighted mean of the contributions for one objective; 1 for ORDERED, which the configured order
    decides.
    """
    weights = WEIGHTS[objective]
    total = sum(weights.values())
    return sum(weight * values[name] for name, weight in weights.items()) / total if total else 1.0

"""Everything a decision reads, immutable and versioned. It is swapped whole; a patch shares what did not change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from routing.credentials import NOBODY
from routing.health import State
from routing.model import Endpoint, Objective


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one endpoint when a snapshot is built: the input of the scorers.

    `risk` is the forecast probability of degradation, None without a valid forecast. `latency_s` is the median of the
    last five minutes, None without values. `error_rate` covers 60 s. `admission` is the share of its traffic the
    endpoint may take, `blocked_until` the end of a rate limit's pause; `barred` says until when each tenant whose key
    was refused is kept away. `quota_share` is below 1 while the endpoint recovers from a rate limit.
    """

    endpoint: Endpoint
    state: State
    admission: float
    blocked_until: float
    error_rate: float
    latency_s: float | None
    latency_ratio: float
    in_flight: int
    risk: float | None
    barred: Mapping[str, float] = field(default_factory=lambda: NOBODY)
    quota_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One endpoint as a decision sees it: facts, health score in [0, 1] and each scorer's value in [0, 1]."""

    facts: Facts
    score: float
    contributions: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The routing table at one moment.

    `rankings` holds, per model, the candidates best first for each objective. `threshold` is the forecast threshold
    in force, `barring` are the models with an endpoint that refuses some tenant's key, `windows` the smallest context
    window of each model, `pinned` the endpoint that an operator has switched a model to.
    """

    version: int
    created: float
    rankings: Mapping[str, Mapping[Objective, tuple[Candidate, ...]]]
    forecaster: str
    threshold: float | None
    windows: Mapping[str, float] = field(default_factory=dict)
    barring: frozenset[str] = frozenset()
    pinned: Mapping[str, str] = field(default_factory=dict)
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def candidates(self, model: str) -> tuple[Candidate, ...]:
        """Return the model's candidates in configured order; empty for an unknown model."""
        return self.rankings[model][Objective.ORDERED] if model in self.rankings else ()

    def smallest_window(self, model: str) -> float:
        """Return the smallest known context window of the model in tokens; 0 for a model without an entry."""
        return self.windows.get(model, 0.0)

"""Snapshots and decisions made by hand, for tests of what follows a decision."""

from math import inf

from routing.health import State
from routing.model import RouteRequest
from routing.pipeline import Decision, decide
from routing.ranking import Ranking
from routing.snapshot import Facts, Snapshot
from tests.routing_world import MODEL, endpoint

NOW = 1000.0


def facts(name: str, order: int = 0, **changes: object) -> Facts:
    """Return what is known of a healthy endpoint; `changes` are other fields of Facts."""
    values: dict[str, object] = {
        "endpoint": endpoint(name, order),
        "state": State.ACTIVE,
        "admission": 1.0,
        "blocked_until": 0.0,
        "error_rate": 0.0,
        "latency_s": 0.3,
        "latency_ratio": 1.0,
        "in_flight": 0,
        "risk": None,
    }
    return Facts(**(values | changes))  # type: ignore[arg-type]  # built by keyword from a table


def snapshot(*known: Facts, threshold: float | None = None) -> Snapshot:
    """Return a snapshot of one model."""
    return Snapshot(5, NOW, {MODEL: Ranking(known)}, "", threshold, {MODEL: inf})


def decision(*known: Facts, tried: tuple[str, ...] = (), spared: tuple[str, ...] = ()) -> Decision:
    """Return a decision among these endpoints at NOW."""
    request = RouteRequest(MODEL, excluded=frozenset(tried), spared=frozenset(spared))
    return decide(snapshot(*known), request, NOW, 0.0)

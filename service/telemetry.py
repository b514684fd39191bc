"""Metrics, fed by the same records that go into the history, in Prometheus' text format. No line of it stands between
the logic.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from analytics.records import AttemptRecord, Record, RequestRecord, TransitionRecord
from analytics.writer import WriterStats
from routing.health import State
from routing.snapshot import Snapshot
from service.tenancy.gate import Load

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """All metrics of one service; `put` is a record sink. `budgets` tells of each model how many retries are left and
    how many requests wait; `load` is how full the service is.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        history: Callable[[], WriterStats],
        budgets: Callable[[], Iterable[tuple[str, float, int]]] = tuple,
        load: Callable[[], Load] = Load,
    ) -> None:
        self._snapshot = snapshot
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "routecast_requests", "Requests served or refused.", "edge", "method", "model", "status"
        )
        self._request_seconds = self._histogram("routecast_request_seconds", "Whole requests.", "method")
        self._attempts = self._counter("routecast_attempts", "Calls to endpoints.", "endpoint", "kind", "outcome")
        self._ttft_seconds = self._histogram("routecast_ttft_seconds", "Time to first token by endpoint.", "endpoint")
        self._tokens = self._counter("routecast_tokens", "Tokens counted.", "endpoint", "direction")
        self._cost = self._counter("routecast_cost_usd", "Price of all calls.", "endpoint")
        self._transitions = self._counter(
            "routecast_transitions", "Changes of health.", "endpoint", "to_state", "actor"
        )
        self._registry.register(_Gauges(snapshot, history, budgets, load))

    # Finding a series costs the library a lock and its labels' texts; remembered, it is one look-up.
    def _counter(self, name: str, what: str, *labels: str) -> Callable[..., Counter]:
        return cache(Counter(name, what, labels, registry=self._registry).labels)

    def _histogram(self, name: str, what: str, *labels: str) -> Callable[..., Histogram]:
        return cache(Histogram(name, what, labels, buckets=_LATENCY_BUCKETS_S, registry=self._registry).labels)

    def put(self, record: Record) -> None:
        """Count a record."""
        match record:
            case RequestRecord():
                # Callers may send any name; only known models may become series.
                model = record.model if record.model in self._snapshot().rankings else ""
                self._requests(record.edge, record.method, model, record.status).inc()
                self._request_seconds(record.method).observe(record.latency_ms / 1e3)
            case AttemptRecord():
                self._attempts(record.endpoint, record.kind, record.outcome).inc()
                if record.ttft_ms is not None:
                    self._ttft_seconds(record.endpoint).observe(record.ttft_ms / 1e3)
                self._tokens(record.endpoint, "input").inc(record.input_tokens or 0)
                self._tokens(record.endpoint, "output").inc(record.output_tokens or 0)
                self._cost(record.endpoint).inc(record.cost_usd or 0.0)
            case TransitionRecord():
                self._transitions(record.endpoint, record.to_state, record.actor).inc()
            case _:
                pass

    def render(self) -> bytes:
        """Return all metrics in the text exposition format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    """Values that are read when asked for: the snapshot's, the budgets', the gate's and the history
    writer's.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        history: Callable[[], WriterStats],
        budgets: Callable[[], Iterable[tuple[str, float, int]]],
        load: Callable[[], Load],
    ) -> None:
        self._snapshot = snapshot
        self._history = history
        self._budgets = budgets
        self._load = load

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one family per gauge."""
        score = GaugeMetricFamily("routecast_health_score", "Health score, 0 to 1.", labels=["endpoint"])
        risk = GaugeMetricFamily("routecast_forecast_risk", "Probability of degradation.", labels=["endpoint"])
        admission = GaugeMetricFamily("routecast_admission", "Share of its traffic admitted.", labels=["endpoint"])
        state = GaugeMetricFamily("routecast_health_state", "1 for the current state.", labels=["endpoint", "state"])
        snapshot = self._snapshot()
        for model in snapshot.rankings:
            for candidate in snapshot.candidates(model):
                facts = candidate.facts
                score.add_metric([facts.endpoint.id], candidate.score)
                admission.add_metric([facts.endpoint.id], facts.admission)
                if facts.risk is not None:
                    risk.add_metric([facts.endpoint.id], facts.risk)
                for each in State:
                    state.add_metric([facts.endpoint.id, each.value], float(facts.state is each))
        yield from (score, risk, admission, state)
        retries = GaugeMetricFamily("routecast_retries_left", "Retries the budget would pay for.", labels=["model"])
        waiting = GaugeMetricFamily("routecast_waiting_requests", "Waiting for a rate limit to end.", labels=["model"])
        for model, left, count in self._budgets():
            retries.add_metric([model], left)
            waiting.add_metric([model], count)
        yield from (retries, waiting)
        load = self._load()
        for name, value, what in (
            ("requests_in_flight", load.in_flight, "Requests under way."),
            ("queued_requests", load.queued, "Requests that wait for their turn."),
            ("concurrency_limit", load.limit, "Most requests that may be under way now."),
        ):
            yield GaugeMetricFamily(f"routecast_{name}", what, value=value)
        history = self._history()
        for name, value in (("written", history.written), ("dropped", history.dropped), ("pending", history.pending)):
            yield GaugeMetricFamily(f"routecast_history_{name}_rows", f"History rows {name}.", value=value)

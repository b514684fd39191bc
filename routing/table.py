"""The routing table: the snapshot that decisions read, kept current from the live state of the endpoints.

The rule of this file: a snapshot is replaced, never changed. A tick rebuilds all of it, a patch one endpoint's model.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from routing import failback, reflex
from routing.forecasts import ForecastDesk
from routing.health import Cause, State
from routing.live import Live
from routing.model import Catalogue
from routing.policy import FailbackPolicy, ForecastPolicy
from routing.ranking import Ranking
from routing.snapshot import Facts, Snapshot

_ERROR_SPAN_S = 60


class RoutingTable:
    """Keeps the snapshot. `live` is the engine's, by endpoint id; the table only reads it, but for its facts."""

    def __init__(self, catalogue: Catalogue, live: Mapping[str, Live], desk: ForecastDesk, now: float) -> None:
        self._catalogue = catalogue
        self._live = live
        self._desk = desk
        windows = {
            model: min((e.context_window_tokens or inf for e in endpoints), default=inf)
            for model, endpoints in catalogue.by_model.items()
        }
        self.pinned: Mapping[str, str] = {}
        self.snapshot = Snapshot(0, now, {}, "", desk.threshold(), windows)

    def publish(self, failback_policy: FailbackPolicy, now: float) -> None:
        """Rebuild everything."""
        for live in self._live.values():
            live.facts = self._facts(live, failback_policy, now)
        self._swap(self._catalogue.by_model, now)

    def patch(self, live: Live, failback_policy: FailbackPolicy, now: float) -> None:
        """Make one endpoint's change visible to the very next decision; its peers' counts wait for the tick."""
        live.facts = self._facts(live, failback_policy, now)
        self._swap((live.endpoint.model,), now)

    def foreseen(self, policy: ForecastPolicy, now: float) -> Iterator[tuple[Live, Cause]]:
        """Yield the endpoints that the forecast in force takes traffic from, those most at risk first, and why.

        Each is looked at when the one before has been dealt with: whoever comes last may have nowhere to send it.
        """
        current, threshold = self._desk.in_force(now), self._desk.threshold()
        if current is None or threshold is None:
            return
        for endpoint_id, risk in sorted(current.risks.items(), key=lambda item: (-item[1], item[0])):
            if risk < threshold:
                return
            live = self._live.get(endpoint_id)
            if live is None or live.is_settling(now, policy.settle_s):
                continue
            bar = live.trust.bar(threshold, now)
            if risk >= bar and (live.health.state is State.DEGRADED or self._has_refuge(live, now)):
                yield live, Cause("risk", risk, bar)

    def exit_risk(self, live: Live, now: float) -> float | None:
        """Return the risk below which forecasts are silent about this endpoint: as far above the usual one as its bar
        is above the threshold, so that an alarm that is hardly believed is soon over. None without forecasts.
        """
        leave = self._desk.exit_threshold()
        return None if leave is None else live.trust.bar(leave, now)

    def _has_refuge(self, live: Live, now: float) -> bool:
        """Tell whether another endpoint of the model is in full service, and at no risk as far as anyone knows: to
        leave one that may fail for one that may, or does, helps nobody.
        """
        leave = self._desk.exit_threshold()
        for endpoint in self._catalogue.by_model[live.endpoint.model]:
            other, risk = self._live[endpoint.id], self._desk.risk(endpoint.id, now)
            is_in_service = other.health.state in (State.ACTIVE, State.UNKNOWN) and other.quota.share(now) >= 1.0
            if other is not live and is_in_service and (risk is None or leave is None or risk < leave):
                return True
        return False

    def pin(self, model: str, endpoint_id: str, now: float) -> None:
        """Put one endpoint of the model before all others from the next decision on; "" ends that."""
        others = {name: pinned for name, pinned in self.pinned.items() if name != model}
        self.pinned = {**others, model: endpoint_id} if endpoint_id else others
        self._swap((model,), now)

    def _facts(self, live: Live, failback_policy: FailbackPolicy, now: float) -> Facts:
        window, quota = live.window, live.quota
        latency_s = window.latency_quantile(0.5, now)
        # What the quota will admit once its pause is over; during the pause `blocked_until` keeps requests away.
        quota_share = quota.share(max(now, quota.blocked_until))
        return Facts(
            endpoint=live.endpoint,
            state=live.health.state,
            admission=failback.admission(live.health, failback_policy) * quota_share,
            blocked_until=quota.blocked_until,
            error_rate=window.sums(now, _ERROR_SPAN_S).error_rate,
            latency_s=latency_s if latency_s is not None else window.latency_quantile(0.5, now, streamed=False),
            latency_ratio=window.latency_shift(now, reflex.SPAN_S).ratio,
            in_flight=window.in_flight,
            risk=self._desk.risk(live.endpoint.id, now),
            barred=live.credentials.barred,
            quota_share=quota_share,
        )

    def _swap(self, models: Iterable[str], now: float) -> None:
        ranked, barring = dict(self.snapshot.rankings), self.snapshot.barring
        for model in models:
            facts = [self._live[e.id].facts for e in self._catalogue.by_model[model]]
            ranked[model] = Ranking(facts)
            if any(f.barred for f in facts):
                barring |= {model}
            elif model in barring:
                barring -= {model}
        current = self._desk.in_force(now)
        forecaster = current.forecaster if current else ""
        self.snapshot = Snapshot(
            self.snapshot.version + 1,
            now,
            ranked,
            forecaster,
            self._desk.threshold(),
            self.snapshot.windows,
            barring,
            self.pinned,
        )

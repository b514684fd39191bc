"""What a forecast says to the engine, and how long it counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from routing.policy import ForecastPolicy


@dataclass(frozen=True, slots=True)
class Forecasts:
    """One tick's forecast: probability of degradation within the horizon per endpoint id, by which model, and the
    threshold its manifest recommends. `kept` is the share in [0, 1] of its traffic that an endpoint should keep while
    the forecast alone degrades it; those without one keep what the policy leaves any degraded endpoint.
    """

    time: float
    forecaster: str
    threshold: float
    risks: Mapping[str, float]
    kept: Mapping[str, float] = field(default_factory=dict)


class ForecastDesk:
    """The forecast in force; the reflex stands alone when it is old, out of order, from the future or impossible."""

    __slots__ = ("_current", "_policy")

    def __init__(self, policy: ForecastPolicy) -> None:
        self._policy = policy
        self._current: Forecasts | None = None

    def adopt(self, policy: ForecastPolicy) -> None:
        """Judge forecasts by another policy from now on."""
        self._policy = policy

    def take(self, forecasts: Forecasts, now: float) -> bool:
        """Take over a forecast; return whether it counts. Risks and shares that are no fractions are left out."""
        is_current = abs(now - forecasts.time) <= self._policy.max_age_s and 0.0 < forecasts.threshold < 1.0
        if not is_current or (self._current and forecasts.time < self._current.time):
            return False
        sound = {endpoint: risk for endpoint, risk in forecasts.risks.items() if 0.0 <= risk <= 1.0}
        kept = {endpoint: share for endpoint, share in forecasts.kept.items() if 0.0 <= share <= 1.0}
        self._current = Forecasts(forecasts.time, forecasts.forecaster, forecasts.threshold, sound, kept)
        return True

    def withdraw(self) -> None:
        """Forget the forecast: whoever made it is gone."""
        self._current = None

    def in_force(self, now: float) -> Forecasts | None:
        """Return the forecast, unless it is too old."""
        current = self._current
        return current if current is not None and now - current.time <= self._policy.max_age_s else None

    def risk(self, endpoint_id: str, now: float) -> float | None:
        """Return the risk in force of one endpoint; None without one."""
        current = self.in_force(now)
        return current.risks.get(endpoint_id) if current else None

    def said_at(self, endpoint_id: str, most: float, now: float) -> float | None:
        """Return when the forecast in force was made, if it puts the risk of one endpoint at `most` or below."""
        current = self.in_force(now)
        return current.time if current and current.risks.get(endpoint_id, inf) <= most else None

    def kept(self, endpoint_id: str, now: float) -> float:
        """Return the share that a doubted endpoint should keep; 0 without one."""
        current = self.in_force(now)
        return current.kept.get(endpoint_id, 0.0) if current else 0.0

    def threshold(self) -> float | None:
        """Return the risk that degrades an endpoint: the policy's, else the model's own; None without either."""
        if self._policy.threshold is not None:
            return self._policy.threshold
        return self._current.threshold if self._current else None

    def exit_threshold(self) -> float | None:
        """Return the risk below which a degraded endpoint may return, where forecasts are believed."""
        threshold = self.threshold()
        return None if threshold is None else threshold * self._policy.exit_ratio

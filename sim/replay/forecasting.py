"""Forecasts inside a replay: the shipped features and a model, on the windows of the engine that is being replayed.

The rule of this file: what the scoring process does each tick, without the process. The loop is closed: a policy that
left an endpoint also sees less of it.
"""

import numpy as np

from routing.engine import Engine
from routing.forecasts import Forecasts
from scoring.artifact import Model
from scoring.features import Member, in_domain, matrix

# Ticks of a virtual clock come a rounding apart.
_ROUNDING_S = 1e-6


class ModelForecaster:
    """Forecasts every `tick_s` seconds for all endpoints of the engine it is called with."""

    def __init__(self, model: Model, tick_s: float = 1.0) -> None:
        self._model = model
        self._tick_s = tick_s
        self._due = 0.0

    def __call__(self, engine: Engine, now: float) -> Forecasts | None:
        """Return the forecast of this tick, None between two."""
        if now < self._due - _ROUNDING_S:
            return None
        self._due = now + self._tick_s
        endpoints = list(engine.catalogue.endpoints.values())
        members = [Member(endpoint.provider, endpoint.region) for endpoint in endpoints]
        x = matrix(members, [engine.window_of(endpoint.id) for endpoint in endpoints], now)
        judged = np.flatnonzero(in_domain(x))
        risks = self._model.forecaster.risks(x[judged])
        return Forecasts(
            time=now,
            forecaster=self._model.manifest.version,
            threshold=self._model.manifest.threshold,
            risks={endpoints[i].id: float(risk) for i, risk in zip(judged.tolist(), risks, strict=True)},
        )

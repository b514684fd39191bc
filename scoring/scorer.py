"""What the scoring process computes: the same windows as the serving process, and a forecast at each tick.

The rule of this file: it decides nothing and does no I/O of its own. Time comes with the batches, models and records go
through what is passed in, so the whole of it can be driven by a test or a replay.
"""

from collections.abc import Callable, Sequence
from random import Random

import msgspec
import numpy as np
import numpy.typing as npt

from analytics.records import SCORING_SUFFIX, HealthRecord
from routing.window import Window
from scoring.acting import FLOOR, Alarm, AlarmDesk, share_kept
from scoring.artifact import Model
from scoring.backfill import in_microseconds, observe
from scoring.explain import contributions
from scoring.features import FEATURE_SET, Member, in_domain, matrix
from scoring.monitor import Doubt, Monitor
from scoring.protocol import AlarmNote, Batch, EndpointStatus, Forecast, Hello, Observation, ProtocolError
from scoring.reasons import Contribution

_Floats = npt.NDArray[np.float64]
Risks = list[float | None]


class Scorer:
    """One window per endpoint, and the models of the moment.

    `record` takes the HealthRecord of each endpoint at each tick and must neither block nor raise; `rng` draws which
    alarms are canaries.
    """

    def __init__(self, hello: Hello, record: Callable[[HealthRecord], None], rng: Random) -> None:
        self._endpoints = hello.endpoints
        self._providers = [endpoint.provider for endpoint in hello.endpoints]
        self._members = [Member(endpoint.provider, endpoint.region) for endpoint in hello.endpoints]
        self._windows = [Window() for _ in hello.endpoints]
        self._statuses = {endpoint.id: EndpointStatus(endpoint.id, "unknown", 1.0, 1.0) for endpoint in hello.endpoints}
        self._tick_s = hello.tick_s
        self._last_tick = -1
        self._record = record
        self._rng = rng
        self._replica = hello.replica + SCORING_SUFFIX
        self._desk = AlarmDesk(hello.explore)
        self._threshold: float | None = None
        self._doubts: list[Doubt] = []
        self.model: Model | None = None
        self.shadow: Model | None = None
        self._monitor: Monitor | None = None

    def serve(self, model: Model | None, shadow: Model | None = None) -> None:
        """Use `model` from the next tick on (None: no forecast), and watch `shadow` beside it."""
        if model is None:
            self._monitor = None
        elif self.model is None or model.manifest.version != self.model.manifest.version:
            forecaster, horizon_s = model.forecaster, model.manifest.horizon_s
            self._monitor = Monitor(forecaster.domain, horizon_s, len(self._endpoints))
        self._doubts = []
        self.model, self.shadow = model, shadow

    def doubts(self) -> list[Doubt]:
        """Return what has spoken against the model since the last call."""
        found, self._doubts = self._doubts, []
        return found

    def take(self, batch: Batch) -> Forecast | None:
        """Learn what was seen; return a forecast when the batch's time has entered a new tick.

        Raises ProtocolError for an endpoint that the Hello did not name, or a finished attempt without an outcome.
        """
        for seen in batch.observations:
            self._observe(seen)
        for status in batch.statuses:
            if status.id not in self._statuses:
                raise ProtocolError(f"status of endpoint {status.id!r}: expected one the Hello named")
            self._statuses[status.id] = status
        self._threshold = batch.threshold
        tick = int(batch.time / self._tick_s)
        if tick <= self._last_tick:
            return None
        self._last_tick = tick
        return self._forecast(in_microseconds(batch.time))

    def _observe(self, seen: Observation) -> None:
        if seen.endpoint >= len(self._windows):
            raise ProtocolError(f"observation of endpoint {seen.endpoint}: expected 0 to {len(self._windows) - 1}")
        if seen.kind == "finished" and seen.outcome is None:
            raise ProtocolError(f"finished attempt {seen.attempt_id!r}: expected an outcome")
        observe(self._windows[seen.endpoint], seen)

    def _forecast(self, now: float) -> Forecast:
        x = matrix(self._members, self._windows, now)
        model = self.model
        risks, watched = risks_of(model, x, self._providers), risks_of(self.shadow, x, self._providers)
        threshold = 1.0 if model is None else self._threshold or model.manifest.threshold
        alarms = [
            self._desk.step(endpoint.id, risk, threshold, now, self._rng.random())
            for endpoint, risk in zip(self._endpoints, risks, strict=True)
        ]
        reasons = [
            contributions(model.forecaster, row) if model and alarm and alarm.since == now else ()
            for row, alarm in zip(x, alarms, strict=True)
        ]
        if self._monitor is not None:
            self._doubts += self._monitor.step(now, self._windows, x, risks, threshold)
        self._record_all(now, x.tolist(), risks, watched, alarms, reasons)
        return Forecast(
            time=now,
            forecaster=model.manifest.version if model else "",
            threshold=threshold,
            risks={e.id: risk for e, risk in zip(self._endpoints, risks, strict=True) if risk is not None},
            alarms={
                e.id: AlarmNote(alarm.since, alarm.mode.value, share_kept(risk, threshold, FLOOR, alarm.mode), why)
                for e, risk, alarm, why in zip(self._endpoints, risks, alarms, reasons, strict=True)
                if alarm is not None and risk is not None
            },
        )

    def _record_all(
        self,
        now: float,
        rows: Sequence[list[float]],
        risks: Risks,
        watched: Risks,
        alarms: Sequence[Alarm | None],
        reasons: Sequence[tuple[Contribution, ...]],
    ) -> None:
        forecaster = self.model.manifest.version if self.model else ""
        shadow = self.shadow.manifest.version if self.shadow else ""
        for endpoint, row, risk, shadow_risk, alarm, why in zip(
            self._endpoints, rows, risks, watched, alarms, reasons, strict=True
        ):
            status = self._statuses[endpoint.id]
            self._record(
                HealthRecord(
                    replica=self._replica,
                    time=now,
                    endpoint=endpoint.id,
                    provider=endpoint.provider,
                    region=endpoint.region,
                    model=endpoint.model,
                    state=status.state,
                    admission=status.admission,
                    score=status.score,
                    risk=risk,
                    forecaster=forecaster,
                    feature_set=FEATURE_SET,
                    features=tuple(row),
                    shadow=shadow,
                    shadow_risk=shadow_risk,
                    alarm=alarm.mode.value if alarm else "",
                    propensity=alarm.propensity if alarm else None,
                    explanation=msgspec.json.encode(why).decode() if why else "",
                )
            )


def risks_of(model: Model | None, x: _Floats, providers: Sequence[str]) -> Risks:
    """Return a risk per row of `x` (n × features), whose endpoint's provider `providers` names; None without a model,
    without evidence, and outside of what the model knows.
    """
    risks: Risks = [None] * len(x)
    if model is not None:
        judged = np.flatnonzero(in_domain(x) & model.forecaster.domain.covers(x))
        groups = [providers[i] for i in judged.tolist()]
        for i, risk in zip(judged.tolist(), model.forecaster.risks(x[judged], groups), strict=True):
            risks[i] = float(risk)
    return risks

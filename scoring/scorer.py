"""What the scoring process computes: the same windows as the serving process, and a forecast at each tick.

The rule of this file: it decides nothing and does no I/O of its own. Time comes with the batches, models and records go
through what is passed in, so the whole of it can be driven by a test or a replay.
"""

from collections.abc import Callable, Sequence

import numpy as np

from analytics.records import HealthRecord
from routing.window import Window
from scoring.artifact import Model
from scoring.features import FEATURE_SET, Member, in_domain, matrix
from scoring.protocol import Batch, EndpointStatus, Forecast, Hello, Observation, ProtocolError


class Scorer:
    """One window per endpoint, and the model of the moment.

    `record` takes the HealthRecord of each endpoint at each tick and must neither block nor raise.
    """

    def __init__(self, hello: Hello, record: Callable[[HealthRecord], None]) -> None:
        self._endpoints = hello.endpoints
        self._members = [Member(endpoint.provider, endpoint.region) for endpoint in hello.endpoints]
        self._windows = [Window() for _ in hello.endpoints]
        self._statuses = {endpoint.id: EndpointStatus(endpoint.id, "unknown", 1.0, 1.0) for endpoint in hello.endpoints}
        self._tick_s = hello.tick_s
        self._last_tick = -1
        self._record = record
        self._replica = f"{hello.replica}-scoring"
        self._model: Model | None = None

    def serve(self, model: Model) -> None:
        """Use `model` from the next tick on."""
        self._model = model

    @property
    def model(self) -> Model | None:
        """The model in use."""
        return self._model

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
        tick = int(batch.time / self._tick_s)
        if tick <= self._last_tick:
            return None
        self._last_tick = tick
        return self._forecast(batch.time)

    def _observe(self, seen: Observation) -> None:
        if seen.endpoint >= len(self._windows):
            raise ProtocolError(f"observation of endpoint {seen.endpoint}: expected 0 to {len(self._windows) - 1}")
        window = self._windows[seen.endpoint]
        if seen.kind == "started":
            window.started(seen.attempt_id, seen.time, streamed=seen.streamed)
        elif seen.kind == "first_byte":
            window.first_byte(seen.attempt_id, seen.time)
        elif seen.outcome is None:
            raise ProtocolError(f"finished attempt {seen.attempt_id!r}: expected an outcome")
        else:
            window.finished(
                seen.attempt_id,
                seen.outcome,
                seen.time,
                ttft_s=seen.ttft_s,
                reply_s=seen.reply_s,
                output_tokens=seen.output_tokens,
                generation_s=seen.generation_s,
            )

    def _forecast(self, now: float) -> Forecast:
        x = matrix(self._members, self._windows, now)
        model = self._model
        risks: list[float | None] = [None] * len(x)
        if model is not None:
            judged = in_domain(x)
            for i, risk in zip(np.flatnonzero(judged), model.forecaster.risks(x[judged]), strict=True):
                risks[i] = float(risk)
        forecaster = model.manifest.version if model else ""
        self._record_all(now, x.tolist(), risks, forecaster)
        named = zip(self._endpoints, risks, strict=True)
        return Forecast(
            time=now,
            forecaster=forecaster,
            threshold=model.manifest.threshold if model else 1.0,
            risks={endpoint.id: risk for endpoint, risk in named if risk is not None},
        )

    def _record_all(
        self, now: float, rows: Sequence[list[float]], risks: Sequence[float | None], forecaster: str
    ) -> None:
        for endpoint, row, risk in zip(self._endpoints, rows, risks, strict=True):
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
                )
            )

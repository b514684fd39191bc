"""The link to the scoring process: observations go out in batches, forecasts come back, and nothing on the request
path waits for it.

The process may die, hang or never start: then its forecasts expire, the reflex policy stands alone, and it is started
again with growing pauses (F-20).
"""

import asyncio
import contextlib
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from pathlib import Path

from routing.actions import DomainChanged, Finished, Transitioned
from routing.forecasts import Forecasts
from routing.model import Endpoint
from scoring.protocol import (
    Batch,
    EndpointInfo,
    EndpointStatus,
    Forecast,
    FrameBuffer,
    Hello,
    Note,
    Observation,
    Outbound,
    ProtocolError,
    Ready,
    decode_outbound,
    encode,
)
from service.config import Scoring
from service.router import Decided, Router

log = logging.getLogger(__name__)

_BATCH_S = 0.1
_READ_BYTES = 65536
_MAX_BUFFERED = 200_000
_STUCK_S = 10.0
_STOP_S = 5.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 30.0


class ScoringLink:
    """Runs the scoring process and talks to it. A listener of the router."""

    def __init__(
        self, router: Router, settings: Scoring, data_dir: Path, replica: str, *, retention_s: float | None
    ) -> None:
        self._router = router
        self._settings = settings
        self._data_dir = data_dir
        self._replica = replica
        self._retention_s = retention_s
        self._endpoints = tuple(router.engine.catalogue.endpoints.values())
        self._index = {endpoint.id: i for i, endpoint in enumerate(self._endpoints)}
        self._outgoing: deque[Observation] = deque(maxlen=_MAX_BUFFERED)
        self._process: Process | None = None
        self.ready = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id of the scoring process, None while it is not running."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    # Listener.

    def decided(self, decided: Decided) -> None:
        """Nothing: decisions are no observations."""

    def started(self, endpoint: Endpoint, attempt_id: str, now: float, *, streamed: bool) -> None:
        """Queue it for the next batch."""
        self._outgoing.append(Observation("started", self._index[endpoint.id], attempt_id, now, streamed=streamed))

    def first_byte(self, endpoint: Endpoint, attempt_id: str, now: float) -> None:
        """Queue it for the next batch."""
        self._outgoing.append(Observation("first_byte", self._index[endpoint.id], attempt_id, now))

    def finished(self, endpoint: Endpoint, result: Finished, now: float) -> None:
        """Queue it for the next batch."""
        self._outgoing.append(
            Observation(
                "finished",
                self._index[endpoint.id],
                result.attempt_id,
                now,
                result.outcome,
                result.ttft_s,
                result.reply_s,
                result.output_tokens,
                result.generation_s,
            )
        )

    def transitioned(self, action: Transitioned) -> None:
        """Nothing: every batch carries the current states."""

    def domain_changed(self, action: DomainChanged) -> None:
        """Nothing: the states of its members say it."""

    # The process.

    async def run(self) -> None:
        """Keep a scoring process running until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            began = self._router.clock.now()
            try:
                await self._one_life()
            except (OSError, ProtocolError, TimeoutError) as error:
                log.warning("the scoring process failed: %s", error)
            finally:
                await self._end_process()
                self._router.withdraw_forecast()
            if self._router.clock.now() - began > _MAX_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            log.warning("the scoring process is gone; reflex alone, next start in %.1f s", pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _MAX_PAUSE_S)

    async def _one_life(self) -> None:
        # Its messages go to our standard error; standard output carries frames alone.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scoring.worker", stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        self._process = process
        if process.stdin is None or process.stdout is None:
            raise OSError("the scoring process has no pipes")
        self._outgoing.clear()
        process.stdin.write(encode(self._hello()))
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._send(process.stdin))
            try:
                await self._receive(process.stdout)
            finally:
                sending.cancel()

    def _hello(self) -> Hello:
        return Hello(
            endpoints=[EndpointInfo(e.id, e.provider, e.region, e.zone, e.model) for e in self._endpoints],
            data_dir=str(self._data_dir),
            replica=self._replica,
            tick_s=self._settings.tick_s,
            scheduling=self._settings.scheduling,
            retention_s=self._retention_s,
            explore=self._settings.explore,
        )

    async def _send(self, pipe: asyncio.StreamWriter) -> None:
        while True:
            observations = [self._outgoing.popleft() for _ in range(len(self._outgoing))]
            threshold = self._router.engine.policy.forecast.threshold
            pipe.write(encode(Batch(self._router.clock.now(), observations, self._statuses(), threshold)))
            async with asyncio.timeout(_STUCK_S):
                await pipe.drain()
            await asyncio.sleep(_BATCH_S)

    def _statuses(self) -> list[EndpointStatus]:
        snapshot = self._router.engine.snapshot
        return [
            EndpointStatus(c.facts.endpoint.id, c.facts.state.value, c.facts.admission, c.score)
            for model in snapshot.rankings
            for c in snapshot.candidates(model)
        ]

    async def _receive(self, pipe: asyncio.StreamReader) -> None:
        decoder = FrameBuffer()
        while data := await pipe.read(_READ_BYTES):
            for frame in decoder.feed(data):
                self._take(decode_outbound(frame))

    def _take(self, message: Outbound) -> None:
        match message:
            case Forecast():
                kept = {name: alarm.kept for name, alarm in message.alarms.items()}
                known = self._router.risk_reasons
                # Told once, when an alarm begins; swapped whole, so that a decision keeps those it was taken under.
                self._router.risk_reasons = {
                    name: alarm.why or known.get(name, ()) for name, alarm in message.alarms.items()
                }
                self._router.forecast(
                    Forecasts(message.time, message.forecaster, message.threshold, message.risks, kept)
                )
            case Ready():
                log.info("scoring process %s is ready with forecaster %s", self.pid, message.forecaster or "none")
                self.ready.set()
            case Note():
                log.log(logging.getLevelName(message.level.upper()), "scoring process: %s", message.text)

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        self.ready.clear()
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

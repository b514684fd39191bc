"""Probes: the cheapest real calls that tell whether an endpoint is back. The engine says when; this sends and reports
them.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from routing.actions import Finished
from routing.model import Endpoint
from routing.outcomes import Outcome
from routing.policy import AttemptPolicy
from service.history import AttemptSink, attempt_record
from service.providers.base import Adapter, AttemptFailed, Failure
from service.providers.transport import Timeouts
from service.router import Router

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Probed:
    """How a probe ended, and how long it took in seconds."""

    outcome: Outcome
    latency_s: float
    error: str


class Prober:
    """Sends at most one probe per endpoint at a time, as tasks of the running loop."""

    def __init__(
        self, router: Router, adapters: Mapping[str, Adapter], record: AttemptSink, policy: AttemptPolicy, replica: str
    ) -> None:
        self._router = router
        self._adapters = adapters
        self._record = record
        self._timeouts = Timeouts(connect_s=policy.connect_timeout_s, first_byte_s=_TIMEOUT_S, stall_s=_TIMEOUT_S)
        self._replica = replica
        self._running: dict[str, asyncio.Task[Probed]] = {}

    def probe(self, endpoint: Endpoint) -> None:
        """Start a probe, unless one of that endpoint is still under way."""
        self._task(endpoint)

    async def check(self, endpoint: Endpoint) -> Probed:
        """Wait for the probe of the endpoint that is under way, or for a new one."""
        return await asyncio.shield(self._task(endpoint))

    def _task(self, endpoint: Endpoint) -> asyncio.Task[Probed]:
        task = self._running.get(endpoint.id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._probe(endpoint), name=f"probe {endpoint.id}")
            self._running[endpoint.id] = task
            task.add_done_callback(lambda _: self._running.pop(endpoint.id, None))
        return task

    async def stop(self) -> None:
        """Cancel what is under way."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, endpoint: Endpoint) -> Probed:
        started = self._router.clock.now()
        attempt_id = self._router.started(endpoint, started, streamed=False)
        tokens: tuple[int | None, int | None] = (None, None)
        failure, status = None, None
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                reply = await self._adapters[endpoint.provider].probe(endpoint, self._timeouts)
            status, tokens = reply.status, (reply.input_tokens, reply.output_tokens)
        except AttemptFailed as failed:
            failure = failed.failure
        except TimeoutError:
            failure = Failure(Outcome.TIMEOUT, None, f"no answer within {_TIMEOUT_S:g} s")
        except asyncio.CancelledError:
            cancelled = Finished(endpoint.id, attempt_id, Outcome.CANCELLED)
            self._router.probed(endpoint, cancelled, self._router.clock.now())
            raise
        outcome = failure.outcome if failure else Outcome.OK
        now = self._router.clock.now()
        # Its latency stays out of the windows: it asks for one token and would make the endpoint look fast.
        retry_after_s = failure.retry_after_s if failure else None
        self._router.probed(endpoint, Finished(endpoint.id, attempt_id, outcome, retry_after_s=retry_after_s), now)
        self._record(
            attempt_record(
                endpoint,
                replica=self._replica,
                kind="probe",
                outcome=outcome,
                started=started,
                now=now,
                http_status=failure.status if failure else status,
                error=failure.error if failure else "",
                input_tokens=tokens[0],
                output_tokens=tokens[1],
            )
        )
        return Probed(outcome, now - started, failure.error if failure else "")

"""The books of one request: every attempt and the request itself, as records for the history and as reports for its
caller.
"""

from collections.abc import Callable
from dataclasses import dataclass

from analytics.records import RequestRecord
from routing.model import Endpoint
from routing.outcomes import Outcome
from service.completion import Completion, has_failed_over
from service.errors import AttemptReport
from service.history import AttemptSink, attempt_record, cost_usd
from service.providers.transport import Timeouts
from service.router import Decided


@dataclass(slots=True)
class Attempt:
    """One call in flight.

    Attributes:
        hedge_after_s: how long it may go without a first byte before a second one starts beside it; None for never.
        is_hedge: it is that second one.
        reader_s: how long a stream had to wait for its reader.
    """

    number: int
    decided: Decided
    endpoint: Endpoint
    id: str
    started: float
    timeouts: Timeouts
    hedge_after_s: float | None = None
    is_hedge: bool = False
    first_byte_at: float | None = None
    reader_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt, None where the provider did not count them."""

    input_tokens: int | None = None
    output_tokens: int | None = None

    def cost_usd(self, endpoint: Endpoint) -> float | None:
        """Return the price at that endpoint."""
        return cost_usd(endpoint, self.input_tokens, self.output_tokens)


NOT_COUNTED = Usage()


class Trail:
    """See the module's docstring. `record` takes history records and may not raise."""

    def __init__(self, completion: Completion, record: AttemptSink, now: Callable[[], float], replica: str) -> None:
        self._completion = completion
        self._record = record
        self._now = now
        self._replica = replica
        self._started = now()
        self._reports: list[AttemptReport] = []

    def __len__(self) -> int:
        return len(self._reports)

    @property
    def reports(self) -> tuple[AttemptReport, ...]:
        """The attempts that have ended, in the order they were made."""
        return tuple(sorted(self._reports, key=lambda report: report.number))

    def attempted(
        self, attempt: Attempt, outcome: Outcome, status: int | None, error: str, usage: Usage = NOT_COUNTED
    ) -> None:
        """An attempt has ended."""
        endpoint, route, now = attempt.endpoint, self._completion.route, self._now()
        self._reports.append(
            AttemptReport(
                attempt.number,
                attempt.decided.id,
                endpoint.id,
                endpoint.provider,
                endpoint.region,
                outcome,
                status,
                error,
                now - attempt.started,
                attempt.is_hedge,
            )
        )
        first = attempt.first_byte_at
        self._record(
            attempt_record(
                endpoint,
                replica=self._replica,
                kind="hedge" if attempt.is_hedge else "live",
                outcome=outcome,
                started=attempt.started,
                now=now,
                number=attempt.number,
                request_id=self._completion.request_id,
                decision_id=attempt.decided.id,
                agent=route.agent,
                tenant=route.tenant,
                http_status=status,
                error=error,
                ttft_s=None if first is None else first - attempt.started,
                generation_s=None if first is None else max(0.0, now - first - attempt.reader_s),
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
            )
        )

    def ended(self, status: str, served_by: Attempt | None = None, usage: Usage = NOT_COUNTED) -> None:
        """The request has ended: "ok", or with the reason of its error."""
        now, completion = self._now(), self._completion
        served = served_by.endpoint if served_by is not None else None
        first = served_by.first_byte_at if served_by is not None else None
        self._record(
            RequestRecord(
                replica=self._replica,
                time=now,
                request_id=completion.request_id,
                edge=completion.edge,
                method=completion.method,
                model=completion.route.model,
                agent=completion.route.agent,
                tenant=completion.route.tenant,
                session_id=completion.session_id,
                endpoint=served.id if served else "",
                provider=served.provider if served else "",
                region=served.region if served else "",
                status=status,
                attempts=len(self._reports),
                failed_over=has_failed_over(self._reports),
                ttft_ms=None if first is None else (first - self._started) * 1e3,
                latency_ms=(now - self._started) * 1e3,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cost_usd=usage.cost_usd(served) if served else None,
            )
        )

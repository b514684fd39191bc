"""The books of one request: every attempt and the request itself, as records for the history, as reports for its
caller, and as an entry for the ledger.

A request has used what its attempts have that are paid for: the one that answered, those that were called off, and
those that broke when part of their answer had gone out. A failure before that is taken to cost nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from analytics.records import RequestRecord
from routing.model import Endpoint
from routing.outcomes import Outcome
from service.completion import Completion, Report, has_failed_over
from service.errors import AttemptReport
from service.history import AttemptSink, attempt_record, cost_usd
from service.pace import Pace
from service.providers.transport import Timeouts
from service.router import Decided

Enter = Callable[[Completion, Report, str], None]
"""Takes what a request has used and how it ended, "ok" or the reason, into the ledger. May not raise."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens, None where the provider did not count them."""

    input_tokens: int | None = None
    output_tokens: int | None = None

    def cost_usd(self, endpoint: Endpoint) -> float | None:
        """Return the price at that endpoint."""
        return cost_usd(endpoint, self.input_tokens, self.output_tokens)


NOT_COUNTED = Usage()


@dataclass(slots=True)
class Attempt:
    """One call in flight.

    Attributes:
        prompt_tokens: an estimate of what was sent.
        hedge_after_s: how long it may go without a first byte before a second one starts beside it; None for never.
        is_hedge: it is that second one.
        reader_s: how long a stream had to wait for its reader.
        pace: of a stream of which part has gone out.
        counted: what its provider has said of tokens so far.
    """

    number: int
    decided: Decided
    endpoint: Endpoint
    id: str
    started: float
    timeouts: Timeouts
    prompt_tokens: int
    hedge_after_s: float | None = None
    is_hedge: bool = False
    first_byte_at: float | None = None
    reader_s: float = 0.0
    pace: Pace | None = None
    counted: Usage = NOT_COUNTED

    @property
    def used(self) -> Usage:
        """What it has used by now, estimated where its provider has not counted."""
        counted = self.counted
        if counted.input_tokens is not None and counted.output_tokens is not None:
            return counted
        sent = self.pace.output_tokens if self.pace is not None else 0
        return Usage(self.prompt_tokens if counted.input_tokens is None else counted.input_tokens, sent)


class Trail:
    """See the module's docstring. `record` takes history records and may not raise. What is booked has the time of its
    observation.
    """

    def __init__(self, completion: Completion, record: AttemptSink, enter: Enter, started: float, replica: str) -> None:
        self._completion = completion
        self._record = record
        self._enter = enter
        self._replica = replica
        self._started = started
        self._reports: list[AttemptReport] = []
        self._paid: list[tuple[Endpoint, Usage]] = []

    def __len__(self) -> int:
        return len(self._reports)

    @property
    def reports(self) -> tuple[AttemptReport, ...]:
        """The attempts that have ended, in the order they were made."""
        return tuple(sorted(self._reports, key=lambda report: report.number))

    @property
    def used(self) -> Usage:
        """What the attempts have used that have ended."""
        if not self._paid:
            return NOT_COUNTED
        output = [usage.output_tokens for _, usage in self._paid if usage.output_tokens is not None]
        return Usage(sum(usage.input_tokens or 0 for _, usage in self._paid), sum(output) if output else None)

    def attempted(
        self,
        attempt: Attempt,
        outcome: Outcome,
        now: float,
        *,
        heard: str = "",
        status: int | None = None,
        error: str = "",
        usage: Usage = NOT_COUNTED,
    ) -> None:
        """An attempt has ended, and used that. `heard` is what its endpoint's health took it for, if not for its
        outcome.
        """
        endpoint, route = attempt.endpoint, self._completion.route
        if usage.input_tokens is not None:
            self._paid.append((endpoint, usage))
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
                usage.input_tokens,
                usage.output_tokens,
                usage.cost_usd(endpoint),
                usage not in (NOT_COUNTED, attempt.counted),
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
                streamed=self._completion.stream,
                heard=heard,
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

    def served(self, attempt: Attempt, usage: Usage, dropped_messages: int, now: float) -> Report:
        """The request has been answered by this attempt, which used that. Return what it took in all."""
        is_counted = usage.input_tokens is not None
        report = self._report(attempt.endpoint, self.used if is_counted else NOT_COUNTED, dropped_messages, now)
        self._ended("ok", report, attempt, now)
        self._enter(self._completion, report, "ok")
        return report

    def unserved(self, status: str, now: float) -> None:
        """The request has ended without a whole answer, for the reason of its error."""
        if not self._paid:
            self._ended(status, None, None, now)
            return
        report = self._report(self._paid[-1][0], self.used, 0, now)
        self._ended(status, report, None, now)
        self._enter(self._completion, report, status)

    def _report(self, endpoint: Endpoint, used: Usage, dropped_messages: int, now: float) -> Report:
        costs = [usage.cost_usd(paid) or 0.0 for paid, usage in self._paid]
        return Report(
            self._completion.request_id,
            endpoint,
            self.reports,
            used.input_tokens,
            used.output_tokens,
            sum(costs) if used.input_tokens is not None else None,
            self._completion.session_id,
            now,
            dropped_messages,
        )

    def _ended(self, status: str, report: Report | None, served_by: Attempt | None, now: float) -> None:
        completion = self._completion
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
                input_tokens=report.input_tokens if report is not None else None,
                output_tokens=report.output_tokens if report is not None else None,
                cost_usd=report.cost_usd if report is not None else None,
            )
        )

"""The record of a request that no endpoint was asked for: turned away, or answered from what was kept."""

from analytics.records import RequestRecord
from service.completion import Completion


def unserved_record(completion: Completion, replica: str, status: str, started: float, now: float) -> RequestRecord:
    """Return the record of a request that ended at `now` with that status, without an attempt."""
    return RequestRecord(
        replica=replica,
        time=now,
        request_id=completion.request_id,
        edge=completion.edge,
        method=completion.method,
        model=completion.route.model,
        agent=completion.route.agent,
        tenant=completion.route.tenant,
        session_id=completion.session_id,
        endpoint="",
        provider="",
        region="",
        status=status,
        attempts=0,
        failed_over=False,
        ttft_ms=None,
        latency_ms=(now - started) * 1e3,
        input_tokens=None,
        output_tokens=None,
        cost_usd=None,
    )

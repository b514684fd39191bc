"""Records of history with sensible defaults, for tests that care about a few fields only."""

from collections.abc import Iterable
from pathlib import Path

import duckdb

from analytics.records import AttemptRecord, HealthRecord, Record, RequestRecord, TransitionRecord, UsageRecord
from analytics.segments import SegmentWriter
from analytics.store import connect

T0 = 1_750_000_000.25


def request(
    *,
    time: float = T0,
    endpoint: str = "a",
    status: str = "ok",
    failed_over: bool = False,
    ttft_ms: float | None = 12.5,
    latency_ms: float = 80.0,
    cost_usd: float | None = None,
) -> RequestRecord:
    """A request served by `endpoint`, with a text and a number that are hard to store."""
    return RequestRecord(
        replica="r1", time=time, request_id="ü'\x00𝄞", edge="grpc", method="complete", model="m", agent="", tenant="t",
        session_id="", endpoint=endpoint, provider=endpoint, region="eu", status=status, attempts=1 + failed_over,
        failed_over=failed_over, ttft_ms=ttft_ms, latency_ms=latency_ms, input_tokens=2**40, output_tokens=None,
        cost_usd=cost_usd,
    )  # fmt: skip


def attempt(
    *, time: float, endpoint: str = "a", outcome: str = "ok", kind: str = "live", ttft_ms: float | None = 100.0
) -> AttemptRecord:
    """An attempt whose outcome became known at `time`."""
    ok = outcome == "ok"
    return AttemptRecord(
        replica="r1", time=time, started=time - 0.2, request_id="q", decision_id="d", number=1, kind=kind,
        endpoint=endpoint, provider=endpoint, region="eu", zone="eu-1", model="m", agent="", tenant="t",
        outcome=outcome, http_status=200 if ok else None, error="" if ok else outcome,
        ttft_ms=ttft_ms if ok else None, latency_ms=200.0, input_tokens=None, output_tokens=None, cost_usd=None,
    )  # fmt: skip


def health(
    features: tuple[float, ...] = (),
    *,
    time: float = T0,
    endpoint: str = "a",
    risk: float | None = None,
    state: str = "active",
    feature_set: str = "v1",
) -> HealthRecord:
    """A health sample; it has a forecaster if it has a risk."""
    return HealthRecord(
        replica="r1", time=time, endpoint=endpoint, provider=endpoint, region="eu", model="m", state=state,
        admission=1.0, score=0.9, risk=risk, forecaster="" if risk is None else "f1", feature_set=feature_set,
        features=features,
    )  # fmt: skip


def transition(*, time: float, to_state: str, endpoint: str = "a", event: str = "breach") -> TransitionRecord:
    """A change of state at `time`."""
    return TransitionRecord(
        replica="r1", time=time, endpoint=endpoint, provider=endpoint, region="eu", model="m", from_state="x",
        to_state=to_state, event=event, metric="failure_rate", value=0.5, threshold=0.3, actor="reflex", note="",
        snapshot_version=int(time),
    )  # fmt: skip


def usage(*, time: float, tenant: str = "t", cost_usd: float | None = 0.25) -> UsageRecord:
    """An entry of the ledger, for a request of 5 tokens in and 7 out."""
    return UsageRecord(
        replica="r1", time=time, entry_id=f"{tenant}-{time}", request_id="q", edge="grpc", operation="chat", model="m",
        agent="", tenant=tenant, session_id="", endpoint="a", provider="a", region="eu", attempts=1, input_tokens=5,
        output_tokens=7, input_usd_per_mtok=1.0, output_usd_per_mtok=2.0, cost_usd=cost_usd,
    )  # fmt: skip


def history(root: Path, records: Iterable[Record]) -> duckdb.DuckDBPyConnection:
    """A connection to a history of these records."""
    by_stream: dict[str, list[Record]] = {}
    for record in records:
        by_stream.setdefault(record.stream, []).append(record)
    writer = SegmentWriter(root, "r1", 1)
    for stream, rows in by_stream.items():
        writer.write(stream, rows)
    return connect(root)

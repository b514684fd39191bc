"""What history is made of: streams of flat records.

Rule of this file: it is the only definition of a column. The Parquet files, the DuckDB views and the checks of
foreign files are all derived from these annotations: `Annotated[python type, DuckDB type, meaning]`. Times are unix
seconds (UTC) in a record and `TIMESTAMP` in a file. `None` becomes NULL and is allowed only where the annotation says
so.

Columns are only ever added, and the sum of what there is has a number, the layout. A column of a later layout than the
first says `Since(layout)` and has a default: that is what rows have that were written before it.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

__all__ = [
    "FAILURE_OUTCOMES",
    "FIRST_LAYOUT",
    "LAYOUT",
    "OUTRUN",
    "RECORD_TYPES",
    "SCORING_SUFFIX",
    "AttemptRecord",
    "Column",
    "DecisionRecord",
    "DomainRecord",
    "HealthRecord",
    "ModelEventRecord",
    "OperationRecord",
    "Record",
    "RequestRecord",
    "Since",
    "ThresholdRecord",
    "TransitionRecord",
    "UsageRecord",
    "columns_of",
]

# Outcomes by which an endpoint has failed its caller. A cancelled attempt or a caller's own error says nothing about
# the endpoint, and refused credentials are ours to mend: those three count neither as success nor as failure.
FAILURE_OUTCOMES = (
    "server_error", "timeout", "connect_error", "stalled", "truncated", "malformed", "empty", "refused_format",
    "rate_limited",
)  # fmt: skip

_Text = Annotated[str, "VARCHAR"]
_Count = Annotated[int, "BIGINT"]
_Real = Annotated[float, "DOUBLE"]
_Time = Annotated[float, "TIMESTAMP"]
_OptFlag = Annotated[bool | None, "BOOLEAN"]
_OptCount = Annotated[int | None, "BIGINT"]
_OptReal = Annotated[float | None, "DOUBLE"]


FIRST_LAYOUT = 1
# The scoring process of a replica writes under its replica's name with this.
SCORING_SUFFIX = "-scoring"
# What health hears of an attempt that another one answered before: nothing bad, and a latency of at least so long.
OUTRUN = "outrun"


@dataclass(frozen=True, slots=True)
class Since:
    """Marks a column that came with a later layout than the first."""

    layout: int


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a stream, in file order. Files of layouts before `since` lack it, and read as if their rows had
    `default`.
    """

    name: str
    duckdb_type: str
    nullable: bool
    meaning: str
    since: int = FIRST_LAYOUT
    default: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request as its caller saw it, written when it finished."""

    stream: ClassVar[str] = "requests"

    replica: Annotated[_Text, "serving process that wrote the row"]
    time: Annotated[_Time, "when the request finished"]
    request_id: Annotated[_Text, "joins requests, attempts and decisions"]
    edge: Annotated[_Text, "grpc or http"]
    method: Annotated[_Text, "complete, stream, embed, route, or replay of an answer kept under an idempotency key"]
    model: Annotated[_Text, "canonical model asked for"]
    agent: Annotated[_Text, "caller group"]
    tenant: Annotated[_Text, "who pays and is limited"]
    session_id: Annotated[_Text, "conversation, empty if none"]
    endpoint: Annotated[_Text, "endpoint that served it, empty if none did"]
    provider: Annotated[_Text, "provider of that endpoint"]
    region: Annotated[_Text, "region of that endpoint"]
    status: Annotated[_Text, "ok, or the stable reason of the error"]
    attempts: Annotated[_Count, "attempts made"]
    failed_over: Annotated[bool, "BOOLEAN", "served by, or refused after, more than one endpoint"]
    ttft_ms: Annotated[_OptReal, "time to first token, milliseconds"]
    latency_ms: Annotated[_Real, "whole request, milliseconds"]
    input_tokens: Annotated[_OptCount, "tokens in"]
    output_tokens: Annotated[_OptCount, "tokens out"]
    cost_usd: Annotated[_OptReal, "price of the served attempt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One call to one endpoint, written when its outcome became known."""

    stream: ClassVar[str] = "attempts"

    replica: Annotated[_Text, "serving process that wrote the row"]
    time: Annotated[_Time, "when the outcome became known"]
    started: Annotated[_Time, "when the attempt began"]
    request_id: Annotated[_Text, "request it belongs to, empty for a probe"]
    decision_id: Annotated[_Text, "decision that chose the endpoint"]
    number: Annotated[_Count, "1 for the first attempt of its request"]
    kind: Annotated[_Text, "live, hedge, probe or advised"]
    endpoint: Annotated[_Text, "endpoint called"]
    provider: Annotated[_Text, "its provider"]
    region: Annotated[_Text, "its region"]
    zone: Annotated[_Text, "its zone"]
    model: Annotated[_Text, "canonical model"]
    agent: Annotated[_Text, "caller group"]
    tenant: Annotated[_Text, "who pays and is limited"]
    outcome: Annotated[_Text, "ok, rate_limited, server_error, timeout, ... (one class per attempt)"]
    http_status: Annotated[_OptCount, "status of the provider's answer"]
    error: Annotated[_Text, "detail, empty if none"]
    ttft_ms: Annotated[_OptReal, "time to first token, milliseconds"]
    latency_ms: Annotated[_Real, "start to outcome, milliseconds"]
    input_tokens: Annotated[_OptCount, "tokens in"]
    output_tokens: Annotated[_OptCount, "tokens out"]
    cost_usd: Annotated[_OptReal, "price of this attempt"]
    generation_ms: Annotated[_OptReal, "first token to the end without the caller's pauses, milliseconds", Since(3)] = (
        None
    )
    streamed: Annotated[_OptFlag, "asked for as a stream; NULL where it was not recorded", Since(4)] = None
    heard: Annotated[_Text, "outcome its endpoint's health took it for, or outrun; empty: its outcome", Since(4)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """One routing decision with everything needed to explain and to replay it."""

    stream: ClassVar[str] = "decisions"

    replica: Annotated[_Text, "serving process that wrote the row"]
    time: Annotated[_Time, "when it was taken"]
    decision_id: Annotated[_Text, "names the decision"]
    request_id: Annotated[_Text, "request it was taken for"]
    number: Annotated[_Count, "1 for the first decision of its request"]
    snapshot_version: Annotated[_Count, "snapshot it was taken on"]
    model: Annotated[_Text, "canonical model"]
    agent: Annotated[_Text, "caller group"]
    tenant: Annotated[_Text, "who pays and is limited"]
    objective: Annotated[_Text, "what was optimised"]
    chosen: Annotated[_Text, "endpoint chosen, empty if none"]
    draw: Annotated[_Real, "random number used, in [0, 1)"]
    propensity: Annotated[_Real, "probability with which the chosen endpoint was chosen, in [0, 1]"]
    candidates: Annotated[_Text, "JSON array: endpoint, state, score, admission, contributions, exclusion reason"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRecord:
    """One endpoint at one tick: its health, and the features and forecast that were really used."""

    stream: ClassVar[str] = "health"

    replica: Annotated[_Text, "process that wrote the row"]
    time: Annotated[_Time, "the tick"]
    endpoint: Annotated[_Text, "endpoint"]
    provider: Annotated[_Text, "its provider"]
    region: Annotated[_Text, "its region"]
    model: Annotated[_Text, "canonical model"]
    state: Annotated[_Text, "state of the health machine"]
    admission: Annotated[_Real, "share of its normal traffic it may take, in [0, 1]"]
    score: Annotated[_Real, "live health score, in [0, 1]"]
    risk: Annotated[_OptReal, "forecast probability of degradation within the horizon; NULL without a forecast"]
    forecaster: Annotated[_Text, "version of the forecaster, empty if none"]
    feature_set: Annotated[_Text, "version of the feature set"]
    features: Annotated[tuple[float, ...], "DOUBLE[]", "the features in the order of that feature set"]
    shadow: Annotated[_Text, "version of the forecaster watched without being acted on, empty if none", Since(2)] = ""
    shadow_risk: Annotated[_OptReal, "its forecast; NULL without one", Since(2)] = None
    alarm: Annotated[_Text, "what the alarm in force may do: act, canary, or empty without one", Since(2)] = ""
    propensity: Annotated[_OptReal, "probability with which that was drawn as it began; NULL without", Since(2)] = None
    explanation: Annotated[
        _Text, "JSON of an alarm's beginning: what raised the risk, how much; else empty", Since(2)
    ] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionRecord:
    """One change of an endpoint's state, with what crossed which threshold."""

    stream: ClassVar[str] = "transitions"

    replica: Annotated[_Text, "process that wrote the row"]
    time: Annotated[_Time, "when the state changed"]
    endpoint: Annotated[_Text, "endpoint"]
    provider: Annotated[_Text, "its provider"]
    region: Annotated[_Text, "its region"]
    model: Annotated[_Text, "canonical model"]
    from_state: Annotated[_Text, "state left"]
    to_state: Annotated[_Text, "state entered"]
    event: Annotated[_Text, "event of the health machine"]
    metric: Annotated[_Text, "metric that crossed its threshold"]
    value: Annotated[_Real, "value of the metric"]
    threshold: Annotated[_Real, "the threshold"]
    actor: Annotated[_Text, "reflex, forecast, operator or plan"]
    note: Annotated[_Text, "reason given, empty if none"]
    snapshot_version: Annotated[_Count, "snapshot that carried the change"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainRecord:
    """A failure domain that went down or came up again: one row for all the endpoints it took with it."""

    stream: ClassVar[str] = "domains"

    replica: Annotated[_Text, "process that wrote the row"]
    time: Annotated[_Time, "when it happened"]
    kind: Annotated[_Text, "zone, region, provider or location"]
    domain: Annotated[_Text, "name of the domain"]
    state: Annotated[_Text, "down or up"]
    endpoints: Annotated[_Text, "JSON array of the endpoints that were out because of it"]
    snapshot_version: Annotated[_Count, "snapshot that carried the change"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """Something an operator did by hand."""

    stream: ClassVar[str] = "operations"

    replica: Annotated[_Text, "process that wrote the row"]
    time: Annotated[_Time, "when it was done"]
    operation: Annotated[_Text, "drain, restore, switch or release"]
    model: Annotated[_Text, "canonical model"]
    endpoint: Annotated[_Text, "endpoint it is about, empty when a switch ends"]
    operator: Annotated[_Text, "who"]
    reason: Annotated[_Text, "why"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdRecord:
    """One replica began to work by other thresholds: a change came into force, or was taken back."""

    stream: ClassVar[str] = "thresholds"

    replica: Annotated[_Text, "process that wrote the row"]
    time: Annotated[_Time, "since when it works by them"]
    change: Annotated[_Text, "change in force, empty for the configuration alone"]
    before: Annotated[_Text, "change that was in force before, empty for the configuration alone"]
    made_by: Annotated[_Text, "who proposed it: tuner or operator"]
    applied_by: Annotated[_Text, "who applied it"]
    moved: Annotated[_Text, "JSON object: threshold to its values before and after"]
    figures: Annotated[_Text, "JSON object: figures before and after, on the same replayed hours"]
    evidence: Annotated[_Text, "JSON object: what the figures rest on, with the bound on false failovers"]
    ignored: Annotated[_Text, "JSON array: thresholds whose configuration was edited since, and counts"]
    note: Annotated[_Text, "what spoke against it, empty if nothing did"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEventRecord:
    """One step in the life of a forecaster: registered, watched, promoted, doubted, rolled back."""

    stream: ClassVar[str] = "model_events"

    replica: Annotated[_Text, "process that wrote the row"]
    time: Annotated[_Time, "when it happened"]
    event: Annotated[_Text, "registered, kept, shadowed, promoted, drift, rolled_back, floored, ..."]
    version: Annotated[_Text, "forecaster it is about"]
    other: Annotated[_Text, "forecaster it was compared with or that took its place, empty if none"]
    metric: Annotated[_Text, "figure that decided, empty if none"]
    value: Annotated[_OptReal, "value of the figure"]
    threshold: Annotated[_OptReal, "limit of the figure"]
    actor: Annotated[_Text, "retrain, monitor or operator"]
    note: Annotated[_Text, "the reason in words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One entry of the usage ledger: what a request used and the price that was applied, exactly once."""

    stream: ClassVar[str] = "usage"

    replica: Annotated[_Text, "serving process that served it"]
    time: Annotated[_Time, "when it was served"]
    entry_id: Annotated[_Text, "unique"]
    request_id: Annotated[_Text, "joins requests, attempts and decisions"]
    edge: Annotated[_Text, "grpc or http"]
    operation: Annotated[_Text, "chat, embeddings, ..."]
    model: Annotated[_Text, "canonical model"]
    agent: Annotated[_Text, "caller group"]
    tenant: Annotated[_Text, "who pays"]
    session_id: Annotated[_Text, "conversation, empty if none"]
    endpoint: Annotated[_Text, "endpoint that served it, or the last that is paid for"]
    provider: Annotated[_Text, "its provider"]
    region: Annotated[_Text, "its region"]
    attempts: Annotated[_Count, "attempts made"]
    input_tokens: Annotated[_OptCount, "tokens in, of all attempts that are paid for"]
    output_tokens: Annotated[_OptCount, "tokens out, of all attempts that are paid for"]
    input_usd_per_mtok: Annotated[_Real, "price applied, USD per million tokens in"]
    output_usd_per_mtok: Annotated[_Real, "price applied, USD per million tokens out"]
    cost_usd: Annotated[_OptReal, "what it cost, all attempts together; NULL when the provider did not count tokens"]
    status: Annotated[_Text, "ok, or why it was not served whole: CANCELLED, an error's reason", Since(4)] = "ok"


Record = (
    RequestRecord
    | AttemptRecord
    | DecisionRecord
    | HealthRecord
    | TransitionRecord
    | DomainRecord
    | ModelEventRecord
    | ThresholdRecord
    | OperationRecord
    | UsageRecord
)

RECORD_TYPES: Mapping[str, type[Record]] = types.MappingProxyType({kind.stream: kind for kind in get_args(Record)})


def _column(field: Field[Any], annotation: Any) -> Column:
    python_type, duckdb_type, meaning, *since = get_args(annotation)
    nullable = get_origin(python_type) in (Union, types.UnionType) and type(None) in get_args(python_type)
    if not since:
        return Column(field.name, duckdb_type, nullable, meaning)
    if field.default is MISSING:
        raise TypeError(f"column {field.name!r} of layout {since[0].layout}: expected a default for rows before it")
    return Column(field.name, duckdb_type, nullable, meaning, since[0].layout, field.default)


def _columns(kind: type[Record]) -> tuple[Column, ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple(_column(field, hints[field.name]) for field in fields(kind))


_COLUMNS = {stream: _columns(kind) for stream, kind in RECORD_TYPES.items()}

LAYOUT = max(column.since for columns in _COLUMNS.values() for column in columns)


def columns_of(stream: str) -> tuple[Column, ...]:
    """The columns of a stream, in file order. Raises `KeyError` for a name that is no stream."""
    return _COLUMNS[stream]

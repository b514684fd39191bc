"""Every error a caller can see, in one tree, and the one table from errors to gRPC and HTTP status.

ServiceError
├── UnauthenticatedError     no API key, or nobody's
├── TenantLimitError         the tenant has used up what it may ask for; says which limit
├── BudgetExhaustedError     the tenant has spent what it may spend; says when the budget renews
├── OverloadedError          more is asked than can be served now; nothing was sent to a provider
├── InvalidRequestError      the request itself is wrong; names each field
│   └── UnsupportedError     no provider's protocol that may serve it can say what it asks; names the field
├── NotFoundError            an unknown model (lists the known ones), decision or endpoint
├── ContextTooLongError      no endpoint's context window can take it
├── NoEndpointError          no endpoint may serve it now; lists why
├── AttemptsExhaustedError   every attempt failed; lists the attempts
├── RateLimitedError         every endpoint that may serve it is rate limited
├── RequestTimeoutError      the deadline passed
├── KeyReusedError           an idempotency key came with another request before
├── NotRepeatedError         the request under this idempotency key may have been executed, and its result is not known
├── StateUnavailableError    what was promised to be remembered cannot be read or written now
├── UpstreamRejectedError    a provider refused the request as the caller's fault; its status and body pass through
└── StreamBrokenError        a stream broke after its first event
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import msgspec

from routing.outcomes import Outcome
from service.providers.base import NO_HEADERS


class AttemptReport(msgspec.Struct, frozen=True):
    """What one attempt came to, as callers see it. Times in seconds. A `hedge` was made beside another attempt.

    Tokens and cost are what its provider is paid for, None for nothing, or nobody knows. `estimated` tells that they
    were not all counted by the provider, for the attempt was cut off.
    """

    number: int
    decision_id: str
    endpoint_id: str
    provider: str
    region: str
    outcome: Outcome
    http_status: int | None
    error: str
    latency_s: float
    hedge: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field of a request: its path, and what was expected."""

    field: str
    description: str


class ServiceError(Exception):
    """Base of all errors a caller can see. `retry_after_s` is set when waiting helps."""

    reason = "INTERNAL"

    def __init__(
        self, message: str, *, attempts: Sequence[AttemptReport] = (), retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.attempts = tuple(attempts)
        self.retry_after_s = retry_after_s


class UnauthenticatedError(ServiceError):
    """A request without an API key, or with one that is nobody's."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class TenantLimitError(ServiceError):
    """The tenant has used up what it may ask for. `headers` tell how its limits stand. Without `retry_after_s`, waiting
    does not help.
    """

    def __init__(
        self, reason: str, message: str, *, retry_after_s: float | None, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        self.reason = reason
        self.headers = headers
        super().__init__(message, retry_after_s=retry_after_s)


class BudgetExhaustedError(ServiceError):
    """The tenant has spent what it may spend; `retry_after_s` is when its budget renews."""

    reason = "TENANT_BUDGET_EXHAUSTED"


class OverloadedError(ServiceError):
    """More is asked than can be served now, and this request was not to wait. Nothing was sent to a provider."""

    def __init__(self, reason: str, message: str, *, retry_after_s: float) -> None:
        self.reason = reason
        super().__init__(message, retry_after_s=retry_after_s)


class InvalidRequestError(ServiceError):
    """The request itself is wrong."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, *violations: Violation) -> None:
        self.violations = violations
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))


class UnsupportedError(InvalidRequestError):
    """What the request asks cannot be said in the protocol of any provider that may serve it; `attempts` were not
    sent.
    """

    reason = "UNSUPPORTED"

    def __init__(self, violation: Violation, *, attempts: Sequence[AttemptReport]) -> None:
        super().__init__(violation)
        self.attempts = tuple(attempts)


class NotFoundError(ServiceError):
    """Something the request names does not exist."""

    def __init__(self, reason: str, message: str, known: Sequence[str] = ()) -> None:
        self.reason = reason
        self.known = tuple(known)
        super().__init__(message)


class ContextTooLongError(ServiceError):
    """No endpoint's context window can take the request."""

    reason = "CONTEXT_TOO_LONG"


class NoEndpointError(ServiceError):
    """No endpoint may serve the request now."""

    reason = "NO_ENDPOINT"


class AttemptsExhaustedError(ServiceError):
    """Every attempt failed."""

    reason = "ATTEMPTS_EXHAUSTED"


class RateLimitedError(ServiceError):
    """Every endpoint that may serve the request is rate limited by its provider."""

    reason = "RATE_LIMITED"


class RequestTimeoutError(ServiceError):
    """The deadline passed before an answer."""

    reason = "DEADLINE_EXCEEDED"


class KeyReusedError(ServiceError):
    """An idempotency key came with another request before."""

    reason = "IDEMPOTENCY_KEY_REUSED"


class NotRepeatedError(ServiceError):
    """The request under this idempotency key may have been executed, and its result is not known: it is not executed
    again.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class StateUnavailableError(ServiceError):
    """What was promised to be remembered cannot be read or written now."""

    reason = "STATE_UNAVAILABLE"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=1.0)


class UpstreamRejectedError(ServiceError):
    """A provider refused the request as the caller's fault; another would too."""

    reason = "UPSTREAM_REJECTED"

    def __init__(
        self,
        status: int,
        body: bytes | None,
        headers: Mapping[str, str],
        message: str,
        *,
        attempts: Sequence[AttemptReport],
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        super().__init__(message, attempts=attempts)


class StreamBrokenError(ServiceError):
    """A stream broke after its first event: what was sent stands, the rest is missing."""

    reason = "STREAM_BROKEN"


@dataclass(frozen=True, slots=True)
class StatusRow:
    """How one error looks on both edges. `openai_type` is the `error.type` of the OpenAI wire format."""

    grpc: grpc.StatusCode
    http: int
    openai_type: str


STATUS: dict[type[ServiceError], StatusRow] = {
    UnauthenticatedError: StatusRow(grpc.StatusCode.UNAUTHENTICATED, 401, "invalid_request_error"),
    TenantLimitError: StatusRow(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_error"),
    BudgetExhaustedError: StatusRow(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "insufficient_quota"),
    OverloadedError: StatusRow(grpc.StatusCode.UNAVAILABLE, 503, "overloaded_error"),
    InvalidRequestError: StatusRow(grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error"),
    UnsupportedError: StatusRow(grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error"),
    NotFoundError: StatusRow(grpc.StatusCode.NOT_FOUND, 404, "invalid_request_error"),
    ContextTooLongError: StatusRow(grpc.StatusCode.FAILED_PRECONDITION, 400, "invalid_request_error"),
    NoEndpointError: StatusRow(grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable"),
    AttemptsExhaustedError: StatusRow(grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable"),
    RateLimitedError: StatusRow(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_error"),
    RequestTimeoutError: StatusRow(grpc.StatusCode.DEADLINE_EXCEEDED, 504, "timeout"),
    KeyReusedError: StatusRow(grpc.StatusCode.FAILED_PRECONDITION, 422, "idempotency_error"),
    NotRepeatedError: StatusRow(grpc.StatusCode.FAILED_PRECONDITION, 409, "idempotency_error"),
    StateUnavailableError: StatusRow(grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable"),
    UpstreamRejectedError: StatusRow(grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error"),
    StreamBrokenError: StatusRow(grpc.StatusCode.UNAVAILABLE, 502, "stream_broken"),
    ServiceError: StatusRow(grpc.StatusCode.INTERNAL, 500, "internal_error"),
}

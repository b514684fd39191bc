"""What a caller is told when a request cannot be served: which error, and with which words."""

from collections.abc import Sequence

from routing.filters import already_tried, beyond_context, lacks_capability
from routing.outcomes import Outcome
from routing.pipeline import Decision
from service.errors import (
    AttemptReport,
    AttemptsExhaustedError,
    ContextTooLongError,
    InvalidRequestError,
    NoEndpointError,
    RateLimitedError,
    RequestTimeoutError,
    ServiceError,
    StreamBrokenError,
    UnsupportedError,
    UpstreamRejectedError,
    Violation,
)
from service.providers.base import Failure

RETRY_AFTER_S = 1.0


def refusal(decision: Decision) -> ServiceError:
    """Return the error for a first decision that found no endpoint."""
    reasons = "; ".join(f"{c.candidate.facts.endpoint.id}: {c.exclusion}" for c in decision.considered)
    excluders = {c.excluded_by for c in decision.considered} - {already_tried.__name__}
    message = f"no endpoint of {decision.request.model!r} may serve the request: {reasons}"
    if decision.retry_after_s is not None:
        return RateLimitedError(message, retry_after_s=decision.retry_after_s)
    if beyond_context.__name__ in excluders:
        return ContextTooLongError(message)
    if excluders == {lacks_capability.__name__}:
        return InvalidRequestError(Violation("model", message))
    return NoEndpointError(message, retry_after_s=RETRY_AFTER_S)


def unsupported(decision: Decision, unfit: Sequence[Failure], attempts: Sequence[AttemptReport]) -> ServiceError:
    """Return the error for a request that was sent nowhere: some protocols cannot say it, and `decision` found nobody
    else. Who may serve it later, if there is one, counts for more than who never can.
    """
    excluders = {c.excluded_by for c in decision.considered}
    if excluders <= {already_tried.__name__, lacks_capability.__name__}:
        field = unfit[-1].unsupported or "model"
        return UnsupportedError(Violation(field, unfit[-1].error.removeprefix(f"{field}: ")), attempts=attempts)
    error = refusal(decision)
    error.attempts = tuple(attempts)
    return error


def nobody_left(decision: Decision) -> str:
    """Return why a request that was tried cannot be tried elsewhere: what keeps each of the others from serving it."""
    reasons = [
        f"{considered.candidate.facts.endpoint.id}: {considered.exclusion}"
        for considered in decision.considered
        if considered.exclusion and considered.excluded_by != already_tried.__name__
    ]
    return "; ".join(["no other endpoint is left", *reasons])


def given_up(
    why: str, failure: Failure, model: str, attempts: Sequence[AttemptReport], *, is_late: bool
) -> ServiceError:
    """Return the error for a request whose last attempt failed so; `why` it is not tried again, `is_late` tells that
    the deadline has passed.
    """
    if failure.outcome is Outcome.CLIENT_ERROR:
        return UpstreamRejectedError(
            failure.status or 400, failure.body, failure.headers, failure.error, attempts=attempts
        )
    if is_late:
        what = f"{failure.outcome.value}: {failure.error}"
        return RequestTimeoutError(f"the deadline has passed; last attempt {what}", attempts=attempts)
    return exhausted(why, failure, model, attempts)


def exhausted(why: str, failure: Failure, model: str, attempts: Sequence[AttemptReport]) -> ServiceError:
    """Return the error for a request that no further endpoint may be tried for."""
    listed = ", ".join(f"{a.endpoint_id} {a.outcome.value}" for a in attempts)
    sent = [a for a in attempts if a.outcome is not Outcome.UNSUPPORTED]
    kind = RateLimitedError if all(a.outcome is Outcome.RATE_LIMITED for a in sent) else AttemptsExhaustedError
    return kind(
        f"no endpoint of {model!r} could serve the request ({why}); attempts: {listed}",
        attempts=attempts,
        retry_after_s=failure.retry_after_s or RETRY_AFTER_S,
    )


def broken(failure: Failure, attempts: Sequence[AttemptReport], why: str = "") -> ServiceError:
    """Return the error for a stream that ends after its caller has seen part of it; `why` it could not go on elsewhere,
    if that was tried.
    """
    what = f"the stream broke ({failure.outcome.value}: {failure.error})"
    said = f"{what}; it could not be continued: {why}" if why else what
    return StreamBrokenError(said, attempts=attempts, retry_after_s=RETRY_AFTER_S)

"""How one attempt ended, and what that says about its endpoint.

Every attempt ends in exactly one `Outcome`. What follows from it is a table, so that a failure can never improve a
score and a rate limit can never look like an outage.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum


class Outcome(StrEnum):
    """The end of one attempt, of low cardinality; detail belongs in the attempt's error text.

    STALLED stopped sending, TRUNCATED ended before the answer was complete, MALFORMED cannot be parsed. EMPTY is a
    whole answer with neither content nor a tool call, REFUSED_FORMAT one that should have been JSON and is none of it.
    UNSUPPORTED was never sent: the provider's protocol cannot say what was asked.
    """

    OK = "ok"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECT_ERROR = "connect_error"
    STALLED = "stalled"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    EMPTY = "empty"
    REFUSED_FORMAT = "refused_format"
    AUTH_ERROR = "auth_error"
    CLIENT_ERROR = "client_error"
    UNSUPPORTED = "unsupported"
    CANCELLED = "cancelled"


class Signal(Enum):
    """Which of an endpoint's signals an outcome feeds. QUALITY: it answered, but not with what can be used."""

    SUCCESS = "success"
    FAILURE = "failure"
    QUALITY = "quality"
    QUOTA = "quota"
    CREDENTIAL = "credential"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Traits:
    """What follows from an outcome.

    `retry_elsewhere`: another endpoint may well succeed. `hard`: the endpoint cannot be reached at all, one
    observation suffices. `may_have_executed`: the provider may have processed the request, so one that must not run
    twice is not repeated. `hinges_on_request`: some requests end so wherever they are sent. `failed` follows from the
    signal: the caller got no usable answer by the endpoint's fault.
    """

    signal: Signal
    retry_elsewhere: bool
    hard: bool = False
    may_have_executed: bool = False
    hinges_on_request: bool = False
    failed: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "failed", self.signal in (Signal.FAILURE, Signal.QUALITY))


TRAITS: dict[Outcome, Traits] = {
    Outcome.OK: Traits(Signal.SUCCESS, retry_elsewhere=False, may_have_executed=True),
    Outcome.RATE_LIMITED: Traits(Signal.QUOTA, retry_elsewhere=True),
    Outcome.SERVER_ERROR: Traits(Signal.FAILURE, retry_elsewhere=True, may_have_executed=True),
    Outcome.TIMEOUT: Traits(Signal.FAILURE, retry_elsewhere=True, may_have_executed=True),
    Outcome.CONNECT_ERROR: Traits(Signal.FAILURE, retry_elsewhere=True, hard=True),
    Outcome.STALLED: Traits(Signal.FAILURE, retry_elsewhere=True, may_have_executed=True),
    Outcome.TRUNCATED: Traits(Signal.QUALITY, retry_elsewhere=True, may_have_executed=True),
    Outcome.MALFORMED: Traits(Signal.QUALITY, retry_elsewhere=True, may_have_executed=True),
    Outcome.EMPTY: Traits(Signal.QUALITY, retry_elsewhere=True, may_have_executed=True, hinges_on_request=True),
    Outcome.REFUSED_FORMAT: Traits(
        Signal.QUALITY, retry_elsewhere=True, may_have_executed=True, hinges_on_request=True
    ),
    Outcome.AUTH_ERROR: Traits(Signal.CREDENTIAL, retry_elsewhere=True),
    Outcome.CLIENT_ERROR: Traits(Signal.NOTHING, retry_elsewhere=False),
    Outcome.UNSUPPORTED: Traits(Signal.NOTHING, retry_elsewhere=True),
    Outcome.CANCELLED: Traits(Signal.NOTHING, retry_elsewhere=False, may_have_executed=True),
}

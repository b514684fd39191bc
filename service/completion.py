"""A request as the edges hand it in, and what comes back: a whole reply, or the items of a stream.

The rule of this file: values alone. Whoever serves, records or replays a request speaks of it in these words. They are
structs rather than dataclasses, as is what else a request makes several of: a frozen one costs a fifth to make.
"""

from collections.abc import Mapping, Sequence

import msgspec

from routing.model import Endpoint, RouteRequest
from routing.outcomes import Outcome
from service.config import Truncation
from service.errors import AttemptReport
from service.providers.base import NO_HEADERS, Operation, Reply


class Completion(msgspec.Struct, frozen=True):
    """A request as both edges hand it in.

    Attributes:
        fields: the JSON body by top-level field, each value as it was written.
        messages: of a chat, each as it was written.
        route: with what the body asks for.
        idempotent: it may run twice.
        may_hedge: its caller said so in so many words, and so agreed to pay for a hedge.
        continues: its caller wants a stream of plain text that breaks to be continued elsewhere.
        timeout_s: how long the caller waits at most; None for as long as it takes.
    """

    operation: Operation
    fields: Mapping[str, msgspec.Raw]
    route: RouteRequest
    request_id: str
    edge: str
    stream: bool = False
    idempotent: bool = True
    timeout_s: float | None = None
    session_id: str = ""
    headers: Mapping[str, str] = NO_HEADERS
    query: str = ""
    idempotency_key: str = ""
    truncation: Truncation | None = None
    may_hedge: bool = False
    continues: bool = False
    messages: Sequence[msgspec.Raw] = ()

    @property
    def method(self) -> str:
        """What was asked for, as the records name it."""
        if self.stream:
            return "stream"
        return "embed" if self.operation is Operation.EMBEDDINGS else "complete"


class Report(msgspec.Struct, frozen=True):
    """What serving a request took. `cost_usd` is None when the provider did not count tokens. `dropped_messages` had to
    go for the endpoint's context window. `replayed` tells that this is the answer to an earlier request with the same
    idempotency key, whose report this is.
    """

    request_id: str
    endpoint: Endpoint
    attempts: tuple[AttemptReport, ...]
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    session_id: str
    time: float
    dropped_messages: int = 0
    replayed: bool = False

    @property
    def failed_over(self) -> bool:
        """More than one endpoint was tried, one after the other."""
        return has_failed_over(self.attempts)


class Served(msgspec.Struct, frozen=True):
    """A whole reply and what it took."""

    reply: Reply
    report: Report


class Begun(msgspec.Struct, frozen=True):
    """A stream begins: who serves it, at which attempt, and the headers of the provider's answer that matter.
    `dropped_messages` and `replayed` are those of the report to come.
    """

    endpoint: Endpoint
    number: int
    decision_id: str
    headers: Mapping[str, str]
    dropped_messages: int = 0
    replayed: bool = False


class Continued(msgspec.Struct, frozen=True):
    """A stream broke off, and goes on from another endpoint, at that attempt: what follows continues the text."""

    endpoint: Endpoint
    number: int
    decision_id: str


def has_failed_over(attempts: Sequence[AttemptReport]) -> bool:
    """Tell whether more than one endpoint was tried, one after the other: a hedge beside the first is no failover, and
    what could not be sent no attempt.
    """
    return sum(not attempt.hedge and attempt.outcome is not Outcome.UNSUPPORTED for attempt in attempts) > 1

"""A request joined with its session: what is sent to whichever endpoint serves it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from routing.model import Endpoint
from service.completion import Completion
from service.continuation import can_be_continued, continued_fields, continued_messages
from service.providers.base import Call, Operation
from service.sessions import Session
from service.truncation import fitted
from service.wire import encode_array


@dataclass(slots=True)
class Turn:
    """The conversation to send, and the session to add the answer to. `cut` allows dropping the oldest turns where a
    context window is too small for them all. `said` is what the caller has of an answer that broke off.
    """

    completion: Completion
    session: Session | None
    new: Sequence[msgspec.Raw]
    conversation: Sequence[msgspec.Raw] = ()
    cut: bool = False
    said: str = ""
    _dropped: dict[str, int] = field(default_factory=dict)

    @property
    def can_be_continued(self) -> bool:
        """The caller wants a stream that breaks to go on elsewhere, and that is possible."""
        completion = self.completion
        return completion.continues and completion.operation is Operation.CHAT and can_be_continued(completion.fields)

    def after(self, said: str) -> "Turn":
        """Return the turn that asks for the rest of the answer, of which the caller has `said`."""
        return replace(self, said=said, _dropped={})

    def dropped(self, endpoint: Endpoint) -> int:
        """Return how many messages had to go for the call to `endpoint`."""
        return self._dropped.get(endpoint.id, 0)

    def call(self, endpoint: Endpoint) -> Call:
        """Return the call as `endpoint` can take it."""
        completion, window = self.completion, endpoint.context_window_tokens
        fields = completion.fields
        if self.cut and window is not None:
            kept = fitted(self.conversation, window, fields)
            if len(kept) < len(self.conversation):
                self._dropped[endpoint.id] = len(self.conversation) - len(kept)
                fields = {**fields, "messages": encode_array(kept)}
        else:
            kept = list(self.conversation)
        if self.said:
            fields = continued_fields(fields, continued_messages(kept, self.said), self.said)
        return Call(
            operation=completion.operation,
            fields=fields,
            stream=completion.stream,
            headers=completion.headers,
            query=completion.query,
            request_id=completion.request_id,
        )

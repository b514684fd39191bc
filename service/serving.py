"""What serves requests, whatever stands around it: the completer itself, the ledger, the gate of idempotency keys."""

from collections.abc import AsyncGenerator
from typing import Protocol

from service.completion import Begun, Completion, Continued, Report, Served
from service.providers.base import Chunk

Event = Begun | Continued | Chunk | Report


class Serving(Protocol):
    """Serves requests for an edge, or for whoever stands between."""

    async def complete(self, completion: Completion) -> Served:
        """Serve a request whole. Raises ServiceError."""

    def stream(self, completion: Completion) -> AsyncGenerator[Event, None]:
        """Serve a request as events; the first tells who serves, the last is the report. Raises ServiceError, also in
        the middle.
        """

"""Streams as OpenAI clients read them: one way to write the events of each API.

The rule of this file: what a provider sent goes out as it came. A stream that breaks ends with an event that says so,
and never with the one that means it is whole.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from service.providers.base import Chunk, Operation


class EventWriter(Protocol):
    """Writes the events of one stream."""

    ending: bytes
    """What follows the last chunk of a whole stream."""

    def chunk(self, chunk: Chunk) -> bytes:
        """Return a provider's event."""
        ...

    def error(self, body: Mapping[str, Any]) -> bytes:
        """Return the event that ends a broken stream; `body` is the error as a response would have it."""
        ...


class _ChatEvents:
    """Unnamed events, and [DONE]."""

    ending = b"data: [DONE]\n\n"

    def chunk(self, chunk: Chunk) -> bytes:
        return _event(chunk)

    def error(self, body: Mapping[str, Any]) -> bytes:
        return b"data: " + msgspec.json.encode(body) + b"\n\n"


class _ResponseEvents:
    """Events of a name; the last of a whole stream holds the response itself."""

    ending = b""

    def __init__(self) -> None:
        self._written = 0

    def chunk(self, chunk: Chunk) -> bytes:
        self._written += 1
        return _event(chunk)

    def error(self, body: Mapping[str, Any]) -> bytes:
        said = body["error"]
        told = {name: said[name] for name in ("code", "message", "param")} | {"sequence_number": self._written}
        # The whole object beside it: SDKs raise for an event that has one, whatever its type.
        return b"event: error\ndata: " + msgspec.json.encode({"type": "error", **told, **body}) + b"\n\n"


def event_writer(operation: Operation) -> EventWriter:
    """Return the writer for a new stream."""
    return _ResponseEvents() if operation is Operation.RESPONSES else _ChatEvents()


def _event(chunk: Chunk) -> bytes:
    # An event of several lines has `data:` before each.
    data = chunk.data if b"\n" not in chunk.data else chunk.data.replace(b"\n", b"\ndata: ")
    if chunk.event:
        return b"event: " + chunk.event + b"\ndata: " + data + b"\n\n"
    return b"data: " + data + b"\n\n"

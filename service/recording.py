"""What was answered under an idempotency key, as it is kept and given again: status and body, or a stream item by item.

Rule of this file: a recording is read only by the version that wrote it or one that knows its items and their fields;
anything else is an error with a name, never half an answer.
"""

from dataclasses import dataclass, field
from typing import get_args

import msgspec

from service.completion import Served
from service.errors import (
    AttemptReport,
    AttemptsExhaustedError,
    RateLimitedError,
    RequestTimeoutError,
    ServiceError,
    StreamBrokenError,
)
from service.serving import Event

Item = Served | Event

_KINDS = {kind.__name__: kind for kind in get_args(Item)}
# How a request may end after a provider may have executed it.
_ERRORS = {
    kind.reason: kind for kind in (AttemptsExhaustedError, RateLimitedError, RequestTimeoutError, StreamBrokenError)
}
_ENCODER = msgspec.msgpack.Encoder(enc_hook=dict)  # headers may be read-only views


class RecordingError(Exception):
    """These bytes are no recording of this version."""


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    message: str
    attempts: tuple[AttemptReport, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    items: list[tuple[str, msgspec.Raw]]
    failure: _Failure | None


@dataclass(slots=True)
class Recording:
    """An answer: its items in their order, and the error it ended with, if it failed."""

    items: list[Item] = field(default_factory=list)
    error: ServiceError | None = None

    def encode(self) -> bytes:
        """Return the recording as bytes. Of an error it keeps what a caller is told, but no time to wait."""
        items = [(type(item).__name__, msgspec.Raw(_ENCODER.encode(item))) for item in self.items]
        error = self.error
        return _ENCODER.encode(_Kept(items, _Failure(error.reason, error.message, error.attempts) if error else None))

    @classmethod
    def decode(cls, data: bytes) -> "Recording":
        """Return what was encoded. Raises RecordingError."""
        try:
            kept = msgspec.msgpack.decode(data, type=_Kept)
            items = [msgspec.msgpack.decode(item, type=_KINDS[kind]) for kind, item in kept.items]
        except (msgspec.DecodeError, KeyError) as error:
            raise RecordingError(f"{type(error).__name__}: {error}") from error
        return cls(items, _error(kept.failure) if kept.failure else None)


def _error(failure: _Failure) -> ServiceError:
    kind = _ERRORS.get(failure.reason, ServiceError)
    return kind(failure.message, attempts=failure.attempts)

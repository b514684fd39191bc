"""What was answered under an idempotency key, as it is kept and given again: status and body, or a stream in chunks.

Rule of this file: a recording is read only by the version that wrote it or one that knows its fields; anything else is
an error with a name, never half an answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from service.completion import Begun, Report, Served
from service.errors import STATUS, AttemptReport, ServiceError
from service.providers.base import Chunk
from service.serving import Event

_ERRORS = {kind.reason: kind for kind in STATUS}
_ENCODER = msgspec.msgpack.Encoder(enc_hook=dict)  # headers may be read-only views


class RecordingError(Exception):
    """These bytes are no recording of this version."""


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    message: str
    attempts: tuple[AttemptReport, ...]


@dataclass(slots=True)
class Recording:
    """An answer: `served` whole, or `begun`, `chunks` and `report` of a stream; a failed one ends with `failure`."""

    served: Served | None = None
    begun: Begun | None = None
    chunks: list[Chunk] = field(default_factory=list)
    report: Report | None = None
    failure: _Failure | None = None

    def add(self, item: Served | Event) -> None:
        """Take the next item of an answer."""
        match item:
            case Served():
                self.served = item
            case Begun():
                self.begun = item
            case Chunk():
                self.chunks.append(item)
            case Report():
                self.report = item

    def fail(self, error: ServiceError) -> None:
        """The answer ends with an error."""
        self.failure = _Failure(error.reason, error.message, error.attempts)

    def items(self) -> Sequence[Served | Event]:
        """Return the items in their order."""
        parts = (self.served, self.begun, *self.chunks, self.report)
        return [part for part in parts if part is not None]

    def error(self) -> ServiceError | None:
        """Return the error at the end, if there was one. Waiting does not help, so it names no time to wait."""
        if self.failure is None:
            return None
        kind = _ERRORS.get(self.failure.reason, ServiceError)
        return kind(self.failure.message, attempts=self.failure.attempts)

    def encode(self) -> bytes:
        """Return the recording as bytes."""
        return _ENCODER.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Recording":
        """Return what was encoded. Raises RecordingError."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise RecordingError(str(error)) from error

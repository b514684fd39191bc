"""What the serving and the scoring process say to each other: length-prefixed msgpack frames over pipes.

Sans-I/O: `encode` gives bytes, `FrameDecoder.feed` takes them. The serving process's clock rules; the scoring process
has none of its own.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Literal

import msgspec

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH_BYTES = 4


class ProtocolError(Exception):
    """The other process sent something that is no frame; says what."""


class ObservationKind(IntEnum):
    """What happened to an attempt."""

    STARTED = 0
    FIRST_BYTE = 1
    FINISHED = 2


class Observation(msgspec.Struct, array_like=True, frozen=True):
    """One observation. `endpoint` is an index into the endpoints of Hello; the last five fields belong to FINISHED.

    Times and latencies in seconds, as in `routing.window.Window.finished`; `outcome` is the text of
    `routing.outcomes.Outcome`.
    """

    kind: ObservationKind
    endpoint: int
    attempt_id: str
    time: float
    outcome: str = ""
    ttft_s: float | None = None
    reply_s: float | None = None
    output_tokens: int = 0
    generation_s: float = 0.0


class EndpointInfo(msgspec.Struct, array_like=True, frozen=True):
    """One endpoint of the catalogue."""

    id: str
    provider: str
    region: str
    zone: str
    model: str


class EndpointStatus(msgspec.Struct, array_like=True, frozen=True):
    """An endpoint's state, admission in [0, 1] and health score in [0, 1] in the serving process, for the health
    records.
    """

    id: str
    state: str
    admission: float
    score: float


class Hello(msgspec.Struct, tag="hello", frozen=True):
    """First frame to the scoring process: what it scores, where its data is, how often it ticks."""

    endpoints: list[EndpointInfo]
    data_dir: str
    replica: str
    tick_s: float
    scheduling: Literal["idle", "normal"]


class Batch(msgspec.Struct, tag="batch", frozen=True):
    """All observations since the last batch, in order, and the time up to which they are complete."""

    time: float
    observations: list[Observation]
    statuses: list[EndpointStatus]


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The scoring process works, with this forecaster ("" without one)."""

    forecaster: str
    threshold: float


class Forecast(msgspec.Struct, tag="forecast", frozen=True):
    """One tick: probability of degradation within the horizon per endpoint id. Without a usable model, `risks` is
    empty.
    """

    time: float
    forecaster: str
    threshold: float
    risks: dict[str, float]


class Note(msgspec.Struct, tag="note", frozen=True):
    """Something people should know; `level` is that of a log message."""

    level: Literal["info", "warning", "error"]
    text: str


Inbound = Hello | Batch
Outbound = Ready | Forecast | Note

_ENCODER = msgspec.msgpack.Encoder()
_INBOUND = msgspec.msgpack.Decoder(Inbound)
_OUTBOUND = msgspec.msgpack.Decoder(Outbound)


def encode(message: Inbound | Outbound) -> bytes:
    """Return the frame of a message. Raises ProtocolError when it is too large."""
    payload = _ENCODER.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(payload)} bytes, at most {MAX_FRAME_BYTES}")
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


def decode_inbound(payload: bytes) -> Inbound:
    """Return the message to the scoring process. Raises ProtocolError."""
    try:
        return _INBOUND.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message to the scoring process: {error}") from error


def decode_outbound(payload: bytes) -> Outbound:
    """Return the message from the scoring process. Raises ProtocolError."""
    try:
        return _OUTBOUND.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message from the scoring process: {error}") from error


class FrameDecoder:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes as they came and yield the payloads that are complete. Raises ProtocolError for an impossible
        length.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"frame of {length} bytes announced, at most {MAX_FRAME_BYTES}: not our protocol")
            if len(self._buffer) < _LENGTH_BYTES + length:
                return
            payload = bytes(self._buffer[_LENGTH_BYTES : _LENGTH_BYTES + length])
            del self._buffer[: _LENGTH_BYTES + length]
            yield payload

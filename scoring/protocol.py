"""What the serving process and the scoring process say to each other: msgpack in frames with a 4-byte length.

The rule of this file: it is sans-I/O. `FrameBuffer` turns bytes into frames on either side, whoever reads them; a frame
that cannot be right is a ProtocolError that says why.
"""

from typing import Annotated, Literal

import msgspec

from routing.outcomes import Outcome
from scoring.reasons import Contribution

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH_BYTES = 4

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class ProtocolError(Exception):
    """The other side sent something that is not this protocol."""


class EndpointInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An endpoint as the forecast needs it."""

    id: str
    provider: str
    region: str
    zone: str
    model: str


class Hello(msgspec.Struct, frozen=True, tag="hello", forbid_unknown_fields=True):
    """First frame inbound. `tick_s`: seconds between forecasts; observations name endpoints by their index here.

    History goes to `<data_dir>/history` as `<replica>-scoring`, models come from `<data_dir>/models`. `scheduling`
    "idle" gives way to every other process of the machine. History older than `retention_s` is deleted, none when None.
    `explore` is the share of alarms that may act on a canary share only; 0 while the receiver cannot tell them apart.
    """

    endpoints: list[EndpointInfo]
    data_dir: str
    replica: str
    tick_s: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0
    scheduling: Literal["idle", "normal"] = "idle"
    retention_s: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    explore: Share = 0.0


class Observation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One thing the serving process saw, at `time` on its clock. The fields from `outcome` on belong to "finished"
    and are those of `routing.window.Window.finished`; `streamed` belongs to "started".
    """

    kind: Literal["started", "first_byte", "finished"]
    endpoint: Count
    attempt_id: str
    time: Seconds
    outcome: Outcome | None = None
    ttft_s: Seconds | None = None
    reply_s: Seconds | None = None
    output_tokens: Count = 0
    generation_s: Seconds = 0.0
    streamed: bool = True


class EndpointStatus(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An endpoint's state, admission and health score (both shares) in the serving process, for the record."""

    id: str
    state: str
    admission: float
    score: float


class Batch(msgspec.Struct, frozen=True, tag="batch", forbid_unknown_fields=True):
    """Inbound, about every 100 ms: what was seen up to `time`. Statuses may be sent when they change only. `threshold`
    is the risk that is acted upon, when the policy sets it; the model's own when None.
    """

    time: Seconds
    observations: list[Observation] = []
    statuses: list[EndpointStatus] = []
    threshold: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)] | None = None


class Ready(msgspec.Struct, frozen=True, tag="ready", forbid_unknown_fields=True):
    """Outbound: the model in use from now on; an empty `forecaster` means none."""

    forecaster: str
    threshold: float


class AlarmNote(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An alarm in force: since when, what it may do ("act" or "canary"), the share of its usual traffic the endpoint
    should keep, and, in the forecast with which it began, what raised the risk.
    """

    since: float
    mode: Literal["act", "canary"]
    kept: Share
    why: tuple[Contribution, ...] = ()


class Forecast(msgspec.Struct, frozen=True, tag="forecast", forbid_unknown_fields=True):
    """Outbound, once per tick: risk by endpoint id, and the alarms in force. An endpoint with too little evidence, or
    unlike anything the model knows, is left out.
    """

    time: float
    forecaster: str
    threshold: float
    risks: dict[str, Share]
    alarms: dict[str, AlarmNote] = {}


class Note(msgspec.Struct, frozen=True, tag="note", forbid_unknown_fields=True):
    """Outbound: something an operator should know."""

    level: Literal["info", "warning", "error"]
    text: str


Inbound = Hello | Batch
Outbound = Ready | Forecast | Note

_encoder = msgspec.msgpack.Encoder()
_inbound: msgspec.msgpack.Decoder[Inbound] = msgspec.msgpack.Decoder(Inbound)
_outbound: msgspec.msgpack.Decoder[Outbound] = msgspec.msgpack.Decoder(Outbound)


def encode(message: Inbound | Outbound) -> bytes:
    """Return a whole frame. Raises ProtocolError for a message above MAX_FRAME_BYTES."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ProtocolError(f"{type(message).__name__} of {len(payload)} bytes: expected at most {MAX_FRAME_BYTES}")
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


def decode_inbound(payload: bytes) -> Inbound:
    """Read a frame's payload in the scoring process. Raises ProtocolError."""
    try:
        return _inbound.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a Hello or Batch: {error}") from error


def decode_outbound(payload: bytes) -> Outbound:
    """Read a frame's payload in the serving process. Raises ProtocolError."""
    try:
        return _outbound.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a Ready, Forecast or Note: {error}") from error


class FrameBuffer:
    """Gathers bytes until frames are whole."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes as they come, return the payloads that are complete now.

        Raises ProtocolError when a length exceeds MAX_FRAME_BYTES: the stream is lost then.
        """
        self._bytes += data
        payloads, at = [], 0
        while len(self._bytes) - at >= _LENGTH_BYTES:
            length = int.from_bytes(self._bytes[at : at + _LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"frame of {length} bytes: expected at most {MAX_FRAME_BYTES}")
            end = at + _LENGTH_BYTES + length
            if end > len(self._bytes):
                break
            payloads.append(bytes(self._bytes[at + _LENGTH_BYTES : end]))
            at = end
        del self._bytes[:at]
        return payloads

    @property
    def pending(self) -> int:
        """Bytes of a frame that has not arrived whole."""
        return len(self._bytes)

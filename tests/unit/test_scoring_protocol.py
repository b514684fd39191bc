import msgspec
import pytest

from routing.outcomes import Outcome
from scoring.protocol import (
    MAX_FRAME_BYTES,
    Batch,
    EndpointInfo,
    EndpointStatus,
    Forecast,
    FrameBuffer,
    Hello,
    Note,
    Observation,
    ProtocolError,
    Ready,
    decode_inbound,
    decode_outbound,
    encode,
)

HELLO = Hello([EndpointInfo("a", "p", "r", "z", "m")], "data", "one", 0.5, "normal")
BATCH = Batch(
    7.0,
    [
        Observation("started", 0, "x", 6.0),
        Observation("first_byte", 0, "x", 6.1),
        Observation("finished", 0, "x", 6.5, Outcome.OK, 0.1, None, 40, 0.4),
    ],
    [EndpointStatus("a", "active", 1.0, 0.9)],
)


@pytest.mark.parametrize("message", [HELLO, BATCH])
def test_inbound_messages_survive_the_wire(message: Hello | Batch) -> None:
    (payload,) = FrameBuffer().feed(encode(message))
    assert decode_inbound(payload) == message


@pytest.mark.parametrize(
    "message", [Ready("v1", 0.4), Forecast(1.0, "v1", 0.4, {"a": 0.25}), Note("warning", "something")]
)
def test_outbound_messages_survive_the_wire(message: Ready | Forecast | Note) -> None:
    (payload,) = FrameBuffer().feed(encode(message))
    assert decode_outbound(payload) == message


def test_frames_may_arrive_byte_by_byte_and_many_at_once() -> None:
    stream = encode(HELLO) + encode(BATCH)
    buffer = FrameBuffer()
    slowly = [payload for byte in stream for payload in buffer.feed(bytes([byte]))]
    assert buffer.pending == 0
    assert slowly == FrameBuffer().feed(stream)
    assert [decode_inbound(payload) for payload in slowly] == [HELLO, BATCH]


def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match=f"expected at most {MAX_FRAME_BYTES}"):
        FrameBuffer().feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ProtocolError, match="Note of"):
        encode(Note("info", "x" * (MAX_FRAME_BYTES + 1)))


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ProtocolError, match="not a Hello or Batch"):
        decode_inbound(b"\xc1")
    with pytest.raises(ProtocolError, match="tick_s"):
        decode_inbound(
            msgspec.msgpack.encode({"type": "hello", "endpoints": [], "data_dir": "", "replica": "", "tick_s": 0})
        )
    with pytest.raises(ProtocolError, match=r"risks"):
        decode_outbound(msgspec.msgpack.encode(Forecast(1.0, "v", 0.5, {"a": float("nan")})))


def test_an_observation_costs_few_bytes() -> None:
    assert len(encode(Batch(1e9, [Observation("started", 3, "a1b2c3d4", 1e9)] * 100))) < 100 * 45

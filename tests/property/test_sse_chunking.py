"""The rule of the SSE parser, for all streams: how the bytes are cut never changes the events."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.providers.sse import SseError, SseEvent, SseParser

LINES = st.one_of(
    st.sampled_from([b"", b":", b"data", b"data:", b"data: [DONE]", b"event: error", b"id: 7", b"\xef\xbb\xbf"]),
    st.text(max_size=12).map(lambda text: b"data: " + text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=12),
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=20).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


def _parse(pieces: list[bytes], limit: int = 2**20) -> list[SseEvent]:
    parser = SseParser(limit)
    return [event for piece in pieces for event in parser.feed(piece)]


def _cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(STREAMS, st.lists(st.integers(min_value=0, max_value=400), max_size=30))
def test_any_chunking_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    assert _parse(_cut(stream, cuts)) == _parse([stream])


@given(STREAMS, st.integers(min_value=0, max_value=24))
def test_byte_by_byte_meets_the_same_limit(stream: bytes, limit: int) -> None:
    def outcome(pieces: list[bytes]) -> list[SseEvent] | None:
        try:
            return _parse(pieces, limit)
        except SseError:
            return None

    assert outcome([bytes([byte]) for byte in stream]) == outcome([stream])


@given(st.lists(st.binary(max_size=30).filter(lambda data: not {10, 13} & set(data)), max_size=10))
def test_data_comes_back_byte_for_byte(payloads: list[bytes]) -> None:
    stream = b"".join(b"data: " + payload + b"\n\n" for payload in payloads)
    assert [event.data for event in _parse([stream])] == payloads


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail(stream: bytes) -> None:
    assert all(b"\r" not in event.data for event in _parse([stream]))

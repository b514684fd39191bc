"""The event-stream parser, case by case from the standard and from what providers send."""

import pytest

from service.providers.sse import SseError, SseEvent, SseParser


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [SseEvent(b"a")]),
        (b"data: a\r\n\r\n", [SseEvent(b"a")]),
        (b"data: a\r\r", [SseEvent(b"a")]),
        (b"data:a\n\n", [SseEvent(b"a")]),
        (b"data:  a \n\n", [SseEvent(b" a ")]),
        (b"\xef\xbb\xbfdata: a\n\n", [SseEvent(b"a")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [SseEvent(b"a")]),  # a BOM is one only at the start
        (b"data: a\ndata: b\ndata\n\n", [SseEvent(b"a\nb\n")]),
        (b"data\n\n", [SseEvent(b"")]),
        (b"\n\n\n", []),
        (b": keep-alive\n\n", []),
        (b": keep-alive\ndata: a\n: more\n\n", [SseEvent(b"a")]),
        (b"event: error\ndata: {}\n\ndata: {}\n\n", [SseEvent(b"{}", b"error"), SseEvent(b"{}")]),
        (b"event: ping\n\ndata: a\n\n", [SseEvent(b"a")]),  # without data no event, and its name is forgotten
        (b"id: 1\nretry: 5\nnonsense\ndata: a\n\n", [SseEvent(b"a")]),
        (b'data: {"a":"b: c"}\n\n', [SseEvent(b'{"a":"b: c"}')]),
        ("data: h\u2028é\n\n".encode(), [SseEvent("h\u2028é".encode())]),  # no line end of this format
        (b"data: a\x0b\x0c\x1c\x85b\n\n", [SseEvent(b"a\x0b\x0c\x1c\x85b")]),
        (b"data: unfinished", []),
        (b"data: unfinished\n", []),
    ],
)
def test_a_stream_gives_its_events(stream: bytes, events: list[SseEvent]) -> None:
    assert SseParser().feed(stream) == events


def test_an_event_is_given_as_soon_as_it_is_complete() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"\r") == [SseEvent(b"a")]  # not held back to see whether a line feed follows
    assert parser.feed(b"\ndata: b\n") == []
    assert parser.feed(b"\n") == [SseEvent(b"b")]


def test_a_piece_of_nothing_changes_nothing() -> None:
    parser = SseParser()
    assert [parser.feed(piece) for piece in (b"data: a\r", b"", b"\n", b"", b"\r\n")][-1] == [SseEvent(b"a")]


@pytest.mark.parametrize(
    "stream", [b"data: " + b"x" * 100, b"data: xxxx\n" * 20, b":" + b"x" * 100, b"event: xxxx\n" * 20, b"data\n" * 30]
)
def test_an_event_beyond_the_limit_is_refused_however_it_is_cut(stream: bytes) -> None:
    with pytest.raises(SseError, match="at most 64 bytes"):
        SseParser(64).feed(stream)
    parser = SseParser(64)
    with pytest.raises(SseError):
        _ = [parser.feed(bytes([byte])) for byte in stream]


def test_the_limit_is_one_events_and_not_the_streams() -> None:
    parser = SseParser(64)
    stream = (b": comment of some length\n" * 5 + b"data: " + b"x" * 50 + b"\n\n") * 10
    assert parser.feed(stream) == [SseEvent(b"x" * 50)] * 10

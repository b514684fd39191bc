"""One execution, many followers (F-04): each sees all of it in order, a slow one sets the pace only when it has to."""

import asyncio

import pytest

from service.errors import StreamBrokenError
from service.flight import Flight
from service.providers.base import Chunk
from service.recording import Item

CHUNKS = [Chunk(b"%d" % number * 300) for number in range(10)]


async def _all(flight: Flight) -> list[Item]:
    with flight.following() as follower:
        return [item async for item in flight.items(follower)]


async def _turns(count: int = 20) -> None:
    """Let every task that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_f04_everybody_sees_everything_whenever_they_came() -> None:
    flight = Flight(b"", 10**6)
    early = asyncio.create_task(_all(flight))
    for number, chunk in enumerate(CHUNKS):
        await flight.publish(chunk)
        await _turns(2)
        if number == 5:
            middle = asyncio.create_task(_all(flight))
    flight.end()
    assert await early == await middle == await _all(flight) == CHUNKS


async def test_f04_everybody_sees_the_error_after_what_was_sent() -> None:
    flight = Flight(b"", 10**6)
    await flight.publish(CHUNKS[0])
    flight.end(StreamBrokenError("broke"))
    for _ in range(2):
        with flight.following() as follower:
            items = flight.items(follower)
            assert await anext(items) == CHUNKS[0]
            with pytest.raises(StreamBrokenError):
                await anext(items)


async def test_f04_a_long_answer_waits_for_its_slowest_reader_and_is_not_held_whole() -> None:
    flight = Flight(b"", 2000)
    with flight.following() as follower:
        quick = asyncio.create_task(_all(flight))
        publishing = asyncio.create_task(_publish(flight))
        await _turns()
        assert not publishing.done(), "the slow reader has taken nothing"
        assert not flight.is_whole, "nobody can join any more"
        assert flight.held_bytes <= 2000 + 500
        assert [item async for item in flight.items(follower)] == CHUNKS
        await publishing
    assert await quick == CHUNKS


async def test_f04_a_slow_reader_who_leaves_holds_up_nobody() -> None:
    flight = Flight(b"", 2000)
    quick = asyncio.create_task(_all(flight))
    with flight.following() as follower:
        publishing = asyncio.create_task(_publish(flight))
        assert await anext(flight.items(follower)) == CHUNKS[0]
        await _turns()
        assert not publishing.done()
    await publishing
    assert await quick == CHUNKS


async def test_f04_an_answer_nobody_reads_is_let_go() -> None:
    flight = Flight(b"", 2000)
    async with asyncio.timeout(10):
        await _publish(flight)
    assert flight.held_bytes <= 2000


async def _publish(flight: Flight) -> None:
    for chunk in CHUNKS:
        await flight.publish(chunk)
    flight.end()

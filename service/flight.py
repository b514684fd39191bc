"""One execution that any number of callers follow, each from its beginning.

Rule of this file: a follower that leaves disturbs neither the execution nor the other followers. What has been
published is held for those who join later, up to `max_bytes`; a longer answer is held for the slowest follower only,
who then sets the pace, and nobody can join it any more.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from service.completion import Served
from service.errors import ServiceError
from service.providers.base import Chunk
from service.recording import Item

_ITEM_BYTES = 200  # of an item besides its JSON


class Follower:
    """Somebody who reads a flight, and how far."""

    __slots__ = ("position",)

    def __init__(self) -> None:
        self.position = 0


class Flight:
    """See the module's docstring. `fingerprint` tells which request is executed."""

    def __init__(self, fingerprint: bytes, max_bytes: int) -> None:
        self.fingerprint = fingerprint
        self.is_whole = True
        """Everything published is still held: callers may join."""
        self._max_bytes = max_bytes
        self._held: deque[Item] = deque()
        self.held_bytes = 0
        self._gone = 0
        self._followers: set[Follower] = set()
        self._ended = False
        self._error: ServiceError | None = None
        self._news = asyncio.Event()
        self._progress = asyncio.Event()

    async def publish(self, item: Item) -> None:
        """Hand an item to every follower; waits for the slowest once more than `max_bytes` are held."""
        self._held.append(item)
        self.held_bytes += _size_bytes(item)
        if self.held_bytes > self._max_bytes:
            self.is_whole = False
        self._tell()
        if not self.is_whole:
            self._trim()
            while self.held_bytes > self._max_bytes:
                self._progress.clear()
                await self._progress.wait()
                self._trim()

    def end(self, error: ServiceError | None = None) -> None:
        """There is no more; `error` is raised in every follower after the last item."""
        self._ended, self._error = True, error
        self._tell()

    @contextmanager
    def following(self) -> Iterator[Follower]:
        """Register a follower for the length of the block: from here on, nothing is let go before it has had it."""
        follower = Follower()
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            self._progress.set()

    async def items(self, follower: Follower) -> AsyncGenerator[Item, None]:
        """Yield every item from the first on. Raises the ServiceError the flight ended with."""
        while True:
            while follower.position < self._gone + len(self._held):
                item = self._held[follower.position - self._gone]
                follower.position += 1
                self._progress.set()
                yield item
            if self._ended:
                if self._error is not None:
                    raise self._error
                return
            await self._news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _trim(self) -> None:
        """Let go of what every follower has had."""
        needed = min((f.position for f in self._followers), default=self._gone + len(self._held))
        while self._gone < needed:
            self.held_bytes -= _size_bytes(self._held.popleft())
            self._gone += 1


def _size_bytes(item: Item) -> int:
    match item:
        case Served():
            return len(item.reply.body) + _ITEM_BYTES
        case Chunk():
            return len(item.data) + _ITEM_BYTES
        case _:
            return _ITEM_BYTES

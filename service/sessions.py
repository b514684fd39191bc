"""Conversations kept for callers who send a session id, so that whoever serves the next turn gets the complete
history (F-05).

A session belongs to one tenant. Turns of one session wait for each other: the history is a sequence. Messages stay
the JSON they came as. A turn is added only once it was answered: a failed request leaves the history as it was.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from service.clock import Clock
from service.config import Sessions
from service.errors import InvalidRequestError, Violation


@dataclass(slots=True)
class Session:
    """One conversation: its messages as JSON and their size, the endpoint that served it last, and when.

    `users` counts the requests that hold it or wait for its turn: it is not forgotten under them.
    """

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    messages: list[msgspec.Raw] = field(default_factory=list)
    size_bytes: int = 0
    endpoint_id: str = ""
    used_at: float = 0.0
    users: int = 0


class SessionStore:
    """Sessions in memory, bounded in age, number and size; the longest unused are forgotten first."""

    def __init__(self, limits: Sessions, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    @asynccontextmanager
    async def turn(self, tenant: str, session_id: str) -> AsyncIterator[Session]:
        """Hold a session, new if it is not known or has expired, for one turn of its conversation."""
        key, now = (tenant, session_id), self._clock.now()
        session = self._sessions.get(key)
        if session is None or (not session.users and self._expired(session, now)):
            self._make_room(now)
            session = self._sessions[key] = Session()
        self._sessions.move_to_end(key)
        session.used_at = now
        session.users += 1
        try:
            async with session.turn:
                yield session
        finally:
            session.users -= 1

    def _expired(self, session: Session, now: float) -> bool:
        return now - session.used_at > self._limits.ttl_s

    def _make_room(self, now: float) -> None:
        """Forget what has expired, and the longest unused while there are too many. Sessions in use go to the end."""
        for _ in range(len(self._sessions)):
            key, oldest = next(iter(self._sessions.items()))
            if oldest.users:
                self._sessions.move_to_end(key)
            elif self._expired(oldest, now) or len(self._sessions) >= self._limits.max_sessions:
                del self._sessions[key]
            else:
                return

    def joined(self, session: Session, new: Sequence[msgspec.Raw]) -> list[msgspec.Raw]:
        """Return the whole conversation with the new messages. Raises InvalidRequestError when it would be too
        large.
        """
        size_bytes = session.size_bytes + _size_bytes(new)
        if size_bytes > self._limits.max_bytes:
            expected = f"the conversation has {size_bytes} bytes, expected at most {self._limits.max_bytes}"
            raise InvalidRequestError(Violation("session_id", expected))
        return [*session.messages, *new]

    def answered(
        self, session: Session, new: Sequence[msgspec.Raw], answer: msgspec.Raw | None, endpoint_id: str
    ) -> None:
        """Add an answered turn."""
        turn = [*new, answer] if answer is not None else new
        session.messages += turn
        session.size_bytes += _size_bytes(turn)
        session.endpoint_id = endpoint_id
        session.used_at = self._clock.now()


def _size_bytes(messages: Sequence[msgspec.Raw]) -> int:
    return sum(len(bytes(message)) for message in messages)

"""Conversations kept for callers who send a session id, so that whoever serves the next turn gets the complete
history (F-05), also after a restart.

A session belongs to one tenant. Turns of one session wait for each other: the history is a sequence. Messages stay
the JSON they came as. A turn is added only once it was answered: a failed request leaves the history as it was. The
store has every session; those used last are in memory too.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from service.clock import Clock
from service.config import Sessions, Truncation
from service.errors import InvalidRequestError, StateUnavailableError, Violation
from service.store.conversations import Conversations, SessionKey
from service.store.errors import StoreError

log = logging.getLogger(__name__)

_MOST_ID_CHARACTERS = 255


@dataclass(slots=True)
class Session:
    """One conversation: its messages as JSON and their size, the endpoint that served it last, and when.

    `users` counts the requests that hold it or wait for its turn: it does not leave memory under them. The store has
    the first `stored` messages, as `stored_turns` turns.
    """

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    messages: list[msgspec.Raw] = field(default_factory=list)
    size_bytes: int = 0
    endpoint_id: str = ""
    used_at: float = 0.0
    users: int = 0
    loaded: bool = False
    stored: int = 0
    stored_turns: int = 0

    @property
    def is_stored(self) -> bool:
        """The store has all of it."""
        return self.stored == len(self.messages)


class SessionStore:
    """Sessions, bounded in age, number and size, in memory and on the disk; the longest unused go first."""

    def __init__(self, limits: Sessions, clock: Clock, conversations: Conversations) -> None:
        self._limits = limits
        self._clock = clock
        self._conversations = conversations
        self._sessions: OrderedDict[SessionKey, Session] = OrderedDict()
        self._cached_bytes = 0

    @property
    def truncation(self) -> Truncation:
        """What happens to conversations that exceed a context window, unless the request says otherwise."""
        return self._limits.truncation

    def __len__(self) -> int:
        """Return how many are in memory."""
        return len(self._sessions)

    @asynccontextmanager
    async def turn(self, tenant: str, session_id: str) -> AsyncIterator[Session]:
        """Hold a session, new if it is not known or has expired, for one turn of its conversation. What was answered is
        durable when the block is left.

        Raises InvalidRequestError for an id that cannot be one, and StateUnavailableError when the disk does not tell.
        """
        key, now = SessionKey(tenant, _checked(session_id)), self._clock.now()
        session = self._in_memory(key, now)
        session.used_at = now
        session.users += 1
        try:
            async with session.turn:
                await self._load(key, session, now)
                try:
                    yield session
                finally:
                    await self._store(key, session)
        finally:
            session.users -= 1
            self._make_room()

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
        # Raw messages are views of the body they came in, and would keep all of it.
        self._extend(session, [message.copy() for message in turn])
        session.endpoint_id = endpoint_id
        session.used_at = self._clock.now()

    def _in_memory(self, key: SessionKey, now: float) -> Session:
        session = self._sessions.get(key)
        if session is not None and not session.users and now - session.used_at > self._limits.ttl_s:
            self._forget(key)
            session = None
        if session is None:
            self._make_room(1)
            if self._is_full(1) and not all(s.is_stored for s in self._sessions.values()):
                raise StateUnavailableError("the disk refuses sessions, and memory has no room for another one")
            session = self._sessions[key] = Session()
        self._sessions.move_to_end(key)
        return session

    async def _load(self, key: SessionKey, session: Session, now: float) -> None:
        if session.loaded:
            return
        try:
            found = await self._conversations.load(key, now)
        except StoreError as error:
            # An answer without the conversation before it would be worse than none.
            raise StateUnavailableError(f"the session cannot be read: {error}") from error
        session.loaded = True
        if found is not None:
            self._extend(session, [message for turn in found.turns for message in turn])
            session.endpoint_id = found.endpoint_id
            session.stored, session.stored_turns = len(session.messages), len(found.turns)

    async def _store(self, key: SessionKey, session: Session) -> None:
        if session.is_stored:
            return
        try:
            if not await self._append(key, session):
                session.stored = session.stored_turns = 0
                await self._append(key, session)
        except StoreError as error:
            # It stays in memory, and its next turn tries again.
            log.warning("a session's turn could not be stored: %s", error)

    async def _append(self, key: SessionKey, session: Session) -> bool:
        until = len(session.messages)
        new = session.messages[session.stored :]
        added = await self._conversations.append(
            key, session.stored_turns, new, session.endpoint_id, session.used_at, session.size_bytes
        )
        if added:
            session.stored = until
            session.stored_turns += 1
        return added

    def _extend(self, session: Session, messages: Sequence[msgspec.Raw]) -> None:
        session.messages += messages
        size_bytes = _size_bytes(messages)
        session.size_bytes += size_bytes
        self._cached_bytes += size_bytes

    def _is_full(self, wanted: int = 0) -> bool:
        limits = self._limits
        return len(self._sessions) + wanted > limits.max_sessions or self._cached_bytes > limits.cache_bytes

    def _make_room(self, wanted: int = 0) -> None:
        """Let the longest unused leave memory while there are too many. What is in use or not stored stays."""
        for _ in range(len(self._sessions)):
            if not self._is_full(wanted):
                return
            key, oldest = next(iter(self._sessions.items()))
            if oldest.users or not oldest.is_stored:
                self._sessions.move_to_end(key)
            else:
                self._forget(key)

    def _forget(self, key: SessionKey) -> None:
        self._cached_bytes -= self._sessions.pop(key).size_bytes


def _checked(session_id: str) -> str:
    try:
        session_id.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(Violation("session_id", "expected text in UTF-8")) from None
    if len(session_id) > _MOST_ID_CHARACTERS:
        raise InvalidRequestError(Violation("session_id", f"expected at most {_MOST_ID_CHARACTERS} characters"))
    return session_id


def _size_bytes(messages: Sequence[msgspec.Raw]) -> int:
    return sum(len(bytes(message)) for message in messages)

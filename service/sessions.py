"""Conversations kept for callers who send a session id, so that whoever serves the next turn gets the complete
history (F-05).

A session belongs to one tenant. Turns of one session wait for each other: the history is a sequence. Messages stay
the JSON they came as. A turn is added only once it was answered: a failed request leaves the history as it was.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from service.clock import Clock
from service.config import Sessions
from service.errors import InvalidRequestError, Violation


@dataclass(slots=True)
class Session:
    """One conversation: its messages as JSON, the endpoint that served it last, and when."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    messages: list[msgspec.Raw] = field(default_factory=list)
    endpoint_id: str = ""
    used_at: float = 0.0

    @property
    def size_bytes(self) -> int:
        """Size of the messages as JSON."""
        return sum(len(bytes(message)) for message in self.messages)


class SessionStore:
    """Sessions in memory, bounded in age, number and size."""

    def __init__(self, limits: Sessions, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, tenant: str, session_id: str) -> Session:
        """Return the session, new if it is not known or has expired."""
        now = self._clock.now()
        self._forget(now)
        session = self._sessions.setdefault((tenant, session_id), Session())
        session.used_at = now
        self._sessions.move_to_end((tenant, session_id))
        return session

    def _forget(self, now: float) -> None:
        """Drop what is too old or too many; sessions in the middle of a turn stay."""
        for key, session in list(self._sessions.items()):
            expired = now - session.used_at > self._limits.ttl_s
            if not expired and len(self._sessions) < self._limits.max_sessions:
                return
            if not session.turn.locked():
                del self._sessions[key]

    def joined(self, session: Session, new: Sequence[msgspec.Raw]) -> list[msgspec.Raw]:
        """Return the whole conversation with the new messages. Raises InvalidRequestError when it would be too
        large.
        """
        size_bytes = session.size_bytes + sum(len(bytes(message)) for message in new)
        if size_bytes > self._limits.max_bytes:
            expected = f"the conversation has {size_bytes} bytes, expected at most {self._limits.max_bytes}"
            raise InvalidRequestError(Violation("session_id", expected))
        return [*session.messages, *new]

    def answered(
        self, session: Session, new: Sequence[msgspec.Raw], answer: msgspec.Raw | None, endpoint_id: str
    ) -> None:
        """Add an answered turn."""
        session.messages += new
        if answer is not None:
            session.messages.append(answer)
        session.endpoint_id = endpoint_id
        session.used_at = self._clock.now()

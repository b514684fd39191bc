"""Requests with an idempotency key: executed once, answered as often as asked (F-04).

Rule of this file: a key is marked durably before its request is sent, and the answer is durable before anybody has all
of it. So there are three kinds of duplicates. One that finds its request under way follows it from the beginning. One
that comes later gets the kept answer. One that finds a mark whose result nobody knows gets an error that says so, and
no second execution.

What became of the first request decides what stays under its key:

| first request                                                   | its key                                         |
|-----------------------------------------------------------------|-------------------------------------------------|
| answered                                                        | has the answer                                  |
| failed, and no provider can have executed it                    | is free again                                   |
| failed, may have been executed, repeating does no harm          | is free again                                   |
| failed, may have been executed, `idempotent` is false           | has the failure                                 |
| cut off by the end of the process, or by an error of our own    | keeps the mark: outcome unknown                 |

An execution goes on when all its callers have left: whoever sends a key means to come back for the answer.
"""

import asyncio
import dataclasses
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from msgspec.structs import replace

from routing.outcomes import TRAITS
from service.clock import Clock
from service.completion import Begun, Completion, Report, Served
from service.config import Idempotency
from service.errors import (
    InvalidRequestError,
    KeyReusedError,
    NotRepeatedError,
    ServiceError,
    StateUnavailableError,
    Violation,
)
from service.flight import Flight
from service.history import AttemptSink
from service.recording import Item, Recording, RecordingError
from service.serving import Event, Serving
from service.store.errors import StoreError
from service.store.results import Found, ResultKey, Results, State
from service.unserved import unserved_record

log = logging.getLogger(__name__)

_KEY = re.compile(r"[!-~]{1,255}")
_LONG = 500  # items, beyond which encoding them would hold up the event loop
_OF_THE_MOMENT = ("x-ratelimit-", "retry-after")
_REUSED = "idempotency key {!r} was used for another request before"


@dataclasses.dataclass(frozen=True, slots=True)
class _Claim:
    """What is known under a key: a kept answer, or nothing. `marked` tells that the key is marked on the disk."""

    kept: Recording | None
    marked: bool


class _Keyed:
    """A request with a key on its way. `executes` tells, once it is known, that it is being executed and not replayed
    or refused.
    """

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.executes: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None


class IdempotentServing:
    """Stands before `inner`; a request without a key passes through. `record` hears of every replay."""

    def __init__(
        self,
        inner: Serving,
        results: Results,
        limits: Idempotency,
        clock: Clock,
        record: AttemptSink,
        replica: str,
    ) -> None:
        self._inner = inner
        self._results = results
        self._limits = limits
        self._clock = clock
        self._record = record
        self._replica = replica
        self._under_way: dict[ResultKey, _Keyed] = {}

    async def complete(self, completion: Completion) -> Served:
        """See `Serving.complete`."""
        if not completion.idempotency_key:
            return await self._inner.complete(completion)
        items = [item async for item in self._answer(completion)]
        (served,) = [item for item in items if isinstance(item, Served)]
        return served

    def stream(self, completion: Completion) -> AsyncGenerator[Event, None]:
        """See `Serving.stream`."""
        return self._keyed_stream(completion) if completion.idempotency_key else self._inner.stream(completion)

    async def drain(self, timeout_s: float) -> None:
        """Let executions finish whose callers have left. Those that take longer are cut off and keep their mark."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while tasks := self._tasks():
                    await asyncio.wait(tasks)
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tasks(self) -> "list[asyncio.Task[None]]":
        return [keyed.task for keyed in self._under_way.values() if keyed.task is not None]

    async def _keyed_stream(self, completion: Completion) -> AsyncGenerator[Event, None]:
        async with aclosing(self._answer(completion)) as items:
            async for item in items:
                if not isinstance(item, Served):
                    yield item

    async def _answer(self, completion: Completion) -> AsyncGenerator[Item, None]:
        """Yield the answer to a request with a key, from wherever it comes."""
        started, status, replayed = self._clock.now(), "CANCELLED", False
        keyed, is_first = await self._board(completion)
        try:
            with keyed.flight.following() as follower:
                replayed = not (await asyncio.shield(keyed.executes) and is_first)
                async with aclosing(keyed.flight.items(follower)) as items:
                    async for item in items:
                        yield _as_replayed(item) if replayed else item
            status = "ok"
        except ServiceError as error:
            status = error.reason
            raise
        finally:
            if replayed:
                self._note(completion, status, started)

    async def _board(self, completion: Completion) -> tuple[_Keyed, bool]:
        """Return the request under way with this key, and whether it is this one. Raises ServiceError."""
        key = ResultKey(completion.route.tenant, _checked(completion.idempotency_key))
        fingerprint = _fingerprint(completion)
        while (keyed := self._under_way.get(key)) is not None:
            if keyed.flight.fingerprint == fingerprint:
                if not keyed.flight.is_whole:
                    raise _too_large(completion.idempotency_key)
                return keyed, False
            if await asyncio.shield(keyed.executes):
                raise KeyReusedError(_REUSED.format(completion.idempotency_key))
        keyed = self._under_way[key] = _Keyed(Flight(fingerprint, self._limits.max_result_bytes))
        # A task of its own: it goes on when its caller leaves.
        keyed.task = asyncio.get_running_loop().create_task(self._run(key, keyed, completion), name="keyed request")
        return keyed, True

    async def _run(self, key: ResultKey, keyed: _Keyed, completion: Completion) -> None:
        flight = keyed.flight
        error: ServiceError | None = ServiceError("the request was cut off")
        try:
            claim = await self._claim(key, completion, flight.fingerprint)
            if claim.kept is None:
                keyed.executes.set_result(True)
                await self._execute(key, flight, completion, marked=claim.marked)
                error = None
            else:
                self._leave(key, keyed)
                for item in claim.kept.items:
                    await flight.publish(item)
                error = claim.kept.error
        except ServiceError as raised:
            error = raised
        except Exception:
            log.exception("a request with an idempotency key broke; its key stays marked")
            error = ServiceError("internal error; the service's log has the details")
        finally:
            self._leave(key, keyed)
            flight.end(error)

    def _leave(self, key: ResultKey, keyed: _Keyed) -> None:
        """From here on nobody can join: the next one with this key asks the disk."""
        if self._under_way.get(key) is keyed:
            del self._under_way[key]
        if not keyed.executes.done():
            keyed.executes.set_result(False)

    async def _claim(self, key: ResultKey, completion: Completion, fingerprint: bytes) -> _Claim:
        """Mark the key, or return what is kept under it. Raises ServiceError."""
        try:
            found = await self._results.claim(key, fingerprint, completion.request_id, self._clock.now())
        except StoreError as error:
            if not completion.idempotent:
                raise StateUnavailableError(f"the idempotency key cannot be remembered: {error}") from error
            # Duplicates that are under way together still join; nothing of it survives this request.
            log.warning("an idempotency key is not remembered: %s", error)
            return _Claim(None, marked=False)
        return _Claim(_kept(found, key.key, fingerprint), marked=True) if found else _Claim(None, marked=True)

    async def _execute(self, key: ResultKey, flight: Flight, completion: Completion, *, marked: bool) -> None:
        recording = Recording()
        try:
            async with aclosing(self._execution(completion)) as items:
                async for item in items:
                    if flight.is_whole:
                        recording.items.append(item)
                    if marked and isinstance(item, Served | Report):
                        await self._keep(key, recording if flight.is_whole else None)
                    await flight.publish(item)
        except ServiceError as error:
            if marked and _may_be_repeated(completion, error):
                await self._release(key)
            elif marked:
                recording.error = error
                await self._keep(key, recording if flight.is_whole else None)
            raise

    async def _execution(self, completion: Completion) -> AsyncGenerator[Item, None]:
        if completion.stream:
            async with aclosing(self._inner.stream(completion)) as items:
                async for item in items:
                    yield item
        else:
            yield await self._inner.complete(completion)

    async def _keep(self, key: ResultKey, recording: Recording | None) -> None:
        body = None
        if recording is not None:
            is_long = len(recording.items) > _LONG
            body = await asyncio.to_thread(recording.encode) if is_long else recording.encode()
        if body is not None and len(body) > self._limits.max_result_bytes:
            body = None
        try:
            evicted = await self._results.keep(key, body, self._clock.now())
        except StoreError as error:
            log.warning("the result under an idempotency key is not kept; duplicates will be refused: %s", error)
        else:
            if evicted:
                log.warning("%d results were forgotten early: idempotency.max_total_bytes is reached", evicted)

    async def _release(self, key: ResultKey) -> None:
        try:
            await self._results.release(key)
        except StoreError as error:
            log.warning("an idempotency key stays marked; duplicates will be refused: %s", error)

    def _note(self, completion: Completion, status: str, started: float) -> None:
        record = unserved_record(completion, self._replica, status, started, self._clock.now())
        self._record(dataclasses.replace(record, method="replay"))


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise InvalidRequestError(Violation("idempotency_key", "expected 1 to 255 visible ASCII characters"))
    return key


def _fingerprint(completion: Completion) -> bytes:
    """Return a digest of what is asked: operation, body, query and session. Where it may be served is no part of it."""
    digest = hashlib.sha256()
    parts = [completion.operation.value.encode(), completion.session_id.encode(), completion.query.encode()]
    for name in sorted(completion.fields):
        parts += [name.encode(), bytes(completion.fields[name])]
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.digest()


def _kept(found: Found, key: str, fingerprint: bytes) -> Recording:
    """Return the kept answer. Raises KeyReusedError or NotRepeatedError when it is not for this request."""
    if found.fingerprint != fingerprint:
        raise KeyReusedError(_REUSED.format(key))
    if found.state is State.TOO_LARGE:
        raise _too_large(key)
    if found.body is None:
        message = (
            f"request {found.request_id!r} with idempotency key {key!r} was cut off and may have been executed; "
            "it is not executed again under this key"
        )
        raise NotRepeatedError("IDEMPOTENCY_OUTCOME_UNKNOWN", message)
    try:
        return Recording.decode(found.body)
    except RecordingError as error:
        message = f"the result under idempotency key {key!r} cannot be read by this version: {error}"
        raise NotRepeatedError("IDEMPOTENCY_OUTCOME_UNKNOWN", message) from error


def _too_large(key: str) -> NotRepeatedError:
    message = f"the request with idempotency key {key!r} was executed; its result is too large to be given again"
    return NotRepeatedError("IDEMPOTENCY_RESULT_TOO_LARGE", message)


def _may_be_repeated(completion: Completion, error: ServiceError) -> bool:
    """Tell whether another request with this key may be executed after this failure."""
    return completion.idempotent or not any(TRAITS[attempt.outcome].may_have_executed for attempt in error.attempts)


def _as_replayed(item: Item) -> Item:
    match item:
        case Served():
            reply = replace(item.reply, headers=_lasting(item.reply.headers))
            return replace(item, reply=reply, report=replace(item.report, replayed=True))
        case Begun():
            return replace(item, headers=_lasting(item.headers), replayed=True)
        case Report():
            return replace(item, replayed=True)
        case _:
            return item


def _lasting(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers without those that were true at their time only."""
    return {name: value for name, value in headers.items() if not name.startswith(_OF_THE_MOMENT)}

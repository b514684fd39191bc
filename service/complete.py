"""Serving requests: attempt after attempt until one answers, the deadline passes, or nobody is left.

A failover before the first emitted event is invisible. After it, the stream ends with StreamBrokenError: what was
sent stands, and nothing pretends to be the rest; unless the caller asked for a plain text to be continued elsewhere.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType

import msgspec

from routing.attempts import crawl_floor_tokens_per_s, usual_tokens_per_s
from routing.model import Endpoint
from routing.outcomes import Outcome
from service.completion import Begun, Completion, Continued, Report, Served
from service.config import Truncation
from service.continuation import plain_text, with_earlier
from service.history import AttemptSink
from service.opening import Opening, opened, overdue
from service.pace import Pace
from service.providers.base import Adapter, AttemptFailed, Chunk, Failure, Operation, Reply
from service.race import answered
from service.router import Router
from service.sessions import Session, SessionStore
from service.trail import Attempt, Enter, Usage
from service.truncation import least_tokens
from service.turn import Turn
from service.walk import Walk
from service.wire import (
    CHARACTERS_PER_TOKEN,
    AnswerBuilder,
    answer_message,
    encode_array,
    estimated_tokens,
    needs,
)

_OK = 200
_NO_OWN: Mapping[tuple[str, str], Adapter] = MappingProxyType({})


class Completer:
    """Serves requests for both edges. `adapters` are by provider name, `own_adapters` those with a tenant's own key by
    tenant and provider; `record` takes history records and `enter` what requests have used, and neither may raise.
    """

    def __init__(
        self,
        router: Router,
        adapters: Mapping[str, Adapter],
        sessions: SessionStore,
        record: AttemptSink,
        enter: Enter,
        replica: str,
        own_adapters: Mapping[tuple[str, str], Adapter] = _NO_OWN,
    ) -> None:
        self._router = router
        self._adapters = adapters
        self._own_adapters = own_adapters
        self._sessions = sessions
        self._record = record
        self._enter = enter
        self._replica = replica

    async def complete(self, completion: Completion) -> Served:
        """Serve a request whole. Raises ServiceError."""
        async with self._joined(completion) as turn:
            walk = Walk(self._router, self._record, self._enter, turn.completion, self._replica)
            attempt, reply = await answered(walk, lambda attempt: self._send(turn, attempt), _nothing_to_drop)
            attempt.counted = Usage(reply.input_tokens, reply.output_tokens)
            report = walk.succeeded(attempt, reply.status, turn.dropped(attempt.endpoint))
            if turn.session is not None:
                self._sessions.answered(turn.session, turn.new, answer_message(reply.body), attempt.endpoint.id)
            return Served(reply, report)

    async def _send(self, turn: Turn, attempt: Attempt) -> Reply:
        endpoint = attempt.endpoint
        try:
            # The transport watches connect, first byte and stalls; this bounds a reply that trickles.
            async with asyncio.timeout(attempt.timeouts.first_byte_s):
                adapter = self._adapter(turn, endpoint)
                return await adapter.send(turn.call(endpoint), endpoint, attempt.timeouts)
        except TimeoutError:
            raise AttemptFailed(overdue(attempt)) from None

    async def stream(self, completion: Completion) -> AsyncGenerator[Begun | Continued | Chunk | Report, None]:
        """Serve a request as events; the first item tells who serves, the last is the report. Raises ServiceError,
        also in the middle.
        """
        async with self._joined(completion) as joined:
            turn = joined
            walk = Walk(self._router, self._record, self._enter, turn.completion, self._replica)
            answer = AnswerBuilder() if turn.session is not None or turn.can_be_continued else None
            while True:
                attempt, opening = await answered(walk, self._opener(turn, walk), Opening.aclose)
                try:
                    async with aclosing(self._events(turn, walk, attempt, opening)) as events:
                        async for item in events:
                            if isinstance(item, Chunk):
                                if answer is not None:
                                    answer.add(item.data)
                                if item.input_tokens is not None:
                                    attempt.counted = Usage(item.input_tokens, item.output_tokens)
                                    item = with_earlier(item, walk.used) if turn.said else item  # noqa: PLW2901
                            yield item
                except AttemptFailed as failed:
                    said = plain_text(answer.message()) if answer is not None and turn.can_be_continued else ""
                    walk.failed(attempt, failed.failure, final=not said)
                    turn = turn.after(said)
                    continue
                except (asyncio.CancelledError, GeneratorExit):
                    walk.cancelled(attempt)
                    raise
                except Exception as error:
                    walk.crashed(error, attempt)
                    raise
                report = walk.succeeded(attempt, _OK, turn.dropped(attempt.endpoint))
                if turn.session is not None and answer is not None:
                    self._sessions.answered(turn.session, turn.new, answer.message(), attempt.endpoint.id)
                yield report
                return

    def _opener(self, turn: Turn, walk: Walk) -> Callable[[Attempt], Awaitable[Opening]]:
        async def start(attempt: Attempt) -> Opening:
            endpoint = attempt.endpoint
            attempt.prompt_tokens += len(turn.said) // CHARACTERS_PER_TOKEN
            opening = await opened(self._adapter(turn, endpoint), turn.call(endpoint), attempt)
            walk.first_byte(attempt)
            return opening

        return start

    def _adapter(self, turn: Turn, endpoint: Endpoint) -> Adapter:
        own = self._own_adapters and self._own_adapters.get((turn.completion.route.tenant, endpoint.provider))
        return own or self._adapters[endpoint.provider]

    async def _events(
        self, turn: Turn, walk: Walk, attempt: Attempt, opening: Opening
    ) -> AsyncGenerator[Begun | Continued | Chunk, None]:
        """Yield who serves, and what comes from there; raises AttemptFailed when it breaks, or crawls."""
        clock, endpoint, is_continued = self._router.clock, attempt.endpoint, bool(turn.said)
        floor, span_s = self._slowest(turn, attempt), 2 * attempt.timeouts.stall_s
        async with aclosing(opening.rest), aclosing(opening.chunks(is_continued=is_continued)) as chunks:
            walk.emitted()
            handed_over = clock.now()
            if is_continued:
                yield Continued(endpoint, attempt.number, attempt.decided.id)
            else:
                headers, dropped = opening.headers, turn.dropped(endpoint)
                yield Begun(endpoint, attempt.number, attempt.decided.id, headers, dropped)
            # What the caller takes to read is not the provider's slowness.
            attempt.reader_s += clock.now() - handed_over
            pace = attempt.pace = Pace(floor, span_s, handed_over)
            async for chunk in chunks:
                handed_over = clock.now()
                if chunk.has_content:
                    tokens_per_s = pace.arrived(len(chunk.data), handed_over - attempt.reader_s)
                    if tokens_per_s is not None:
                        raise AttemptFailed(_crawling(tokens_per_s, floor))
                yield chunk
                attempt.reader_s += clock.now() - handed_over

    def _slowest(self, turn: Turn, attempt: Attempt) -> float:
        engine = self._router.engine
        usual = usual_tokens_per_s(engine.window_of(attempt.endpoint.id), self._router.clock.now())
        return crawl_floor_tokens_per_s(engine.policy.attempts, usual, can_move=turn.can_be_continued)

    def _joined(self, completion: Completion) -> AbstractAsyncContextManager[Turn]:
        """Join a request with its session, if it has one, whose turn is held for the length of the block."""
        if completion.session_id and completion.operation is Operation.CHAT:
            return self._in_session(completion)
        return nullcontext(self._turn(completion, None, completion.messages))

    @asynccontextmanager
    async def _in_session(self, completion: Completion) -> AsyncIterator[Turn]:
        async with self._sessions.turn(completion.route.tenant, completion.session_id) as session:
            conversation = self._sessions.joined(session, completion.messages)
            fields = {**completion.fields, "messages": encode_array(conversation)}
            route = replace(
                completion.route,
                needs=needs(completion.operation, fields, stream=completion.stream),
                input_tokens=estimated_tokens(conversation),
                affine_endpoint=session.endpoint_id,
            )
            yield self._turn(msgspec.structs.replace(completion, fields=fields, route=route), session, conversation)

    def _turn(self, completion: Completion, session: Session | None, conversation: Sequence[msgspec.Raw]) -> Turn:
        """Return the turn, of which only what may not be dropped has to fit into a context window."""
        new = completion.messages
        if not conversation or not self._may_cut(completion):
            return Turn(completion, session, new, conversation)
        route = replace(completion.route, input_tokens=least_tokens(conversation))
        return Turn(msgspec.structs.replace(completion, route=route), session, new, conversation, cut=True)

    def _may_cut(self, completion: Completion) -> bool:
        default = self._sessions.truncation if completion.session_id else Truncation.REFUSE
        return (completion.truncation or default) is Truncation.DROP_OLDEST


async def _nothing_to_drop(reply: Reply) -> None:
    """A whole reply holds nothing open."""


def _crawling(tokens_per_s: float, floor: float) -> Failure:
    return Failure(
        Outcome.STALLED, None, f"the stream crawled at {tokens_per_s:.2g} tokens/s, below its floor of {floor:.2g}"
    )

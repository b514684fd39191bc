"""Serving requests: attempt after attempt until one answers, the deadline passes, or nobody is left.

A failover before the first emitted event is invisible. After it, the stream ends with StreamBrokenError: what was
sent stands, and nothing pretends to be the rest.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace

import msgspec

from routing.model import Endpoint
from routing.outcomes import Outcome
from routing.policy import AttemptPolicy
from service.completion import Begun, Completion, Report, Served
from service.config import Truncation
from service.history import AttemptSink
from service.providers.base import Adapter, AttemptFailed, Call, Chunk, Failure, Operation
from service.router import Router
from service.sessions import Session, SessionStore
from service.truncation import fitted, least_tokens
from service.walk import Attempt, Walk
from service.wire import (
    AnswerBuilder,
    answer_message,
    array_items,
    encode_array,
    estimated_tokens,
    most_output_tokens,
    needs,
)

_OK = 200


@dataclass(slots=True)
class _Turn:
    """A request joined with its session: the conversation to send, and the session to add the answer to. `cut` allows
    dropping the oldest turns where a context window is too small for them all.
    """

    completion: Completion
    session: Session | None
    new: Sequence[msgspec.Raw]
    conversation: Sequence[msgspec.Raw] = ()
    cut: bool = False
    _dropped: dict[str, int] = field(default_factory=dict)

    def dropped(self, endpoint: Endpoint) -> int:
        """Return how many messages had to go for the call to `endpoint`."""
        return self._dropped.get(endpoint.id, 0)

    def call(self, endpoint: Endpoint) -> Call:
        """Return the call as `endpoint` can take it."""
        completion, window = self.completion, endpoint.context_window_tokens
        fields = completion.fields
        if self.cut and window is not None:
            kept = fitted(self.conversation, window, fields)
            if len(kept) < len(self.conversation):
                self._dropped[endpoint.id] = len(self.conversation) - len(kept)
                fields = {**fields, "messages": encode_array(kept)}
        return Call(
            operation=completion.operation,
            fields=fields,
            stream=completion.stream,
            headers=completion.headers,
            query=completion.query,
            request_id=completion.request_id,
        )


class Completer:
    """Serves requests for both edges. `adapters` are by provider name; `record` takes history records and may not
    raise.
    """

    def __init__(
        self,
        router: Router,
        adapters: Mapping[str, Adapter],
        sessions: SessionStore,
        record: AttemptSink,
        policy: AttemptPolicy,
        replica: str,
    ) -> None:
        self._router = router
        self._adapters = adapters
        self._sessions = sessions
        self._record = record
        self._policy = policy
        self._replica = replica

    async def complete(self, completion: Completion) -> Served:
        """Serve a request whole. Raises ServiceError."""
        async with AsyncExitStack() as stack:
            turn = await self._join(completion, stack)
            walk = self._walk(turn.completion)
            while True:
                attempt = walk.begin()
                try:
                    # The transport watches connect, first byte and stalls; this bounds a reply that trickles.
                    async with asyncio.timeout(attempt.timeouts.first_byte_s):
                        reply = await self._adapter(attempt).send(
                            turn.call(attempt.endpoint), attempt.endpoint, attempt.timeouts
                        )
                except AttemptFailed as failed:
                    walk.failed(attempt, failed.failure)
                    continue
                except TimeoutError:
                    walk.failed(attempt, _overdue(attempt))
                    continue
                except asyncio.CancelledError:
                    walk.cancelled(attempt)
                    raise
                except Exception as error:
                    walk.crashed(attempt, error)
                    raise
                report = walk.succeeded(attempt, reply.status, reply.input_tokens, reply.output_tokens)
                report = replace(report, dropped_messages=turn.dropped(attempt.endpoint))
                if turn.session is not None:
                    self._sessions.answered(turn.session, turn.new, answer_message(reply.body), attempt.endpoint.id)
                return Served(reply, report)

    async def stream(self, completion: Completion) -> AsyncGenerator[Begun | Chunk | Report, None]:
        """Serve a request as events; the first item tells who serves, the last is the report. Raises ServiceError,
        also in the middle.
        """
        async with AsyncExitStack() as stack:
            turn = await self._join(completion, stack)
            walk = self._walk(turn.completion)
            while True:
                attempt, answer = walk.begin(), AnswerBuilder()
                try:
                    async with aclosing(self._events(turn, walk, attempt)) as events:
                        input_tokens = output_tokens = None
                        begun = False
                        async for chunk in events:
                            if not begun:
                                begun = True
                                yield Begun(
                                    attempt.endpoint,
                                    attempt.number,
                                    attempt.decided.id,
                                    chunk.headers,
                                    turn.dropped(attempt.endpoint),
                                )
                            if turn.session is not None:
                                answer.add(chunk.data)
                            if chunk.input_tokens is not None:
                                input_tokens, output_tokens = chunk.input_tokens, chunk.output_tokens
                            handed_over = self._router.clock.now()
                            yield chunk
                            # What the caller takes to read is not the provider's slowness.
                            attempt.reader_s += self._router.clock.now() - handed_over
                except AttemptFailed as failed:
                    walk.failed(attempt, failed.failure, emitted=attempt.first_byte_at is not None)
                    continue
                except TimeoutError:
                    walk.failed(attempt, _overdue(attempt))
                    continue
                except (asyncio.CancelledError, GeneratorExit):
                    walk.cancelled(attempt)
                    raise
                except Exception as error:
                    walk.crashed(attempt, error)
                    raise
                report = walk.succeeded(attempt, _OK, input_tokens, output_tokens)
                report = replace(report, dropped_messages=turn.dropped(attempt.endpoint))
                if turn.session is not None:
                    self._sessions.answered(turn.session, turn.new, answer.message(), attempt.endpoint.id)
                yield report
                return

    async def _events(self, turn: _Turn, walk: Walk, attempt: Attempt) -> AsyncGenerator[Chunk, None]:
        """Yield one attempt's events, holding back all before the first one with content: until then it may still
        fail over.
        """
        held: list[Chunk] = []
        adapter = self._adapter(attempt)
        async with aclosing(adapter.stream(turn.call(attempt.endpoint), attempt.endpoint, attempt.timeouts)) as chunks:
            async with asyncio.timeout(attempt.timeouts.first_byte_s) as until_first:
                async for chunk in chunks:
                    held.append(chunk)
                    if attempt.first_byte_at is None:
                        if not chunk.has_content and chunk.finish_reason is None:
                            continue
                        until_first.reschedule(None)
                        walk.first_byte(attempt)
                    for ready in held:
                        yield ready
                    held.clear()
        if attempt.first_byte_at is None:
            walk.first_byte(attempt)
            for ready in held:
                yield ready

    async def _join(self, completion: Completion, stack: AsyncExitStack) -> _Turn:
        """Join a request with its session, whose turn is held until `stack` closes."""
        new: Sequence[msgspec.Raw] = ()
        conversation: Sequence[msgspec.Raw] = ()
        session = None
        fields = completion.fields
        if completion.operation is Operation.CHAT:
            conversation = new = array_items(fields.get("messages"), "messages")
            if completion.session_id:
                turn = self._sessions.turn(completion.route.tenant, completion.session_id)
                session = await stack.enter_async_context(turn)
                conversation = self._sessions.joined(session, new)
                fields = {**fields, "messages": encode_array(conversation)}
        cut = self._may_cut(completion) and bool(conversation)
        route = replace(
            completion.route,
            needs=needs(completion.operation, fields, stream=completion.stream),
            input_tokens=least_tokens(conversation) if cut else estimated_tokens(conversation),
            max_output_tokens=most_output_tokens(fields),
            affine_endpoint=session.endpoint_id if session is not None else "",
        )
        return _Turn(replace(completion, fields=fields, route=route), session, new, conversation, cut)

    def _may_cut(self, completion: Completion) -> bool:
        default = self._sessions.truncation if completion.session_id else Truncation.REFUSE
        return (completion.truncation or default) is Truncation.DROP_OLDEST

    def _walk(self, completion: Completion) -> Walk:
        return Walk(self._router, self._record, completion, self._policy, self._replica)

    def _adapter(self, attempt: Attempt) -> Adapter:
        return self._adapters[attempt.endpoint.provider]


def _overdue(attempt: Attempt) -> Failure:
    return Failure(Outcome.TIMEOUT, None, f"no answer within {attempt.timeouts.first_byte_s:.3g} s")

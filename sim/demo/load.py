"""Steady load as callers make it: a gRPC client and the official OpenAI SDK, each whole and streamed.

The rule of this file: every request carries its own x-request-id and every answer is checked. An answer that belongs
to another conversation, or that ends early, is a failure that the caller saw.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Self

import grpc
import openai
from openai.types.chat import ChatCompletionMessageParam
from routecast.v1 import chat_pb2, router_pb2, router_pb2_grpc

from sim.demo.processes import Addresses
from sim.demo.story import Story
from sim.wire import history_digest

_TIMEOUT_S = 20.0
_MAX_IN_FLIGHT = 64
_TOPICS = ("canary steps", "retry budgets", "tail latency", "quota headroom", "failure domains", "lead time")


class AnswerError(Exception):
    """The call succeeded but its answer is not the right one."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request as its caller saw it. Times are unix seconds; `error` is empty on success."""

    request_id: str
    method: str
    model: str
    started: float
    ended: float
    error: str


@dataclass(frozen=True, slots=True)
class _Conversation:
    """A conversation of `(role, text)` turns."""

    turns: tuple[tuple[str, str], ...]

    def for_openai(self) -> list[ChatCompletionMessageParam]:
        made: list[ChatCompletionMessageParam] = []
        for role, text in self.turns:
            if role == "user":
                made.append({"role": "user", "content": text})
            else:
                made.append({"role": "assistant", "content": text})
        return made

    def for_grpc(self, model: str) -> chat_pb2.ChatRequest:
        roles = {"user": chat_pb2.ROLE_USER, "assistant": chat_pb2.ROLE_ASSISTANT}
        messages = [chat_pb2.ChatMessage(role=roles[role], text=text) for role, text in self.turns]
        return chat_pb2.ChatRequest(model=model, messages=messages)

    def check(self, answer: str, finish_reason: str | None) -> None:
        digest = history_digest([{"role": role, "content": text} for role, text in self.turns])
        if digest not in answer:
            raise AnswerError(f"expected an answer to conversation {digest}, got {answer[:80]!r}")
        if finish_reason != "stop":
            raise AnswerError(f"expected the answer to finish with 'stop', got {finish_reason!r}")


class Load:
    """Drives the callers; an async context manager that holds their connections. `sent` grows as requests end."""

    def __init__(self, addresses: Addresses, story: Story) -> None:
        self.sent: list[Sent] = []
        self._story = story
        self._addresses = addresses
        self._rng = Random(story.scenario.seed)
        self._numbers = itertools.count(1)
        self._places = asyncio.Semaphore(_MAX_IN_FLIGHT)
        self._stack = AsyncExitStack()
        # Requests per second: about 30 in all.
        self._callers: Mapping[str, tuple[float, Callable[[str], Awaitable[None]]]] = {
            "grpc complete": (7.0, self._grpc_complete),
            "grpc stream": (9.0, self._grpc_stream),
            "grpc embed": (3.0, self._grpc_embed),
            "openai chat": (5.0, self._openai_chat),
            "openai stream": (6.0, self._openai_stream),
        }

    async def __aenter__(self) -> Self:
        """Connect."""
        channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(self._addresses.grpc))
        self._stub = router_pb2_grpc.RouterServiceStub(channel)
        client = openai.AsyncOpenAI(
            base_url=self._addresses.http_url, api_key="demo", max_retries=0, timeout=_TIMEOUT_S
        )
        self._openai = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._stack.aclose()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop`, then wait for the answers that are still due."""
        async with asyncio.TaskGroup() as calls, asyncio.TaskGroup() as pacers:
            for method, (per_s, call) in self._callers.items():
                pacers.create_task(self._pace(method, per_s, call, calls, stop))

    async def _pace(
        self,
        method: str,
        per_s: float,
        call: Callable[[str], Awaitable[None]],
        calls: asyncio.TaskGroup,
        stop: asyncio.Event,
    ) -> None:
        clock = asyncio.get_running_loop().time
        due = clock() + self._rng.random() / per_s
        while not stop.is_set():
            try:
                async with asyncio.timeout(max(0.0, due - clock())):
                    await stop.wait()
            except TimeoutError:
                await self._places.acquire()
                calls.create_task(self._send(method, call))
                due = max(due + self._rng.uniform(0.7, 1.3) / per_s, clock())

    async def _send(self, method: str, call: Callable[[str], Awaitable[None]]) -> None:
        request_id, error, started = f"demo-{next(self._numbers):06d}", "", time.time()
        try:
            await call(request_id)
        except Exception as failure:  # whatever reaches a caller is a failed request, not the end of the demo
            error = f"{type(failure).__name__}: {failure}"
        finally:
            self._places.release()
        model = self._story.embeddings if method == "grpc embed" else self._story.chat
        self.sent.append(Sent(request_id, method, model, started, time.time(), error))

    def _conversation(self, request_id: str) -> _Conversation:
        opening = ("user", f"{request_id}: what should I know about {self._rng.choice(_TOPICS)}?")
        if self._rng.random() < 0.5:
            return _Conversation((opening,))
        return _Conversation((opening, ("assistant", "It depends on the traffic."), ("user", "Say more.")))

    async def _grpc_complete(self, request_id: str) -> None:
        talk = self._conversation(request_id)
        reply = await self._stub.Complete(
            router_pb2.CompleteRequest(chat=talk.for_grpc(self._story.chat)),
            timeout=_TIMEOUT_S,
            metadata=(("x-request-id", request_id),),
        )
        talk.check(reply.choices[0].message.text, reply.choices[0].finish_reason)

    async def _grpc_stream(self, request_id: str) -> None:
        talk, text, finish_reason = self._conversation(request_id), "", ""
        async for message in self._stub.StreamComplete(
            router_pb2.StreamCompleteRequest(chat=talk.for_grpc(self._story.chat)),
            timeout=_TIMEOUT_S,
            metadata=(("x-request-id", request_id),),
        ):
            for delta in message.chunk.deltas:
                text += delta.text
                finish_reason = delta.finish_reason or finish_reason
        talk.check(text, finish_reason)

    async def _grpc_embed(self, request_id: str) -> None:
        reply = await self._stub.Embed(
            router_pb2.EmbedRequest(model=self._story.embeddings, inputs=[request_id], extra_json=b'{"dimensions":16}'),
            timeout=_TIMEOUT_S,
            metadata=(("x-request-id", request_id),),
        )
        lengths = [len(embedding.values) for embedding in reply.embeddings]
        if lengths != [16]:
            raise AnswerError(f"expected one vector of 16 values, got {lengths}")

    async def _openai_chat(self, request_id: str) -> None:
        talk = self._conversation(request_id)
        reply = await self._openai.chat.completions.create(
            model=self._story.chat, messages=talk.for_openai(), extra_headers={"x-request-id": request_id}
        )
        talk.check(reply.choices[0].message.content or "", reply.choices[0].finish_reason)

    async def _openai_stream(self, request_id: str) -> None:
        talk, text, finish_reason = self._conversation(request_id), "", None
        stream = await self._openai.chat.completions.create(
            model=self._story.chat, messages=talk.for_openai(), stream=True, extra_headers={"x-request-id": request_id}
        )
        async with stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    finish_reason = choice.finish_reason or finish_reason
        talk.check(text, finish_reason)

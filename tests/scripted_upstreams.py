"""Providers that do to each request what a test says, behind a real service: for stories of a single request.

The rule of this file: nothing waits for time to pass. A script waits for an event of the test, or for its caller to
leave; whether calls are still open upstream is counted at the provider.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sim.provider_server import ProviderFleet
from tests.service_under_test import GPT4, Service, in_process, until
from tests.wire_server import Exchange, WireServer, chunk, head

Script = Callable[[Exchange], Awaitable[None]]
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def event(text: str = "", *, finish: str | None = None, **more: Any) -> bytes:
    """One event of a chat stream, as a chunk of the transfer encoding."""
    delta = {"content": text} if text else {}
    said = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return chunk(b"data: " + json.dumps(said | {"choices": choices} | more).encode() + b"\n\n")


DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
STREAM_HEAD = head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")


async def answer(exchange: Exchange, *texts: str) -> None:
    """Answer with these texts, as a stream or whole as was asked."""
    texts = texts or ("well",)
    if b'"stream":true' in exchange.body:
        usage = event(choices=[], usage=USAGE)
        await exchange.send(STREAM_HEAD, *(event(text) for text in texts), event(finish="stop"), usage, DONE)
        return
    message = {"role": "assistant", "content": "".join(texts)}
    body = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }  # fmt: skip
    await exchange.respond(json.dumps(body).encode(), "Content-Type: application/json")


async def hang(exchange: Exchange) -> None:
    """Say nothing until the caller leaves."""
    await exchange.gone()


def refuse(status: str, *headers: str) -> Script:
    """A script that answers with an error status."""

    async def script(exchange: Exchange) -> None:
        body = json.dumps({"error": {"message": "no", "type": "x"}}).encode()
        await exchange.respond(body, "Content-Type: application/json", *headers, status=status)

    return script


def break_after(*texts: str) -> Script:
    """A script that streams these texts and then loses the connection."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, *(event(text) for text in texts))
        exchange.close()

    return script


class Upstream:
    """One provider: `script` may be replaced at any time; `open` counts the calls it is busy with."""

    def __init__(self) -> None:
        self.script: Script = answer
        self.open = 0
        self.bodies: list[dict[str, Any]] = []
        self.server = WireServer(self._play)

    async def _play(self, exchange: Exchange) -> None:
        self.open += 1
        self.bodies.append(json.loads(exchange.body))
        try:
            await self.script(exchange)
        finally:
            self.open -= 1

    async def until_asked(self, calls: int) -> None:
        """Wait until so many calls have come in all."""

        async def holds() -> bool:
            return len(self.bodies) >= calls

        await until(holds)

    async def until_open(self, calls: int) -> None:
        """Wait until so many calls are open."""

        async def holds() -> bool:
            return self.open == calls

        await until(holds)


@asynccontextmanager
async def scripted(
    fleet: ProviderFleet, directory: Path, *names: str, policy: Mapping[str, Any] | None = None, **sections: Any
) -> AsyncIterator[tuple[Service, dict[str, Upstream]]]:
    """A service over scripted providers of these names, the first the primary, at 10 USD per million tokens."""
    upstreams = {name: Upstream() for name in names}
    async with AsyncExitStack() as stack:
        for upstream in upstreams.values():
            await stack.enter_async_context(upstream.server)
        price = {"input_usd_per_mtok": 10, "output_usd_per_mtok": 10}
        shown: dict[str, Any] = {
            "providers": [{"name": name, "base_url": each.server.url} for name, each in upstreams.items()],
            "models": [
                {"id": GPT4, "endpoints": [{"provider": name, "provider_model": "m", **price} for name in names]}
            ],
            "policy": dict(policy or {}),
            "upstream": {"prewarm": 0},
            **sections,
        }
        yield await stack.enter_async_context(in_process(fleet, directory, **shown)), upstreams


async def settled(tasks: "list[asyncio.Task[Any]]") -> None:
    """Wait for tasks that were cancelled or may fail."""
    await asyncio.gather(*tasks, return_exceptions=True)

"""L-14, L-05: thousands of streams at once through scripted chaos, against a service in a process of its own.

`make soak`, or `python -m bench.soak --streams 500`. Every stream carries a mark that its provider repeats, so that a
text that reached the wrong caller, or was made of two, is found. Half of the streams go over gRPC, half over HTTP.
Waves of streams follow each other: what the service holds after the last is compared with what it held after the first.

L-12, a hundred long requests at once, with a large context and without trouble:
`python -m bench.soak --streams 100 --waves 1 --seconds 30 --tokens 4000 --context 400000 --calm`.

The rule of this file: a stream ends in one of three ways. Its text is whole and its own; or it broke with an error that
says so, and what came is the beginning of its own text; or it was refused before it began. Anything else is counted as
corrupt, and one such stream fails the run.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import uvloop
from rich.console import Console
from rich.table import Table
from routecast.v1 import chat_pb2, router_pb2, router_pb2_grpc

from bench.serving import MODEL, NAMES, config_for, resident_kib, served
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from sim.scenario import parse_scenario
from sim.wire import spoken_pieces

_STREAMS_PER_CHANNEL = 100
_QUIET_S = 60.0
_MOST_TOKENS = 10_000
# Endpoints that the chaos has put out are probed, and a probe may overlap the next.
_PROBED = 2 * len(NAMES)
_KIB = 1024
_LOOKS, _LOOK_S = 10, 0.05


@dataclass(frozen=True, slots=True)
class Shape:
    """What streams are like: tokens of an answer, characters of context before each request, and whether there is
    trouble.
    """

    tokens: int = 40
    context: int = 0
    chaos: bool = True


USUAL = Shape()


class End(StrEnum):
    """How a stream ended."""

    WHOLE = "whole"
    BROKEN = "broken, and said so"
    REFUSED = "refused before it began"
    CORRUPT = "CORRUPT"


@dataclass(frozen=True, slots=True)
class Held:
    """What the service holds: resident memory in KiB, connections to providers, and other file descriptors."""

    rss_kib: int
    upstream: int
    descriptors: int


@dataclass(slots=True)
class Soaked:
    """What came of a run. `most_open` is the largest number of streams that the providers had open at a time."""

    streams: int
    ends: Counter[End] = field(default_factory=Counter)
    oddities: list[str] = field(default_factory=list)
    most_open: int = 0
    idle: list[Held] = field(default_factory=list)
    peak_kib: int = 0

    @property
    def is_clean(self) -> bool:
        """No stream was corrupt, and every descriptor was given back, but for connections that wait for use."""
        return not self.ends[End.CORRUPT] and self.idle[-1].descriptors <= self.idle[0].descriptors

    @property
    def kib_per_stream(self) -> float:
        """Memory of one open stream: the peak of the waves over what was held after the first, per stream."""
        return (self.peak_kib - self.idle[0].rss_kib) / max(1, self.most_open)


def _scenario(tokens_per_s: float) -> str:
    provider = """
  - name: {name}
    region: {name}
    zone: a
    ttft_ms: 30
    tokens_per_s: {tokens_per_s}
    models: [{{id: openai/gpt-4, provider_model_id: m}}]"""
    providers = "".join(provider.format(name=name, tokens_per_s=tokens_per_s) for name in NAMES)
    return f"name: soak\nseed: 7\nduration_s: 3600\nproviders:{providers}\n"


def _chaos(over_s: float) -> list[Fault]:
    """One of each trouble, some of them at once, within so many seconds. Whatever strikes, another provider is well."""
    tenth = over_s / 10

    def fault(kind: FaultKind, provider: str, begins: float, **shape: Any) -> Fault:
        return Fault(kind=kind, provider=provider, at_s=begins * tenth, for_s=2 * tenth, **shape)

    return [
        fault(FaultKind.TRUNCATE, "aurora", 0, probability=0.1),
        fault(FaultKind.SERVER_ERROR, "borealis", 1, status=503),
        fault(FaultKind.RATE_LIMIT, "aurora", 2, probability=0.5, retry_after_s=0.2),
        fault(FaultKind.MALFORMED, "aurora", 3, probability=0.1),
        fault(FaultKind.RESET, "aurora", 4, probability=0.5),
        fault(FaultKind.HANG, "aurora", 5, probability=0.2),
        fault(FaultKind.REFUSE, "aurora", 7),
        fault(FaultKind.ERROR_RATE, "aurora", 8, probability=0.5),
    ]


class _Callers:
    """Callers over both edges, and the judge of what they get."""

    def __init__(self, soaked: Soaked, shape: Shape) -> None:
        self._soaked = soaked
        self._extra = json.dumps({"min_tokens": shape.tokens}).encode()
        self._min_tokens = shape.tokens
        self._before = ("word " * (shape.context // 5),) if shape.context else ()

    async def over_grpc(self, stub: "router_pb2_grpc.RouterServiceAsyncStub", mark: str) -> None:
        """Stream over gRPC."""
        messages = [chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, text=text) for text in self._before]
        messages.append(chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, text=mark))
        chat = chat_pb2.ChatRequest(model=MODEL, messages=messages, extra_json=self._extra)
        text, has_report, error = "", False, ""
        try:
            async for item in stub.StreamComplete(router_pb2.StreamCompleteRequest(chat=chat)):
                if item.WhichOneof("event") == "report":
                    has_report = True
                else:
                    text += "".join(delta.text for delta in item.chunk.deltas)
        except grpc.aio.AioRpcError as raised:
            error = raised.code().name
        self._judge(mark, text, is_whole=has_report, error=error)

    async def over_http(self, session: aiohttp.ClientSession, url: str, mark: str) -> None:
        """Stream over the OpenAI edge."""
        body = {
            "model": MODEL, "stream": True, "min_tokens": self._min_tokens, "messages": self._messages(mark),
        }  # fmt: skip
        text, has_done, error = "", False, ""
        async with session.post(url, json=body) as response:
            if response.status != 200:
                error = str(response.status)
            else:
                async for line in response.content:
                    data = line.removeprefix(b"data: ").strip()
                    if data == b"[DONE]":
                        has_done = True
                    elif data.startswith(b"{"):
                        event = json.loads(data)
                        error = event.get("error", {}).get("code", error)
                        text += "".join(c["delta"].get("content") or "" for c in event.get("choices", ()))
        self._judge(mark, text, is_whole=has_done, error=error)

    def _judge(self, mark: str, text: str, *, is_whole: bool, error: str) -> None:
        end = _end_of(self._messages(mark), self._min_tokens, text, is_whole=is_whole, error=error)
        self._soaked.ends[end] += 1
        if end is End.CORRUPT and len(self._soaked.oddities) < 10:
            self._soaked.oddities.append(f"{mark!r}: whole {is_whole}, error {error!r}, text {text[:200]!r}")

    def _messages(self, mark: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": text} for text in self._before] + [{"role": "user", "content": mark}]


def _end_of(messages: list[dict[str, str]], tokens: int, text: str, *, is_whole: bool, error: str) -> End:
    """Judge one stream: a simulated provider's answer follows from its name and the request, to the letter."""
    answers = ["".join(spoken_pieces(name, messages, tokens, _MOST_TOKENS)) for name in NAMES]
    if is_whole and not error:
        return End.WHOLE if text in answers else End.CORRUPT
    if is_whole or not error:
        return End.CORRUPT
    if not text:
        return End.REFUSED
    return End.BROKEN if any(answer.startswith(text) for answer in answers) else End.CORRUPT


def _held(pid: int, fleet: ProviderFleet) -> Held:
    upstream = sum(fleet.stats(name).connections for name in NAMES)
    return Held(resident_kib(pid), upstream, len(list(Path(f"/proc/{pid}/fd").iterdir())) - upstream)


async def soak(
    streams: int,
    waves: int,
    stream_s: float,
    shape: Shape = USUAL,
    *,
    idle_s: float = 0.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Soaked:
    """Run `waves` waves of `streams` streams of this shape that each last about `stream_s` seconds; return what came of
    them.

    After the last wave, connections that wait for use are given `idle_s` seconds to time out.
    """
    soaked = Soaked(streams)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fleet = await stack.enter_async_context(
            ProviderFleet(parse_scenario(_scenario(shape.tokens / stream_s)), keep=1)
        )
        pid, ports = await stack.enter_async_context(served(config_for(fleet, folder)))
        for wave in range(waves + 1):
            # The first wave is small and calm: it wakes everything up.
            calm = wave == 0
            count = min(streams, 50) if calm else streams
            watching = asyncio.create_task(_watch(soaked, fleet, pid, calm=calm))
            if not calm and shape.chaos:
                await fleet.inject(*_chaos(stream_s))
            await _wave(soaked, ports, wave, count, 0.1 if calm else stream_s / 2, USUAL if calm else shape)
            await fleet.clear()
            watching.cancel()
            await fleet.until(lambda: all(fleet.stats(name).in_flight == 0 for name in NAMES), timeout_s=_QUIET_S)
            soaked.idle.append(await _settled(pid, fleet, idle_s if wave == waves else 0.0))
            progress(f"wave {wave}: {dict(soaked.ends)}, {soaked.idle[-1]}")
    return soaked


async def _wave(soaked: Soaked, ports: dict[str, int], wave: int, count: int, over_s: float, shape: Shape) -> None:
    """Open `count` streams over `over_s` seconds, and wait for the end of all."""
    callers = _Callers(soaked, shape)
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                # Channels to one address share a connection unless told otherwise.
                grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}", [("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(max(1, count // 2 // _STREAMS_PER_CHANNEL))
        ]
        stubs = cycle([router_pb2_grpc.RouterServiceStub(channel) for channel in channels])
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
        url = f"http://127.0.0.1:{ports['http']}/v1/chat/completions"
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                mark = f"<stream {wave}-{number:06d}>"
                call = callers.over_grpc(next(stubs), mark) if number % 2 else callers.over_http(session, url, mark)
                group.create_task(call)
                await asyncio.sleep(over_s / count)


async def _watch(soaked: Soaked, fleet: ProviderFleet, pid: int, *, calm: bool) -> None:
    while not calm:
        held = _held(pid, fleet)
        soaked.peak_kib = max(soaked.peak_kib, held.rss_kib)
        soaked.most_open = max(soaked.most_open, sum(fleet.stats(name).in_flight for name in NAMES))
        await asyncio.sleep(0.1)


async def _settled(pid: int, fleet: ProviderFleet, within_s: float) -> Held:
    """Return what the service holds once no connection but those of probes is kept, at the latest after so many
    seconds. Of several looks the least: a file that is being written is open for a moment, what leaks is there always.
    """
    give_up = time.monotonic() + within_s
    while (held := _held(pid, fleet)).upstream > _PROBED and time.monotonic() < give_up:  # noqa: ASYNC110  # another process sets no event here
        await asyncio.sleep(0.5)
    for _ in range(_LOOKS):
        await asyncio.sleep(_LOOK_S)
        held = min(held, _held(pid, fleet), key=lambda each: each.descriptors)
    return held


def main() -> int:
    """Run the command line; returns 1 when a stream was corrupt or something was not given back."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--streams", type=int, default=2600, help="per wave; some end early (default: 2600)")
    parser.add_argument("--waves", type=int, default=2, help="of so many streams (default: 2)")
    parser.add_argument("--seconds", type=float, default=45.0, help="that a stream lasts (default: 45)")
    parser.add_argument("--tokens", type=int, default=USUAL.tokens, help="of an answer (default: %(default)s)")
    parser.add_argument("--context", type=int, default=0, help="characters before each request (default: 0)")
    parser.add_argument("--calm", action="store_true", help="without chaos")
    arguments = parser.parse_args()
    console = Console(width=120)
    shape = Shape(arguments.tokens, arguments.context, not arguments.calm)
    run = soak(arguments.streams, arguments.waves, arguments.seconds, shape, idle_s=_QUIET_S, progress=console.print)
    soaked = uvloop.run(run)
    table = Table(title=f"{arguments.waves} waves of {arguments.streams} streams", title_justify="left")
    for column in ("what", "value"):
        table.add_column(column)
    for end in End:
        table.add_row(end.value, str(soaked.ends[end]))
    table.add_row("open at once", str(soaked.most_open))
    table.add_row("KiB per open stream", f"{soaked.kib_per_stream:.0f}")
    for name, held in zip(("after warming up", *(f"after wave {n + 1}" for n in range(9))), soaked.idle, strict=False):
        table.add_row(
            name, f"{held.rss_kib / _KIB:.0f} MiB, {held.descriptors} descriptors and {held.upstream} idle connections"
        )
    console.print(table)
    for oddity in soaked.oddities:
        console.print(oddity, style="red")
    return int(not soaked.is_clean or soaked.idle[-1].upstream > _PROBED)


if __name__ == "__main__":
    sys.exit(main())

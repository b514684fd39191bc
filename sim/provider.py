"""One simulated provider: a real HTTP listener on 127.0.0.1 that speaks its wire format and suffers faults.

The rule of this file: what a request meets is decided when it arrives, by the effect of the faults at that moment and
the provider's own random numbers; from then on it is only carried out. A refusing provider is the exception: its
listener goes and every connection is reset at once.
"""

import asyncio
import math
import random
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from sim.anthropic_wire import AnthropicWire
from sim.azure_wire import AzureWire
from sim.faults import Effect, Failure, draw
from sim.openai_wire import OpenAIWire
from sim.quota import Allowance, Quota, QuotaMeter
from sim.scenario import Model, WireFormat
from sim.scenario import Provider as ProviderSpec
from sim.wire import Answer, Request, StreamPlan, Wire, WireError

_MAX_BODY_BYTES = 64 * 1024 * 1024
_BACKLOG = 1024
_WRITE_EVERY_S = 0.005
_WIRES: Mapping[WireFormat, Callable[[str, Mapping[str, Model]], Wire]] = {
    WireFormat.OPENAI: OpenAIWire,
    WireFormat.AZURE: AzureWire,
    WireFormat.ANTHROPIC: AnthropicWire,
}
_OUTCOMES = {401: "auth_error", 429: "rate_limited"}


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request exactly as it arrived: `headers` in order and spelling, `body` byte for byte."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fate:
    """What a request will meet: its failure if any, its own TTFT, and after which share of the answer it breaks."""

    effect: Effect
    failure: Failure | None
    ttft_s: float
    cut: float


@dataclass(slots=True)
class _Visit:
    """The bookkeeping of one request; its first settled outcome stands."""

    id: str
    fate: Fate
    headers: dict[str, str]
    outcome: str | None = None

    @property
    def answer_id(self) -> str:
        """The id that its answer is given."""
        return self.id.removeprefix("req_")


class SimulatedProvider:
    """Serves one provider of a scenario.

    Args:
        spec: how it behaves when nothing is wrong.
        seed: drives its draws, together with its name.
        effect: asked at each arrival for what the faults do now.
        clock: monotonic seconds.
        changed: called after every change of the counters.
        keep: how many of the last requests to remember.
    """

    def __init__(
        self,
        spec: ProviderSpec,
        *,
        seed: int,
        effect: Callable[[], Effect],
        clock: Callable[[], float],
        changed: Callable[[], None],
        keep: int,
    ) -> None:
        self.spec = spec
        self.outcomes: Counter[str] = Counter()
        self.received: deque[ReceivedRequest] = deque(maxlen=keep)
        self.in_flight = 0
        self.port = 0
        self._arrived = 0
        self._effect = effect
        self._clock = clock
        self._changed = changed
        self._rng = random.Random(f"{seed}:{spec.name}")
        self._wire = _WIRES[spec.wire](spec.name, {model.provider_model_id: model for model in spec.models})
        self._places = asyncio.Semaphore(spec.capacity) if spec.capacity else None
        self._waiting = 0
        self._meter = QuotaMeter()
        self._requests = Quota(spec.requests_per_min, 60.0, clock())
        self._reservation: socket.socket | None = None
        self._site: web.SockSite | None = None
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)

    @property
    def url(self) -> str:
        """Its base URL for a client of its wire format."""
        return f"http://127.0.0.1:{self.port}{self._wire.root}"

    @property
    def refusing(self) -> bool:
        """Is its listener gone?"""
        return self._site is None

    @property
    def connections(self) -> int:
        """Connections that callers hold now."""
        return len(self._runner.server.connections) if self._runner.server else 0

    async def start(self) -> None:
        """Bind its port and listen; raises OSError when the port is taken."""
        # Bound but never listening, this socket keeps the port ours while the listener is away, so that connecting
        # then is refused and no other process can be given the port.
        self._reservation = _bound(self.spec.port)
        self.port = self._reservation.getsockname()[1]
        await self._runner.setup()
        await self.accept()

    async def accept(self) -> None:
        """Listen (again)."""
        self._site = web.SockSite(self._runner, _bound(self.port), backlog=_BACKLOG)
        await self._site.start()

    async def refuse(self) -> None:
        """Close the listener and reset every connection."""
        if self._site is not None:
            await self._site.stop()
            self._site = None
        for connection in self._runner.server.connections if self._runner.server else ():
            _reset(connection.transport)

    async def stop(self) -> None:
        """Tear everything down, requests that hang included."""
        await self.refuse()
        await self._runner.cleanup()
        if self._reservation is not None:
            self._reservation.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self._arrived += 1
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers)
        self.received.append(ReceivedRequest(request.method, request.raw_path, headers, body))
        visit_id = f"req_{self.spec.name}_{self._arrived:08d}"
        visit = _Visit(visit_id, self._fate(), self._wire.id_headers(visit_id))
        self.in_flight += 1
        self._changed()
        try:
            return await self._answer(request, body, visit)
        except WireError as error:
            status = error.status
            self._settle(visit, _OUTCOMES.get(status, "server_error" if status >= 500 else "client_error"))
            return _json(self._wire.error_body(error, visit.id), status, {**visit.headers, **error.headers})
        except ConnectionResetError:
            return await _never()  # its caller has left in the middle of a write; aiohttp is about to cancel this
        finally:
            self._settle(visit, "cancelled")
            self.in_flight -= 1
            self._changed()

    def _fate(self) -> Fate:
        effect = self._effect()
        failure = draw(effect, self._rng)
        spread = math.exp(self.spec.ttft_sigma * self._rng.gauss(0.0, 1.0))
        cut = self._rng.uniform(0.2, 0.8)
        return Fate(effect, failure, self.spec.ttft_ms / 1000 * spread * effect.ttft_multiplier, cut)

    def _settle(self, visit: _Visit, outcome: str) -> None:
        """Count the outcome; done before the caller can see the end of the answer, so that counts are never late."""
        if visit.outcome is None:
            visit.outcome = outcome
            self.outcomes[outcome] += 1
            self._changed()

    async def _answer(self, request: web.Request, body: bytes, visit: _Visit) -> web.StreamResponse:
        effect = visit.fate.effect
        match visit.fate.failure:
            case Failure.RESET:
                self._settle(visit, Failure.RESET)
                _reset(request.transport)
                return await _never()
            case Failure.HANG:
                self._settle(visit, Failure.HANG)
                return await _never()
            case Failure.RATE_LIMITED:
                retry_after_s = effect.retry_after_s or 0.0
                visit.headers |= self._wire.limit_headers(
                    "requests", self._requests, Allowance(False, 0, retry_after_s)
                )
                raise _rate_limited("requests", retry_after_s)
            case Failure.SERVER_ERROR:
                raise WireError(effect.status, "The server had an error processing your request.", kind="server_error")
        asked = _understood(request, body)
        if self.spec.api_key is not None and not self._wire.authorised(asked, self.spec.api_key):
            raise WireError(401, "Incorrect API key provided.", code="invalid_api_key")
        self._take("requests", self._requests, 1, visit)
        answer = self._wire.answer(asked)
        self._take_tokens(answer.quota_tokens, visit)
        if answer.immediate:
            return await self._send(request, answer, visit)
        async with self._place():
            await asyncio.sleep(visit.fate.ttft_s)
            rate = self.spec.tokens_per_s * effect.tokens_per_s_multiplier
            if answer.stream is not None:
                return await self._stream(request, answer.stream(visit.answer_id, int(time.time())), rate, visit)
            await asyncio.sleep(answer.output_tokens / rate)
            return await self._send(request, answer, visit)

    def _take_tokens(self, tokens: int, visit: _Visit) -> None:
        for quota in visit.fate.effect.quotas:
            self._take("tokens", quota, tokens, visit)

    def _take(self, unit: str, quota: Quota, amount: int, visit: _Visit) -> None:
        allowance = self._meter.take(quota, amount, self._clock())
        visit.headers |= self._wire.limit_headers(unit, quota, allowance)
        if not allowance.granted:
            override_s = visit.fate.effect.retry_after_s if unit == "tokens" else None
            raise _rate_limited(unit, allowance.reset_s if override_s is None else override_s)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of the `capacity` places, after waiting in order for it; 503 when the queue is full."""
        if self._places is None:
            yield
            return
        if self._places.locked() and self._waiting >= self.spec.queue:
            raise WireError(503, "The engine is currently overloaded.", kind="server_error", headers=_retry_after(1.0))
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    async def _stream(self, request: web.Request, plan: StreamPlan, rate: float, visit: _Visit) -> web.StreamResponse:
        content = list(plan.content)
        cut = int(len(content) * visit.fate.cut)
        failure = visit.fate.failure
        if failure is Failure.MALFORMED:
            content[cut] = content[cut][: len(content[cut]) // 2] + b"\n\n"
        elif failure in (Failure.TRUNCATE, Failure.STALL):
            content = content[:cut]
        headers = {**visit.headers, "Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(plan.opening)
        await _paced(response, content, rate)
        self._settle(visit, failure or "ok")
        if failure is Failure.STALL:
            return await _never()
        if failure is not Failure.TRUNCATE:
            await response.write(plan.closing)
        await response.write_eof()
        return response

    async def _send(self, request: web.Request, answer: Answer, visit: _Visit) -> web.StreamResponse:
        failure = visit.fate.failure
        body = answer.whole(visit.answer_id, int(time.time()))
        part = body[: int(len(body) * visit.fate.cut)]
        self._settle(visit, failure or "ok")
        if failure is None:
            return _json(body, 200, visit.headers)
        if failure is Failure.MALFORMED:
            return _json(part, 200, visit.headers)
        headers = {**visit.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(part)
        if failure is Failure.TRUNCATE and request.transport is not None:
            request.transport.close()
        return await _never()


def _understood(request: web.Request, body: bytes) -> Request:
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Request(request.method, request.path, dict(request.query), headers, body)


async def _paced(response: web.StreamResponse, events: list[bytes], rate: float) -> None:
    """Write one event per token at `rate` tokens/s, several at once where they fall within a few milliseconds."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    sent = 0
    while sent < len(events):
        due = min(len(events), max(sent, int((loop.time() - begun) * rate)) + 1)
        await response.write(b"".join(events[sent:due]))
        sent = due
        if sent < len(events):
            await asyncio.sleep(max(_WRITE_EVERY_S, begun + sent / rate - loop.time()))


async def _never() -> web.StreamResponse:
    """Wait until the handler is cancelled, which happens when its connection is gone."""
    never: asyncio.Future[web.StreamResponse] = asyncio.get_running_loop().create_future()
    return await never


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _reset(transport: asyncio.WriteTransport | None) -> None:
    """Close with RST: lingering for zero seconds discards what is unsent and sends no FIN."""
    if transport is None or transport.is_closing():
        return
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _json(body: bytes, status: int, headers: dict[str, str]) -> web.Response:
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def _rate_limited(unit: str, retry_after_s: float) -> WireError:
    message = f"Rate limit reached for {unit}. Please try again in {retry_after_s:.3f}s."
    return WireError(429, message, kind=unit, code="rate_limit_exceeded", headers=_retry_after(retry_after_s))


def _retry_after(seconds: float) -> dict[str, str]:
    """Retry-After in whole seconds, as HTTP has it, and the millisecond form OpenAI's SDKs prefer."""
    return {"Retry-After": str(math.ceil(seconds)), "Retry-After-Ms": str(math.ceil(seconds * 1000))}

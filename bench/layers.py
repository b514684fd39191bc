"""What each layer of the service adds to a request, and to an event of a stream: in one process, without a socket, each
layer measured with all that is below it. The provider is a transport that answers from memory.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random
from statistics import median

import uvloop

from analytics.records import Record
from bench.figure import Figure
from routing.engine import Engine
from routing.model import RouteRequest
from service.clock import SteadyClock
from service.completion import Completion
from service.config import Config
from service.history import HistoryListener, fan_out
from service.providers.base import Call, Operation
from service.providers.factory import adapter_for
from service.providers.transport import Timeouts, UpstreamRequest, UpstreamResponse
from service.router import Router
from service.serving import Serving
from service.stack import stacked
from service.telemetry import Metrics
from service.tenants import gate_for
from service.wire import asked, body_fields

_MODEL = "openai/gpt-4"
_REQUESTS, _STREAMS, _ROUNDS = 1000, 60, 7
_EVENTS = 64
_BODY = {"model": _MODEL, "messages": [{"role": "user", "content": "x" * 100}]}
_WHOLE, _STREAM = json.dumps(_BODY).encode(), json.dumps(_BODY | {"stream": True}).encode()
_USAGE = {"prompt_tokens": 10, "completion_tokens": _EVENTS, "total_tokens": 10 + _EVENTS}
_MESSAGE = {"role": "assistant", "content": "word " * 20}
_ANSWER = {"id": "c", "model": _MODEL, "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}]}
_TIMEOUTS = Timeouts(1.0, 60.0, 30.0)

Work = Callable[[], Awaitable[object]]


def _event(**choice: object) -> bytes:
    return b"data: " + json.dumps({"id": "c", "model": _MODEL, "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


_ANSWERED = [json.dumps(_ANSWER | {"usage": _USAGE}).encode()]
_STREAMED = [
    *(_event(delta={"content": f"word{n} "}, finish_reason=None) for n in range(_EVENTS)),
    _event(delta={}, finish_reason="stop"),
    b"data: " + json.dumps({"id": "c", "choices": [], "usage": _USAGE}).encode() + b"\n\ndata: [DONE]\n\n",
]


class _Payload:
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = iter(parts)
        self._left = len(parts)

    async def receive(self) -> bytes:
        self._left -= 1
        return next(self._parts, b"")

    def at_end(self) -> bool:
        return self._left <= 0

    async def abort(self) -> None:
        """Nothing is open."""


class _Memory:
    """A `Transport` that answers every request at once, event by event where a stream is asked for."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        streamed = b'"stream":true' in request.body
        headers = {"content-type": "text/event-stream" if streamed else "application/json"}
        due = asyncio.get_running_loop().time() + request.timeouts.first_byte_s
        return UpstreamResponse(200, headers, _Payload(_STREAMED if streamed else _ANSWERED), request.timeouts, due)

    async def prewarm(self, url: str, connections: int, connect_s: float) -> None:
        """Nothing connects."""

    async def aclose(self) -> None:
        """Nothing is open."""


def _completion(body: bytes) -> Completion:
    stream, fields = body is _STREAM, body_fields(body)
    wanted = asked(Operation.CHAT, fields, stream=stream)
    route = RouteRequest(_MODEL, needs=wanted.needs, input_tokens=wanted.input_tokens)
    return Completion(Operation.CHAT, fields, route, "request", "bench", stream=stream, messages=wanted.messages)


def _layers(outermost: Serving) -> list[Serving]:
    """Return the layers of a stack, the innermost first."""
    layers: list[Serving] = []
    layer: Serving | None = outermost
    while layer is not None:
        layers.append(layer)
        layer = getattr(layer, "_inner", None)
    return layers[::-1]


async def _measure(folder: Path) -> list[Figure]:
    provider = {"name": "only", "base_url": "http://127.0.0.1:1/v1"}
    model = {"id": _MODEL, "endpoints": [{"provider": "only", "provider_model": _MODEL}]}
    config = Config.model_validate({"data_dir": folder, "providers": [provider], "models": [model]})
    clock = SteadyClock()
    engine = Engine(config.catalogue(), config.policy.policy(), clock.now())
    router, gate = Router(engine, clock, Random()), gate_for(config.tenants, config.overload, clock.now())
    records: list[Record] = []
    metrics = Metrics(lambda: engine.snapshot, lambda: None)  # type: ignore[arg-type,return-value]  # not rendered
    sink = fan_out(records.append, metrics.put)
    router.listen(HistoryListener(sink, "bench"))
    transport = _Memory()
    adapter = adapter_for(config.providers[0], transport)
    (endpoint,) = engine.catalogue.endpoints.values()

    async def look() -> None:
        _completion(_WHOLE)

    async def send() -> None:
        await adapter.send(Call(Operation.CHAT, _completion(_WHOLE).fields), endpoint, _TIMEOUTS)

    async def stream() -> None:
        async for _ in adapter.stream(Call(Operation.CHAT, _completion(_STREAM).fields, True), endpoint, _TIMEOUTS):
            pass

    def whole_through(layer: Serving) -> Work:
        return lambda: layer.complete(_completion(_WHOLE))

    def stream_through(layer: Serving) -> Work:
        async def run() -> None:
            async for _ in layer.stream(_completion(_STREAM)):
                pass

        return run

    async with stacked(config, router, {"only": adapter}, transport, sink, clock, gate) as stack:
        layers = _layers(stack.serving)
        whole: dict[str, Work] = {"look into the body": look, "+ adapter": send}
        whole |= {f"+ {type(layer).__name__}": whole_through(layer) for layer in layers}
        streams: dict[str, Work] = {"adapter, per event": stream}
        streams |= {f"+ {type(layer).__name__}, per event": stream_through(layer) for layer in layers}
        figures = _figures(await _rounds(whole, _REQUESTS, 1, records))
        return figures + _figures(await _rounds(streams, _STREAMS, _EVENTS, records))


async def _rounds(works: Mapping[str, Work], times: int, events: int, records: list[Record]) -> dict[str, list[float]]:
    """Return the CPU µs of each, by round; all take turns."""
    costs: dict[str, list[float]] = {what: [] for what in works}
    for _ in range(_ROUNDS):
        for what, work in works.items():
            began = time.thread_time()
            for _ in range(times):
                await work()
            costs[what].append((time.thread_time() - began) / (times * events) * 1e6)
            records.clear()
    return costs


def _figures(costs: Mapping[str, list[float]]) -> list[Figure]:
    whole = list(costs.values())[-1]
    return [
        Figure(what, median(us), median(a / b for a, b in zip(us, whole, strict=True)), "all layers")
        for what, us in costs.items()
    ]


def run() -> list[Figure]:
    """Measure every layer with all below it."""
    with tempfile.TemporaryDirectory() as name:
        return uvloop.run(_measure(Path(name)))

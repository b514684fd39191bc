"""The floors: servers that add nothing. `python -m bench.floor PORTS_FILE WHOLE STREAM`, the last two being `Call`s as
JSON.

Over HTTP every POST is forwarded, to one upstream for whole answers and to another for streams. Over gRPC, Route gives
one answer made at the start, and Complete and StreamComplete forward one body and hand the answer back as it came.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import msgspec
import uvloop
from aiohttp import web
from routecast.v1 import chat_pb2, router_pb2, routing_pb2

_ADVICE = router_pb2.RouteResponse(
    decision_id="0123456789abcdef",
    candidates=[
        routing_pb2.Candidate(endpoint_id="only:openai/gpt-4", provider="only", base_url="http://127.0.0.1/v1")
    ],
)


class Call(msgspec.Struct, frozen=True):
    """What to send where."""

    url: str
    body: str


class _RpcFloor:
    """The methods of RouterService that are measured."""

    def __init__(self, session: aiohttp.ClientSession, whole: Call, stream: Call) -> None:
        self._session = session
        self._whole, self._stream = whole, stream

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a server is to be given."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Route": grpc.unary_unary_rpc_method_handler(
                self._route, router_pb2.RouteRequest.FromString, router_pb2.RouteResponse.SerializeToString
            ),
            "Complete": grpc.unary_unary_rpc_method_handler(
                self._complete, router_pb2.CompleteRequest.FromString, router_pb2.CompleteResponse.SerializeToString
            ),
            "StreamComplete": grpc.unary_stream_rpc_method_handler(
                self._stream_complete,
                router_pb2.StreamCompleteRequest.FromString,
                router_pb2.StreamCompleteResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler("routecast.v1.RouterService", methods)

    async def _route(self, request: router_pb2.RouteRequest, context: Any) -> router_pb2.RouteResponse:  # noqa: ARG002  # gRPC
        return _ADVICE

    async def _complete(self, request: router_pb2.CompleteRequest, context: Any) -> router_pb2.CompleteResponse:  # noqa: ARG002  # gRPC
        async with self._session.post(self._whole.url, data=self._whole.body) as response:
            return router_pb2.CompleteResponse(raw_json=await response.read())

    async def _stream_complete(
        self,
        request: router_pb2.StreamCompleteRequest,  # noqa: ARG002  # gRPC
        context: Any,  # noqa: ARG002  # gRPC
    ) -> AsyncIterator[router_pb2.StreamCompleteResponse]:
        async with self._session.post(self._stream.url, data=self._stream.body) as response:
            async for part in response.content.iter_any():
                yield router_pb2.StreamCompleteResponse(chunk=chat_pb2.ChatChunk(raw_json=part))


async def _serve(whole: Call, stream: Call, announce: Callable[[int, int], object]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            async with session.post(whole.url, data=await request.read()) as response:
                body = await response.read()
                return web.Response(status=response.status, body=body, content_type="application/json")

        async def forward_stream(request: web.Request) -> web.StreamResponse:
            async with session.post(stream.url, data=await request.read()) as response:
                out = web.StreamResponse(headers={"content-type": "text/event-stream"})
                await out.prepare(request)
                async for part in response.content.iter_any():
                    await out.write(part)
                await out.write_eof()
                return out

        app = web.Application()
        app.add_routes([web.post("/", forward), web.post("/stream", forward_stream)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_RpcFloor(session, whole, stream).handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        announce(runner.addresses[0][1], port)
        await stop.wait()
        await server.stop(0)
        await runner.cleanup()


if __name__ == "__main__":
    ports_file, whole, stream = Path(sys.argv[1]), *(msgspec.json.decode(call, type=Call) for call in sys.argv[2:4])
    uvloop.run(_serve(whole, stream, lambda http, rpc: ports_file.write_text(json.dumps({"http": http, "grpc": rpc}))))

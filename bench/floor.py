"""The floor: an aiohttp server that forwards every POST to one upstream and adds nothing. `python -m bench.floor
PORTS_FILE`.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web


async def _serve(upstream: str, announce: Callable[[int], object]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            async with session.post(upstream, data=await request.read()) as response:
                return web.Response(status=response.status, body=await response.read(), content_type="application/json")

        app = web.Application()
        app.router.add_post("/", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        announce(runner.addresses[0][1])
        await stop.wait()
        await runner.cleanup()


if __name__ == "__main__":
    ports_file = Path(sys.argv[1])
    uvloop.run(
        _serve(os.environ["ROUTECAST_BENCH_UPSTREAM"], lambda port: ports_file.write_text(json.dumps({"http": port})))
    )

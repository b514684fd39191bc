"""The control listener of the simulated providers: statistics, clock and faults as JSON over HTTP.

The rule of this file: it only translates between HTTP and `ProviderFleet`; it sits on a port of its own, so that no
fault can reach it.
"""

import base64
from typing import Any

import msgspec
from aiohttp import web

from sim.decode import ScenarioError, decode
from sim.faults import Fault
from sim.provider import ReceivedRequest
from sim.provider_fleet import ProviderFleet


class ProviderControl:
    """Serves GET /stats, GET /clock, POST /start, POST /faults and DELETE /faults on 127.0.0.1."""

    def __init__(self, fleet: ProviderFleet) -> None:
        self._fleet = fleet
        app = web.Application()
        app.router.add_get("/stats", self._stats)
        app.router.add_get("/clock", self._clock)
        app.router.add_post("/start", self._start)
        app.router.add_post("/faults", self._inject)
        app.router.add_delete("/faults", self._clear)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def start(self, port: int = 0) -> int:
        """Listen on `port` (0: a free one) and return it; raises OSError when it is taken."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        return site.port

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _stats(self, _request: web.Request) -> web.Response:
        return _json({name: self._stats_of(name) for name in self._fleet.names})

    def _stats_of(self, name: str) -> dict[str, Any]:
        stats = self._fleet.stats(name)
        received = self._fleet.requests(name)
        return {
            "total": stats.total,
            "outcomes": stats.outcomes,
            "in_flight": stats.in_flight,
            "connections": stats.connections,
            "refusing": stats.refusing,
            "last_request": _as_json(received[-1]) if received else None,
        }

    async def _clock(self, _request: web.Request) -> web.Response:
        return _json(self._clock_reading())

    async def _start(self, _request: web.Request) -> web.Response:
        try:
            await self._fleet.start_clock()
        except RuntimeError as error:
            return _json({"error": str(error)}, 409)
        return _json(self._clock_reading())

    async def _inject(self, request: web.Request) -> web.Response:
        try:
            fault = decode(Fault, msgspec.json.decode(await request.read()))
        except (ScenarioError, msgspec.DecodeError) as error:
            return _json({"error": str(error)}, 400)
        if not self._fleet.scenario.struck(fault):
            return _json({"error": f"no provider matches {fault.provider or 'any'} in {fault.region or 'any'}"}, 400)
        await self._fleet.inject(fault)
        return web.Response(status=204)

    async def _clear(self, _request: web.Request) -> web.Response:
        await self._fleet.clear()
        return web.Response(status=204)

    def _clock_reading(self) -> dict[str, Any]:
        scenario = self._fleet.scenario
        return {"scenario": scenario.name, "t_s": self._fleet.clock_s, "duration_s": scenario.duration_s}


def _as_json(request: ReceivedRequest) -> dict[str, Any]:
    return {
        "method": request.method,
        "path": request.path,
        "headers": request.headers,
        "body_base64": base64.b64encode(request.body).decode(),
    }


def _json(payload: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(payload), status=status, content_type="application/json")

"""The HTTP server: OpenAI routes, /healthz and /metrics, on the loop it is started in.

Metrics name models, endpoints and what they cost. Whoever keeps that from callers gives them an address of their own.
"""

from collections.abc import Callable

from aiohttp import web

from service.http.errors import MAX_HEAD_BYTES, errors
from service.http.openai import OpenAiRoutes

_PARSED_BYTES = 2 * MAX_HEAD_BYTES  # so that most of what is too large gets an answer that says so
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class HttpServer:
    """The HTTP edge on one address, with the metrics on it or on a second one."""

    def __init__(
        self, routes: OpenAiRoutes, metrics: Callable[[], bytes], *, max_body_bytes: int, drain_s: float
    ) -> None:
        self._metrics = metrics
        self._serving = False
        app = web.Application(client_max_size=max_body_bytes, middlewares=[errors])
        app.add_routes([*routes.table(), web.get("/healthz", self._healthz)])
        self._app = app
        self._watched: web.AppRunner | None = None
        # A caller who leaves cancels the handler, and with it the call to the provider.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            handle_signals=False,
            shutdown_timeout=drain_s,
            max_line_size=_PARSED_BYTES,
            max_field_size=_PARSED_BYTES,
        )

    async def start(self, address: str, metrics: str | None = None) -> tuple[int, int]:
        """Listen on host:port, and for metrics there or on `metrics`; return the bound ports. Raises OSError when an
        address is taken.
        """
        shown = web.get("/metrics", self._show_metrics)
        if metrics is None:
            self._app.add_routes([shown])
            port = metrics_port = await _listen(self._runner, address)
        else:
            app = web.Application(middlewares=[errors])
            app.add_routes([shown, web.get("/healthz", self._healthz)])
            self._watched = web.AppRunner(app, access_log=None, handle_signals=False)
            metrics_port = await _listen(self._watched, metrics)
            port = await _listen(self._runner, address)
        self._serving = True
        return port, metrics_port

    def announce_stop(self) -> None:
        """Fail the health check, so that load balancers look elsewhere."""
        self._serving = False

    async def stop(self) -> None:
        """Take no new connections, and let requests in flight finish within the drain period. Metrics go last."""
        await self._runner.cleanup()
        if self._watched is not None:
            await self._watched.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:  # noqa: ARG002  # aiohttp's signature
        status = "serving" if self._serving else "draining"
        return web.json_response({"status": status}, status=200 if self._serving else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:  # noqa: ARG002  # aiohttp's signature
        return web.Response(body=self._metrics(), headers={"content-type": _METRICS_TYPE})


async def _listen(runner: web.AppRunner, address: str) -> int:
    host, _, port = address.rpartition(":")
    await runner.setup()
    await web.TCPSite(runner, host.strip("[]"), int(port)).start()
    return int(runner.addresses[0][1])

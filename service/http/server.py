"""The HTTP server: OpenAI routes, /healthz and /metrics, on the loop it is started in."""

from collections.abc import Callable

from aiohttp import web

from service.http.errors import MAX_HEAD_BYTES, errors
from service.http.openai import OpenAiRoutes

_PARSED_BYTES = 2 * MAX_HEAD_BYTES  # so that most of what is too large gets an answer that says so
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class HttpServer:
    """One HTTP server on one address."""

    def __init__(
        self, routes: OpenAiRoutes, metrics: Callable[[], bytes], *, max_body_bytes: int, drain_s: float
    ) -> None:
        self._metrics = metrics
        self._serving = False
        app = web.Application(client_max_size=max_body_bytes, middlewares=[errors])
        app.add_routes([*routes.table(), web.get("/healthz", self._healthz), web.get("/metrics", self._show_metrics)])
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

    async def start(self, address: str) -> int:
        """Listen on host:port and return the bound port. Raises OSError when the address is taken."""
        host, _, port = address.rpartition(":")
        await self._runner.setup()
        site = web.TCPSite(self._runner, host.strip("[]"), int(port))
        await site.start()
        self._serving = True
        return int(self._runner.addresses[0][1])

    def announce_stop(self) -> None:
        """Fail the health check, so that load balancers look elsewhere."""
        self._serving = False

    async def stop(self) -> None:
        """Take no new connections, and let requests in flight finish within the drain period."""
        await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:  # noqa: ARG002  # aiohttp's signature
        status = "serving" if self._serving else "draining"
        return web.json_response({"status": status}, status=200 if self._serving else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:  # noqa: ARG002  # aiohttp's signature
        return web.Response(body=self._metrics(), headers={"content-type": _METRICS_TYPE})

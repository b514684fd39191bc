"""Where the metrics are: on the callers' port, or on one of their own that a network can keep from callers."""

import re
from pathlib import Path

import aiohttp
import pytest

from service.config import Config
from service.main import running
from sim.provider_server import ProviderFleet
from tests.service_under_test import Service, as_process, config_for, in_process, write_config


async def _status(service: Service, port: int, path: str) -> tuple[int, str]:
    async with service.http.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def test_metrics_are_on_the_callers_port_by_default(service: Service) -> None:
    assert service.ports.metrics == service.ports.http
    status, text = await _status(service, service.ports.http, "/metrics")
    assert status == 200
    assert "routecast_requests" in text


async def test_metrics_with_an_address_of_their_own_are_nowhere_else(providers: ProviderFleet, tmp_path: Path) -> None:
    server = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
    async with in_process(providers, tmp_path, server=server) as service:
        ports = service.ports
        assert len({ports.grpc, ports.http, ports.metrics}) == 3
        assert (await _status(service, ports.metrics, "/metrics"))[0] == 200
        status, text = await _status(service, ports.http, "/metrics")
        assert (status, "unknown_path" in text) == (404, True)
        for port in (ports.metrics, ports.http):
            assert (await _status(service, port, "/healthz"))[0] == 200
        assert (await _status(service, ports.metrics, "/v1/models"))[0] == 404, "nothing else is served there"


async def test_a_taken_address_of_metrics_stops_the_start(service: Service, tmp_path: Path) -> None:
    taken = f"127.0.0.1:{service.ports.http}"
    server = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "metrics": taken}
    config = Config.model_validate(
        {
            "server": server,
            "data_dir": str(tmp_path / "second"),
            "providers": [{"name": "p", "base_url": "http://127.0.0.1:9/v1"}],
            "models": [{"id": "m", "endpoints": [{"provider": "p", "provider_model": "m"}]}],
            "scoring": {"enabled": False},
        }
    )
    with pytest.raises(OSError, match="address already in use"):
        async with running(config):
            pass
    async with aiohttp.ClientSession() as session, session.get(f"http://{taken}/healthz") as response:
        assert response.status == 200


async def test_the_process_tells_where_its_metrics_are(providers: ProviderFleet, tmp_path: Path) -> None:
    server = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "metrics": "127.0.0.1:0"}
    config = write_config(tmp_path / "routecast.yaml", config_for(providers, tmp_path / "data", server=server))
    async with as_process(config) as service:
        (told,) = (line for line in service.errors if line.startswith("serving gRPC"))
        (url,) = re.findall(r"metrics on (\S+)", told)
        assert url == f"http://127.0.0.1:{service.ports.metrics}/metrics"
        async with service.http.get(url) as response:
            assert "routecast_requests" in await response.text()

"""C-02: one canonical name for callers, each provider's own on its wire; price, window and abilities per endpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from routecast.v1 import router_pb2, routing_pb2

from sim.provider_server import ProviderFleet
from tests.scripted_upstreams import scripted
from tests.service_under_test import DEADLINE_S, GPT4, Service, user

_OWN_NAMES = {"aurora": "openai/gpt-4", "borealis": "gpt-4", "cirrus": "gpt-4-0613"}
_PRICES = {"aurora": (30.0, 60.0), "borealis": (20.0, 40.0), "cirrus": (0.0, 0.0)}


async def test_c02_each_provider_is_asked_by_its_own_name_at_its_own_price(
    service: Service, providers: ProviderFleet
) -> None:
    for provider, own_name in _OWN_NAMES.items():
        served = await service.complete(preferred_provider=provider)
        (asked,) = providers.requests(provider)
        assert json.loads(asked.body)["model"] == own_name
        report, usage = served.routing, served.usage
        assert (report.provider, report.provider_model) == (provider, own_name)
        input_usd, output_usd = _PRICES[provider]
        assert (report.input_usd_per_mtok, report.output_usd_per_mtok) == (input_usd, output_usd)
        cost_usd = (usage.input_tokens * input_usd + usage.output_tokens * output_usd) / 1e6
        assert report.cost_usd == pytest.approx(cost_usd)


async def test_c02_a_request_goes_only_where_the_model_can_take_it(providers: ProviderFleet, tmp_path: Path) -> None:
    endpoints: list[dict[str, Any]] = [
        {"provider": "small", "provider_model": "m", "context_window_tokens": 50},
        {"provider": "blind", "provider_model": "m", "context_window_tokens": 100_000},
        {"provider": "sighted", "provider_model": "m", "capabilities": ["chat", "streaming", "vision"]},
    ]
    names = [endpoint["provider"] for endpoint in endpoints]
    async with scripted(providers, tmp_path, *names, models=[{"id": GPT4, "endpoints": endpoints}]) as (service, _):
        assert (await service.complete(user("short"))).routing.provider == "small"
        assert (await service.complete(user("long " * 200))).routing.provider == "blind"
        image = {"type": "image_url", "image_url": {"url": "https://images.invalid/cat.png"}}
        body = {"model": GPT4, "messages": [{"role": "user", "content": [image]}]}
        async with service.http.post(f"{service.url}/v1/chat/completions", json=body) as response:
            assert response.headers["x-routecast-provider"] == "sighted"
        listed = await service.stub.ListModels(router_pb2.ListModelsRequest(), timeout=DEADLINE_S)
        (model,) = listed.models
        shown = {
            e.provider: (e.context_window_tokens, routing_pb2.CAPABILITY_VISION in e.capabilities)
            for e in model.endpoints
        }
    assert shown == {"small": (50, False), "blind": (100_000, False), "sighted": (0, True)}

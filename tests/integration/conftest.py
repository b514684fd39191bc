"""What tests of the service share: simulated providers, and a service over them without forecasts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sim.provider_server import ProviderFleet
from sim.scenario import parse_scenario
from tests.service_under_test import SCENARIO, Service, in_process


@pytest.fixture
async def providers() -> AsyncIterator[ProviderFleet]:
    async with ProviderFleet(parse_scenario(SCENARIO)) as fleet:
        yield fleet


@pytest.fixture
async def service(providers: ProviderFleet, tmp_path: Path) -> AsyncIterator[Service]:
    async with in_process(providers, tmp_path) as started:
        yield started

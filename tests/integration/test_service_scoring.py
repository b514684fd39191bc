"""The scoring process may die, hang, or lose its models: requests do not notice, and forecasts come back (F-20)."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import kill
from pathlib import Path

import pytest
from routecast.v1 import router_pb2

from scoring.registry import PRIOR
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import GPT4, ServiceProcess, as_process, config_for, tried, until, write_config

SCORING = {"enabled": True, "tick_s": 0.2, "scheduling": "normal"}
MAX_AGE_S = 2.0


@asynccontextmanager
async def _forecasting(
    providers: ProviderFleet, directory: Path, *, prefix: tuple[str, ...] = ()
) -> AsyncIterator[ServiceProcess]:
    policy = {"forecast": {"max_age_s": MAX_AGE_S}}
    tree = config_for(providers, directory / "data", scoring=SCORING, policy=policy)
    async with as_process(write_config(directory / "routecast.yaml", tree), prefix=prefix) as service:
        yield service


def _scorers(service: ServiceProcess) -> list[int]:
    """The scoring processes of a service."""
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = []
    for child in children:
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        if b"scoring.worker" in command:
            found.append(int(child))
    return found


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def _forecaster(service: ServiceProcess) -> str:
    """Which model's forecast decisions use now; every request on the way must be answered."""
    assert (await service.complete()).routing.provider == "aurora"
    asked = router_pb2.ExplainRouteRequest(request=router_pb2.RouteRequest(model=GPT4))
    return (await service.stub.ExplainRoute(asked)).forecaster


async def _is_forecasting(service: ServiceProcess) -> bool:
    return bool(await _forecaster(service))


async def _is_silent(service: ServiceProcess) -> bool:
    return not await _forecaster(service)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_f20_killing_or_freezing_the_scoring_process_breaks_no_request(
    providers: ProviderFleet, tmp_path: Path, number: signal.Signals
) -> None:
    async with _forecasting(providers, tmp_path) as service:
        await until(lambda: _is_forecasting(service))
        (before,) = _scorers(service)
        kill(before, number)
        await until(lambda: _is_silent(service))

        # Reflex alone still sees an outage at once, and the request is served.
        await providers.inject(Fault(kind=FaultKind.REFUSE, provider="aurora"))
        assert tried((await service.complete()).routing) == [("aurora", "CONNECT_ERROR"), ("borealis", "OK")]
        await providers.clear()

        async def again() -> bool:
            await service.complete()
            asked = router_pb2.ExplainRouteRequest(request=router_pb2.RouteRequest(model=GPT4))
            return bool((await service.stub.ExplainRoute(asked)).forecaster)

        if number is signal.SIGSTOP:
            kill(before, signal.SIGCONT)
            await until(again)
        else:
            await until(again)
            (after,) = _scorers(service)
            assert after != before
        assert await service.end() == 0, "".join(service.errors)
        assert not _alive(before), "nothing outlives the service"


async def test_f20_a_damaged_champion_gives_way_to_the_shipped_model(providers: ProviderFleet, tmp_path: Path) -> None:
    broken = tmp_path / "data" / "models" / "broken"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    (broken.parent / "roles.json").write_text('{"champion": "broken"}')
    async with _forecasting(providers, tmp_path) as service:
        await until(lambda: _is_forecasting(service))
        assert await service.end() == 0
        assert any("broken" in line for line in service.errors), "the operator is told"


async def test_f20_without_any_model_the_reflex_stands_alone(providers: ProviderFleet, tmp_path: Path) -> None:
    """The shipped model's directory is hidden from the service by an empty mount of its own."""
    script = f'mount -t tmpfs none {PRIOR} && exec "$@"'
    probe = await asyncio.create_subprocess_exec("unshare", "-m", "true", stderr=asyncio.subprocess.DEVNULL)
    if await probe.wait():
        pytest.skip("mounting needs privileges this environment does not give")
    async with _forecasting(providers, tmp_path, prefix=("unshare", "-m", "sh", "-c", script, "sh")) as service:

        async def told() -> bool:
            assert not await _forecaster(service)
            return any("reflex policy stands alone" in line for line in service.errors)

        await until(told)
        await providers.inject(Fault(kind=FaultKind.REFUSE, provider="aurora"))
        assert tried((await service.complete()).routing) == [("aurora", "CONNECT_ERROR"), ("borealis", "OK")]
        assert await service.end() == 0

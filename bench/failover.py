"""F-03, F-12: how long a failover takes in the real service, phase by phase, over real sockets.

Detection: from the observation that decides (the failed attempt is over) to the ejection. Route update: from the
ejection to the first decision that goes elsewhere. First success: from the deciding observation to an answer. All are
elapsed times, the worst of all rounds; the reference is a request that needs no failover.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

import aiohttp
import yaml

from bench.figure import Figure
from routing.actions import DomainChanged, Finished, Transitioned
from routing.health import State
from routing.model import Endpoint
from routing.outcomes import Outcome
from service.config_file import load
from service.main import running
from service.router import Decided
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from sim.scenario import parse_scenario

_MODEL = "openai/gpt-4"
_BODY = {"model": _MODEL, "messages": [{"role": "user", "content": "x" * 100}]}
_ROUNDS, _CALM, _MOST = 8, 40, 400
_SCENARIO = """
name: failover
seed: 1
duration_s: 3600
providers:
  - name: primary
    region: here
    zone: a
    ttft_ms: 1
    tokens_per_s: 100000
    models: [{id: openai/gpt-4, provider_model_id: m}]
  - name: secondary
    region: there
    zone: a
    ttft_ms: 1
    tokens_per_s: 100000
    models: [{id: openai/gpt-4, provider_model_id: m}]
"""
_FAULTS = {
    "connection refused": Fault(kind=FaultKind.REFUSE, provider="primary"),
    "server errors": Fault(kind=FaultKind.SERVER_ERROR, provider="primary", status=500),
}


class _Phases:
    """A listener that notes when each phase of the primary's failover ended, in seconds of the performance counter."""

    def __init__(self) -> None:
        self.observed = self.ejected = self.rerouted = self.answered = 0.0

    def decided(self, decided: Decided) -> None:
        chosen = decided.decision.chosen
        if self.ejected and not self.rerouted and chosen is not None and chosen.facts.endpoint.provider != "primary":
            self.rerouted = time.perf_counter()

    def started(self, endpoint: Endpoint, attempt_id: str, now: float, *, streamed: bool) -> None:
        """Nothing: it is no phase."""

    def first_byte(self, endpoint: Endpoint, attempt_id: str, now: float) -> None:
        """Nothing: it is no phase."""

    def finished(self, endpoint: Endpoint, result: Finished, now: float) -> None:  # noqa: ARG002  # the protocol's signature
        if not self.ejected:
            self.observed = time.perf_counter()
        elif self.rerouted and not self.answered and result.outcome is Outcome.OK:
            self.answered = time.perf_counter()

    def transitioned(self, action: Transitioned) -> None:
        if action.transition.to_state is State.EJECTED and not self.ejected:
            self.ejected = time.perf_counter()

    def domain_changed(self, action: DomainChanged) -> None:
        """Nothing: it is no phase."""


async def _round(fault: Fault) -> tuple[_Phases, float]:
    """Return one failover's phases and the elapsed time of a calm request, in seconds."""
    phases, calm = _Phases(), []
    with tempfile.TemporaryDirectory() as directory:
        async with ProviderFleet(parse_scenario(_SCENARIO)) as fleet:
            path = Path(directory) / "routecast.yaml"
            path.write_text(yaml.safe_dump(_config(fleet, directory)))
            async with running(load(path), listeners=(phases,)) as ports, aiohttp.ClientSession() as session:
                url = f"http://127.0.0.1:{ports.http}/v1/chat/completions"

                async def ask() -> None:
                    async with session.post(url, json=_BODY) as reply:
                        await reply.read()
                        reply.raise_for_status()

                for _ in range(_CALM):
                    before = time.perf_counter()
                    await ask()
                    calm.append(time.perf_counter() - before)
                await fleet.inject(fault)
                for _ in range(_MOST):
                    await ask()
                    if phases.answered:
                        return phases, median(calm)
    raise RuntimeError(f"the primary was not ejected by {_MOST} requests under {fault.kind.value}")


def _config(fleet: ProviderFleet, directory: str) -> dict[str, object]:
    names = ("primary", "secondary")
    return {
        "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"},
        "data_dir": directory,
        "scoring": {"enabled": False},
        "providers": [{"name": name, "base_url": fleet.url(name), "region": name} for name in names],
        "models": [{"id": _MODEL, "endpoints": [{"provider": name, "provider_model": "m"} for name in names]}],
    }


def run() -> list[Figure]:
    """Measure failovers."""
    figures: list[Figure] = []
    for what, fault in _FAULTS.items():
        rounds = [asyncio.run(_round(fault)) for _ in range(_ROUNDS)]
        calm_us = median(calm for _, calm in rounds) * 1e6
        figures.append(Figure(f"{what}: a request before, elapsed, median", calm_us))
        for phase, worst in (
            ("detection", max(p.ejected - p.observed for p, _ in rounds)),
            ("route update", max(p.rerouted - p.ejected for p, _ in rounds)),
            ("first success", max(p.answered - p.observed for p, _ in rounds)),
        ):
            figures.append(
                Figure(f"{what}: {phase}, elapsed, worst", worst * 1e6, worst * 1e6 / calm_us, "a request before")
            )
    return figures

"""L-07: half of the primary's requests fail, in windows, under a steady load at a service in a process of its own.

`python -m bench.chaos --rate 200`. Four kinds of requests take turns: over gRPC, over HTTP, over HTTP twice at once
under one idempotency key, and over gRPC as requests that must not run twice. Each carries a mark, by which its
providers' own lists of what they received tell how often it was sent where.

The rule of this file: who judges is not the service. How often something ran is counted at the providers, and what was
paid for is read from the ledger after the end. Requests that must not run twice have no second chance, so they are no
part of the success that is asked for.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table
from routecast.v1 import router_pb2, routing_pb2

from analytics.store import connect
from bench.load import Asked, Callers, calling, percentile, scenario, steadily, verdict
from bench.serving import MODEL, NAMES, config_for, served
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from sim.scenario import parse_scenario

_LEAST_SUCCESS = 0.999
_FAILOVER_S = 30.0
_SHARE = 0.5
_MOST_KEPT = 200_000
_RETURN_S = 60.0
_LOOK_S = 0.02
_PRIMARY = NAMES[0]
_OUT = frozenset(map(routing_pb2.HealthState.Value, ("HEALTH_STATE_EJECTED", "HEALTH_STATE_PROBING")))


@dataclass(slots=True)
class Stormed:
    """What came of a run.

    Attributes:
        asked: what became of requests that may be sent again after a failure.
        once: what became of those that may not.
        ejected_after_s: how long after the begin of each window the primary was out; None when it was not within it.
        sent: by mark, how often each provider received it.
        joined: how many were answered together with another under their key.
        entries: of the ledger, of requests that were served.
    """

    asked: list[Asked] = field(default_factory=list)
    once: list[Asked] = field(default_factory=list)
    ejected_after_s: list[float | None] = field(default_factory=list)
    sent: dict[str, Counter[str]] = field(default_factory=dict)
    joined: int = 0
    entries: int = 0

    @property
    def success(self) -> float:
        """Share of the requests that may be sent again that were answered."""
        return sum(not each.error for each in self.asked) / max(1, len(self.asked))

    @property
    def repeated(self) -> list[str]:
        """Marks of requests that a provider received twice, or that two received though they must not run twice."""
        return [
            mark
            for mark, providers in self.sent.items()
            if max(providers.values()) > 1 or (mark.startswith("once") and providers.total() > 1)
        ]

    @property
    def answered(self) -> int:
        """Requests that were answered, those under one key together as one."""
        return sum(not each.error for each in self.once) + sum(not each.error for each in self.asked) - self.joined

    def complaints(self) -> list[str]:
        """Return what is not as it should be."""
        said = []
        if self.success < _LEAST_SUCCESS:
            said.append(f"{self.success:.2%} success, at least {_LEAST_SUCCESS:.1%} expected")
        if repeated := self.repeated:
            said.append(f"{len(repeated)} requests were sent again that may have run: {', '.join(repeated[:5])}")
        if self.entries != self.answered:
            said.append(f"{self.entries} entries in the ledger for {self.answered} answered requests")
        if any(after_s is None or after_s > _FAILOVER_S for after_s in self.ejected_after_s):
            said.append("the primary was not out within its window")
        return said


async def stormed(rate: float, windows: int, window_s: float, calm_s: float) -> Stormed:
    """Send `rate` requests a second through `windows` windows of `window_s` seconds, each after `calm_s` of calm in
    which the primary serves.
    """
    run = Stormed()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fleet = await stack.enter_async_context(ProviderFleet(parse_scenario(scenario()), keep=_MOST_KEPT))
        async with (
            served(config_for(fleet, folder)) as (_, ports),
            calling(ports) as callers,
            asyncio.TaskGroup() as group,
        ):
            trouble = group.create_task(_windows(run, fleet, callers, windows, window_s, calm_s))
            ask = partial(_ask, run, callers)
            group.create_task(steadily(rate, lambda _: not trouble.done(), ask))
        run.sent = _received(fleet)
        run.entries = await asyncio.to_thread(_entries, folder / "data" / "history")
    return run


async def _ask(run: Stormed, callers: Callers, number: int, due: float) -> None:
    match number % 4:
        case 0:
            run.asked.append(await callers.over_grpc(due, f"again-{number}"))
        case 1:
            run.asked.append(await callers.over_http(due, f"again-{number}"))
        case 2:
            both = [callers.over_http(due, f"keyed-{number}", idempotency_key=f"key-{number}") for _ in range(2)]
            first, second = await asyncio.gather(*both)
            run.asked += [first, second]
            run.joined += not (first.error or second.error)
        case _:
            run.once.append(await callers.over_grpc(due, f"once-{number}", idempotent=False))


async def _windows(
    run: Stormed, fleet: ProviderFleet, callers: Callers, windows: int, window_s: float, calm_s: float
) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(windows):
        if await _seen(callers, loop.time() + _RETURN_S, out=False) is None:
            raise RuntimeError(f"the primary is not back {_RETURN_S} s after its trouble")
        await asyncio.sleep(calm_s)
        begun = loop.time()
        await fleet.inject(Fault(kind=FaultKind.ERROR_RATE, provider=_PRIMARY, probability=_SHARE, status=500))
        out = await _seen(callers, begun + window_s, out=True)
        run.ejected_after_s.append(None if out is None else out - begun)
        await asyncio.sleep(max(0.0, begun + window_s - loop.time()))
        await fleet.clear()
    await asyncio.sleep(calm_s)


async def _seen(callers: Callers, give_up: float, *, out: bool) -> float | None:
    """Return when the primary was seen to be out of service, or back; None if it was not before `give_up`."""
    loop = asyncio.get_running_loop()
    while loop.time() < give_up:
        listed = await callers.stub.ListModels(router_pb2.ListModelsRequest())
        (model,) = (each for each in listed.models if each.id == MODEL)
        (state,) = (endpoint.state for endpoint in model.endpoints if endpoint.provider == _PRIMARY)
        if (state in _OUT) is out:
            return loop.time()
        await asyncio.sleep(_LOOK_S)
    return None


def _received(fleet: ProviderFleet) -> dict[str, Counter[str]]:
    """By mark, how often each provider received it; probes have none."""
    sent: dict[str, Counter[str]] = {}
    for name in NAMES:
        for request in fleet.requests(name):
            mark = json.loads(request.body)["messages"][-1]["content"]
            if "-" in mark:
                sent.setdefault(mark, Counter())[name] += 1
    return sent


def _entries(history: Path) -> int:
    with connect(history) as connection:
        query = "FROM usage SELECT count(*), count(DISTINCT request_id) WHERE status = 'ok'"
        rows = connection.execute(query).fetchall()
    ((entries, requests),) = rows
    if entries != requests:
        raise RuntimeError(f"{entries} entries for {requests} requests")
    return int(entries)


def main() -> int:
    """Run the command line; returns 1 when something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second (default: 200)")
    parser.add_argument("--windows", type=int, default=3, help="of trouble (default: 3)")
    parser.add_argument("--window", type=float, default=6.0, help="seconds that one lasts (default: 6)")
    parser.add_argument("--calm", type=float, default=6.0, help="seconds before and after each (default: 6)")
    arguments = parser.parse_args()
    run = uvloop.run(stormed(arguments.rate, arguments.windows, arguments.window, arguments.calm))
    console = Console(width=120)
    table = Table(
        title=f"{len(run.asked) + len(run.once)} requests at {arguments.rate:g}/s and more, for keys are sent twice"
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in _figures(run):
        table.add_row(name, value)
    console.print(table)
    return verdict(console, run.complaints())


def _figures(run: Stormed) -> list[tuple[str, str]]:
    latencies_s = [each.ended - each.sent for each in run.asked]
    failed = Counter(each.error for each in run.asked + run.once if each.error)
    out = ("not seen" if after_s is None else f"{after_s:.2f} s" for after_s in run.ejected_after_s)
    return [
        ("answered, of those that may be sent again", f"{run.success:.3%} of {len(run.asked)}"),
        ("of these, at a second attempt", str(sum(each.attempts > 1 for each in run.asked))),
        ("answered, of those that must not run twice", f"{sum(not e.error for e in run.once)} of {len(run.once)}"),
        ("errors", ", ".join(f"{error} {count}" for error, count in sorted(failed.items())) or "none"),
        ("sent again though they may have run", str(len(run.repeated))),
        ("entries in the ledger, for answers", f"{run.entries} for {run.answered}"),
        ("primary out, after each window's begin", ", ".join(out)),
        ("latency p50, p99, longest", ", ".join(f"{percentile(latencies_s, p):.3f} s" for p in (0.5, 0.99, 1.0))),
    ]


if __name__ == "__main__":
    sys.exit(main())

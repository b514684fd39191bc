"""L-13: every provider rate-limits at once under a steady load, against a service in a process of its own.

`python -m bench.limits --rate 400`. Requests start at their own times, whatever became of those before (an open loop),
half over gRPC and half over HTTP. Three phases: all is well; every provider answers 429 with a Retry-After; all is well
again. What counts is what callers are told, how much providers are asked meanwhile, and how long after the limits'
reset a request may still fail.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import uvloop
from rich.console import Console
from rich.table import Table

from bench.load import Asked, rig, steadily, verdict
from bench.serving import NAMES
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet

_MOST_ASKED = 1.2
_RECOVERY_S = 2.0


@dataclass(slots=True)
class Limited:
    """What came of a run. `began` and `reset` are when the limits did; `asked_of_providers` counts between them."""

    asked: list[Asked] = field(default_factory=list)
    began: float = 0.0
    reset: float = 0.0
    asked_of_providers: int = 0

    @property
    def meanwhile(self) -> list[Asked]:
        """Requests that were sent while the limits held."""
        return [each for each in self.asked if self.began <= each.sent < self.reset]

    @property
    def recovery_s(self) -> float:
        """How long after the reset the last request was sent that failed."""
        return max([each.sent - self.reset for each in self.asked if each.error and each.sent >= self.reset], default=0)

    @property
    def amplification(self) -> float:
        """How often providers were asked for each request."""
        return self.asked_of_providers / max(1, len(self.meanwhile))

    def complaints(self) -> list[str]:
        """Return what is not as it should be."""
        said = []
        if any(each.error and not each.has_hint for each in self.asked):
            said.append("errors without a hint when to come back")
        if unclear := {each.error for each in self.asked} - {"", "429", "503", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}:
            said.append(f"errors other than of limits: {', '.join(sorted(unclear))}")
        if any(each.error for each in self.asked if each.ended < self.began):
            said.append("errors before the limits began")
        if self.amplification > _MOST_ASKED:
            said.append(
                f"providers were asked {self.amplification:.2f} times a request, at most {_MOST_ASKED} expected"
            )
        if self.recovery_s > _RECOVERY_S:
            said.append(f"the last failure {self.recovery_s:.1f} s after the reset, at most {_RECOVERY_S} s expected")
        return said


async def limited(rate: float, calm_s: float, limited_s: float) -> Limited:
    """Send `rate` requests a second: `calm_s` before, `limited_s` during, and as long as before after the limits."""
    run = Limited()
    async with rig() as (fleet, _, callers):

        async def ask(number: int, due: float) -> None:
            run.asked.append(await (callers.over_http if number % 2 else callers.over_grpc)(due))

        def total() -> int:
            return sum(fleet.stats(name).total + fleet.stats(name).in_flight for name in NAMES)

        async with asyncio.TaskGroup() as group:
            group.create_task(_limits(run, fleet, total, calm_s, limited_s))
            requests = round(rate * (2 * calm_s + limited_s))
            group.create_task(steadily(rate, lambda number: number < requests, ask))
    return run


async def _limits(
    run: Limited, fleet: ProviderFleet, total: Callable[[], int], calm_s: float, limited_s: float
) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(calm_s)
    before, run.began = total(), loop.time()
    await fleet.inject(*(Fault(kind=FaultKind.RATE_LIMIT, provider=name, retry_after_s=1.0) for name in NAMES))
    await asyncio.sleep(limited_s)
    await fleet.clear()
    run.asked_of_providers, run.reset = total() - before, loop.time()


def main() -> int:
    """Run the command line; returns 1 when something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__)
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second (default: 400)")
    parser.add_argument("--calm", type=float, default=5.0, help="seconds before and after the limits (default: 5)")
    parser.add_argument("--limited", type=float, default=6.0, help="seconds of limits (default: 6)")
    arguments = parser.parse_args()
    run = uvloop.run(limited(arguments.rate, arguments.calm, arguments.limited))
    console = Console(width=120)
    table = Table(title=f"{len(run.asked)} requests at {arguments.rate:g}/s, all limited for {arguments.limited:g} s")
    table.add_column("what")
    table.add_column("value", justify="right")
    for error, count in sorted(Counter(each.error or "answered" for each in run.meanwhile).items()):
        table.add_row(f"sent while limited: {error}", str(count))
    table.add_row("asked of providers per request, while limited", f"{run.amplification:.2f}")
    longest_s = max(each.ended - each.sent for each in run.asked)
    table.add_row("longest wait for an answer or error", f"{longest_s:.2f} s")
    table.add_row("last failure after the reset", f"{run.recovery_s:.2f} s")
    console.print(table)
    return verdict(console, run.complaints())


if __name__ == "__main__":
    sys.exit(main())

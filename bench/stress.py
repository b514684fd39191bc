"""L-03: a load that rises until the service breaks, and falls again; the service is a process of its own.

`python -m bench.stress`. Every step asks `growth` times as often as the one before. The service counts as broken at the
first step in which it leaves a tenth of the requests unanswered. Then the load falls back to the first step's, and it
is measured how long requests go on failing, or being slow.

What breaks first is read from the processor time of the two processes, the service's and this one's, which sends the
requests and answers for the providers. Where this one is the busier, the figure is a lower bound and the table says so.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import uvloop
from rich.console import Console
from rich.table import Table

from bench.figure import process_cpu_s
from bench.load import Asked, Callers, percentile, rig, steadily, verdict

_BROKEN_BELOW = 0.9
_MOST_STEPS = 20
_RECOVERY_S = 10.0
_SLOW = 3.0  # times the latency of the first step
_HONEST = frozenset({"429", "503", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "504", "DEADLINE_EXCEEDED"})


@dataclass(frozen=True, slots=True)
class Step:
    """One step: requests a second, what became of them, and how busy both processes were (1 is one core)."""

    rate: float
    asked: list[Asked]
    service_busy: float
    own_busy: float

    @property
    def answered(self) -> float:
        """The share that was answered."""
        return sum(not each.error for each in self.asked) / max(1, len(self.asked))

    def latency_s(self, share: float) -> float:
        """The latency that this share of the answered stayed within, in seconds."""
        return percentile([each.ended - each.sent for each in self.asked if not each.error], share)


@dataclass(slots=True)
class Stressed:
    """What came of a run: the rising steps, and the requests after the load fell at `fell`."""

    steps: list[Step] = field(default_factory=list)
    fell: float = 0.0
    after: list[Asked] = field(default_factory=list)
    is_alive: bool = False

    @property
    def has_broken(self) -> bool:
        """The load rose until the service could not follow."""
        return self.steps[-1].answered < _BROKEN_BELOW

    @property
    def recovery_s(self) -> float:
        """How long after the load fell the last request was sent that failed, or took three times the first step's
        95th percentile.
        """
        limit_s = _SLOW * max(0.1, self.steps[0].latency_s(0.95))
        late = [each.sent - self.fell for each in self.after if each.error or each.ended - each.sent > limit_s]
        return max(late, default=0.0)

    def complaints(self) -> list[str]:
        """Return what is not as it should be."""
        said = []
        if not self.is_alive:
            said.append("the service died")
        asked = [each for step in self.steps for each in step.asked] + self.after
        if dishonest := {each.error for each in asked} - _HONEST - {""}:
            said.append(f"errors other than refusals: {', '.join(sorted(dishonest))}")
        if any(each.error in ("429", "503") and not each.has_hint for each in asked):
            said.append("refusals without a hint when to come back")
        if self.recovery_s > _RECOVERY_S:
            said.append(f"not well {self.recovery_s:.1f} s after the load fell, at most {_RECOVERY_S} s expected")
        return said


async def stressed(
    first: float, growth: float, step_s: float, calm_s: float, *, most: float = float("inf")
) -> Stressed:
    """Raise the load from `first` requests a second by `growth` every `step_s` seconds until the service breaks, or to
    `most`; then ask `first` again for `calm_s` seconds.
    """
    run, rate = Stressed(), first
    async with rig() as (_, pid, callers):
        while len(run.steps) < _MOST_STEPS and rate <= most and not (run.steps and run.has_broken):
            run.steps.append(await _step(callers, pid, rate, step_s))
            rate *= growth
        run.fell = asyncio.get_running_loop().time()
        run.after = (await _step(callers, pid, first, calm_s)).asked
        run.is_alive = not (await callers.over_http(run.fell)).error
    return run


async def _step(callers: Callers, pid: int, rate: float, step_s: float) -> Step:
    asked: list[Asked] = []

    async def ask(number: int, due: float) -> None:
        asked.append(await (callers.over_http if number % 4 else callers.over_grpc)(due))

    begun, service_s, own_s = time.monotonic(), process_cpu_s(pid), process_cpu_s(os.getpid())
    requests = round(rate * step_s)
    await steadily(rate, lambda number: number < requests, ask)
    took_s = time.monotonic() - begun
    return Step(rate, asked, (process_cpu_s(pid) - service_s) / took_s, (process_cpu_s(os.getpid()) - own_s) / took_s)


def main() -> int:
    """Run the command line; returns 1 when something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m bench.stress", description=__doc__)
    parser.add_argument("--first", type=float, default=100.0, help="requests a second at first (default: 100)")
    parser.add_argument("--growth", type=float, default=1.5, help="from step to step (default: 1.5)")
    parser.add_argument("--step", type=float, default=5.0, help="seconds of one step (default: 5)")
    parser.add_argument("--calm", type=float, default=15.0, help="seconds at the first load again (default: 15)")
    arguments = parser.parse_args()
    run = uvloop.run(stressed(arguments.first, arguments.growth, arguments.step, arguments.calm))
    console = Console(width=120)
    table = Table(title="load by load", title_justify="left")
    for column in ("asked/s", "answered", "p50", "p95", "refused", "service busy", "bench busy"):
        table.add_column(column, justify="right")
    for step in run.steps:
        errors = Counter(each.error for each in step.asked if each.error)
        table.add_row(
            f"{step.rate:.0f}",
            f"{step.answered:.1%}",
            *(f"{step.latency_s(share):.3f} s" for share in (0.5, 0.95)),
            ", ".join(f"{error} {count}" for error, count in sorted(errors.items())),
            f"{step.service_busy:.0%}",
            f"{step.own_busy:.0%}",
        )
    console.print(table)
    last = run.steps[-1]
    broke = f"broke at {last.rate:.0f}/s" if run.has_broken else f"did not break up to {last.rate:.0f}/s"
    bound = " (a lower bound: this process was the busier)" if last.own_busy > last.service_busy else ""
    console.print(f"{broke}{bound}; well again {run.recovery_s:.1f} s after the load fell")
    return verdict(console, run.complaints())


if __name__ == "__main__":
    sys.exit(main())

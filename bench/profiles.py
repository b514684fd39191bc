"""L-01, L-02, L-04: everyday load, peak, and a spike, with their pass criteria; minutes shortened, rates kept.

`python -m bench.profiles`, or `python -m bench.profiles peak`. Seventy of a hundred requests are chats (half of them
over gRPC), twenty-five embeddings, five ask for the list of models. Latencies of chats are given over the simulated
provider's own time. The service is a process of its own; the loop is open.
"""

import argparse
import sys
from dataclasses import dataclass, field

import uvloop
from rich.console import Console
from rich.table import Table

from bench.load import Asked, Callers, percentile, rig, steadily, verdict
from bench.serving import resident_kib

_PROVIDER_S = 0.03  # its first token, and then its tokens, at the median
_MODELS_P95_S = 0.2
_GROWTH_KIB = 30 * 1024
_WARM_S = 3.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Requests a second, phase after phase of so many seconds each, and what is asked of the last phase."""

    phases: tuple[tuple[float, float], ...]
    success: float
    p95_s: float
    p99_s: float


PROFILES = {
    "baseline": Profile(((50, 30),), 0.995, 1.5, 3.0),  # L-01
    "peak": Profile(((250, 30),), 0.99, 3.0, 7.0),  # L-02
    "spike": Profile(((250, 10), (625, 8), (250, 30)), 0.99, 3.0, 7.0),  # L-04
}


@dataclass(slots=True)
class Profiled:
    """What came of a run: chats and other requests of each phase, lists of models, and memory before and after."""

    profile: Profile
    chats: list[list[Asked]] = field(default_factory=list)
    others: list[list[Asked]] = field(default_factory=list)
    lists: list[Asked] = field(default_factory=list)
    kib: tuple[int, int] = (0, 0)

    def success(self, phase: int) -> float:
        """The share of a phase's requests that were answered."""
        asked = self.chats[phase] + self.others[phase]
        return sum(not each.error for each in asked) / max(1, len(asked))

    def latency_s(self, phase: int, share: float) -> float:
        """What this share of a phase's chats stayed within, over the provider's own time, in seconds."""
        return max(0.0, percentile([each.ended - each.sent for each in self.chats[phase]], share) - _PROVIDER_S)

    def complaints(self) -> list[str]:
        """Return what is not as it should be."""
        asked, last = self.profile, len(self.profile.phases) - 1
        lists_s = percentile([each.ended - each.sent for each in self.lists], 0.95)
        found = [
            ("answered", self.success(last), asked.success, self.success(last) >= asked.success),
            ("chat p95 s", self.latency_s(last, 0.95), asked.p95_s, self.latency_s(last, 0.95) <= asked.p95_s),
            ("chat p99 s", self.latency_s(last, 0.99), asked.p99_s, self.latency_s(last, 0.99) <= asked.p99_s),
        ]
        if last == 0:
            found += [("models p95 s", lists_s, _MODELS_P95_S, lists_s <= _MODELS_P95_S)]
            grown = self.kib[1] - self.kib[0]
            found += [("KiB grown", float(grown), float(_GROWTH_KIB), grown <= _GROWTH_KIB)]
        return [f"{what}: {value:.4g}, asked is {bound:g}" for what, value, bound, is_kept in found if not is_kept]


async def profiled(profile: Profile) -> Profiled:
    """Run one profile."""
    run = Profiled(profile)
    async with rig() as (_, pid, callers):
        await _phase(Profiled(profile), callers, profile.phases[0][0], _WARM_S)
        before = resident_kib(pid)
        for rate, seconds in profile.phases:
            await _phase(run, callers, rate, seconds)
        run.kib = before, resident_kib(pid)
    return run


async def _phase(run: Profiled, callers: Callers, rate: float, seconds: float) -> None:
    chats: list[Asked] = []
    others: list[Asked] = []
    run.chats.append(chats)
    run.others.append(others)

    async def ask(number: int, due: float) -> None:
        match number % 20:
            case 0:
                run.lists.append(await callers.list_models(due))
                others.append(run.lists[-1])
            case 1 | 5 | 9 | 13 | 17:
                others.append(await callers.embed(due))
            case place:
                chats.append(await (callers.over_grpc if place % 2 else callers.over_http)(due))

    requests = round(rate * seconds)
    await steadily(rate, lambda number: number < requests, ask)


def main() -> int:
    """Run the command line; returns 1 when a profile does not pass."""
    parser = argparse.ArgumentParser(prog="python -m bench.profiles", description=__doc__)
    parser.add_argument("profiles", nargs="*", choices=[*PROFILES, []], help="which to run; all by default")
    chosen = parser.parse_args().profiles or list(PROFILES)
    console, code = Console(width=120), 0
    table = Table(title="profiles of load", title_justify="left")
    for column in ("profile", "asked/s", "answered", "chat p50", "p95", "p99", "memory"):
        table.add_column(column, justify="right")
    for name in chosen:
        run = uvloop.run(profiled(PROFILES[name]))
        for phase, (rate, _) in enumerate(run.profile.phases):
            latencies = (f"{run.latency_s(phase, share):.3f} s" for share in (0.5, 0.95, 0.99))
            memory = " → ".join(f"{kib / 1024:.0f}" for kib in run.kib) + " MiB" if phase == 0 else ""
            table.add_row(name, f"{rate:g}", f"{run.success(phase):.2%}", *latencies, memory)
        code |= verdict(console, [f"{name}: {complaint}" for complaint in run.complaints()])
    console.print(table)
    return code


if __name__ == "__main__":
    sys.exit(main())

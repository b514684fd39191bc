"""The report at the end: figures from the history on the terminal, and the same as report.json.

The rule of this file: it shows, it does not judge; `checks.py` does.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from analytics import report as tables
from analytics.queries import Failover
from sim.demo.checks import Check
from sim.demo.evidence import Evidence
from sim.demo.load import Sent
from sim.demo.story import Story
from sim.faults import Fault

_NEAR_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Departure:
    """A failover of the history, set against the script.

    `lead_s`: seconds from the departure to the scripted failure (negative: after it); None when the script did nothing
    to the endpoint at that time.
    """

    t_s: float
    provider: str
    state: str
    cause: str
    actor: str
    lead_s: float | None
    lasted_s: float | None
    requests_moved: int


def departures(story: Story, evidence: Evidence, began: float) -> list[Departure]:
    """The failovers with their lead time before what the script did."""
    return [
        Departure(
            t_s=failover.start - began,
            provider=failover.provider,
            state=failover.state,
            cause=f"{failover.metric} {failover.value:.3g} (threshold {failover.threshold:.3g})",
            actor=failover.actor,
            lead_s=_lead_s(story, failover, failover.start - began),
            lasted_s=failover.duration_s,
            requests_moved=failover.requests_moved,
        )
        for failover in evidence.failovers
    ]


def _lead_s(story: Story, failover: Failover, t_s: float) -> float | None:
    for fault in (story.ramp, story.outage, story.storm):
        if fault.provider == failover.provider and fault.at_s - _NEAR_S <= t_s < fault.end_s:
            return _strikes_s(story, fault) - t_s
    return None


def _strikes_s(story: Story, fault: Fault) -> float:
    return story.hard_outage_s if fault is story.ramp else fault.at_s


def show(console: Console, evidence: Evidence, left: Sequence[Departure], checks: Sequence[Check]) -> None:
    """Print tables and verdict."""
    console.print(tables.render_summary(evidence.summary))
    console.print(tables.render_providers(evidence.providers))
    console.print(_departures(left))
    if any(row.judged for row in evidence.forecasts):
        console.print(tables.render_forecasts(evidence.forecasts))
    verdict = Table(box=box.SIMPLE_HEAD, title="The story", title_justify="left")
    for name in ("", "what should happen", "what happened"):
        verdict.add_column(name)
    for check in checks:
        verdict.add_row("[green]✔[/]" if check.held else "[bold red]✘[/]", check.sentence, check.figures)
    console.print(verdict)


def _departures(left: Sequence[Departure]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Failovers", title_justify="left")
    for name in ("at", "provider", "state", "cause", "by"):
        table.add_column(name)
    for name in ("before the scripted failure", "lasted", "requests moved"):
        table.add_column(name, justify="right")
    for one in left:
        table.add_row(
            f"{one.t_s:.1f} s",
            one.provider,
            one.state,
            one.cause,
            one.actor,
            "–" if one.lead_s is None else f"{one.lead_s:+.2f} s",
            "ongoing" if one.lasted_s is None else f"{one.lasted_s:.1f} s",
            str(one.requests_moved),
        )
    return table


def write_json(
    path: Path,
    story: Story,
    evidence: Evidence,
    sent: Sequence[Sent],
    left: Sequence[Departure],
    checks: Sequence[Check],
) -> None:
    """Write everything that was shown, and the moves behind it."""
    answered = Counter(one.method for one in sent)
    document: dict[str, Any] = {
        "scenario": story.scenario.name,
        "scale": story.scale,
        "held": all(check.held for check in checks),
        "checks": [dataclasses.asdict(check) for check in checks],
        "callers": {"sent": len(sent), "failed": sum(bool(one.error) for one in sent), "by_method": dict(answered)},
        "summary": dataclasses.asdict(evidence.summary),
        "failovers": [dataclasses.asdict(one) for one in left],
        "providers": tables.as_dicts(evidence.providers),
        "forecasts": tables.as_dicts(evidence.forecasts),
        "moves": [dataclasses.asdict(move) for move in evidence.moves],
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

"""The live view: a table that is drawn again and again on a terminal, plain lines everywhere else."""

import time
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sim.demo.load import Sent
from sim.demo.story import Story
from sim.demo.watch import Change, EndpointView, Watcher
from sim.faults import Fault, FaultKind

STATE_STYLES = {
    "unknown": "dim",
    "active": "green",
    "degraded": "yellow",
    "ejected": "bold red",
    "probing": "magenta",
    "canary": "cyan",
}
_BAR = 14
_EVENTS = 9
_RATE_SPAN_S = 5.0
_PLAIN_EVERY_S = 5.0


def describe(fault: Fault, t_s: float) -> str:
    """What a fault does to its provider at `t_s`, in a few words."""
    match fault.kind:
        case FaultKind.LATENCY_RAMP if fault.outage_s is not None and t_s >= fault.end_s - fault.outage_s:
            return "out: every request fails"
        case FaultKind.LATENCY_RAMP:
            return f"slowing down to ×{fault.peak:g}, errors creep in"
        case FaultKind.SERVER_ERROR:
            return "out without warning"
        case FaultKind.RATE_LIMIT:
            return f"answers 429 to {fault.probability or 1:.0%}"
        case kind:
            return kind.value


class Screen:
    """Renders what is known now. `began` is the unix time at which the scenario's clock started, None before it."""

    def __init__(self, story: Story, sent: Sequence[Sent], watcher: Watcher) -> None:
        self.began: float | None = None
        self._story = story
        self._sent = sent
        self._watcher = watcher
        self._printed = 0
        self._plain_due = 0.0

    def __rich__(self) -> RenderableType:
        """Draw everything."""
        events = Text("\n").join(self._event(change) for change in self._watcher.changes[-_EVENTS:])
        return Group(
            self._headline(),
            self._table(self._watcher.views),
            Panel(events, title="events", title_align="left", border_style="dim", height=_EVENTS + 2),
        )

    def plain(self, console: Console) -> None:
        """Print what has changed, and every few seconds a line about everything."""
        for change in self._watcher.changes[self._printed :]:
            console.print(self._event(change))
        self._printed = len(self._watcher.changes)
        now = time.monotonic()
        if now < self._plain_due:
            return
        self._plain_due = now + _PLAIN_EVERY_S
        parts = [
            f"{v.provider} {v.state} {v.share:.0%}" + ("" if v.risk is None else f" risk {v.risk:.2f}")
            for v in self._watcher.views
            if v.share or v.state not in ("unknown", "active")
        ]
        console.print(f"{self._headline().plain}  |  {'  '.join(parts)}", soft_wrap=True, highlight=False)

    def _t_s(self, at: float | None = None) -> float:
        return (time.time() if at is None else at) - self.began if self.began else -self._story.warm_up_s

    def _headline(self) -> Text:
        since = time.time() - _RATE_SPAN_S
        recent = sum(1 for _ in _newest(self._sent, since))
        failed = sum(1 for sent in self._sent if sent.error)
        clock = f"{self._t_s():5.1f} of {self._story.scenario.duration_s:.0f} s" if self.began else "warming up"
        text = Text(f"{clock}   {recent / _RATE_SPAN_S:4.1f} requests/s   {len(self._sent)} answered   ")
        text.append(f"{failed} failed", style="bold red" if failed else "green")
        return text.append(f"   forecaster {self._watcher.forecaster or 'none yet'}", style="dim")

    def _table(self, views: Sequence[EndpointView]) -> Table:
        t_s = self._t_s()
        doing: dict[str, list[str]] = {}
        for fault in self._story.active_faults(t_s) if self.began else []:
            doing.setdefault(str(fault.provider), []).append(describe(fault, t_s))
        table = Table(box=box.SIMPLE_HEAD, expand=True)
        for name in ("provider", "region", "state", "traffic", "forecast risk"):
            table.add_column(name, no_wrap=True)
        table.add_column("score", justify="right")
        table.add_column("p50", justify="right", no_wrap=True)
        table.add_column("what is being done to it", style="red", ratio=1)
        for view in views:
            style = STATE_STYLES.get(view.state, "")
            table.add_row(
                view.provider,
                view.region,
                Text(view.state, style=style),
                _bar(view.share, "blue"),
                Text("–", style="dim") if view.risk is None else _bar(view.risk, _risk_style(view.risk)),
                f"{view.score:.2f}",
                "–" if view.p50_ms is None else f"{view.p50_ms:.0f} ms",
                "; ".join(doing.get(view.provider, [])),
            )
        return table

    def _event(self, change: Change) -> Text:
        text = Text(f"{self._t_s(change.time):6.1f} s  {change.provider:<9} {change.before} → ")
        return text.append(change.after, style=STATE_STYLES.get(change.after, ""))


def _newest(sent: Sequence[Sent], since: float) -> Sequence[Sent]:
    first = len(sent)
    while first and sent[first - 1].ended >= since:
        first -= 1
    return sent[first:]


def _bar(value: float, style: str) -> Text:
    filled = round(value * _BAR)
    return (
        Text("━" * filled, style=style).append("━" * (_BAR - filled), style="grey23").append(f" {value:4.0%}", style="")
    )


def _risk_style(risk: float) -> str:
    return "red" if risk >= 0.5 else "yellow" if risk >= 0.15 else "green"

"""How the card is written: one list of columns for the terminal and for the page.

The rule of this file: formatting only; a missing figure is a dash, never a zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from sim.scorecard.summary import Estimate, Line


@dataclass(frozen=True, slots=True)
class Column:
    """One metric as a column: its heading, by how much to multiply it, and its decimals."""

    metric: str
    heading: str
    factor: float = 1.0
    decimals: int = 1

    def text(self, estimate: Estimate, *, signed: bool = False) -> str:
        """Return the mean as text."""
        if estimate.mean is None:
            return "–"
        # Adding zero turns a rounded -0.0 into 0.0.
        value = round(estimate.mean * self.factor, self.decimals) + 0.0
        return f"{value:+.{self.decimals}f}" if signed else f"{value:.{self.decimals}f}"

    def interval(self, estimate: Estimate) -> str:
        """Return the 95 % interval as text, empty if there is none."""
        if estimate.low is None or estimate.high is None:
            return ""
        low, high = (round(value * self.factor, self.decimals) + 0.0 for value in (estimate.low, estimate.high))
        return f"[{low:+.{self.decimals}f}, {high:+.{self.decimals}f}]"


COLUMNS: Sequence[Column] = (
    Column("bad_per_1k", "bad/1k", decimals=2),
    Column("failed_per_1k", "failed/1k", decimals=2),
    Column("avoidable_removed", "avoided %", 100),
    Column("ttft_p95_ms", "p95 ms", decimals=0),
    Column("ttft_p99_ms", "p99 ms", decimals=0),
    Column("detect_s", "detect s"),
    Column("missed", "missed", 100, 0),
    Column("early_recall", "early", 100, 0),
    Column("lead_s", "lead s", decimals=0),
    Column("false_failovers_per_day", "false/d"),
    Column("needless_diversion", "needl. %", 100, 2),
    Column("switches_per_day", "switch/d", decimals=0),
    Column("probe_share", "probe %", 100, 2),
    Column("hedge_share", "hedge %", 100, 2),
    Column("cost_usd_per_1k", "$/1k", decimals=2),
    Column("recovery_delay_s", "back s", decimals=0),
)
BAD = COLUMNS[0]


def card(lines: Sequence[Line], reference: str, title: str) -> Table:
    """Return the card as a table, best first by bad requests."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1))
    table.add_column("policy", no_wrap=True)
    table.add_column(BAD.heading, justify="right", no_wrap=True)
    table.add_column(f"− {reference}, 95 %", justify="right", no_wrap=True)
    for column in COLUMNS[1:]:
        table.add_column(column.heading, justify="right")
    for line in ranked(lines):
        table.add_row(
            line.policy,
            BAD.text(line.metrics[BAD.metric]),
            difference(line, reference),
            *(column.text(line.metrics[column.metric]) for column in COLUMNS[1:]),
            style="bold" if line.policy == reference else "",
        )
    return table


def difference(line: Line, reference: str) -> str:
    """Return the difference in bad requests to the reference with its interval."""
    estimate = line.differences[BAD.metric]
    if line.policy == reference or estimate.mean is None:
        return ""
    return f"{BAD.text(estimate, signed=True)} {BAD.interval(estimate)}"


def ranked(lines: Sequence[Line]) -> list[Line]:
    """Return the lines by bad requests, least first; those without any figure last."""
    means = {line.policy: line.metrics[BAD.metric].mean for line in lines}
    return sorted(lines, key=lambda line: (mean := means[line.policy]) is None or mean)

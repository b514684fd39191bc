"""The card as one self-contained HTML page.

The rule of this file: it shows what `summary` computed; pictures are inline SVG, nothing is loaded from elsewhere, and
the same rows give the same bytes.
"""

import io
from collections.abc import Sequence
from html import escape

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from sim.arena.scenario import Scenario
from sim.scorecard.definitions import METRICS, avoidable_removed
from sim.scorecard.runner import Contender, Row
from sim.scorecard.summary import Line, summarise
from sim.scorecard.table import BAD, COLUMNS, Column, difference, ranked

_INK, _PALE, _OURS = "#26323d", "#8a96a3", "#3b6fd4"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#26323d;max-width:1180px;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:13px;margin:1rem 0;display:block;overflow-x:auto}"
    "th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e3e7eb;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}tr.reference{font-weight:600;background:#eef3fc}"
    "svg{max-width:100%;height:auto}dt{font-weight:600}dd{margin:0 0 .5rem}small{color:#66727e}"
)


def page(rows: Sequence[Row], scenarios: Sequence[Scenario], contenders: Sequence[Contender], reference: str) -> str:
    """Return the page."""
    lines = summarise(rows, reference)
    seeds = sorted({row.seed for row in rows})
    with mpl.rc_context({
        "svg.hashsalt": "routecast", "font.size": 10, "text.color": _INK, "axes.labelcolor": _INK,
        "axes.edgecolor": _PALE, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
        "axes.spines.right": False,
    }):  # fmt: skip
        pictures = [_avoided(lines, reference), _price(lines, reference), _map(rows, scenarios, lines)]
    size = f"{len(lines)} policies × {len(scenarios)} scenarios × {len(seeds)} seeds ({seeds[0]}–{seeds[-1]})"
    method = (
        f"All policies meet the same worlds with the same luck. Differences are paired against {reference}; intervals "
        "are 95 %, from resampling seeds. A dash means no evidence."
    )
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Scorecard</title><style>{_STYLE}</style>",
        f"<h1>Scorecard</h1><p>{size}. {escape(method)}</p>",
        _table(lines, reference),
        *(f"<h2>{escape(title)}</h2><p>{escape(words)}</p>{svg}" for title, words, svg in pictures),
        "<h2>By scenario</h2>",
    ]
    for scenario in scenarios:
        own = [row for row in rows if row.scenario == scenario.name]
        parts.append(f"<h3>{escape(scenario.name)}</h3><p>{escape(scenario.description)}</p>")
        parts.append(_table(summarise(own, reference), reference))
    parts.append(_parameters(contenders))
    parts.append("<h2>Definitions</h2><dl>")
    for name, metric in {**METRICS, "avoidable_removed": avoidable_removed}.items():
        parts.append(f"<dt>{name}</dt><dd>{escape(' '.join((metric.__doc__ or '').split()))}</dd>")
    parts.append("</dl></html>\n")
    return "\n".join(parts)


def _table(lines: Sequence[Line], reference: str) -> str:
    heads = ["policy", BAD.heading, f"− {reference}", *(column.heading for column in COLUMNS[1:])]
    body = [
        f"<tr{' class=reference' if line.policy == reference else ''}><td>{escape(line.policy)}</td>"
        f"{_cell(BAD, line)}<td>{escape(difference(line, reference))}</td>"
        f"{''.join(_cell(column, line) for column in COLUMNS[1:])}</tr>"
        for line in ranked(lines)
    ]
    return f"<table><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>{''.join(body)}</table>"


def _cell(column: Column, line: Line) -> str:
    estimate = line.metrics[column.metric]
    return f'<td title="{escape(column.interval(estimate))}">{column.text(estimate)}</td>'


def _parameters(contenders: Sequence[Contender]) -> str:
    tuned = [contender for contender in contenders if contender.parameters]
    if not tuned:
        return ""
    items = (
        f"<li>{escape(c.name)}: {escape(', '.join(f'{name} {value:g}' for name, value in c.parameters.items()))}</li>"
        for c in tuned
    )
    return f"<h2>Tuned parameters</h2><p>Fitted on calibration seeds.</p><ul>{''.join(items)}</ul>"


_Picture = tuple[str, str, str]


def _avoided(lines: Sequence[Line], reference: str) -> _Picture:
    order = [line for line in ranked(lines) if line.metrics["avoidable_removed"].mean is not None][::-1]
    estimates = [line.metrics["avoidable_removed"] for line in order]
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.32 * max(1, len(order))), layout="constrained")
    means = np.array([100 * (e.mean or 0.0) for e in estimates])
    ends = np.array([(100 * (e.low or 0.0), 100 * (e.high or 0.0)) for e in estimates]).reshape(-1, 2).T
    colours = [_OURS if line.policy == reference else _PALE for line in order]
    axes.barh([line.policy for line in order], means, color=colours, xerr=np.abs(ends - means), ecolor=_INK)
    axes.set_xlim(min(0.0, max(-50.0, float(means.min(initial=0.0)))), 102)
    axes.set_xlabel("% of avoidable bad requests removed")
    words = "From the static primary (0 %) to the oracle (100 %); below 0 a policy did harm (cut at −50 %)."
    return "Avoidable badness removed", words, _svg(figure)


def _price(lines: Sequence[Line], reference: str) -> _Picture:
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for line in lines:
        bad, needless = line.metrics["bad_per_1k"].mean, line.metrics["needless_diversion"].mean
        if bad is None or needless is None:
            continue
        axes.scatter(100 * needless, bad, color=_OURS if line.policy == reference else _PALE, s=28)
        axes.annotate(line.policy, (100 * needless, bad), (4, 3), textcoords="offset points", fontsize=8)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(left=-0.01)
    axes.set_yscale("log")
    axes.set_xlabel("% of requests diverted without need")
    axes.set_ylabel("bad requests per 1,000")
    return "What safety costs", "Lower left is better: few bad requests, few needless diversions.", _svg(figure)


def _map(rows: Sequence[Row], scenarios: Sequence[Scenario], lines: Sequence[Line]) -> _Picture:
    policies, names = [line.policy for line in ranked(lines)], [scenario.name for scenario in scenarios]
    bad = np.array([[_mean_bad(rows, policy, name) for name in names] for policy in policies])
    figure, axes = plt.subplots(figsize=(2.5 + 0.75 * len(names), 1.6 + 0.34 * len(policies)), layout="constrained")
    axes.imshow(np.log1p(bad), cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(policies)), policies)
    axes.tick_params(length=0)
    middle = np.log1p(bad).max() / 2
    for (y, x), value in np.ndenumerate(bad):
        axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8,
                  color="white" if np.log1p(value) > middle else _INK)  # fmt: skip
    return "Bad requests per 1,000 by scenario", "Mean over seeds.", _svg(figure)


def _mean_bad(rows: Sequence[Row], policy: str, scenario: str) -> float:
    values = [row.metrics["bad_per_1k"] for row in rows if (row.policy, row.scenario) == (policy, scenario)]
    return float(np.mean([value for value in values if value is not None]))


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]

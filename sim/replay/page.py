"""The backtest's report: one page that loads nothing, and the same as JSON.

The rule of this file: every figure stands with its interval, and what it rests on comes before it. A figure that has no
evidence is a dash.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from time import gmtime, strftime

from sim.replay.backtest import IncidentReport, Left, ModelReport
from sim.replay.charts import bars, departures
from sim.scorecard.summary import Estimate

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#26323d;max-width:1400px;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:13px;margin:1rem 0;display:block;overflow-x:auto}"
    "th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e3e7eb;white-space:nowrap}"
    "th:first-child,td:first-child{text-align:left}tr.current{font-weight:600;background:#eef3fc}"
    "svg{max-width:100%;height:auto}small,td i{color:#66727e;font-style:normal;font-weight:400}h2{margin-top:2.5rem}"
    ".big{font-size:18px}"
)
# Heading, metric, factor, decimals.
_COLUMNS = (
    ("failed /1k", "failed_per_1k", 1.0, 2),
    ("failed or slow /1k", "bad_per_1k", 1.0, 2),
    ("p95 TTFT ms", "ttft_p95_ms", 1.0, 0),
    ("needless %", "needless_diversion", 100.0, 2),
    ("switches /day", "switches_per_day", 1.0, 1),
    ("false failovers /day", "false_failovers_per_day", 1.0, 1),
    ("$ /1k", "cost_usd_per_1k", 1.0, 3),
    ("probes %", "probe_share", 100.0, 2),
)
_LIMITS = """\
Each endpoint's chance to fail, its latency and its rate limiting are read from live attempts and probes, and change
only where the evidence does. Where nobody called it, each drawn world puts the change somewhere else; the intervals
contain that doubt.

An endpoint's rate limits come with their recorded chance, however much a policy sends there: a policy that moves more
traffic to a backup than was recorded may meet limits that no record shows.

Trouble of an endpoint that nobody called or probed is not in the record, so it is not in the replay.

Requests come when they came; retries of callers are part of that record. All replicas are played as one.

Forecasts are made inside the replay by the model that serves now. If it was trained on these weeks, its figures flatter
it."""
_INCIDENT = (
    "An incident is what labels forecasts too: in 30 s, failures that are 10 % of the attempts and more than the "
    "endpoint's usual ones let expect, or a time to first token of 2.5 times its usual."
)
_MOST_INCIDENTS = 25


def page(reports: Sequence[ModelReport], since: float, until: float, notes: Sequence[str]) -> str:
    """Return the page. `notes` say how the policies came about."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Backtest</title><style>{_STYLE}</style>",
        f"<h1>Backtest</h1><p>{_clock(since)} to {_clock(until)} UTC.</p>",
        *(f"<p><small>{escape(note)}</small></p>" for note in notes),
        *(_model(report) for report in reports),
        "<h2>What a replay cannot know</h2><ul>",
        *(f"<li>{escape(limit)}</li>" for limit in _LIMITS.split("\n\n")),
        "</ul></html>\n",
    ]
    return "\n".join(parts)


def as_json(reports: Sequence[ModelReport], since: float, until: float, notes: Sequence[str]) -> str:
    """Return the report for programs."""
    text = {"since": since, "until": until, "notes": list(notes), "models": [asdict(report) for report in reports]}
    return json.dumps(text, indent=1, allow_nan=False) + "\n"


def headline(report: ModelReport) -> str:
    """Return the result in two sentences."""
    current, *others = report.figures
    own = report.figures[current]
    recorded = report.recorded["failed_per_1k"]
    was = "" if recorded is None else f" ({recorded:.2f} did)"
    told = "; ".join(f"{name} {_interval(report.figures[name]['bad_per_1k'])}" for name in others)
    return (
        f"{report.model}: under the current policy {_interval(own['failed_per_1k'])} of 1,000 requests would have "
        f"failed{was}, and {_interval(own['bad_per_1k'])} would have failed or been slow"
        + (f". Instead of the latter: {told}" if told else "")
    )


def _model(report: ModelReport) -> str:
    current = next(iter(report.figures))
    bad = {name: own["bad_per_1k"] for name, own in report.figures.items()}
    return "\n".join(
        [
            f"<h2>{escape(report.model)}</h2>",
            f"<p class=big>{escape(headline(report))}.</p>",
            _rests_on(report),
            "<h3>Requests that failed or were slow</h3>",
            bars(bad, "per 1,000, with 95 % intervals", current, report.recorded["bad_per_1k"]),
            _table(report, current),
            *_incidents(report, current),
        ]
    )


def _rests_on(report: ModelReport) -> str:
    how = "all" if report.replayed_hours >= report.hours - 1 else "eventful ones first, quiet ones sampled and weighted"
    seen = ", ".join(f"{name} {100 * share:.0f} %" for name, share in report.evidence.items())
    words = [
        f"Replayed: {report.replayed_hours:.3g} of {report.hours} hours with traffic",
        f"({how}; {report.eventful_hours} eventful), {report.requests:,} requests.",
        f"Share of that time with an attempt or probe within 30 s: {seen}.",
    ]
    if report.unseen:
        words.append(f"Never called, so left out: {', '.join(report.unseen)}.")
    if report.replayed_hours < 5:
        words.append("Few hours were replayed: intervals are rough.")
    return f"<p>{escape(' '.join(words))}</p>"


def _table(report: ModelReport, current: str) -> str:
    heads = ["policy", *(heading for heading, *_ in _COLUMNS), f"failed or slow − {current}", f"$ − {current}"]
    rows = [
        f"<tr{' class=current' if name == current else ''}><td>{escape(name)}</td>"
        + "".join(f"<td>{_cell(own[metric], factor, decimals)}</td>" for _, metric, factor, decimals in _COLUMNS)
        + "".join(
            f"<td>{'' if name == current else _cell(report.differences[name][metric], 1, decimals, signed=True)}</td>"
            for metric, decimals in (("bad_per_1k", 2), ("cost_usd_per_1k", 3))
        )
        + "</tr>"
        for name, own in report.figures.items()
    ]
    recorded = "".join(
        f"<td>{'–' if (value := report.recorded.get(metric)) is None else f'{value * factor:.{decimals}f}'}</td>"
        for _, metric, factor, decimals in _COLUMNS
    )
    rows.append(f"<tr><td><i>as recorded</i></td>{recorded}<td></td><td></td></tr>")
    return f"<table><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def _incidents(report: ModelReport, current: str) -> list[str]:
    met = [one for one in report.incidents if any(left.concerned for left in one.policies.values())]
    if not met:
        return [f"<p>No incident met any policy in the replayed hours. {_INCIDENT}</p>"]
    shown = sorted(sorted(met, key=_harm, reverse=True)[:_MOST_INCIDENTS], key=lambda one: one.begin)
    policies = list(report.figures)
    heads = ["incident (UTC)", "lasted", *policies]
    rows = [
        f"<tr><td>{number}. {_clock(one.begin)} {escape(one.kind)}, {escape(one.endpoint)}</td>"
        f"<td>{one.end - one.begin:.0f} s</td>"
        f"{''.join(f'<td>{_left(one.policies[name])}</td>' for name in policies)}</tr>"
        for number, one in enumerate(shown, 1)
    ]
    said = (
        f"{len(shown)} of {len(met)} incidents, the worst of them. Marks: when a policy had given up half of the "
        "endpoint's traffic; × at the right: it stayed. Below: seconds after the incident began (negative: before), "
        f"and requests that failed or were slow. {_INCIDENT}"
    )
    return [
        f"<h3>When each policy would have left</h3><p>{said}</p>",
        departures(shown, policies, current),
        f"<table><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>{''.join(rows)}</table>",
    ]


def _harm(incident: IncidentReport) -> float:
    return max(left.bad for left in incident.policies.values())


def _left(left: Left) -> str:
    if not left.concerned:
        return "–"
    when = "stayed" if left.left_s is None else f"{left.left_s:+.0f} s"
    return f"{when} <i>{left.bad:.0f} bad</i>"


def _cell(estimate: Estimate, factor: float, decimals: int, *, signed: bool = False) -> str:
    if estimate.mean is None:
        return "–"
    mean = estimate.mean * factor + 0.0
    text = f"{mean:+.{decimals}f}" if signed else f"{mean:.{decimals}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} <i>[{estimate.low * factor:.{decimals}f}, {estimate.high * factor:.{decimals}f}]</i>"


def _interval(estimate: Estimate) -> str:
    if estimate.mean is None:
        return "an unknown number"
    text = f"{estimate.mean:.2f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _clock(moment: float) -> str:
    return strftime("%Y-%m-%d %H:%M:%S", gmtime(moment))

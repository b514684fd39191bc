"""The written report of a retraining run: one HTML file that needs nothing else.

The rule of this file: every figure is of the part of the history that nobody was fitted on, and says what it rests on.
"""

from collections.abc import Sequence
from html import escape
from math import ceil
from time import gmtime, strftime

import numpy as np
import numpy.typing as npt

from scoring.alarms import AFTER_S, Series, endpoint_days, episodes, false_alarms
from scoring.charts import Axis, Points, bars, lines
from scoring.features import NAMES
from scoring.gate import LOOK_BACK_S
from scoring.job import Judged, RetrainReport
from scoring.metrics import Skill, lead_s

_Floats = npt.NDArray[np.float64]
# Most forecasts of rare trouble are next to nothing: bins of equal width or of equal size would show a single point.
_RISKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_FEWEST_PER_BIN = 30
_LEADS_S = tuple(range(0, 121, 10))
_THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))
_SHOWN_FEATURES = 15
_IMPORTANCE_ROWS = 4_000
_STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;color:#26323d;margin:2rem auto;max-width:1120px;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #e4e8ec}
td:first-child,th:first-child{text-align:left}
.charts{display:flex;flex-wrap:wrap;gap:1.5rem}figure{margin:0}svg{max-width:100%;height:auto}
figcaption{max-width:520px;color:#5c6873;font-size:.85rem}.wide{overflow-x:auto}
.verdict{padding:.8rem 1rem;background:#f2f5f8;border-left:4px solid #8a96a3}
.promoted,.shadowed,.watching{border-color:#2f7d4f}.kept{border-color:#c9862b}"""


def page(report: RetrainReport, since: float, until: float) -> str:
    """Return the report of a run over the history of [since, until) (unix seconds)."""
    verdict, reason = report.verdict.value.replace("_", " "), escape(report.reason)
    parts = [
        f"<h1>Retraining of {_moment(until)}</h1>",
        f'<p class="verdict {report.verdict}"><b>{verdict}</b>: {reason}<br>Serving: {escape(report.champion)}</p>',
        _history(report, since, until),
    ]
    if report.shadow_note:
        parts.append(f"<p>Shadow: {escape(report.shadow_note)}</p>")
    parts += [
        f"<p>Probes of {escape(probe.endpoint)} do not speak for its traffic: {probe.probes_failed} of {probe.probes} "
        f"probes failed, {probe.live_failed} of {probe.live} live attempts within seconds of them.</p>"
        for probe in report.probes
    ]
    if report.gate is not None and report.judged is not None:
        parts += [_gate(report), *_charts(report.judged, np.random.default_rng(0))]
    body = "\n".join(parts)
    title = f"Retraining of {_moment(until)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _gate(report: RetrainReport) -> str:
    gate = report.gate
    if gate is None:
        return ""
    rows = [(_called(report.judged, place), skill) for place, skill in ((0, gate.skill), (1, gate.champion_skill))]
    table = "".join(f"<tr><td>{name}</td>{_figures(skill)}</tr>" for name, skill in rows)
    rivals = "".join(
        f"<tr><td>{escape(c.rival)}</td><td>{c.own:.1f}</td><td>{c.other:.1f}</td><td>{c.difference:+.1f}</td>"
        f"<td>{c.low:+.1f} … {c.high:+.1f}</td></tr>"
        for c in gate.comparisons
    )
    late = "no abrupt incident to compare" if gate.late_s is None else f"{gate.late_s:+.1f} s"
    return (
        f'<h2>The gate</h2>{_candidate(report)}<div class="wide"><table><tr><th></th><th>rows</th><th>base rate</th>'
        f"<th>PR-AUC</th><th>Brier</th><th>Brier skill</th></tr>{table}</table></div>"
        f"<p>Seconds of warning per endpoint-day (up to a minute per incident, half a minute off per false alarm), "
        f"over {gate.blocks} blocks; the interval holds 90 % of a paired bootstrap over blocks.</p>"
        f'<div class="wide"><table><tr><th>against</th><th>candidate</th><th>rival</th><th>difference</th>'
        f"<th>interval</th></tr>{rivals}</table></div><p>Abrupt trouble against the champion: {late}.</p>"
    )


def _called(judged: Judged | None, place: int) -> str:
    """Return what the candidate (0) or the champion (1) is called in tables and charts."""
    if judged is None:
        return ("candidate", "champion")[place]
    return (judged.candidate.kind, judged.contenders[-1].name)[place]


def _candidate(report: RetrainReport) -> str:
    if report.judged is None:
        return ""
    own = report.judged.candidate
    return (
        f"<p>Candidate {escape(report.candidate)}: {escape(own.kind)}, in which this history weighs {own.weight:.0%} "
        f"and the shipped prior the rest; it raises an alarm from a risk of {own.threshold:.2g} on.</p>"
    )


def _charts(judged: Judged, rng: np.random.Generator) -> list[str]:
    part, own = judged.part, judged.candidate.contender(judged.part)
    others = [c for c in judged.contenders if c.name != own.name]
    y, usable = part.y[part.usable], part.usable
    reliable = {c.name: _reliability(c.risk[usable], y) for c in (own, judged.contenders[-1])}
    series = {c.name: part.series(c.risk) for c in (own, *others)}
    most = ceil(10 * max([0.01, *(value for points in reliable.values() for point in points for value in point)])) / 10
    leads = {c.name: _recall_by_lead(series[c.name], c.threshold) for c in (own, *others)}
    precise = {f"precision, {own.name}": _precision_by_lead(series[own.name], own.threshold)}
    curves = {c.name: _by_threshold(series[c.name]) for c in (own, judged.contenders[-1])}
    false = {name: alarms for name, (alarms, _) in curves.items()}
    early = {name: recalls for name, (_, recalls) in curves.items()}
    alarms_most = 5 * ceil(max([1.0, *(b for alarms in false.values() for _, b in alarms)]) / 5)
    return [
        '<h2>What it is worth</h2><div class="charts">',
        _figure(
            lines("Reliability", Axis("forecast risk", 0, most), Axis("share that came true", 0, most), reliable,
                  diagonal=True),
            f"What was forecast against what came, by risk; {_grouped(int(usable.sum()))} forecasts, after "
            f"{_grouped(int(y.sum()))} of which it was degraded. Few at the right are usual: trouble is rare.",
        ),
        _figure(
            lines("Recall against lead time", Axis("seconds before the incident", 0, 120, 6),
                  Axis("share of incidents / of alarms", 0, 1), leads | precise),
            "Recall: incidents with an alarm at least so long before. Precision: alarms that an incident follows no "
            "sooner than that.",
        ),
        _figure(
            lines("Threshold", Axis("threshold", 0, 1), Axis("false alarms per endpoint-day", 0, alarms_most),
                  false, mark=own.threshold),
            "False alarms against the threshold; the dashed line is the candidate's, chosen on earlier data.",
        ),
        _figure(
            lines("Early recall against threshold", Axis("threshold", 0, 1), Axis("early recall", 0, 1),
                  early, mark=own.threshold),
            "Share of incidents that an alarm preceded, against the threshold.",
        ),
        _figure(
            bars("Feature importance", _importance(judged, rng), "rise of the log loss when the feature is shuffled"),
            f"Permutation importance on up to {_IMPORTANCE_ROWS} rows.",
        ),
        "</div>",
    ]  # fmt: skip


def _reliability(risk: _Floats, y: npt.NDArray[np.int8]) -> Points:
    bins = np.digitize(risk, _RISKS[1:-1])
    chosen = [bins == i for i in range(len(_RISKS) - 1)]
    return [(float(risk[own].mean()), float(y[own].mean())) for own in chosen if own.sum() >= _FEWEST_PER_BIN]


def _starts(series: Series) -> list[float]:
    time = series.time
    return [start for start, _ in series.incidents if len(time) and time[0] <= start <= time[-1]]


def _recall_by_lead(all_series: Sequence[Series], threshold: float) -> Points:
    leads = [
        lead_s(series.time, series.risk, threshold, start - LOOK_BACK_S, start) or -1.0
        for series in all_series
        for start in _starts(series)
    ]
    return [(at, float(np.mean([lead >= max(at, 1e-9) for lead in leads]))) for at in _LEADS_S] if leads else []


def _precision_by_lead(all_series: Sequence[Series], threshold: float) -> Points:
    alarms = [
        [start - begun for start in _starts(series) if 0 <= start - begun <= AFTER_S]
        for series in all_series
        for begun, _ in episodes(series.time, series.risk, threshold)
    ]
    if not alarms:
        return []
    return [(at, float(np.mean([any(lead >= at for lead in found) for found in alarms]))) for at in _LEADS_S]


def _by_threshold(all_series: Sequence[Series]) -> tuple[Points, Points]:
    days = max(endpoint_days(all_series), 1e-9)
    alarms = [(t, sum(false_alarms(series, t) for series in all_series) / days) for t in _THRESHOLDS]
    early = [(t, points[0][1]) for t in _THRESHOLDS if (points := _recall_by_lead(all_series, t))]
    return alarms, early


def _importance(judged: Judged, rng: np.random.Generator) -> dict[str, float]:
    part, forecaster = judged.part, judged.candidate.forecaster
    chosen = rng.permutation(np.flatnonzero(part.usable))[:_IMPORTANCE_ROWS]
    x, y, groups = part.x[chosen], part.y[chosen], [str(name) for name in part.provider[chosen]]
    usual = _log_loss(forecaster.risks(x, groups), y)
    found = {}
    for column, name in enumerate(NAMES):
        shuffled = x.copy()
        shuffled[:, column] = shuffled[rng.permutation(len(x)), column]
        found[name] = _log_loss(forecaster.risks(shuffled, groups), y) - usual
    return dict(sorted(found.items(), key=lambda item: -item[1])[:_SHOWN_FEATURES])


def _log_loss(risk: _Floats, y: npt.NDArray[np.int8]) -> float:
    clipped = np.clip(risk, 1e-9, 1 - 1e-9)
    return float(-np.mean(np.where(y == 1, np.log(clipped), np.log(1 - clipped)))) if len(y) else 0.0


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _figures(skill: Skill) -> str:
    named = (skill.base_rate, skill.pr_auc, skill.brier, skill.brier_skill)
    return f"<td>{_grouped(skill.rows)}</td>" + "".join(f"<td>{'–' if v is None else f'{v:.4g}'}</td>" for v in named)


def _history(report: RetrainReport, since: float, until: float) -> str:
    asked = f"<p>Asked for: history from {_moment(since)} to {_moment(until)}"
    if not any(report.rows):
        return f"{asked}; there is no vector with a known label in it.</p>"
    parts = zip(
        ("to fit on", "to calibrate on", "to judge on"), report.spans, report.rows, report.incidents, strict=True
    )
    rows = "".join(
        f"<tr><td>{name}</td><td>{_moment(begin)}</td><td>{_moment(end)}</td><td>{_grouped(rows)}</td>"
        f"<td>{_grouped(incidents)}</td></tr>"
        for name, (begin, end), rows, incidents in parts
    )
    return (
        f'{asked}. What there is:</p><div class="wide"><table><tr><th></th><th>from</th><th>to</th><th>usable rows</th>'
        f"<th>incidents</th></tr>{rows}</table></div>"
    )


def _grouped(count: int) -> str:
    return f"{count:,}".replace(",", " ")


def _moment(unix_s: float) -> str:
    return "–" if not unix_s else strftime("%Y-%m-%d %H:%M UTC", gmtime(unix_s))

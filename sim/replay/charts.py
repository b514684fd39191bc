"""The two pictures of a backtest, as SVG written by hand: the service ships without a plotting library.

The rule of this file: it draws numbers it is given and computes none. The same numbers give the same bytes.
"""

from collections.abc import Mapping, Sequence

from scoring.charts import INK, PALE, svg, text
from sim.replay.backtest import IncidentReport
from sim.scorecard.summary import Estimate

OURS, HARM = "#3b6fd4", "#c2463c"
_ROW, _LABELS, _WIDTH = 26, 240, 1180
_BEFORE_S, _AFTER_S = 300.0, 300.0


def bars(estimates: Mapping[str, Estimate], unit: str, highlight: str, mark: float | None = None) -> str:
    """Return bars with their intervals, one per policy; `mark` is a line across them (what was recorded)."""
    known = {name: one for name, one in estimates.items() if one.mean is not None}
    ends = [end for one in known.values() for end in (one.mean, one.high) if end is not None]
    most = max([*ends, mark or 0.0, 1e-9]) * 1.08
    scale = (_WIDTH - _LABELS - 90) / most
    parts = []
    for row, (name, one) in enumerate(known.items()):
        y, mean = 8 + row * _ROW, one.mean or 0.0
        colour = OURS if name == highlight else PALE
        parts.append(text(_LABELS - 8, y + 14, name, "end", weight=600 if name == highlight else 400))
        parts.append(f'<rect x="{_LABELS}" y="{y}" width="{mean * scale:.1f}" height="18" rx="2" fill="{colour}"/>')
        if one.low is not None and one.high is not None:
            low, high = _LABELS + one.low * scale, _LABELS + one.high * scale
            parts.append(f'<path d="M{low:.1f} {y + 9}H{high:.1f}" stroke="{INK}" stroke-width="1.5"/>')
        right = _LABELS + max(mean, one.high or 0.0) * scale
        parts.append(text(right + 6, y + 14, f"{mean:.2f}", "start"))
    height = 8 + len(known) * _ROW
    if mark is not None:
        x = _LABELS + mark * scale
        parts.append(f'<path d="M{x:.1f} 2V{height}" stroke="{HARM}" stroke-width="1.5" stroke-dasharray="4 3"/>')
        parts.append(text(x, height + 12, f"recorded {mark:.2f}", "middle", HARM))
    parts.append(text(_LABELS, height + 12 if mark is None else height + 26, unit, "start", PALE))
    return svg(_WIDTH, height + 34, parts, f"{unit} by policy")


def departures(incidents: Sequence[IncidentReport], policies: Sequence[str], highlight: str) -> str:
    """Return one line per incident: its beginning at 0, its length as a bar, and where each policy left as a mark."""
    scale = (_WIDTH - _LABELS - 60) / (_BEFORE_S + _AFTER_S)
    zero = _LABELS + _BEFORE_S * scale
    colours = _colours(policies, highlight)
    parts = [
        text(_LABELS - 100 + i * (_WIDTH - _LABELS + 90) / len(policies), 14, f"● {name}", "start", colours[name])
        for i, name in enumerate(policies)
    ]
    for row, incident in enumerate(incidents):
        y = 40 + row * _ROW
        length = min(incident.end - incident.begin, _AFTER_S) * scale
        parts.append(text(_LABELS - 8, y + 4, f"{row + 1}. {incident.kind}, {incident.endpoint}"[:38], "end"))
        parts.append(
            f'<rect x="{zero:.1f}" y="{y - 7}" width="{length:.1f}" height="14" fill="{HARM}" opacity="0.15"/>'
        )
        for place, name in enumerate(policies):
            left = incident.policies[name]
            if not left.concerned:
                continue
            at_y = y - 6 + 12 * place / max(1, len(policies) - 1)
            if left.left_s is None:
                parts.append(text(_WIDTH - 50 + 10 * place, at_y + 4, "×", "middle", colours[name]))
            else:
                x = zero + max(-_BEFORE_S, min(_AFTER_S, left.left_s)) * scale
                parts.append(f'<circle cx="{x:.1f}" cy="{at_y:.1f}" r="3.6" fill="{colours[name]}"/>')
    height = 40 + len(incidents) * _ROW
    parts.append(f'<path d="M{zero:.1f} 24V{height - 8}" stroke="{INK}"/>')
    parts += [
        text(zero + seconds * scale, height + 8, f"{seconds:+d} s" if seconds else "begins", "middle", PALE)
        for seconds in range(-300, 301, 100)
    ]
    return svg(_WIDTH, height + 20, parts, "When each policy left, by incident")


def _colours(policies: Sequence[str], highlight: str) -> dict[str, str]:
    others = iter(("#26323d", "#d08a2e", "#5a8f5a", "#8d5aa8", "#b0455f", "#3f9a9a", "#a0672c"))
    return {name: OURS if name == highlight else next(others, PALE) for name in policies}

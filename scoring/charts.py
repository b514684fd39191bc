"""Line charts and bars as SVG written by hand: the service ships without a plotting library.

The rule of this file: it draws numbers it is given and computes none. The same numbers give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

_WIDTH, _HEIGHT = 520.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 14.0, 18.0, 76.0
_LEGEND_COLUMNS = 3
_COLOURS = ("#3b6fd4", "#c2463c", "#5a8f5a", "#d08a2e", "#8d5aa8", "#26323d")
INK, PALE = "#26323d", "#8a96a3"
_ROW, _NAMES = 20.0, 190.0

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what it says, and from where to where it goes."""

    label: str
    low: float
    high: float
    ticks: int = 5

    def at(self, value: float) -> float:
        """Return where a value lies, as a share in [0, 1]; beyond the ends it lies on them."""
        return min(1.0, max(0.0, (value - self.low) / ((self.high - self.low) or 1.0)))

    def marks(self) -> list[float]:
        """Return the values that get a tick."""
        return [self.low + (self.high - self.low) * i / self.ticks for i in range(self.ticks + 1)]


def lines(
    title: str, x: Axis, y: Axis, series: Mapping[str, Points], *, diagonal: bool = False, mark: float | None = None
) -> str:
    """Return a chart of named lines; `diagonal` draws what a perfect forecast would, `mark` a vertical line."""
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(a: float, b: float) -> tuple[float, float]:
        return _LEFT + x.at(a) * wide, _TOP + (1 - y.at(b)) * high

    parts = []
    for value in y.marks():
        _, at = place(x.low, value)
        parts.append(f'<path d="M{_LEFT:g} {at:.1f}H{_WIDTH - _RIGHT:g}" stroke="#e4e8ec"/>')
        parts.append(text(_LEFT - 6, at + 4, f"{value:.3g}", "end", PALE))
    for value in x.marks():
        at, _ = place(value, y.low)
        parts.append(text(at, _TOP + high + 16, f"{value:.3g}", "middle", PALE))
    parts.append(text(_LEFT + wide / 2, _TOP + high + 34, x.label, "middle", INK))
    parts.append(text(_LEFT, _TOP - 6, y.label, "start", INK))
    if diagonal:
        (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
        parts.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{PALE}" stroke-dasharray="4 3"/>')
    if mark is not None:
        at, _ = place(mark, y.low)
        parts.append(f'<path d="M{at:.1f} {_TOP:g}V{_TOP + high:g}" stroke="{INK}" stroke-dasharray="4 3"/>')
    for i, (name, points) in enumerate(series.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        placed = [place(a, b) for a, b in points if isfinite(a) and isfinite(b)]
        if placed:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in placed)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}"/>' for a, b in placed]
        row, column = divmod(i, _LEGEND_COLUMNS)
        at = _LEFT + column * wide / min(len(series), _LEGEND_COLUMNS)
        parts.append(text(at, _TOP + high + 52 + 16 * row, f"● {name}", "start", colour))
    return svg(_WIDTH, _HEIGHT, parts, title)


def bars(title: str, values: Mapping[str, float], unit: str) -> str:
    """Return horizontal bars in the order given, with their values in words of `unit`."""
    most = max([*(abs(value) for value in values.values()), 1e-12])
    scale = (_WIDTH - _NAMES - 80) / most
    parts = []
    for row, (name, value) in enumerate(values.items()):
        at = 6 + row * _ROW
        width = max(0.0, value) * scale
        parts.append(text(_NAMES - 8, at + 12, name, "end", INK))
        parts.append(f'<rect x="{_NAMES:g}" y="{at:.1f}" width="{width:.1f}" height="14" rx="2" fill="{_COLOURS[0]}"/>')
        parts.append(text(_NAMES + width + 6, at + 12, f"{value:.3g}", "start", INK))
    height = 6 + len(values) * _ROW
    parts.append(text(_NAMES, height + 14, unit, "start", PALE))
    return svg(_WIDTH, height + 22, parts, title)


def text(x: float, y: float, said: str, anchor: str, colour: str = INK, weight: int = 400) -> str:
    """Return words at a place; `anchor` is start, middle or end."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}">'
        f"{escape(said)}</text>"
    )


def svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """Return a picture of `parts`; `title` is read out to those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:.0f}" width="{width:g}" role="img" '
        f'font-family="system-ui,sans-serif" font-size="12"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )

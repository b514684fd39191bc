"""The picture of a run: what was done to the providers, where the traffic went, and what the forecast knew.

The rule of this file: it draws evidence and computes nothing but bins.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.demo.checks import departure
from sim.demo.evidence import Evidence
from sim.demo.run import Run
from sim.demo.story import Story
from sim.faults import Fault

_COLOURS = ("#3b6fd4", "#2a9d8f", "#e9b44c", "#9b6a9e", "#b8a08d")
_INK, _PALE, _ALARM = "#26323d", "#8a96a3", "#c0392b"
_BINS = 200
_SMOOTH = 4


def draw(path: Path, story: Story, evidence: Evidence, run: Run) -> None:
    """Draw the run and save it as PNG."""
    with plt.rc_context({"font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _PALE,
                         "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
                         "axes.spines.right": False}):  # fmt: skip
        figure = plt.figure(figsize=(11, 7.2), dpi=160, layout="constrained")
        script, share, risk, ttft = figure.subplots(4, 1, sharex=True, height_ratios=(0.75, 3, 1.2, 1.2))
        _draw_script(script, story)
        _draw_share(share, story, evidence)
        _draw_risk(risk, story, evidence, run.threshold)
        _draw_ttft(ttft, story, evidence)
        for axes in (share, risk, ttft):
            _shade(axes, story)
        ttft.set_xlabel("seconds")
        ttft.set_xlim(max(-story.warm_up_s, -0.15 * story.scenario.duration_s), story.scenario.duration_s)
        _head(figure, run)
        figure.savefig(path)
        plt.close(figure)


def _head(figure: Figure, run: Run) -> None:
    failed = sum(bool(sent.error) for sent in run.sent)
    figure.suptitle(
        f"Three providers in trouble, {len(run.sent):,} requests, {failed} failed for their callers",
        x=0.01, ha="left", fontsize=14, fontweight="bold",
    )  # fmt: skip


def _draw_script(axes: Axes, story: Story) -> None:
    """What was done to whom: one row per provider in trouble."""
    chapters = (
        (story.ramp, story.ramp.at_s, story.hard_outage_s, "", 0.45),
        (story.ramp, story.hard_outage_s, story.ramp.end_s, f"slows to ×{story.ramp.peak:g}, then out", 1.0),
        (story.outage, story.outage.at_s, story.outage.end_s, "out without warning", 1.0),
        (story.storm, story.storm.at_s, story.storm.end_s, "answers 429", 0.7),
    )
    names = list(dict.fromkeys(str(fault.provider) for fault, *_ in chapters))
    for fault, since, until, words, alpha in chapters:
        row, colour = names.index(str(fault.provider)), _colour(story, fault)
        axes.barh(row, until - since, left=since, height=0.8, color=colour, alpha=alpha, linewidth=0)
        axes.text(until, row, f" {words}", ha="left", va="center", fontsize=8, color=_INK)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title("what is done to them", loc="left", fontsize=9, color=_PALE)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def _draw_share(axes: Axes, story: Story, evidence: Evidence) -> None:
    edges = np.linspace(-story.warm_up_s, story.scenario.duration_s, _BINS + 1)
    endpoints = story.endpoints()
    counts = np.array(
        [np.histogram([t_s for t_s, one in evidence.choices if one == endpoint], edges)[0] for endpoint in endpoints],
        dtype=np.float64,
    )
    # Each point is about the time just before it, so that nothing seems to move before its cause.
    smooth = np.array([np.convolve(row, np.ones(_SMOOTH))[:_BINS] for row in counts])
    share = 100 * smooth / np.maximum(smooth.sum(axis=0), 1)
    names = [f"{provider.name} ({provider.region})" for provider in story.scenario.providers]
    axes.stackplot(edges[1:], share, labels=names, colors=_COLOURS, alpha=0.9, linewidth=0)
    axes.set_ylim(0, 100)
    axes.set_ylabel("share of requests, %")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, title="served by", alignment="left")
    _mark_departures(axes, story, evidence)
    rescued = evidence.rescued_s
    axes.plot(rescued, np.full(len(rescued), 1.5), "|", color="white", markersize=6, alpha=0.9)
    axes.text(1.01, 0.0, f"| {len(rescued)} requests failed over\n  on their way, unnoticed", transform=axes.transAxes,
              fontsize=8, color=_PALE, va="bottom")  # fmt: skip


def _mark_departures(axes: Axes, story: Story, evidence: Evidence) -> None:
    marks = (
        (story.ramp, story.hard_outage_s, "its outage"),
        (story.outage, story.outage.at_s, "its outage"),
        (story.storm, story.storm.at_s, "the storm"),
    )
    for level, (fault, strikes_s, what) in enumerate(marks):
        move = departure(evidence, fault, story.endpoint(fault), fault.end_s)
        if move is None:
            continue
        lead_s = strikes_s - move.t_s
        when = f"{lead_s:.1f} s before" if lead_s > 0 else f"{-lead_s * 1e3:.0f} ms into"
        axes.axvline(move.t_s, color="white", linewidth=1.2)
        _call_out(axes, f"{move.actor}: {fault.provider} {move.after} {when} {what}", move.t_s, 92 - 12 * level, "left")
    back = [move for move in evidence.moves_of(story.endpoint(story.ramp)) if move.event == "plan_done"]
    if back:
        axes.axvline(back[-1].t_s, color="white", linewidth=1.2)
        _call_out(axes, f"{story.ramp.provider} back, step by step", back[-1].t_s, 20, "right")


def _call_out(axes: Axes, words: str, t_s: float, height: float, align: Literal["left", "right"]) -> None:
    note = axes.annotate(
        words, (t_s, height), xytext=(6 if align == "left" else -6, 0), textcoords="offset points", ha=align,
        va="center", fontsize=8.5, color="white", fontweight="bold",
        bbox={"boxstyle": "round,pad=0.3", "facecolor": _INK, "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip
    note.set_in_layout(False)


def _draw_risk(axes: Axes, story: Story, evidence: Evidence, threshold: float | None) -> None:
    points = evidence.risks.get(story.endpoint(story.ramp), ())
    times, risks = _columns(points)
    axes.fill_between(times, 0, risks, color=_ALARM, alpha=0.18, linewidth=0)
    axes.plot(times, risks, color=_ALARM, linewidth=1.6)
    if threshold is not None:
        axes.axhline(threshold, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(1.01, threshold, "acts at", transform=axes.get_yaxis_transform(), fontsize=8, va="center")
    axes.set_ylim(0, 1)
    axes.set_ylabel("forecast risk")
    axes.set_title(f"what the forecast knew of {story.ramp.provider}", loc="left", fontsize=9, color=_PALE)


def _draw_ttft(axes: Axes, story: Story, evidence: Evidence) -> None:
    times, values = _columns(evidence.ttfts_ms.get(story.endpoint(story.ramp), ()))
    axes.plot(times, values, ".", color=_colour(story, story.ramp), markersize=2, alpha=0.3)
    edges = np.linspace(-story.warm_up_s, story.scenario.duration_s, _BINS // 2 + 1)
    bins = (values[(times >= since) & (times < until)] for since, until in pairwise(edges))
    medians = [float(np.median(one)) if len(one) else np.nan for one in bins]
    axes.plot((edges[:-1] + edges[1:]) / 2, medians, color=_colour(story, story.ramp), linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("TTFT, ms")
    axes.set_title(f"time to first token of {story.ramp.provider}, p50", loc="left", fontsize=9, color=_PALE)


def _shade(axes: Axes, story: Story) -> None:
    for fault in (story.ramp, story.outage, story.storm):
        for edge in (fault.at_s, fault.end_s):
            axes.axvline(edge, color=_colour(story, fault), linewidth=0.8, linestyle=":", alpha=0.8)
    axes.axvspan(story.hard_outage_s, story.ramp.end_s, color=_INK, alpha=0.06, linewidth=0)


def _colour(story: Story, fault: Fault) -> str:
    names = [provider.name for provider in story.scenario.providers]
    return _COLOURS[names.index(str(fault.provider)) % len(_COLOURS)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    table = np.array(points, dtype=np.float64).reshape(len(points), 2)
    return table[:, 0], table[:, 1]

"""The plots of an evaluation report, as SVG: the main metric by scorer and by slice, reliability, training curves.

Words of the data (titles, categories) are not drawn here but set in the page, since matplotlib's own font has few scripts.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np

from ranker.bootstrap import Estimate
from ranker.calibration import Reliability
from ranker.report import Calibrated, Curve
from ranker.slices import SliceResult

MODEL_COLOUR: Final = "#2a9d8f"
PEER_COLOURS: Final = ("#3d5a80", "#e9a23b", "#c84b9b", "#6c8ebf", "#9aa0a6", "#d9776c")
_WIDTH_INCHES: Final = 9.0
_ROW_INCHES: Final = 0.36
_RC: Final = {
    "svg.hashsalt": "triptych",  # the same numbers give the same file
    "svg.fonttype": "none",  # words stay words: smaller, and any script is drawn by the browser
    "text.parse_math": False,  # a name may have a dollar in it
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def colours(scorers: Iterable[str], model: str) -> dict[str, str]:
    """A colour for each scorer, the model's always the same."""
    others = [name for name in scorers if name != model]
    return {model: MODEL_COLOUR, **{name: PEER_COLOURS[at % len(PEER_COLOURS)] for at, name in enumerate(others)}}


def scorers_figure(values: Mapping[str, Estimate], label: str, model: str) -> str:
    """The main metric of each scorer with its interval, best on top."""
    order = sorted(values, key=lambda name: values[name].mean)
    colour = colours(values, model)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for at, name in enumerate(order):
            _mark(axes, values[name], at, colour[name], across=True)
        axes.set_yticks(range(len(order)), order)
        axes.set(xlabel=label, ylim=(-0.6, len(order) - 0.4))
        axes.grid(visible=True, axis="x", alpha=0.25)

    return _svg(draw, 0.9 + _ROW_INCHES * len(order))


def slices_figure(slices: Sequence[SliceResult], label: str, model: str) -> str:
    """The main metric by slice: a plot for each group, a mark with its interval for each scorer."""
    groups = [(group, list(found)) for group, found in groupby(slices, key=lambda one: one.group)]
    scorers = list(dict.fromkeys(name for one in slices for name in one.estimates))
    colour = colours(scorers, model)
    rows = (len(groups) + 1) // 2

    def draw(figure: Any) -> None:
        plots = figure.subplots(rows, 2, squeeze=False, sharey=True).ravel()
        for axes, (group, found) in zip(plots, groups, strict=False):
            _slice_plot(axes, found, scorers, colour)
            axes.set(title=group, ylabel=label)
        for axes in plots[len(groups) :]:
            axes.set_visible(False)
        _legend(figure, scorers, colour)

    return _svg(draw, 0.5 + 2.6 * rows)


def _slice_plot(axes: Any, slices: Sequence[SliceResult], scorers: Sequence[str], colour: Mapping[str, str]) -> None:
    for at, one in enumerate(slices):
        for number, name in enumerate(scorers):
            if name in one.estimates:
                _mark(axes, one.estimates[name], at + 0.6 * ((number + 0.5) / len(scorers) - 0.5), colour[name])
    axes.set_xticks(range(len(slices)), [f"{one.name}\n{one.labels:,}" for one in slices], fontsize="small")
    axes.set_xlim(-0.6, len(slices) - 0.4)
    axes.grid(visible=True, axis="y", alpha=0.25)


def reliability_figure(calibrated: Calibrated) -> str:
    """Chances given against what happened, before and after calibration, and how many events each bin has."""

    def draw(figure: Any) -> None:
        plots = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
        for column, (name, curve) in enumerate((("before", calibrated.before), ("after", calibrated.after))):
            _curve_plot(plots[0, column], curve, f"{name} calibration: ECE {curve.ece:.4f}")
            _weights_plot(plots[1, column], curve)
        plots[0, 0].set_ylabel("share that happened")
        plots[1, 0].set_ylabel("events")

    return _svg(draw, 4.6)


def _curve_plot(axes: Any, curve: Reliability, title: str) -> None:
    there = np.asarray(curve.weight) > 0
    axes.plot([0, 1], [0, 1], "--", color="#9aa0a6", linewidth=1)
    axes.plot(np.asarray(curve.predicted)[there], np.asarray(curve.observed)[there], "o-", color=MODEL_COLOUR)
    axes.set(title=title, xlim=(0, 1), ylim=(0, 1))
    axes.grid(visible=True, alpha=0.25)


def _weights_plot(axes: Any, curve: Reliability) -> None:
    width = 1.0 / len(curve.weight)
    axes.bar((np.arange(len(curve.weight)) + 0.5) * width, curve.weight, 0.9 * width, color="#b8bcc4")
    axes.set_xlabel("chance given")


def training_figure(curves: Sequence[Curve]) -> str:
    """A plot for each panel of curves."""
    from matplotlib.ticker import MaxNLocator

    panels = list(dict.fromkeys(curve.panel for curve in curves))

    def draw(figure: Any) -> None:
        plots = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(plots, panels, strict=True):
            shown = [curve for curve in curves if curve.panel == panel]
            for at, curve in enumerate(shown):
                colour = (MODEL_COLOUR, *PEER_COLOURS)[at % (1 + len(PEER_COLOURS))]
                axes.plot(curve.steps, curve.values, "o-", markersize=3, label=curve.name, color=colour)
            axes.set(title=panel, xlabel=shown[0].axis)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(visible=True, alpha=0.25)
            axes.legend(fontsize="small", frameon=False)

    return _svg(draw, 3.2)


def _mark(axes: Any, value: Estimate, at: float, colour: str, *, across: bool = False) -> None:
    """A dot with its interval, across or upright; one without an interval is a dot alone."""
    if np.isfinite([value.low, value.high]).all():
        (axes.hlines if across else axes.vlines)(at, value.low, value.high, color=colour, linewidth=2, alpha=0.6)
    axes.plot(*((value.mean, at) if across else (at, value.mean)), "o", color=colour, markersize=5)


def _legend(figure: Any, scorers: Sequence[str], colour: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], marker="o", linestyle="", color=colour[name], label=name) for name in scorers]
    figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 6), frameon=False)


def _svg(draw: Any, height_inches: float) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has it
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()

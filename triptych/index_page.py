"""The page of `triptych index report`: recall against latency by search parameter, as a picture and as one HTML file.

Draws what `feature_store.index_report` measured; measures nothing itself.
"""

import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Final

from feature_store.files import write_whole

if TYPE_CHECKING:
    from feature_store.index_report import IndexReport, Point

SUFFIXES: Final = frozenset({".html", ".png", ".svg"})
_INCHES_PER_PLOT: Final = 6.5
_DPI: Final = 150
_MARGIN: Final = 1.6  # wide enough for two ticks, and for the labels of the outer points
MIB: Final = 1 << 20


def write_page(reports: Sequence["IndexReport"], path: Path, heading: str) -> Path:
    """Write the page (`.html`) or its picture alone (`.png`, `.svg`) to `path` and return it."""
    if path.suffix == ".html":
        write_whole(path, render(reports, heading))
    else:
        write_whole(path, picture(reports, path.suffix[1:]))
    return path


def render(reports: Sequence["IndexReport"], heading: str) -> str:
    """The whole page, which needs no other file."""
    template = Template(files("triptych").joinpath("index_page.html").read_text(encoding="utf-8"))
    svg = picture(reports, "svg").decode()
    return template.substitute(
        heading=escape(heading), plot=svg[svg.index("<svg") :], views="\n".join(_section(report) for report in reports)
    )


def picture(reports: Sequence["IndexReport"], kind: str) -> bytes:
    """A plot for each k, a line for each view, a mark for each search parameter; `kind` is png or svg."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ks = sorted({point.k for report in reports for point in report.points})
    figure = Figure(figsize=(_INCHES_PER_PLOT * len(ks), 4.8), layout="constrained")
    plots = figure.subplots(1, len(ks), squeeze=False)[0]
    for axes, k in zip(plots, ks, strict=True):
        for report in reports:
            _draw(axes, report, k)
        _frame(axes, k, [point.p50_ms for report in reports for point in report.points if point.k == k])
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "triptych"}):  # the same numbers give the same file
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _frame(axes: Any, k: int, milliseconds: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set(
        xscale="log",
        xlim=(min(milliseconds) / _MARGIN, max(milliseconds) * _MARGIN),
        xlabel="latency of one query, median (ms)",
        ylabel=f"recall@{k}",
        title=f"recall@{k}",
    )
    axes.xaxis.set(major_locator=LogLocator(subs=(1.0, 2.0, 5.0)), minor_locator=NullLocator(), major_formatter="{x:g}")
    axes.grid(visible=True, alpha=0.25)


def _draw(axes: Any, report: "IndexReport", k: int) -> None:
    """One view's line, in the order of `ef`, and a star where a search goes by itself."""
    points = [point for point in report.points if point.k == k]
    swept = [point for point in points if point.params]
    colour = axes.plot(
        [point.p50_ms for point in swept],
        [point.recall for point in swept],
        "o-",
        label=f"{report.view} ({report.index}, {report.rows:,} x {report.dim})",
    )[0].get_color()
    for point in points:
        if not point.params:
            axes.plot(point.p50_ms, point.recall, "*", color=colour, markersize=14, markeredgecolor="black")
        axes.annotate(
            point.label, (point.p50_ms, point.recall), (4, -11), textcoords="offset points", fontsize="x-small"
        )


def _section(report: "IndexReport") -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.notes)
    rows = "".join(_row(point) for point in report.points)
    heads = ("k", "search", "recall", "5th pct", "p50 ms", "p95 ms", "p99 ms", "queries/s")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<section><h2>{escape(report.view)}</h2><p>{escape(facts(report))}</p>{notes}<table><tr>{head}</tr>{rows}</table></section>"


def facts(report: "IndexReport") -> str:
    """A view in one line: index, size, estimated memory, queries."""
    build = ", ".join(f"{name}={value}" for name, value in report.build_params.items())
    links = f" + {report.link_bytes / MIB:,.1f} MiB of links" if report.link_bytes else ""
    return (
        f"{report.index}{f' ({build})' if build else ''}, {report.metric}, {report.rows:,} rows x {report.dim}; estimated memory "
        f"{report.vector_bytes / MIB:,.1f} MiB of vectors{links}; {report.queries} queries: {report.queries_from}"
    )


def _row(point: "Point") -> str:
    return "<tr>" + "".join(f"<td>{escape(value)}</td>" for value in cells(point)) + "</tr>"


def cells(point: "Point") -> tuple[str, ...]:
    """A point as text: k, setting, recall, 5th percentile, latencies in ms, queries per second."""
    milliseconds = (f"{value:,.2f}" for value in (point.p50_ms, point.p95_ms, point.p99_ms))
    return (
        str(point.k),
        point.label,
        f"{point.recall:.4f}",
        f"{point.recall_p5:.2f}",
        *milliseconds,
        f"{point.queries_per_second:,.0f}",
    )

"""The page of an evaluation report: one HTML file that needs no other. A section for each part that the report has.

Lays out what `report.Report` holds; computes nothing but the form of numbers. Plots are `report_figures`' and are embedded as SVG images.
"""

import base64
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Final

from ranker import report_figures as figures
from ranker.bootstrap import Estimate
from ranker.report import Attention, Gates, Peer, Report

WORDS: Final = {
    "auc": "AUC",
    "gauc": "GAUC",
    "mrr": "MRR",
    "logloss": "log loss",
    "ece": "ECE",
    "gini": "Gini",
    "mean_popularity": "mean popularity",
    "novelty_bits": "novelty (bits)",
    "diversity": "intra-list diversity",
}
# Of these more is neither better nor worse by itself, or less is better.
LESS_IS_BETTER: Final = frozenset({"logloss", "ece"})
NEITHER: Final = frozenset({"gini", "mean_popularity", "novelty_bits", "diversity", "coverage"})


def render(report: Report) -> str:
    """The whole page."""
    template = Template(files("ranker").joinpath("report.html").read_text(encoding="utf-8"))
    title = f"Evaluation of {report.model_id}"
    return template.substitute(
        title=escape(title),
        lead=f"{report.users:,} users, {report.labels:,} labels. Intervals are 95 % by bootstrap over users.",
        notes="".join(f'<p class="note">{escape(note)}</p>' for note in report.notes),
        sections="\n".join(_sections(report)),
    )


def _sections(report: Report) -> Iterator[str]:
    stated = {"protocol": report.protocol, "candidates and masks": report.masks, **report.facts}
    yield _section("How it was measured", f"<dl>{''.join(_pair(*one) for one in stated.items())}</dl>")
    yield _section("Metrics", _metrics(report))
    if report.differences:
        yield _section(f"{metric_words(report.main_metric)}: {report.scorer} less each other", _differences(report))
    if report.peers:
        yield _section("The others", _peers(report.peers))
    if report.slices:
        yield _section(f"{metric_words(report.main_metric)} by slice", _slices(report))
    if report.calibration:
        plot = _image(figures.reliability_figure(report.calibration), "Reliability before and after calibration")
        yield _section("Reliability", f"<p>{escape(report.calibration.method)}</p>{plot}")
    if report.training:
        yield _section("Training", _image(figures.training_figure(report.training), "Curves of the training"))
    if report.gates:
        yield _section("Modality gates by category", _gates(report.gates))
    if report.attention:
        what = "Attention" if report.attention.by == "attention" else "Neighbours in the prior"
        yield _section(f"{what} over one user's history", _attention(report.attention))


def metric_words(name: str) -> str:
    """A metric as readers know it: `ndcg_at_10` is NDCG@10."""
    at_k = re.fullmatch(r"(ndcg|recall|hr)_at_(\d+)", name)
    if at_k:
        return f"{'Recall' if at_k[1] == 'recall' else at_k[1].upper()}@{at_k[2]}"
    return WORDS.get(name, name.replace("_", " "))


def number(value: float) -> str:
    """Four digits or so, whatever the size; a dash where there is none."""
    if not math.isfinite(value):
        return "-"
    digits = next((digits for bound, digits in ((1_000, 0), (100, 1), (10, 2), (1, 3)) if abs(value) >= bound), 4)
    return f"{value:,.{digits}f}"


# ---- fragments -------------------------------------------------------------------------------------------------------


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def _pair(term: str, words: str) -> str:
    return f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>"


def _image(svg: str, alt: str) -> str:
    """Embedded as an image of its own, so that plots share no ids."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(alt, quote=True)}" src="data:image/svg+xml;base64,{data}">'


def _table(heads: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    return (
        f"<table{_class(kind)}><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>{''.join(rows)}</table>"
    )


def _tr(cells: Iterable[str], kind: str = "") -> str:
    return f"<tr{_class(kind)}>{''.join(cells)}</tr>"


def _td(text: str, kind: str = "") -> str:
    return f"<td{_class(kind)}>{escape(text)}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _estimate(value: Estimate | None, kind: str = "") -> str:
    if value is None:
        return _td("-", kind)
    bounds = f"<small>{number(value.low)} to {number(value.high)}</small>" if math.isfinite(value.low) else ""
    return f"<td{_class(kind)}>{number(value.mean)}{bounds}</td>"


def _metrics(report: Report) -> str:
    names = list(dict.fromkeys(name for found in report.metrics.values() for name in found))
    best = {name: _best(report, name) for name in names}
    main = {
        scorer: found[report.main_metric] for scorer, found in report.metrics.items() if report.main_metric in found
    }
    words = metric_words(report.main_metric)
    plot = _image(figures.scorers_figure(main, words, report.scorer), f"{words} by scorer")
    rows = (
        _tr([_td(metric_words(name)), *(_scored(report, scorer, name, best[name]) for scorer in report.metrics)])
        for name in names
    )
    return plot + _table(["metric", *report.metrics], rows)


def _scored(report: Report, scorer: str, metric: str, best: str | None) -> str:
    kinds = ("model" * (scorer == report.scorer), "best" * (scorer == best))
    return _estimate(report.metrics[scorer].get(metric), " ".join(filter(None, kinds)))


def _best(report: Report, metric: str) -> str | None:
    """The scorer that is best by a metric of which more, or less, is better."""
    found = {
        scorer: of[metric].mean
        for scorer, of in report.metrics.items()
        if metric in of and math.isfinite(of[metric].mean)
    }
    if metric in NEITHER or len(found) < 2:
        return None
    return (min if metric in LESS_IS_BETTER else max)(found, key=lambda scorer: found[scorer])


def _differences(report: Report) -> str:
    rows = (
        _tr(
            [
                _td(other),
                _td(f"{found.mean:+.4f}"),
                _td(f"{found.low:+.4f} to {found.high:+.4f}"),
                _td(f"{found.p:.4f}"),
                _td(f"{found.users:,}"),
            ]
        )
        for other, found in report.differences.items()
    )
    return _table(["less", "difference", "95 % interval", "p, two-sided", "users"], rows)


def _peers(peers: Sequence[Peer]) -> str:
    rows = (
        _tr(
            [
                _td(peer.name),
                *map(_td, (peer.what, peer.settings, peer.chosen)),
                _td(f"{peer.minutes:.1f}" if math.isfinite(peer.minutes) else "-"),
            ]
        )
        for peer in peers
    )
    return _table(["scorer", "what", "settings", "chosen by", "minutes"], rows, "words")


def _slices(report: Report) -> str:
    words = metric_words(report.main_metric)
    shown = [one for one in report.slices if one.group != "all"]
    plot = _image(figures.slices_figure(shown, words, report.scorer), f"{words} by slice") if shown else ""
    scorers = list(dict.fromkeys(name for one in report.slices for name in one.estimates))
    rows = (
        _tr(
            [
                _td(f"{one.group}: {one.name}"),
                _td(f"{one.labels:,}"),
                *(_estimate(one.estimates.get(s)) for s in scorers),
            ]
        )
        for one in report.slices
    )
    return plot + _table(["slice", "labels", *scorers], rows)


def _gates(gates: Sequence[Gates]) -> str:
    """A table whose cells are as dark as their weights."""
    modalities = list(dict.fromkeys(name for one in gates for name in one.weights))
    top = max((weight for one in gates for weight in one.weights.values()), default=1.0) or 1.0

    def cell(weight: float | None) -> str:
        if weight is None:
            return "<td>-</td>"
        return f'<td style="background:rgba(42,157,143,{0.6 * max(weight, 0.0) / top:.2f})">{weight:.3f}</td>'

    rows = (
        _tr([_td(one.category), _td(f"{one.items:,}"), *(cell(one.weights.get(name)) for name in modalities)])
        for one in gates
    )
    return _table(["category", "items", *modalities], rows)


def _attention(attention: Attention) -> str:
    top = max((one.weight for one in attention.history), default=1.0) or 1.0
    candidate = f"{attention.candidate_id} {attention.title}".strip()
    lead = f"<p>What {escape(attention.user_id)} did, newest first, and how much of the score of {escape(candidate)} is due to each event.</p>"
    rows = (
        _tr(
            [
                _td(f"{one.item_id} {one.title}".strip()),
                _td(one.when),
                _td(f"{one.weight:.3f}"),
                f'<td><div class="bar"><i style="width:{100 * max(one.weight, 0.0) / top:.1f}%"></i></div></td>',
            ]
        )
        for one in reversed(attention.history)
    )
    return lead + _table(["item", "when", "weight", ""], rows)

"""The rankers' committed results as tables of Markdown: a method a row, a metric a column, for each set; and the ablations."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

# What stands before a method's name in the details, and the metrics of its table.
SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "movielens-100k": ("ndcg_10", "hr_10"),
    "movielens-1m": ("recall_20", "ndcg_20"),
    "movielens-1m cold": ("recall_20", "ndcg_20", "gauc"),
    "lastfm-2k": ("recall_20", "ndcg_20"),
    "beauty": ("hr_10", "ndcg_10"),
    "toys": ("hr_10", "ndcg_10"),
}
_ABLATION: Final = re.compile(r"(\S+) ablation (.+)")


def methods(found: Mapping[str, Any]) -> Iterator[str]:
    """A table for each set that was measured: the mean over seeds, (interval over users), each seed's."""
    for name, metrics in SETS.items():
        rows = list(_rows(found["details"], name, metrics))
        if rows:
            yield f"\n**{name}**\n\n| method | {' | '.join(metrics)} | by seed | minutes a seed |\n"
            yield f"| --- {'| --- ' * (len(metrics) + 2)}|\n"
            yield from rows


def _rows(details: Mapping[str, Any], name: str, metrics: tuple[str, ...]) -> Iterator[str]:
    for key, detail in details.items():
        method = key.removeprefix(f"{name} ")
        is_other = name == "movielens-1m" and method.startswith("cold")
        if method == key or is_other or not isinstance(detail, Mapping):
            continue
        if isinstance(detail.get(metrics[0]), float) and not _ABLATION.fullmatch(key):
            values = " | ".join(_value(detail, metric) for metric in metrics)
            yield f"| {method.replace('_', ' ')} | {values} | {_seeds(detail, metrics)} | {_minutes(detail)} |\n"


def _value(detail: Mapping[str, Any], metric: str) -> str:
    interval = detail.get("intervals", {}).get(metric)
    return f"{detail[metric]:.4f}" + (f" ({interval['low']:.4f} to {interval['high']:.4f})" if interval else "")


def _seeds(detail: Mapping[str, Any], metrics: tuple[str, ...]) -> str:
    """The metric that settings are chosen by, of each seed."""
    chosen = next(metric for metric in metrics if metric.startswith("ndcg"))
    values = [one[chosen] for one in detail.get("by_seed", [])] or detail.get("ndcg_by_seed", [])
    return ", ".join(f"{value:.4f}" for value in values)


def _minutes(detail: Mapping[str, Any]) -> str:
    minutes = [run["minutes"] for run in detail.get("runs", [])] or detail.get("minutes", [])
    return ", ".join(f"{value:.1f}" for value in minutes)


def ablations(found: Mapping[str, Any]) -> Iterator[str]:
    """A table for each set that was ablated: mean over seeds and users, interval over users, each seed's."""
    tables: dict[str, list[str]] = {}
    for key, detail in found["details"].items():
        if match := _ABLATION.fullmatch(key):
            metric = next(iter(detail))
            header = f"\n**{match[1]}**\n\n| variant | {metric} | interval | by seed |\n| --- | --- | --- | --- |\n"
            seeds = ", ".join(f"{value:.4f}" for value in detail["by_seed"])
            row = f"| {match[2]} | {detail[metric]:.4f} | {detail['low']:.4f} to {detail['high']:.4f} | {seeds} |\n"
            tables.setdefault(match[1], [header]).append(row)
    for rows in tables.values():
        yield from rows

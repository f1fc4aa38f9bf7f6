"""Cost against catalogue size, drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

PANELS: Final = (
    ("load, us of wall and of CPU per row", ("load_us_per_row", "load_cpu_us_per_row")),
    ("read 500 vectors, ms", ("read500_ms", "read500_bare_ms")),
    ("search top 100, ms", ("search100_ms", "search100_bare_ms")),
)


def plot_sizes(table: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """Draw `table` (catalogue size -> costs by name) into a PNG; each search carries its recall."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for name in names:
            axes.plot(list(table), [costs[name] for costs in table.values()], marker="o", label=name)
        axes.set(title=title, xlabel="items in the view", xscale="log")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
        if "search100_ms" in names:
            for rows, costs in table.items():
                axes.annotate(
                    f"recall {costs['search100_recall']:.3f}", (rows, costs["search100_ms"]), fontsize="small"
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)

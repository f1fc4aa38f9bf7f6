"""Write the committed results into README.md, docs/operations.md and docs/results.md: `python -m benchmarks.readme`, or with `--check` see that they are the same.

A table goes between `<!-- KIND of NAME -->` and `<!-- end of KIND -->`, from `benchmarks/results/NAME.json`. Kinds: `results` are the claims,
`costs` what the feature store costs by catalogue size, `sizes` what `store_sizing` has weighed, `methods` and `ablations` the rankers' figures.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.rankers import tables

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = (ROOT / "README.md", ROOT / "docs" / "operations.md", ROOT / "docs" / "results.md")
RESULTS: Final = ROOT / "benchmarks" / "results"
_PLACES: Final = re.compile(
    r"<!-- (results|costs|sizes|methods|ablations) of (\w+) -->\n.*?<!-- end of \1 -->", re.DOTALL
)


def filled(text: str, results: Path = RESULTS) -> str:
    """`text` with every place for a table filled from its file of results; a missing file is a `FileNotFoundError`."""

    def table(place: re.Match[str]) -> str:
        kind, name = place[1], place[2]
        found = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        return f"<!-- {kind} of {name} -->\n{''.join(_TABLES[kind](found))}<!-- end of {kind} -->"

    return _PLACES.sub(table, text)


def _claims(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| claim | value | unit | bar | |\n| --- | --- | --- | --- | --- |\n"
    for claim in found["claims"]:
        sign, mark = "≥" if claim["better"] == "higher" else "≤", "holds" if claim["holds"] else "**missed**"
        yield f"| `{claim['name']}` | {claim['value']:.3g} | {claim['unit']} | {sign} {claim['bar']:g} | {mark} |\n"


def _costs(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| rows | load, s | CPU per row, us | peak memory, MB | until indexed, s | read 500, ms (bare) | top 100, ms (bare) | recall@100 |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    for (rows,), cost in _matching(found, r"size_(\d+)"):
        yield (
            f"| {int(rows):,} | {cost['load_seconds']:.1f} | {cost['load_cpu_us_per_row']:.0f} | {cost['load_peak_mb']} "
            f"| {cost['settle_seconds']} | {cost['read500_ms']:.1f} ({cost['read500_bare_ms']:.1f}) "
            f"| {cost['search100_ms']:.1f} ({cost['search100_bare_ms']:.1f}) | {cost['search100_recall']:.3f} |\n"
        )


def _sizes(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| server | vectors | dim | index | disk | of it index | memory | peak memory |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    every = _matching(found, r"(\w+)_(\d+)_(\d+)_([A-Z]+)")
    for (server, rows, dim, index), weighed in sorted(every, key=_by_size):
        sizes = [
            f"{weighed[f'{name}_bytes_per_item']:,} ({weighed[f'{name}_over_vector']:.2f})"
            for name in ("disk", "disk_index", "memory", "peak_memory")
        ]
        if not weighed["log_bytes_per_item"]:  # Milvus Lite keeps rows, index and log in one folder.
            sizes[1] = "not told apart"
        yield f"| {' | '.join([server, f'{int(rows):,}', dim, index, *sizes])} |\n"


def _by_size(named: tuple[tuple[str, ...], Mapping[str, Any]]) -> tuple[str, int, int, str]:
    (server, rows, dim, index), _ = named
    return server, int(rows), int(dim), index


def _matching(found: Mapping[str, Any], key: str) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Details whose names match, in order: the names' groups and the values."""
    for name, detail in found["details"].items():
        if match := re.fullmatch(key, name):
            yield match.groups(), detail


_TABLES: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[str]]]] = {
    "results": _claims,
    "costs": _costs,
    "sizes": _sizes,
    "methods": tables.methods,
    "ablations": tables.ablations,
}


def main(arguments: list[str] | None = None) -> None:
    """Fill the pages, or say whether they are filled with what the results say."""
    parser = argparse.ArgumentParser(
        description="Write the committed results into README.md, docs/operations.md and docs/results.md."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page says something else")
    is_check = parser.parse_args(arguments).check
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if not is_check:
            page.write_text(new, encoding="utf-8")
        elif new != old:
            sys.exit(f"{page.name} is not what benchmarks/results say: run python -m benchmarks.readme")


if __name__ == "__main__":
    main()

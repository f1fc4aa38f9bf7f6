"""Write the committed results into README.md: `python -m benchmarks.readme`, or with `--check` see that they are the same.

A table goes between `<!-- results of NAME -->` and `<!-- end of results -->`, from `benchmarks/results/NAME.json`.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
README: Final = ROOT / "README.md"
RESULTS: Final = ROOT / "benchmarks" / "results"
_PLACES: Final = re.compile(r"(?<=<!-- results of )(\w+)( -->\n).*?(?=<!-- end of results -->)", re.DOTALL)


def filled(text: str, results: Path = RESULTS) -> str:
    """`text` with every place for a table filled from its file of results; a missing file is a `FileNotFoundError`."""
    return _PLACES.sub(lambda place: f"{place[1]}{place[2]}{_table(results / f'{place[1]}.json')}", text)


def _table(path: Path) -> str:
    claims = json.loads(path.read_text(encoding="utf-8"))["claims"]
    return "".join(["| claim | value | unit | bar | |\n", "| --- | --- | --- | --- | --- |\n", *map(_row, claims)])


def _row(claim: Mapping[str, Any]) -> str:
    sign, mark = "≥" if claim["better"] == "higher" else "≤", "holds" if claim["holds"] else "**missed**"
    return f"| `{claim['name']}` | {claim['value']:.3g} | {claim['unit']} | {sign} {claim['bar']:g} | {mark} |\n"


def main(arguments: list[str] | None = None) -> None:
    """Fill README.md, or say whether it is filled with what the results say."""
    parser = argparse.ArgumentParser(description="Write the committed results into README.md.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where README.md says something else"
    )
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if not parser.parse_args(arguments).check:
        README.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("README.md is not what benchmarks/results say: run python -m benchmarks.readme")


if __name__ == "__main__":
    main()

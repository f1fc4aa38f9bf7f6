"""The one form of every benchmark: its command line, its claims, its table, its JSON.

A benchmark module calls `run(measure)`, where `measure(options, record)` makes claims through `record`. The JSON is
`{"machine", "date", "claims": [{"name", "value", "unit", "bar", "better", "holds"}], ...}`; what was not measured is left out, and a run
with `--only` replaces only its own claims in an existing file. A benchmark that finished exits 0, whether its claims hold or not.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Better = Literal["higher", "lower"]
BETTER: Final = ("higher", "lower")


@dataclass(frozen=True)
class Claim:
    """One measured number and the bar that it should reach; `better` says on which side of the bar it should be."""

    name: str
    value: float
    unit: str
    bar: float
    better: Better

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and math.isfinite(self.bar)):
            raise ValueError(f"claim {self.name!r} must be finite, not {self.value} against {self.bar}")
        if self.better not in BETTER:
            raise ValueError(f"claim {self.name!r}: better must be higher or lower, not {self.better!r}")

    @property
    def holds(self) -> bool:
        """Whether the value reaches the bar."""
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar

    def to_dict(self) -> dict[str, Any]:
        """As the JSON stores it."""
        return {**asdict(self), "holds": self.holds}


@dataclass(frozen=True)
class Options:
    """How a benchmark was called. `only` names the parts to run; empty means all. `values` are its own options, by name."""

    quick: bool = False
    only: tuple[str, ...] = ()
    json: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def wants(self, part: str) -> bool:
        """Whether `part` is to be measured."""
        return not self.only or part in self.only


@dataclass
class Record:
    """Collects claims, and the plain numbers behind them (`details`), as they are measured."""

    claims: list[Claim] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def claim(self, name: str, value: float, unit: str, *, bar: float, better: Better = "higher") -> None:
        """Add a claim; raises `ValueError` where a number is not finite."""
        self.claims.append(Claim(name, round(float(value), 4), unit, bar, better))

    def note(self, name: str, value: Any) -> None:
        """Add a number that explains a claim and claims nothing itself."""
        self.details[name] = value


Measure = Callable[[Options, Record], None]
More = Callable[[argparse.ArgumentParser], None]


def run(
    measure: Measure,
    parts: Sequence[str],
    description: str,
    arguments: Sequence[str] | None = None,
    more: More | None = None,
) -> None:
    """Read the command line, measure, print the table, and write or merge the JSON. `more` adds options of the benchmark's own."""
    options = read_options(parts, description, arguments, more)
    record = Record()
    measure(options, record)
    report = document(record)
    Console().print(table(record.claims))
    Console().print(details_table(record.details))
    if options.json:
        write(report, options.json, merge=bool(options.only))


def read_options(
    parts: Sequence[str], description: str, arguments: Sequence[str] | None = None, more: More | None = None
) -> Options:
    """`[--quick] [--only PART]... [--json OUT]`, and what `more` adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="less data: minutes become seconds, numbers become rough")
    parser.add_argument("--only", action="append", choices=parts, default=[], help="measure this part; repeatable")
    parser.add_argument("--json", type=Path, help="write the results here; with --only, into what is there")
    if more is not None:
        more(parser)
    values = vars(parser.parse_args(arguments))
    quick, only, path = (values.pop(name) for name in ("quick", "only", "json"))
    return Options(quick, tuple(only), path, values)


def document(record: Record) -> dict[str, Any]:
    """The JSON document of one run."""
    return {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "claims": [claim.to_dict() for claim in record.claims],
        "details": record.details,
    }


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write(report: Mapping[str, Any], path: Path, *, merge: bool) -> None:
    """Write `report`; where `merge`, keep the claims and details of an existing file that this run did not measure."""
    if merge and path.exists():
        report = merged(json.loads(path.read_text(encoding="utf-8")), report)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with the claims of `new` in their old places, new ones at the end."""
    fresh = {claim["name"]: claim for claim in new["claims"]}
    kept = [fresh.pop(claim["name"], claim) for claim in old["claims"]]
    return {**old, **new, "claims": [*kept, *fresh.values()], "details": {**old.get("details", {}), **new["details"]}}


def table(claims: Iterable[Claim]) -> Table:
    """The claims for people."""
    drawn = Table(title="claims")
    for column, justify in (("claim", "left"), ("value", "right"), ("bar", "right"), ("unit", "left"), ("", "left")):
        drawn.add_column(column, justify=justify)
    for claim in claims:
        sign = "≥" if claim.better == "higher" else "≤"
        mark = "[green]holds[/]" if claim.holds else "[red]does not hold[/]"
        drawn.add_row(claim.name, f"{claim.value:,.4g}", f"{sign} {claim.bar:,.4g}", claim.unit, mark)
    return drawn


def details_table(details: Mapping[str, Any]) -> Table:
    """The plain numbers behind the claims, for people; a mapping's entries have a row each."""
    drawn = Table("detail", title="details")
    drawn.add_column("value", justify="right")
    for name, value in details.items():
        parts = {f"{name} {key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
        for label, part in parts.items():
            drawn.add_row(escape(label), f"{part:,.4g}" if isinstance(part, float) else escape(str(part)))
    return drawn


def best_pair(repeats: int, peer: Callable[[], object], ours: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the fastest of `repeats` runs of each, taken in turn: both meet the same neighbours on a shared machine."""
    seconds = [(_seconds(peer), _seconds(ours)) for _ in range(repeats)]
    return min(one for one, _ in seconds), min(other for _, other in seconds)


def _seconds(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started

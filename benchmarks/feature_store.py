"""The feature store beside Feast's own Milvus store and beside bare gRPC, on one Milvus standalone server, in one run.

`materialize` loads the same rows through this project's plug-ins, through stock Feast and as bare column-wise upserts, each in a process of its
own that has imported first; `memory` compares the peaks of loads of 100,000 and 1,000,000 rows; `read` reads 500 vectors; `search` asks
for the nearest 100, with their recall; `size` gives cost against catalogue size. Bare calls are this project's own requests, recorded
and sent again as ready bytes. Stock Feast is 0.67 as it comes: with one dim for all vectors, its store needs no override.
Every ratio is taken between neighbours in time and the median counts, since a shared machine is faster at some times than at others.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks.common import Options, Record, run
from benchmarks.store.plot import plot_sizes
from benchmarks.store.site import Load, Site, medians
from benchmarks.store.standalone import Standalone

PARTS: Final = ("materialize", "memory", "read", "search", "size")
QUICK_ROWS: Final = 10_000
CLAIMED_MEMORY_ROWS: Final = (100_000, 1_000_000)
IDS_PER_READ: Final = 500
HITS: Final = 100
ID_SETS: Final = 20
RECALL_QUERIES: Final = 200
BURST: Final = 5  # calls by one side before the next one's turn: a side that is asked once at a time never gets warm

Costs = dict[str, dict[str, float]]
Calls = dict[str, list[dict[str, Any]]]
Job = Callable[[list[int]], list[dict[str, Any]]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes; the claims are about the defaults."""
    parser.add_argument(
        "--rows", type=int, default=100_000, help="rows of materialize, read and search (default 100000)"
    )
    parser.add_argument("--dim", type=int, default=512, help="values of a vector (default 512)")
    parser.add_argument("--rounds", type=int, default=3, help="loads by each side (default 3)")
    parser.add_argument("--calls", type=int, default=100, help="reads and searches by each side (default 100)")
    parser.add_argument("--ef", type=int, default=200, help="search effort of HNSW, at least 100 (default 200)")
    parser.add_argument(
        "--stock-batch-rows", type=int, default=5_000, help="rows that stock writes at a time (default 5000)"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="rows of memory and size"
    )


def measure_all(options: Options, record: Record) -> None:
    """All wanted parts, on one server."""
    values = dict(options.values)
    if options.quick:
        values |= {"rows": QUICK_ROWS, "sizes": [QUICK_ROWS // 2, QUICK_ROWS], "rounds": 1, "calls": 20}
    record.note("options", values)
    with tempfile.TemporaryDirectory(prefix="feature-store-") as name, Standalone(Path(name) / "server") as server:
        site = Site(Path(name), server, values["dim"], values["ef"], values["stock_batch_rows"])
        try:
            record.note("versions", {"milvus": "2.3.5 standalone", **site.versions()})
            measures: dict[str, Callable[[], None]] = {
                "materialize": lambda: measure_materialize(site, values["rows"], values["rounds"], record),
                "memory": lambda: measure_memory(site, values["sizes"], record),
                "read": lambda: claim_read(read_calls(site, site.load(values["rows"]), values["calls"]), record),
                "search": lambda: claim_search(search_calls(site, site.load(values["rows"]), values["calls"]), record),
                "size": lambda: measure_sizes(site, values["sizes"], values["calls"], options.json, record),
            }
            for part in PARTS:
                if options.wants(part):
                    site.say(f"part {part}")
                    measures[part]()
        finally:
            site.close()


# ---- materialize -----------------------------------------------------------------------------------------------------


def measure_materialize(site: Site, rows: int, rounds: int, record: Record) -> None:
    """Each side loads the same source into a new HNSW view, in turn."""
    from benchmarks.store.loads import Loads

    with Loads(site, rows) as loads:
        record.note("materialize_requests", loads.shape)
        costs = [loads.round(number) for number in range(rounds)]
    claim_materialize(costs, rows, record)


def claim_materialize(rounds: Sequence[Costs], rows: int, record: Record) -> None:
    """Ratios within each round; the median round counts."""

    def ratio(key: str, over: str, under: str) -> float:
        return median(costs[over][key] / costs[under][key] for costs in rounds)

    record.claim(
        "materialize_wall_over_bare_upsert", ratio("seconds", "triptych", "bare"), "ratio", bar=1.3, better="lower"
    )
    record.claim("materialize_wall_stock_over_ours", ratio("seconds", "stock", "triptych"), "ratio", bar=2.5)
    record.claim("materialize_cpu_per_row_stock_over_ours", ratio("cpu_seconds", "stock", "triptych"), "ratio", bar=10)
    for side in rounds[0]:
        seconds = median(costs[side]["seconds"] for costs in rounds)
        record.note(
            f"materialize_{side}",
            {
                "seconds": round(seconds, 2),
                "rows_per_second": round(rows / seconds),
                "cpu_us_per_row": round(1e6 * median(costs[side]["cpu_seconds"] for costs in rounds) / rows, 1),
                "peak_mb": round(max(costs[side]["peak_bytes"] for costs in rounds) / 1e6),
            },
        )
    record.note("materialize_rounds", [{side: round(cost["seconds"], 2) for side, cost in c.items()} for c in rounds])


# ---- memory ----------------------------------------------------------------------------------------------------------


def measure_memory(site: Site, sizes: Sequence[int], record: Record) -> None:
    """Peak memory of loads of the two largest sizes, each in a fresh process."""
    claim_memory({rows: site.load(rows).peak_bytes for rows in sorted(sizes)[-2:]}, record)


def claim_memory(peaks: dict[int, int], record: Record) -> None:
    """The larger load's peak over the smaller's; claimed only for the sizes that the claim names."""
    small, large = sorted(peaks)
    ratio = peaks[large] / peaks[small]
    record.note("materialize_peak_mb", {f"{rows:,} rows": round(peak / 1e6) for rows, peak in peaks.items()})
    if (small, large) == CLAIMED_MEMORY_ROWS:
        record.claim("materialize_peak_memory_1e6_over_1e5", ratio, "ratio", bar=1.3, better="lower")
    else:
        record.note(f"materialize_peak_memory_{large}_over_{small}", round(ratio, 3))


# ---- read and search -------------------------------------------------------------------------------------------------


def read_calls(site: Site, load: Load, calls: int, *, stock: bool = True) -> Calls:
    """Reads of the same ids by the core, by a bare Query and, where wanted, by Feast's store, call by call in turn."""
    from benchmarks.store.loads import stock_copy

    ids = load.catalogue.sample_ids(IDS_PER_READ, ID_SETS)
    with site.worker() as core:
        core.ask("connect", uri=site.server.uri)
        core.ask("prepare_reads", view=load.view, ids=ids)
        jobs: dict[str, Job] = {
            "triptych": lambda n: core.ask("read_vectors", view=load.view, numbers=n),
            "bare": lambda n: core.ask("bare_query", numbers=n),
        }
        if not stock:
            return in_turn(jobs, calls, ID_SETS)
        with stock_copy(site, load) as (feast, view):
            feast.ask("prepare_reads", view=view, ids=ids)
            jobs["stock"] = lambda n: feast.ask("get_online_features", view=view, numbers=n, to_dict=False)
            jobs["stock_to_dict"] = lambda n: feast.ask("get_online_features", view=view, numbers=n, to_dict=True)
            return in_turn(jobs, calls, ID_SETS)


def claim_read(calls: Calls, record: Record) -> None:
    """CPU of stock over ours, and wall of ours over the bare Query, by the medians of many calls.

    Stock's reply is taken as it comes, though ours is a matrix ready for use; what stock takes to make Python lists is a detail.
    """
    costs = {side: medians(made) for side, made in calls.items()}
    stock, ours, bare = costs["stock"], costs["triptych"], costs["bare"]
    record.claim("read500_cpu_stock_over_ours", stock["cpu_ms"] / ours["cpu_ms"], "ratio", bar=15)
    record.claim("read500_wall_over_bare_query", ours["ms"] / bare["ms"], "ratio", bar=1.3, better="lower")
    record.note("read500", flat(costs))


def search_calls(site: Site, load: Load, calls: int) -> dict[str, Any]:
    """Searches by the core and by bare gRPC in turn; with `recall`, the share of the exact nearest that the core's searches found."""
    queries = load.catalogue.queries(RECALL_QUERIES)
    file = site.folder / "queries.npy"
    np.save(file, queries)
    with site.worker() as core:
        core.ask("connect", uri=site.server.uri)
        core.ask("prepare_searches", view=load.view, queries=str(file), k=HITS, ef=site.ef)
        made: dict[str, Any] = in_turn(
            {
                "triptych": lambda n: core.ask("search", view=load.view, numbers=n, k=HITS, ef=site.ef),
                "bare": lambda n: core.ask("bare_search", numbers=n),
            },
            max(calls, RECALL_QUERIES),
            RECALL_QUERIES,
        )
    exact = load.catalogue.nearest(queries, HITS)
    made["recall"] = recall([call["ids"] for call in made["triptych"][:RECALL_QUERIES]], exact)
    made["ef"] = site.ef
    return made


def recall(found: Sequence[Sequence[str]], exact: Sequence[set[str]]) -> float:
    """Share of the exact nearest among what was found, over all queries."""
    hits = sum(len(set(ids) & nearest) for ids, nearest in zip(found, exact, strict=True))
    return hits / sum(len(nearest) for nearest in exact)


def claim_search(calls: dict[str, Any], record: Record) -> None:
    """Wall of ours over the bare Search, with the recall at that setting beside every latency."""
    ours, bare = medians(calls["triptych"]), medians(calls["bare"])
    record.claim("search100_wall_over_bare_search", ours["ms"] / bare["ms"], "ratio", bar=1.2, better="lower")
    record.claim("search100_recall", calls["recall"], f"recall@{HITS}", bar=0.95)
    record.note("search100", {**flat({"triptych": ours, "bare": bare}), "recall": calls["recall"], "ef": calls["ef"]})


def in_turn(jobs: dict[str, Job], calls: int, inputs: int) -> Calls:
    """What each job answered for `calls` inputs, in bursts: all have the same inputs, and take turns in going first.

    A first burst of each is not counted.
    """
    names = list(jobs)
    made: Calls = {name: [] for name in names}
    for number, first in enumerate(range(-BURST, calls, BURST)):
        burst = [at % inputs for at in range(first, min(first + BURST, calls))]
        for name in rotated(names, number):
            made[name] += jobs[name](burst)
    return {name: answers[BURST:] for name, answers in made.items()}


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The names, another one first each time."""
    at = by % len(names)
    return [*names[at:], *names[:at]]


def flat(costs: Costs) -> dict[str, float]:
    """`{"triptych": {"ms": 1}}` as `{"triptych_ms": 1}`."""
    return {f"{side}_{name}": value for side, cost in costs.items() for name, value in cost.items()}


# ---- size ------------------------------------------------------------------------------------------------------------


def measure_sizes(site: Site, sizes: Sequence[int], calls: int, json: Path | None, record: Record) -> None:
    """What loading, reading and searching cost by catalogue size; the plot goes beside the JSON."""
    table = {}
    for rows in sorted(sizes):
        load = site.load(rows)
        reads, searches = read_calls(site, load, calls, stock=False), search_calls(site, load, calls)
        table[rows] = size_row(load, reads, searches)
        site.say(f"{rows:,} rows: {table[rows]}")
        record.note(f"size_{rows}", table[rows])
    if json:
        plot_sizes(table, json.with_suffix(".png"))


def size_row(load: Load, reads: dict[str, Any], searches: dict[str, Any]) -> dict[str, float]:
    """One catalogue size's costs."""
    read, bare_read = medians(reads["triptych"]), medians(reads["bare"])
    found, bare_found = medians(searches["triptych"]), medians(searches["bare"])
    rows = load.catalogue.rows
    return {
        "load_seconds": round(load.seconds, 2),
        "load_us_per_row": round(1e6 * load.seconds / rows, 1),
        "load_cpu_us_per_row": round(1e6 * load.cpu_seconds / rows, 1),
        "load_peak_mb": round(load.peak_bytes / 1e6),
        "settle_seconds": round(load.settle_seconds),
        "read500_ms": read["ms"],
        "read500_cpu_ms": read["cpu_ms"],
        "read500_bare_ms": bare_read["ms"],
        "search100_ms": found["ms"],
        "search100_cpu_ms": found["cpu_ms"],
        "search100_bare_ms": bare_found["ms"],
        "search100_recall": round(searches["recall"], 4),
    }


if __name__ == "__main__":
    run(
        measure_all,
        PARTS,
        "The feature store beside stock Feast and bare gRPC, on one Milvus standalone server.",
        more=add_options,
    )

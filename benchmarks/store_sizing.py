"""How much a view takes on disk and in memory, by number of vectors, dim and index, on a Milvus server of its own per measurement.

A server is filled with bare column-wise upserts, flushed, and waited for until every row is served from its index; then its disk is
weighed. Memory is that of the same server started again on the same data with the view loaded, less that of the empty server, since what a
server needs while it loads is another matter: that is the peak, given beside it. `standalone` is PyPI's milvus 2.3.5; `embedded` is
the Milvus Lite server that `triptych up` starts.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Options, Record, run
from benchmarks.store.catalogue import Catalogue
from benchmarks.store.sizing import SERVERS, Weighed, weigh

PARTS: Final = ("standalone", "embedded")
QUICK: Final[dict[str, Any]] = {"sizes": [5_000], "dims": [64], "indexes": ["FLAT", "HNSW"]}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is weighed."""
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of vectors")
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 512, 768], help="values of a vector")
    parser.add_argument("--indexes", nargs="+", choices=("FLAT", "HNSW"), default=["FLAT", "HNSW"], help="indexes")


def measure_all(options: Options, record: Record) -> None:
    """Weigh every combination that was asked for; each is noted as soon as it is known."""
    values = {**options.values, **(QUICK if options.quick else {})}
    record.note("options", values)
    for part in PARTS:
        if options.wants(part):
            for rows in values["sizes"]:
                for dim in values["dims"]:
                    for index in values["indexes"]:
                        measure(part, Catalogue(rows, dim), index, record)


def measure(part: str, catalogue: Catalogue, index: str, record: Record) -> None:
    """One combination, on a fresh server."""
    with tempfile.TemporaryDirectory(prefix="store-sizing-") as name:
        weighed = weigh(SERVERS[part](Path(name)), catalogue, index)
    row = per_item(weighed, catalogue)
    record.note(f"{part}_{catalogue.rows}_{catalogue.dim}_{index}", row)
    print(f"{part} {catalogue.rows:,} x {catalogue.dim} {index}: {row}", flush=True)


def per_item(weighed: Weighed, catalogue: Catalogue) -> dict[str, float]:
    """Bytes per item, and as multiples of the vector's own bytes."""
    vector = 4 * catalogue.dim
    sizes = {
        "disk": (weighed.rows_bytes + weighed.index_bytes) / catalogue.rows,
        "disk_index": weighed.index_bytes / catalogue.rows,
        "log": weighed.log_bytes / catalogue.rows,
        "memory": weighed.memory_bytes / catalogue.rows,
        "peak_memory": weighed.peak_bytes / catalogue.rows,
    }
    return {
        **{f"{name}_bytes_per_item": round(size) for name, size in sizes.items()},
        **{f"{name}_over_vector": round(size / vector, 2) for name, size in sizes.items()},
        "empty_server_mb": round(weighed.empty_bytes / 1e6),
        "load_seconds": round(weighed.load_seconds, 1),
        "settle_seconds": round(weighed.settle_seconds, 1),
    }


if __name__ == "__main__":
    run(measure_all, PARTS, "Bytes per item on disk and in memory, by dim and index.", more=add_options)

"""Where the store is measured: one standalone server, sources on disk, workers, and the views that this project has loaded.

Before anything is timed the server is quiet: no index is being built, nothing is being compacted for what went before.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.store import settling
from benchmarks.store.catalogue import Catalogue
from benchmarks.store.process import ROOT, Process
from benchmarks.store.repositories import settings
from benchmarks.store.standalone import Standalone
from feature_store.milvus_core import MilvusCore


@dataclass(frozen=True)
class Load:
    """A catalogue as this project loaded it, and what that cost the process that did."""

    view: str
    catalogue: Catalogue
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    settle_seconds: float


class Site:
    """One run's server and folder; `dim` holds for every vector, `ef` for every search."""

    def __init__(self, folder: Path, server: Standalone, dim: int, ef: int, stock_batch_rows: int) -> None:
        self.folder, self.server, self.dim, self.ef = folder, server, dim, ef
        self.stock_batch_rows = stock_batch_rows
        self.core = MilvusCore(server.uri, timeout_seconds=120.0)
        self.console = Console(stderr=True)
        self._started = time.monotonic()
        self._loads: dict[int, Load] = {}
        self._made = 0

    def say(self, text: str) -> None:
        """A line of progress."""
        self.console.print(f"[dim]{time.monotonic() - self._started:7.1f} s[/]  {text}", highlight=False)

    def new_name(self, kind: str) -> str:
        """A name that no view has had."""
        self._made += 1
        return f"{kind}_n{self._made}"

    @contextmanager
    def worker(self) -> Iterator[Process]:
        """A process of its own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRIPTYCH_", "FEAST_"))}
        environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "TRIPTYCH_MILVUS_URI": self.server.uri,
            "TRIPTYCH_HOME": str(self.folder / "triptych" / "home"),
        }
        (self.folder / "triptych" / "home").mkdir(parents=True, exist_ok=True)
        with Process(self.folder / "workers.log", environment) as process:
            yield process

    def versions(self) -> dict[str, str]:
        """Releases of what is compared, as the workers have them."""
        with self.worker() as process:
            found: dict[str, str] = process.ask("connect", uri=self.server.uri)
        return found

    @contextmanager
    def repository(self, side: str, *, record: bool = False) -> Iterator[Process]:
        """A process of its own that has imported Feast and opened the side's repository, with its upserts recorded if asked for."""
        folder = self.folder / side
        configuration = settings(side, folder, self.server.uri, self.dim, self.ef, self.stock_batch_rows)
        with self.worker() as process:
            process.ask("open", folder=str(folder), configuration=configuration, record=record)
            yield process

    @contextmanager
    def source(self, catalogue: Catalogue) -> Iterator[Path]:
        """The catalogue's Parquet parts, for as long as they are needed."""
        folder = self.folder / f"source_{catalogue.rows}"
        size = catalogue.write(folder)
        self.say(f"source of {catalogue.rows:,} rows: {size / 1e6:,.0f} MB")
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def load(self, rows: int) -> Load:
        """This project's view of the first `rows` items, loaded once and settled."""
        if rows not in self._loads:
            catalogue, view = Catalogue(rows, self.dim), self.new_name("loaded")
            self.quiet()
            with self.source(catalogue) as source, self.repository("triptych") as process:
                process.ask("apply", view=view, source=str(source), dim=self.dim)
                cost = process.ask("materialize", view=view)
            self.check_rows(view, rows)
            self.say(f"{rows:,} rows loaded in {cost['seconds']:.1f} s, peak {cost['peak_bytes'] / 1e6:,.0f} MB")
            self._loads[rows] = Load(view, catalogue, **cost, settle_seconds=self.settled(view, rows))
        return self._loads[rows]

    def check_rows(self, collection: str, rows: int) -> None:
        """Raise `RuntimeError` where a side has not stored what it was to store."""
        found = self.count(collection)
        if found != rows:
            raise RuntimeError(f"{collection} holds {found:,} rows, not {rows:,}")

    def count(self, collection: str) -> int:
        """Rows of any collection, as of now."""
        from pymilvus.grpc_gen import common_pb2, milvus_pb2

        request = milvus_pb2.QueryRequest(
            collection_name=collection, expr="", output_fields=["count(*)"], consistency_level=common_pb2.Strong
        )
        return int(self.core.channel.call("Query", request).fields_data[0].scalars.long_data.data[0])

    def settled(self, view: str, rows: int) -> float:
        """Wait until every row is served from a sealed segment with its index; seconds that it took."""
        taken = settling.settled(self.core, self.server, view, rows)
        self.say(f"{view}: served from its index {taken:.0f} s after the load")
        return taken

    def drop(self, view: str) -> None:
        """Drop a collection, whoever made it."""
        self.core.drop_view(view)
        self._loads = {rows: load for rows, load in self._loads.items() if load.view != view}

    def quiet(self) -> None:
        """Wait until the server has done next to nothing for a while."""
        settling.quiet(self.server)

    def close(self) -> None:
        """Close the connection."""
        self.core.close()


def medians(calls: list[dict[str, Any]]) -> dict[str, float]:
    """Milliseconds of the median call, on the clock and of CPU."""
    import numpy as np

    names = {"ms": "seconds", "cpu_ms": "cpu_seconds"}
    return {name: round(1_000 * float(np.median([call[key] for call in calls])), 3) for name, key in names.items()}

"""One side of a comparison in a process of its own, told over JSON lines what to do; each answer holds what the work cost.

`{"do": NAME, ...}` calls the method of that name; what libraries print goes to standard error. Between requests the process waits
for input and takes no time from what is measured beside it.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.store.usage import clocked, used


class Worker:
    """What can be asked for; every method takes and returns what JSON can hold."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._recorder: Any = None
        self._store: Any = None
        self._views: dict[str, Any] = {}
        self._core: Any = None
        self._bare: Any = None
        self._made: dict[str, list[bytes]] = {}
        self._ids: list[list[str]] = []
        self._queries: list[Any] = []

    # A Feast repository

    def open(self, folder: str, configuration: dict[str, Any], *, record: bool = False) -> dict[str, str]:
        """Import Feast and open the repository, with its upserts recorded if asked for; the versions in use."""
        from benchmarks.store.repositories import open_repository
        from benchmarks.store.wire import Recorder

        if record:
            self._recorder = Recorder("Upsert")
            self._open.enter_context(self._recorder.on())
        self._store = open_repository(Path(folder), configuration)
        return versions()

    def apply(self, view: str, source: str, dim: int, index: str = "HNSW") -> None:
        """Register the view and create it online."""
        from benchmarks.store.repositories import apply_view

        self._views[view] = apply_view(self._store, view, Path(source), dim, index)

    def materialize(self, view: str) -> dict[str, float]:
        """Load the view's whole source."""
        from benchmarks.store.repositories import END, START

        with used() as usage:
            self._store.materialize(START, END, feature_views=[view])
        return asdict(usage)

    def materialize_recorded(self, view: str, folder: str) -> dict[str, int]:
        """Load the view, and keep the upserts that it took in `folder`; how many there were, and how many under way at most."""
        self.materialize(view)
        requests = self._recorder.requests
        Path(folder).mkdir(parents=True)
        for number, (_, request) in enumerate(requests):
            (Path(folder) / f"{number:06d}").write_bytes(request)
        return {"requests": len(requests), "in_flight": self._recorder.peak_in_flight}

    # Raw requests

    def connect(self, uri: str) -> dict[str, str]:
        """Connect this project's core, and a bare channel beside it; the versions in use."""
        from benchmarks.store.wire import Bare
        from feature_store.milvus_core import MilvusCore

        self._core, self._bare = MilvusCore(uri), Bare(uri)
        return versions()

    def prepare_upserts(self, folder: str, view: str) -> None:
        """Read recorded upserts into memory, for another view."""
        from benchmarks.store.wire import into

        self._made["Upsert"] = [into(view, path.read_bytes()) for path in sorted(Path(folder).iterdir())]

    def bare_upsert(self, view: str, in_flight: int) -> dict[str, float]:
        """Send the prepared upserts, and seal as the engine does."""
        with used() as usage:
            upserts = self._bare.upsert(self._made["Upsert"], in_flight)
            self._core.seal(view)
        return {**asdict(usage), "upsert_seconds": upserts}

    # Reading

    def prepare_reads(self, view: str, ids: list[list[str]]) -> None:
        """Choose the ids to read; with a core, make the bare queries that it would send."""
        self._ids = ids
        if self._core is not None:
            self._made["Query"] = [self._recorded("Query", lambda core, i=i: core.read_vectors(view, i)) for i in ids]

    def read_vectors(self, view: str, numbers: list[int]) -> list[dict[str, float]]:
        """The core's own reads."""
        return [self._read(view, self._ids[number]) for number in numbers]

    def _read(self, view: str, ids: list[str]) -> dict[str, float]:
        with clocked() as usage:
            _, present, _ = self._core.read_vectors(view, ids)
        expect(int(present.sum()), len(ids), "vectors read")
        return asdict(usage)

    def bare_query(self, numbers: list[int]) -> list[dict[str, float]]:
        """The same requests, without the core."""
        return [self._replay("Query", number) for number in numbers]

    def get_online_features(self, view: str, numbers: list[int], *, to_dict: bool) -> list[dict[str, float]]:
        """Feast's reads of the same ids; a reply is left as it comes, or made into Python lists, which Feast's users work with."""
        return [self._online(view, self._ids[number], to_dict=to_dict) for number in numbers]

    def _online(self, view: str, ids: list[str], *, to_dict: bool) -> dict[str, float]:
        rows = [{"item_id": i} for i in ids]
        with clocked() as usage:
            reply = self._store.get_online_features([f"{view}:vector"], rows)
            if to_dict:
                reply.to_dict()
        values = reply.proto.results[1].values
        expect(sum(len(value.float_list_val.val) > 0 for value in values), len(ids), "vectors read")
        return asdict(usage)

    # Searching

    def prepare_searches(self, view: str, queries: str, k: int, ef: int) -> None:
        """Choose the queries, a `.npy` file; make the bare searches that the core would send."""
        self._queries = [query[None] for query in np.load(queries)]
        self._made["Search"] = [
            self._recorded("Search", lambda core, q=q: search(core, view, q, k, ef)) for q in self._queries
        ]

    def search(self, view: str, numbers: list[int], k: int, ef: int) -> list[dict[str, Any]]:
        """The core's own searches; the ids that each found."""
        return [self._search(view, self._queries[number], k, ef) for number in numbers]

    def _search(self, view: str, query: Any, k: int, ef: int) -> dict[str, Any]:
        with clocked() as usage:
            found = search(self._core, view, query, k, ef)
        return {**asdict(usage), "ids": list(found.ids[0])}

    def bare_search(self, numbers: list[int]) -> list[dict[str, float]]:
        """The same requests, without the core."""
        return [self._replay("Search", number) for number in numbers]

    def _recorded(self, method: str, call: Callable[[Any], Any]) -> bytes:
        from benchmarks.store.wire import Recorder
        from feature_store.milvus_core import MilvusCore

        with Recorder(method).on() as recorder, MilvusCore(self._core.channel.uri) as core:
            call(core)
        ((_, request),) = recorder.requests
        return request

    def _replay(self, method: str, number: int) -> dict[str, float]:
        send, request = self._bare.method(method), self._made[method][number]
        with clocked() as usage:
            reply = send(request)
        expect(reply.status.code or reply.status.error_code, 0, f"status of a bare {method}")
        return asdict(usage)


def search(core: Any, view: str, query: Any, k: int, ef: int) -> Any:
    """The core's search at a stated `ef`."""
    return core.search(view, query, k, params={"ef": ef})


def expect(found: int, wanted: int, what: str) -> None:
    """Raise `RuntimeError` where a side did less than it was asked for."""
    if found != wanted:
        raise RuntimeError(f"{what}: {found}, not {wanted}")


def versions() -> dict[str, str]:
    """Releases of what is compared."""
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("feast", "pymilvus", "grpcio", "duckdb", "pyarrow")}


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("do"))(**request)), file=answers)


if __name__ == "__main__":
    main()

"""The three ways to load a source: this project's plug-ins, Feast's own store, and the bare upserts that the first of them sent.

Each load goes into a new HNSW view, which exists before the clock starts, from a process of its own that has imported and opened its
repository; the number of rows stored is checked afterwards, and the view is dropped.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Self

from benchmarks.store.catalogue import Catalogue
from benchmarks.store.process import Process
from benchmarks.store.site import Load, Site

SIDES = ("bare", "triptych", "stock")


class Loads:
    """Loads of one source on a site. Used as a context, which writes the source and records this project's upserts."""

    def __init__(self, site: Site, rows: int) -> None:
        self.site, self.catalogue = site, Catalogue(rows, site.dim)
        self.shape: dict[str, int] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._source = self._open.enter_context(self.site.source(self.catalogue))
        self._requests = self.site.folder / "upserts"
        view = self.site.new_name("recorded")
        with self.site.repository("triptych", record=True) as process:
            process.ask("apply", view=view, source=str(self._source), dim=self.site.dim)
            self.shape = process.ask("materialize_recorded", view=view, folder=str(self._requests))
        self._schema = self.site.core.describe_view(view)
        self._finish(view)
        self.site.say(f"this project loads in {self.shape['requests']} upserts, {self.shape['in_flight']} under way")
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def round(self, number: int) -> dict[str, dict[str, float]]:
        """What a load by each side costs, one after the other; another side goes first each time."""
        ways = {"bare": self.bare, "triptych": self.triptych, "stock": self.stock}
        order = [SIDES[(number + at) % len(SIDES)] for at in range(len(SIDES))]
        costs = {side: ways[side]() for side in order}
        self.site.say(f"round {number + 1}: " + ", ".join(f"{side} {costs[side]['seconds']:.2f} s" for side in SIDES))
        return {side: costs[side] for side in SIDES}

    def bare(self) -> dict[str, float]:
        """The recorded upserts into a new view with as many under way, then the same seal."""
        view = self.site.new_name("bare")
        self.site.core.create_view(replace(self._schema, name=view))
        with self.site.worker() as process:
            process.ask("connect", uri=self.site.server.uri)
            process.ask("prepare_upserts", folder=str(self._requests), view=view)
            self.site.quiet()
            cost: dict[str, float] = process.ask("bare_upsert", view=view, in_flight=self.shape["in_flight"])
        self._finish(view)
        return cost

    def triptych(self) -> dict[str, float]:
        """`store.materialize` with this project's plug-ins."""
        return self._feast("triptych")

    def stock(self) -> dict[str, float]:
        """`store.materialize` as Feast comes."""
        return self._feast("stock")

    def _feast(self, side: str) -> dict[str, float]:
        view = self.site.new_name(side)
        with self.site.repository(side) as process:
            process.ask("apply", view=view, source=str(self._source), dim=self.site.dim)
            self.site.quiet()
            cost: dict[str, float] = process.ask("materialize", view=view)
        self._finish(collection(side, view))
        return cost

    def _finish(self, view: str) -> None:
        self.site.check_rows(view, self.catalogue.rows)
        self.site.drop(view)
        self.site.quiet()


def collection(side: str, view: str) -> str:
    """Feast's own store puts the project before a view's name."""
    return f"bench_{view}" if side == "stock" else view


@contextmanager
def stock_copy(site: Site, load: Load) -> Iterator[tuple[Process, str]]:
    """The same catalogue in Feast's own store, sealed and indexed like ours: its open process and the view's name."""
    view = site.new_name("stock")
    with site.repository("stock") as process:
        with site.source(load.catalogue) as source:
            process.ask("apply", view=view, source=str(source), dim=site.dim)
            process.ask("materialize", view=view)
        site.check_rows(collection("stock", view), load.catalogue.rows)
        site.core.flush(collection("stock", view))
        site.settled(collection("stock", view), load.catalogue.rows)
        yield process, view
        site.drop(collection("stock", view))

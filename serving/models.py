"""The rankers of this process: loaded beside each other, each with the tokens of all items, and the one that is stable.

A watcher looks for promotions and for new vectors and swaps whole `ServedModel`s, so that a request sees one state of both.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from feature_store.errors import FeatureStoreError
from feature_store.home import Home
from feature_store.ledger import ledger_of
from feature_store.spaces import view_name
from feature_store.watermarks import Watermarks
from ranker import checkpoint
from ranker.errors import CheckpointError
from ranker.scorer import ItemTokens, Ranker
from serving.errors import NotFound, PreconditionFailed, Unavailable
from serving.hot_tier import Catalogue, Sight, StoredIds, has_changed
from serving.settings import ServeSettings
from serving.store import Store
from serving.workers import Worker

FIRST_PROMOTION: Final = "no model is stable yet; run `triptych train --model-id NAME --promote`"
log = structlog.get_logger("serving.models")


@dataclass(frozen=True)
class Pointer:
    """Which model is stable, and which was before."""

    stable: str | None = None
    previous: str | None = None


@dataclass(frozen=True)
class ServedModel:
    """A ranker and the items it can rank, as of one load.

    Attributes:
        row_of: item_id -> row of `tokens`, `present` and `fused`.
        present: modality -> bool [n], which items have its vector.
        fused: float32 [n, d], the items in the model's own space, for exact search.
        late: rows [m] of items that the store's view of that space lacks: all until it is loaded, later those that came after
            the model was trained.
        seen: how the views that it was built from looked.
    """

    ranker: Ranker
    tokens: ItemTokens
    row_of: dict[str, int]
    present: dict[str, NDArray[np.bool_]]
    fused: NDArray[np.float32]
    late: NDArray[np.int64]
    seen: dict[str, Sight]

    @property
    def dims(self) -> dict[str, int]:
        """Lengths of the vectors that the model reads, by space."""
        modalities = self.ranker.model.shapes.modalities
        return {space_id: modalities[modality] for modality, space_id in self.ranker.space_ids.items()}

    @classmethod
    def build(cls, ranker: Ranker, catalogue: Catalogue, stored: StoredIds) -> "ServedModel":
        """Encode all items of the catalogue; `stored` are those in the store's view of the model's space."""
        batch = catalogue.items(ranker.space_ids.values())
        tokens = ranker.item_tokens(batch)
        nowhere = np.zeros(len(batch), bool)
        present = {modality: batch.present.get(space_id, nowhere) for modality, space_id in ranker.space_ids.items()}
        row_of = {item_id: row for row, item_id in enumerate(batch.item_ids)}
        late = np.array([row for item_id, row in row_of.items() if item_id not in stored.ids], np.int64)
        seen = catalogue.sights_of(ranker.space_ids.values())
        seen[view_name("item", ranker.fused_space.space_id)] = stored.sight
        return cls(ranker, tokens, row_of, present, ranker.fused_items(tokens), late, seen)


async def _nothing(_: Collection[str]) -> None:
    """Nobody needs to be told."""


class Models:
    """All loaded models and the catalogue that they share. Loading runs on one thread of its own.

    `prepare` is awaited with the spaces that a model reads before the model is served, and again when models are looked after.
    """

    def __init__(
        self,
        home: Home,
        store: Store,
        settings: ServeSettings,
        prepare: Callable[[Collection[str]], Awaitable[None]] = _nothing,
    ) -> None:
        self._home = home
        self._prepare = prepare
        self._store = store
        self._loading = Worker("models", settings.queue_capacity)
        self._served: dict[str, ServedModel] = {}
        self.pointer = Pointer()
        self._catalogue = Catalogue()
        self._marks = Watermarks(ledger_of(home))
        self._changing = asyncio.Lock()
        self._started = False

    @property
    def catalogue(self) -> Catalogue:
        """The item vectors in memory."""
        return self._catalogue

    def items_loaded(self, space_id: str) -> int:
        """How many item vectors of a space are in memory."""
        return self._catalogue.items_loaded(space_id)

    @property
    def ready(self) -> bool:
        """Whether a stable model is loaded, and items for it."""
        return self.pointer.stable in self._served and self._catalogue.generation > 0

    def get(self, model_id: str = "") -> ServedModel:
        """A loaded model; the stable one where none is named.

        Raises `NotFound`, or where none is named `PreconditionFailed` (nothing was promoted) or `Unavailable` (starting).
        """
        if model_id:
            return self._named(model_id)
        if self.pointer.stable is None and self._started:
            raise PreconditionFailed(FIRST_PROMOTION, "NO_STABLE_MODEL")
        if not self.ready:
            raise Unavailable("the stable model and the item vectors are being loaded", retry_seconds=2.0)
        return self._served[str(self.pointer.stable)]

    def _named(self, model_id: str) -> ServedModel:
        if model_id not in self._served:
            loaded = ", ".join(sorted(self._served)) or "none"
            raise NotFound(f"model {model_id!r} is not loaded (loaded: {loaded}); AdminService.LoadModel loads it")
        return self._served[model_id]

    async def load(self, model_id: str) -> ServedModel:
        """Load a checkpoint beside the others; raises `NotFound` where there is none that can be read."""
        async with self._changing:
            return await self._load(model_id)

    async def _load(self, model_id: str) -> ServedModel:
        if model_id not in self._served:
            ranker = await self._loading.run(self._read, model_id)
            await self._prepare(set(ranker.space_ids.values()))
            missing = [space_id for space_id in ranker.space_ids.values() if space_id not in self._catalogue.matrices]
            if missing:
                await self._try_load_spaces(missing)
            self._served[model_id] = await self._built(ranker)
            log.info("model loaded", model_id=model_id, items=len(self._served[model_id].row_of))
        return self._served[model_id]

    async def promote(self, model_id: str) -> str | None:
        """Load a checkpoint, make it stable for all servers of this home, and return the one that was."""
        async with self._changing:
            await self._load(model_id)
            previous = await self._loading.run(checkpoint.promote, self._home, model_id)
            await self._follow_stable()
            return previous

    async def refresh(self, space_ids: Iterable[str] = ()) -> Catalogue:
        """Read item vectors again (default: all that loaded models read) and rebuild the models on them.

        Raises the feature store's errors; what was in memory stays then.
        """
        async with self._changing:
            return await self._refresh(sorted(set(space_ids) or self._pinned()))

    async def _refresh(self, space_ids: list[str]) -> Catalogue:
        await self._load_spaces(space_ids)
        for model_id, served in list(self._served.items()):
            self._served[model_id] = await self._built(served.ranker)
        return self._catalogue

    async def _built(self, ranker: Ranker) -> ServedModel:
        try:
            fused = ranker.fused_space.space_id
            stored = await self._store.load(lambda core: StoredIds.scan(core, self._marks, fused))
        except FeatureStoreError as error:
            log.warning("the model's own view cannot be read", model_id=ranker.model_id, error=str(error))
            stored = StoredIds()
        return await self._loading.run(ServedModel.build, ranker, self._catalogue, stored)

    async def poll(self) -> None:
        """Follow promotions, and new or removed items. Raises the feature store's and the ranker's errors."""
        async with self._changing:
            await self._follow_stable()
            await self._prepare(self._pinned())
            if self._served and await self._changed():
                await self._refresh(sorted(self._pinned()))

    async def _follow_stable(self) -> None:
        pointer = await self._loading.run(_pointer, self._home)
        if pointer.stable is not None:
            await self._load(pointer.stable)
        self.pointer, self._started = pointer, True

    async def _changed(self) -> bool:
        unread = self._pinned() - set(self._catalogue.matrices)
        # Each model by what it was built from: a view that was read again for one is news to the others.
        seen = {sight for served in self._served.values() for sight in served.seen.items()}
        return bool(unread) or await self._store.load(
            lambda core: any(has_changed(core, self._marks, view, sight) for view, sight in seen)
        )

    def _pinned(self) -> set[str]:
        return {space_id for served in self._served.values() for space_id in served.ranker.space_ids.values()}

    async def _try_load_spaces(self, space_ids: list[str]) -> None:
        try:
            await self._load_spaces(space_ids)
        except FeatureStoreError as error:
            log.warning("item vectors not loaded", error=str(error))

    async def _load_spaces(self, space_ids: list[str]) -> None:
        before = self._catalogue
        self._catalogue = await self._store.load(lambda core: before.loaded(core, self._marks, space_ids))
        log.info("item vectors loaded", items={s: self._catalogue.items_loaded(s) for s in space_ids})

    def _read(self, model_id: str) -> Ranker:
        try:
            return Ranker.load(self._home.models / model_id)
        except CheckpointError as error:
            raise NotFound(str(error)) from error

    async def manifests(self) -> list[dict[str, Any]]:
        """Manifests of all checkpoints of the home, loaded or not."""
        return await self._loading.run(checkpoint.list_models, self._home)

    @property
    def loaded_ids(self) -> set[str]:
        """Models in memory."""
        return set(self._served)

    def close(self) -> None:
        """End the loading thread."""
        self._loading.close()


def _pointer(home: Home) -> Pointer:
    stable = checkpoint.stable(home)
    if stable is None:
        return Pointer()
    return Pointer(stable, json.loads((home.models / checkpoint.STABLE).read_bytes())["previous"])

"""Writes one embedding space, for ingestion and for backfills: parts that it has not got yet are encoded and stored with their valid times."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from encoders.bulk import Repeats, encode_stream
from encoders.errors import MediaError
from encoders.space import EmbeddingSpace
from encoders.tokens import TokenCounts
from feature_store.tables import Tables
from ingest.media import MediaReader, Part
from ingest.versions import embedding_versions, sibling_versions

if TYPE_CHECKING:
    from encoders.profiles import Encoder
    from encoders.vectors import Vectors

Refuse = Callable[[Part, MediaError], None]


class SpaceWriter:
    """One space's table and encoder. `counts` and `tokens` tell what was done; identical contents of one run are encoded once.

    `stored` are the content hashes that the table held at the start, `siblings` those of the modality's other spaces.

    Args:
        tables: the offline tables.
        encoder: whose space is written.
        media: decodes.
        refuse: told of every part that cannot be encoded.
        progress: called with the number of parts done.
        entity: whose vectors.
    """

    def __init__(
        self,
        tables: Tables,
        encoder: "Encoder",
        media: MediaReader,
        refuse: Refuse,
        progress: Callable[[int], None],
        entity: str = "item",
    ) -> None:
        self.encoder = encoder
        self.counts: Counter[str] = Counter()
        self.tokens = TokenCounts()
        self._tables, self._media, self._refuse, self._progress = tables, media, refuse, progress
        self._repeats = Repeats()
        self._entity = entity
        self.stored = embedding_versions(tables, entity, self.space.space_id)
        self.siblings = sibling_versions(tables.home, self.space.modality, self.space.space_id, entity)

    @property
    def space(self) -> EmbeddingSpace:
        """What it writes."""
        return self.encoder.space

    def changed(self, parts: Sequence[Part]) -> list[Part]:
        """Those hashed parts that are not stored as they are; the others are counted as unchanged."""
        changed = [part for part in parts if self.stored.at(part.record_id, part.at_us) != part.sha]
        self.counts["unchanged"] += len(parts) - len(changed)
        self._progress(len(parts) - len(changed))
        return changed

    def since(self, part: Part, otherwise_us: int) -> int:
        """Since when a part is true: as another space of the modality has it for the same content, else `otherwise_us`."""
        known = self.siblings.since(part.record_id, part.sha, part.at_us)
        return otherwise_us if known is None else known

    def write(self, parts: Sequence[Part], times_us: Callable[[Part], int]) -> list[Part]:
        """Encode and store parts, each true from `times_us`; return those that were, the others are refused."""
        if not parts:  # an encoder that is not needed is not loaded
            return []
        encoded: list[Part] = []
        vectors: list[Vectors] = []
        outcomes = encode_stream(
            self.encoder,
            parts,
            partial(self._media.decode, self.space.modality),
            key=lambda part: part.sha,
            repeats=self._repeats,
            progress=self._progress,
        )
        for part, outcome in zip(parts, outcomes, strict=True):
            if isinstance(outcome, MediaError):
                self._refuse(part, outcome)
                self.counts["quarantined"] += 1
            else:
                encoded.append(part)
                vectors.append(outcome)
        self.counts["encoded"] += len(encoded)
        for batch in once_each([part.record_id for part in encoded]):
            self._tables.write_embeddings(
                self._entity,
                self.space,
                [encoded[row].record_id for row in batch],
                np.stack([vectors[row] for row in batch]),
                content_sha256=[encoded[row].sha for row in batch],
                event_timestamp=np.array([times_us(encoded[row]) for row in batch], np.int64),
            )
        return encoded

    def delete(self, ids: Sequence[str], times_us: Sequence[int]) -> None:
        """Write tombstones."""
        for batch in once_each(ids):
            times = np.array([times_us[row] for row in batch], np.int64)
            self._tables.delete_embeddings(self._entity, self.space, [ids[row] for row in batch], times)
        self.counts["deleted"] += len(ids)


def once_each(ids: Sequence[str]) -> list[list[int]]:
    """Row numbers in batches without an id twice, as tables take them: the first versions, the second ones ..."""
    batches: list[list[int]] = []
    seen: Counter[str] = Counter()
    for row, record_id in enumerate(ids):
        if seen[record_id] == len(batches):
            batches.append([])
        batches[seen[record_id]].append(row)
        seen[record_id] += 1
    return batches

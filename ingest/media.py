"""Contents on their way to an encoder: parts of items with their hashes, and the processes that decode them."""

import os
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from encoders.bulk import MIN_WORKERS
from encoders.decode_pool import DecodePool
from encoders.errors import MediaError
from encoders.media import MediaLimits, clean_text, sha256_hex

HASH_THREADS: Final = 2


@dataclass(frozen=True)
class Part:
    """One record's content of one modality.

    Attributes:
        row: of its file, from 1; 0 where there is none.
        content: the text, or the path of a file.
        at_us: since when the content is true, microseconds since the epoch; None where nobody said.
        sha: of the cleaned text or of the file's bytes; empty until it was computed.
    """

    row: int
    record_id: str
    content: str | Path
    at_us: int | None = None
    sha: str = ""


class MediaReader:
    """Hashes and decodes parts; a context manager, since it holds decoding processes. `notes` counts what is worth knowing of media."""

    def __init__(self, limits: MediaLimits) -> None:
        self.notes: Counter[str] = Counter()
        self._limits = limits
        self._decoders = DecodePool(max(MIN_WORKERS, len(os.sched_getaffinity(0))), limits)
        self._noted: set[Path] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the decoding processes."""
        self._decoders.close()

    def hashed(self, parts: Iterable[Part]) -> list[Part | MediaError]:
        """Each part with its hash, its text cleaned; or why it cannot be used."""
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            return list(pool.map(self._hashed, parts))

    def _hashed(self, part: Part) -> Part | MediaError:
        try:
            if isinstance(part.content, str):
                text = clean_text(part.content, self._limits)
                return replace(part, content=text, sha=sha256_hex(text.encode()))
            return replace(part, sha=sha256_hex(part.content))
        except MediaError as error:
            return error

    def decode(self, modality: str, part: Part) -> Any:
        """What an encoder takes; several threads at once. Raises `MediaError`."""
        if isinstance(part.content, str):
            return part.content
        media, notes = self._decoders.decode_with_notes(modality, part.content)
        with self._lock:  # a file that goes to two encoders is noted once
            if notes and part.content not in self._noted:
                self._noted.add(part.content)
                self.notes.update(notes)
        return media

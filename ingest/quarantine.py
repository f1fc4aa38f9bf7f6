"""What ingestion refused, and why: one JSON Lines file per run, written as it happens so that a killed run leaves it too."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO


@dataclass(frozen=True)
class Refusal:
    """One refused row, or one refused part of a row.

    Attributes:
        row: number in its file, from 1, without the header.
        record_id: the row's own identifier; empty where it has none.
        part: `row`, or the part that was left out: `text`, `image`, `audio`, `price`, `tags`.
        value: the offending value, shortened.
        code: machine-readable reason.
        reason: the reason for people.
    """

    row: int
    record_id: str
    part: str
    value: str
    code: str
    reason: str


class Quarantine:
    """Collects refusals of one run; a context manager. The file appears with the first refusal."""

    def __init__(self, folder: Path, source: Path) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self.path = folder / f"{source.stem}-{stamp}.jsonl"
        self.by_part: Counter[str] = Counter()
        self.refusals: list[Refusal] = []
        self._source = str(source)
        self._handle: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle:
            self._handle.close()

    def __len__(self) -> int:
        return self.by_part.total()

    def add(self, refusal: Refusal) -> None:
        """Record one refusal and write it through."""
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self.path.open("w", encoding="utf-8")
        self.by_part[refusal.part] += 1
        if len(self.refusals) < MAX_KEPT:
            self.refusals.append(refusal)
        self._handle.write(json.dumps({"source": self._source, **asdict(refusal)}, ensure_ascii=False) + "\n")
        self._handle.flush()


# Refusals held in memory for the summary; the file has them all.
MAX_KEPT = 1000

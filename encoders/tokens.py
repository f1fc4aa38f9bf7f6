"""Texts to token ids, with a model folder's own tokenizer, from any number of threads at once; and what it could not read.

A tokenizer answers a word that it does not know with [UNK], without an error: a catalogue in another language becomes noise.
`TokenCounts` says how much of a text was unknown, or was cut off at the model's length.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from encoders.errors import EncoderError
from encoders.weights import quiet


@dataclass(frozen=True)
class TokenCounts:
    """How a tokenizer read some texts: `texts` and, of them, `cut` ones; `tokens` without special ones and, of them, `unknown`."""

    texts: int = 0
    cut: int = 0
    tokens: int = 0
    unknown: int = 0

    @property
    def unknown_share(self) -> float:
        """Share of unknown tokens, 0 to 1."""
        return self.unknown / self.tokens if self.tokens else 0.0

    def __add__(self, other: Self) -> "TokenCounts":
        """Both together."""
        return TokenCounts(
            self.texts + other.texts, self.cut + other.cut, self.tokens + other.tokens, self.unknown + other.unknown
        )


def check_texts(items: Sequence[Any]) -> Sequence[str]:
    """Return `items`, or raise `EncoderError` where one is no text."""
    for item in items:
        if not isinstance(item, str):
            raise EncoderError(f"a text must be a str, not the {type(item).__name__} {item!r:.40}")
    return items


class FolderTokenizer:
    """The tokenizer of a `transformers` folder; texts longer than `max_length` tokens (special ones included) are cut."""

    def __init__(self, folder: Path, max_length: int) -> None:
        from transformers import AutoTokenizer

        with quiet():
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_length = max_length
        self._lock = threading.Lock()
        self._backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # Set once: a call of the tokenizer itself would set it each time, which fails while another thread reads.
            self._backend.no_padding()
            self._backend.enable_truncation(max_length, direction=self._tokenizer.truncation_side)

    @property
    def pad_id(self) -> int:
        """What rows are padded with; masked, so that any id will do where the tokenizer has none."""
        pad: int | None = self._tokenizer.pad_token_id
        return pad or 0

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special ones included."""
        if self._backend is not None:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]
        with self._lock:
            ids: list[list[int]] = self._tokenizer(list(texts), truncation=True, max_length=self.max_length)[
                "input_ids"
            ]
        return ids

    def count(self, texts: Sequence[str]) -> TokenCounts:
        """How it reads the texts."""
        unknown_id, special = self._tokenizer.unk_token_id, self._tokenizer.num_special_tokens_to_add(pair=False)
        ids = self(texts)
        return TokenCounts(
            len(ids),
            self._cut(texts, ids),
            sum(max(0, len(row) - special) for row in ids),
            0 if unknown_id is None else sum(row.count(unknown_id) for row in ids),
        )

    def _cut(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> int:
        full = [text for text, row in zip(texts, ids, strict=True) if len(row) >= self.max_length]
        if self._backend is not None:
            return sum(bool(encoding.overflowing) for encoding in self._backend.encode_batch_fast(full)) if full else 0
        with self._lock:
            whole = self._tokenizer(full)["input_ids"] if full else []
        return sum(len(row) > self.max_length for row in whole)


def count_padded(ids: Any, tokenizer: Any) -> TokenCounts:
    """Counts from ids [n, length] padded by a `transformers` tokenizer; a row without padding counts as cut."""
    if getattr(tokenizer, "unk_token_id", None) is None:
        return TokenCounts()
    lengths = (ids != tokenizer.pad_token_id).sum(1)
    special = tokenizer.num_special_tokens_to_add(pair=False)
    return TokenCounts(
        len(ids),
        int((lengths == ids.shape[1]).sum()),
        int((lengths - special).clamp(min=0).sum()),
        int((ids == tokenizer.unk_token_id).sum()),
    )

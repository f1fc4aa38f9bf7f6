"""Forwards compiled for a few fixed shapes, for long bulk jobs: compilation costs about a minute per shape, and pays after some.

Texts are packed: several in one row of fixed length, each attending to itself alone and counting its positions from its own start.
So one shape serves texts of all lengths, and little is padded. Pictures are padded to whole batches.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from encoders.batching import pack
from encoders.device import Compute
from encoders.errors import EncoderError
from encoders.rewritten import rewritten_text, rewritten_tower
from encoders.weights import quiet

# Attention costs as much per row as its square: rows are as short as most texts allow. Longer texts get longer rows.
ROW_TOKENS: Final = (128, 256, 512)
# Families whose positions can be given, and the first one: RoBERTa's begin after the padding id (1).
FIRST_POSITION: Final = {"bert": 0, "camembert": 2, "roberta": 2, "xlm-roberta": 2}


class Packed(NamedTuple):
    """Texts packed into rows.

    Attributes:
        ids: [rows, row tokens].
        positions: [rows, row tokens], from each text's start.
        texts: [rows, row tokens], the number of the text that a token is of, from 1; 0 is padding.
        size: number of texts.
    """

    ids: Any
    positions: Any
    texts: Any
    size: int


class CompiledForward:
    """A function of tensors, compiled for stated shapes; it runs as it is for other shapes and other numbers of threads.

    torch's compiler patches what is global while it traces, and is not made for company. So compilation is a step of its own, before
    other threads start, and nothing is ever compiled by a call.
    """

    def __init__(self, function: Callable[..., Any], compute: Compute) -> None:
        import torch
        import torch._inductor.config  # `import torch` does not load it

        with quiet():  # the compiler's own imports use what torch has deprecated
            self._compiled = torch.compile(function, dynamic=False)
        self._known = torch._dynamo.run(self._compiled)  # noqa: SLF001  (the one way to forbid compilation)
        self._freezing = compute.kind == "cpu"
        self._ready: set[Any] = set()

    def compile(self, *inputs: Any) -> None:
        """Make code for the shapes of `inputs` and this thread's number of threads; a minute or so."""
        import torch

        shape = (*(tuple(tensor.shape) for tensor in inputs), torch.get_num_threads())
        if shape in self._ready:
            return
        _keep_device_guard()
        # The compiler asks for `freezing` while it traces, whatever the options of `torch.compile` say; it has no effect in inference mode.
        with torch._inductor.config.patch(freezing=self._freezing), torch.no_grad(), quiet():  # noqa: SLF001
            self._compiled(*inputs)
        self._ready.add(shape)

    def __call__(self, *inputs: Any) -> Any:
        """What the function gives."""
        import torch

        with torch.inference_mode(mode=False), torch.no_grad():  # as when it was compiled
            return self._known(*inputs)


class PackedText:
    """A BERT or RoBERTa model's forward over packed rows."""

    def __init__(self, model: Any, compute: Compute, pooling: str, budget: int) -> None:
        self._compute, self._pooling, self._budget = compute, pooling, budget
        self._first = FIRST_POSITION[check_family(model.config.model_type)]

        twin = rewritten_text(model)

        def hidden_of(ids: Any, positions: Any, texts: Any) -> Any:
            own = texts[:, None, :, None] == texts[:, None, None, :]  # [rows, 1, tokens, tokens]
            return twin(input_ids=ids, position_ids=positions, attention_mask=own).last_hidden_state

        self._hidden = CompiledForward(hidden_of, compute)

    def plan(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of texts in batches that fill whole rows."""
        shortest = 0
        for tokens in ROW_TOKENS:
            members = [index for index, length in enumerate(lengths) if shortest < length <= tokens]
            shortest = tokens
            bins = pack([lengths[member] for member in members], tokens)
            for start in range(0, len(bins), rows := self._rows(tokens)):
                yield [members[place] for one in bins[start : start + rows] for place in one]
        yield from ([index] for index, length in enumerate(lengths) if length > shortest)

    def _rows(self, tokens: int) -> int:
        return max(1, self._budget // tokens)

    def collate(self, texts: Sequence[Sequence[int]]) -> Packed | None:
        """The texts in rows, in their order; None where they do not fit, or leave more than half empty."""
        import torch

        tokens = next((tokens for tokens in ROW_TOKENS if max(map(len, texts)) <= tokens), None)
        if tokens is None or 2 * sum(map(len, texts)) < tokens * self._rows(tokens):
            return None
        packed = torch.zeros((3, self._rows(tokens), tokens), dtype=torch.long)
        row = start = 0
        for number, ids in enumerate(texts, 1):
            if start + len(ids) > tokens:
                row, start = row + 1, 0
            if row == packed.shape[1]:
                return None
            part = packed[:, row, start : start + len(ids)]
            part[0] = torch.as_tensor(ids)
            part[1] = torch.arange(self._first, self._first + len(ids))
            part[2] = number
            start += len(ids)
        packed = self._compute.send(packed)
        return Packed(packed[0], packed[1], packed[2], len(texts))

    def compile(self) -> None:
        """Compile for every length of rows."""
        import torch

        for tokens in ROW_TOKENS:
            self._hidden.compile(*self._compute.send(torch.zeros((3, self._rows(tokens), tokens), dtype=torch.long)))

    def __call__(self, packed: Packed) -> Any:
        """Pooled rows [texts, dim] in float32."""
        import torch

        hidden = self._hidden(packed.ids, packed.positions, packed.texts).float().flatten(0, 1)  # [tokens, dim]
        owners, firsts = (
            packed.texts.flatten(),
            (packed.positions.flatten() == self._first) & (packed.texts.flatten() > 0),
        )
        if self._pooling == "cls":
            return hidden[firsts]
        sums = torch.zeros((packed.size + 1, hidden.shape[1]), device=hidden.device).index_add_(0, owners, hidden)
        return sums[1:] / torch.bincount(owners, minlength=packed.size + 1)[1:, None]


class PaddedRows:
    """A tower's forward over [rows, ...], always run with `rows` rows; a batch less than half full goes to the tower as it is."""

    def __init__(self, tower: Any, compute: Compute, rows: int) -> None:
        self._plain, self._rows = tower, rows
        self._compiled = CompiledForward(rewritten_tower(tower), compute)

    def compile(self, row: Any) -> None:
        """Compile for rows of this kind, given one [1, ...]."""
        self._compiled.compile(self._filled(row))

    def __call__(self, batch: Any) -> Any:
        """The tower's rows for the batch."""
        if not self._rows // 2 < len(batch) <= self._rows:
            return self._plain(batch)
        return self._compiled(self._filled(batch))[: len(batch)]

    def _filled(self, batch: Any) -> Any:
        """The batch with its first row repeated, up to the number of rows that the tower is compiled for."""
        import torch

        if len(batch) == self._rows:
            return batch
        # A tensor made in inference mode would be of another kind than those that the compiler saw.
        with torch.inference_mode(mode=False), torch.no_grad():
            filled = torch.cat([batch, batch[:1].expand(self._rows - len(batch), *batch.shape[1:])])
            return filled.contiguous(memory_format=torch.channels_last) if filled.ndim == 4 else filled


@functools.cache
def _keep_device_guard() -> None:
    """Let a thread that never ends be the first to trace.

    Without a GPU, tracing in torch 2.11 puts a stand-in for CUDA's device guard into a global; it is the tracing thread's own, and the next
    one to trace after that thread's end would crash.
    """
    import torch

    kept = threading.Event()

    def keep() -> None:
        torch._C._ensureCUDADeviceGuardSet()  # noqa: SLF001
        kept.set()
        threading.Event().wait()

    threading.Thread(target=keep, name="encode-device-guard", daemon=True).start()
    kept.wait()


def check_family(model_type: str) -> str:
    """Return `model_type`, or raise `EncoderError` where its texts cannot be packed."""
    if model_type not in FIRST_POSITION:
        raise EncoderError(
            f"compile is for text models of {', '.join(sorted(FIRST_POSITION))}, not {model_type!r}; leave it out of the profile"
        )
    return model_type

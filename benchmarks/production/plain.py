"""What the bulk path is held against, in plain transformers and open_clip: the bare model on ready tensors, and the naive way.

The naive way is what a script does: float32, batches of 32 in arrival order padded to their longest, decoding in the loop. Its vectors
are the float32 reference of every cosine.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Vectors = NDArray[np.float32]
NAIVE_BATCH: Final = 32
RATE_HZ: Final = 16_000


# ---- the naive way ---------------------------------------------------------------------------------------------------


def naive_texts(folder: Path) -> Callable[[Sequence[str]], Vectors]:
    """Mean-pooled unit vectors by the folder's BERT in float32."""
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = transformer(folder, torch.float32), AutoTokenizer.from_pretrained(folder)

    def encode(texts: Sequence[str]) -> Vectors:
        return stacked(texts, batch_vectors)

    def batch_vectors(texts: Sequence[str]) -> Any:
        batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        return (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

    return encode


def naive_pictures(folder: Path) -> Callable[[Sequence[Path]], Vectors]:
    """Unit vectors by the folder's CLIP in float32, with its own transform."""
    import open_clip
    import torch
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()

    def batch_vectors(paths: Sequence[Path]) -> Any:
        return model.encode_image(torch.stack([transform(Image.open(path)) for path in paths]))

    return lambda paths: stacked(paths, batch_vectors)


def naive_clips(folder: Path) -> Callable[[Sequence[Path]], Vectors]:
    """Unit vectors, the mean over frames, by the folder's wav2vec 2.0 in float32; all clips are of one length."""
    import soundfile
    import torch
    from torchaudio.functional import resample
    from transformers import AutoFeatureExtractor

    model, extractor = transformer(folder, torch.float32), AutoFeatureExtractor.from_pretrained(folder)

    def read(path: Path) -> Any:
        samples, rate = soundfile.read(path, dtype="float32")
        return resample(torch.from_numpy(samples), rate, RATE_HZ).numpy()

    def batch_vectors(paths: Sequence[Path]) -> Any:
        inputs = extractor([read(path) for path in paths], sampling_rate=RATE_HZ, return_tensors="pt")
        return model(inputs["input_values"]).last_hidden_state.mean(1)

    return lambda paths: stacked(paths, batch_vectors)


def stacked(items: Sequence[T], batch_vectors: Callable[[Sequence[T]], Any]) -> Vectors:
    """Unit vectors [n, dim] of items, batch by batch in their order."""
    import torch

    with torch.inference_mode():
        rows = [torch.nn.functional.normalize(batch_vectors(batch)) for batch in batched(items, NAIVE_BATCH)]
    vectors: Vectors = torch.cat(rows).numpy()
    return vectors


# ---- bare forward passes ---------------------------------------------------------------------------------------------


def transformer(folder: Path, dtype: Any) -> Any:
    """The folder's model as transformers loads it, set to inference."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, dtype=dtype).eval()


def image_tower(folder: Path, dtype: Any) -> Any:
    """The image tower as open_clip loads it, set to inference."""
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}").visual.to(dtype).eval()


def text_batches(rows: Iterable[Sequence[int]], budget: int) -> list[dict[str, Any]]:
    """Ready tensors: token ids sorted by length, batches of at most `budget` tokens padded to their longest."""
    batches, batch = [], []
    for ids in sorted(rows, key=len):
        if batch and (len(batch) + 1) * len(ids) > budget:
            batches.append(padded(batch))
            batch = []
        batch.append(ids)
    return [*batches, padded(batch)]


def padded(rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Token ids and mask [rows, longest]; 0 is the padding's id in BERT's vocabulary."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def forward_all(model: Any, batches: Iterable[Any]) -> None:
    """The bare forward passes over ready tensors."""
    import torch

    with torch.inference_mode():
        for batch in batches:
            if isinstance(batch, dict):
                model(**batch)
            else:
                model(batch)


def forward_side_by_side(model: Any, batches: Sequence[Any]) -> None:
    """The same, one forward on each core at once, each of one thread; the largest batches first, so that all end together."""
    import torch

    threads = torch.get_num_threads()
    waiting, lock = iter(reversed(batches)), threading.Lock()

    def following() -> Iterator[Any]:
        while True:
            with lock:
                batch = next(waiting, None)
            if batch is None:
                return
            yield batch

    def lane() -> None:
        torch.set_num_threads(1)
        forward_all(model, following())

    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(lane) for _ in range(threads)]
    for one in done:
        one.result()
    torch.set_num_threads(threads)


def elements(batch: Any) -> int:
    """Tokens that are not padding, or rows."""
    return int(batch["attention_mask"].sum()) if isinstance(batch, dict) else len(batch)


def batched(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive parts of `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def least_cosine(ours: Vectors, reference: Vectors) -> float:
    """The smallest cosine between rows of the same place, of which `reference` may have fewer; a peer's norms are not quite 1."""
    ours = ours[: len(reference)]
    return float(((ours * reference).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(reference, axis=1)).min())

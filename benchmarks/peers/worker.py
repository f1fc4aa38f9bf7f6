"""Runs inside a peer's own venv: loads one model and encodes what it is told to, over JSON lines on standard input and output.

`{"load": FOLDER, "modality": "text" | "image"}` answers the versions in use; `{"encode": FILE, "batch_size": N, "out": FILE}` encodes the JSON list
in FILE (texts, or paths of pictures, which are decoded as part of the work), stores unit vectors as .npy, and answers the seconds it took.
Nothing of this project is imported: the peer is used as its documentation says.
"""

import asyncio
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str], int], Any]


def sentence_transformers(folder: str, modality: str) -> Encode:
    """Mean pooling over BERT, or the image side of CLIP, in bfloat16."""
    import torch
    from PIL import Image
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    transformer = modules.Transformer(folder, model_kwargs={"dtype": torch.bfloat16})
    pooling = [modules.Pooling(transformer.get_embedding_dimension(), "mean")] if modality == "text" else []
    model = SentenceTransformer(modules=[transformer, *pooling], device="cpu")

    def encode(inputs: list[str], batch_size: int) -> Any:
        items = inputs if modality == "text" else [Image.open(path) for path in inputs]
        return model.encode(items, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)

    return encode


def infinity(folder: str, modality: str) -> Encode:
    """Infinity's batching engine in this process, without its HTTP server."""
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    if modality != "text":
        raise ValueError(f"infinity is measured on texts, not on {modality}")

    async def run(inputs: list[str], batch_size: int) -> Any:
        arguments = EngineArgs(
            model_name_or_path=folder,
            device="cpu",
            dtype="bfloat16",
            engine="torch",
            batch_size=batch_size,
            pooling_method="mean",
            bettertransformer=False,
            compile=False,
            model_warmup=False,
        )
        engine = AsyncEmbeddingEngine.from_args(arguments)
        async with engine:
            await engine.embed(sentences=inputs[:batch_size])  # a new engine is cold
            started = time.perf_counter()
            vectors, _ = await engine.embed(sentences=inputs)
            taken = time.perf_counter() - started
        return taken, vectors

    return lambda inputs, batch_size: asyncio.run(run(inputs, batch_size))


PEERS = {
    "sentence-transformers": (sentence_transformers, "sentence-transformers"),
    "infinity": (infinity, "infinity-emb"),
}


def main(peer: str) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print belongs elsewhere
    build, distribution = PEERS[peer]
    encode: Encode | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            encode = build(request["load"], request["modality"])
            versions = {name: importlib.metadata.version(name) for name in (distribution, "torch", "transformers")}
            print(json.dumps(versions), file=answers)
        elif encode:
            print(json.dumps({"seconds": timed(encode, request)}), file=answers)


def timed(encode: Encode, request: dict[str, Any]) -> float:
    """Seconds of one request; a peer that must start an engine first gives its own."""
    inputs = json.loads(Path(request["encode"]).read_text())
    started = time.perf_counter()
    vectors = encode(inputs, request["batch_size"])
    seconds = time.perf_counter() - started
    if isinstance(vectors, tuple):
        seconds, vectors = vectors
    if request.get("out"):
        np.save(request["out"], np.asarray(vectors, dtype=np.float32))
    return seconds


if __name__ == "__main__":
    main(sys.argv[1])

"""A server in this process, on a loop of its own, with encoders of the test's choice."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from encoders.profiles import Encoders
from feature_store.home import Home
from protos.triptych.v1 import embedding_pb2, embedding_pb2_grpc
from serving import embedder
from serving.server import Server
from serving.settings import ServeSettings
from triptych.client import Client

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "red", "blue", "bird", "sings", "stone", "loud", "the", "very", "old", "and", "of", "in"]


class Live:
    """A running server around `encoders`, and ways to call it."""

    def __init__(self, root: Path, encoders: Encoders, patch, **settings) -> None:
        patch.setattr(embedder, "load_profile", lambda _: encoders)
        self.encoders, self._settings, self._home = encoders, settings, Home(root).create()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._callers = ThreadPoolExecutor(128)

    def __enter__(self):
        self._thread.start()
        self.server = self.run(self._start())
        self.client = Client(self.server.address, timeout=20.0)
        self.channel = grpc.insecure_channel(self.server.address)
        self.stub = embedding_pb2_grpc.EmbeddingServiceStub(self.channel)
        return self

    async def _start(self) -> Server:
        server = Server(self._home, ServeSettings(port=0, **self._settings))  # its health needs the loop
        await server.start()
        await server.warm_up()
        return server

    def __exit__(self, *_):
        if hasattr(self.encoders.text, "gate"):
            self.encoders.text.gate.set()
        self.channel.close()
        self.client.close()
        self.run(self.server.stop())
        self._callers.shutdown()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def run(self, job):
        """The result of a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(job, self.loop).result(60)

    def embed(self, *texts: str, timeout: float = 20.0, **fields):
        """The reply to one call; raises `grpc.RpcError`."""
        request = embedding_pb2.EmbedRequest(inputs=[{"text": text} for text in texts], **fields)
        return self.stub.Embed(request, timeout=timeout)

    def later(self, *texts: str, **fields):
        """The same, as a future."""
        return self._callers.submit(self.embed, *texts, **fields)

    def value(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0

    @property
    def waiting(self) -> int:
        """Rows that wait for the encoder."""
        return self.server.embedder.pipeline.waiting


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def tiny_clip(folder: Path) -> Path:
    """A small open_clip model, as its hub repositories hold it."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    weights = {name: tensor.contiguous() for name, tensor in CLIP(**TINY_CLIP).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {}}))
    return folder


def tiny_bert(folder: Path) -> Path:
    """A small BERT with its tokenizer, as save_pretrained writes them."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder

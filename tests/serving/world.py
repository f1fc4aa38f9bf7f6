"""A small real installation for the serving tests: a home, a Milvus Lite server, items and users in it, two checkpoints."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from encoders.profiles import profile_spaces
from encoders.space import EmbeddingSpace
from feature_store import embedded
from feature_store.connection import connect, milvus_uri
from feature_store.home import Home
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_schema import ViewSchema
from feature_store.schemas import timestamps
from ranker import checkpoint
from tests.ranker.factories import random_items, tiny_checkpoint
from triptych.client import Client

ITEMS = [f"item_{i:02}" for i in range(40)]
SILENT_ITEMS = ITEMS[::8]  # items without a sound
HISTORY = ["item_03", "item_07", "item_11"]
DAY_US = 86_400_000_000
REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 90.0
LISTS = {
    "item_ids": pa.list_(pa.string()),
    "event_types": pa.list_(pa.string()),
    "event_ids": pa.list_(pa.string()),
    "timestamps_us": pa.list_(pa.int64()),
    "values": pa.list_(pa.float64()),
}


@dataclass(frozen=True)
class World:
    """The installation, and the spaces of its checkpoints by modality."""

    home: Home
    spaces: Mapping[str, EmbeddingSpace]


def make_world(root: Path) -> World:
    """Start Milvus in a new home and fill it."""
    home = Home(root).create()
    spaces = {space.modality: space for space in profile_spaces("bundled")}
    home.spaces.write_text(yaml.safe_dump({"spaces": [{**s.to_dict(), "entity": "item"} for s in spaces.values()]}))
    embedded.start(home)
    with contextlib.closing(connect(home)) as core:
        write_items(core, spaces)
        write_users(core, spaces["text"])
    for model_id, seed in (("first", 0), ("second", 1)):
        tiny_checkpoint(home.models, model_id, spaces=spaces, item_ids=ITEMS, seed=seed)
    checkpoint.promote(home, "first")
    write_fused(home)
    return World(home, spaces)


def annex(world: World, root: Path) -> tuple[Home, dict[str, str]]:
    """Another home with the same spaces, models and Milvus, and the environment that a process of it needs."""
    home = Home(root).create()
    shutil.copytree(world.home.models, home.models, dirs_exist_ok=True)
    shutil.copy(world.home.spaces, home.spaces)
    return home, {"TRIPTYCH_MILVUS_URI": milvus_uri(world.home)}


def write_items(core: MilvusCore, spaces: Mapping[str, EmbeddingSpace]) -> None:
    """Random vectors in every space, but no sounds of `SILENT_ITEMS`; profiles of all."""
    batch = random_items(spaces, ITEMS)
    for modality, space in spaces.items():
        keep = [row for row, item_id in enumerate(ITEMS) if modality != "audio" or item_id not in SILENT_ITEMS]
        write_vectors(core, f"item_{space.space_id}", [ITEMS[row] for row in keep], batch.vectors[space.space_id][keep])
    schema = ViewSchema("item_profile", {"category": pa.string(), "price": pa.float64()}, key="item_id")
    core.create_view(schema)
    columns = {"item_id": ITEMS, "category": list(batch.category), "price": batch.price}
    core.upsert("item_profile", pa.table({**columns, "event_timestamp": stamps(len(ITEMS))}))


def write_vectors(core: MilvusCore, view: str, ids: list[str], vectors: np.ndarray, key: str = "item_id") -> None:
    """Upsert unit vectors [n, d] into a view, made where it is missing."""
    core.create_view(ViewSchema(view, vector_field="vector", dim=vectors.shape[1], key=key))
    rows = {key: ids, "vector": pa.array(list(vectors), pa.list_(pa.float32())), "event_timestamp": stamps(len(ids))}
    core.upsert(view, pa.table(rows))


def write_users(core: MilvusCore, text: EmbeddingSpace) -> None:
    """User `ann` has a history of three clicks and a profile vector; nobody else is known."""
    core.create_view(ViewSchema("user_history", LISTS, key="user_id"))
    now = time.time_ns() // 1000
    row = {
        "user_id": ["ann"],
        "item_ids": [HISTORY],
        "event_types": [["click"] * len(HISTORY)],
        "event_ids": [[f"old_{i}" for i in range(len(HISTORY))]],
        "timestamps_us": [[now - (9 - i) * DAY_US for i in range(len(HISTORY))]],
        "values": [[float("nan")] * len(HISTORY)],
    }
    columns = {name: pa.array(row[name], kind) for name, kind in LISTS.items()}
    core.upsert("user_history", pa.table({"user_id": ["ann"], **columns, "event_timestamp": stamps(1)}))
    profile = np.zeros((1, text.dim), np.float32)
    profile[0, 0] = 1.0
    write_vectors(core, f"user_{text.space_id}", ["ann"], profile, key="user_id")


def write_fused(home: Home) -> None:
    """What `triptych train` and `materialize` do for a model's own space."""
    from ranker.scorer import Ranker

    ranker = Ranker.load(home.models / "first")
    spaces = {space.modality: space for space in profile_spaces("bundled")}
    batch = random_items(spaces, ITEMS)
    batch.present[spaces["audio"].space_id][[ITEMS.index(i) for i in SILENT_ITEMS]] = False
    with contextlib.closing(connect(home)) as core:
        vectors = ranker.fused_items(ranker.item_tokens(batch))
        write_vectors(core, f"item_{ranker.fused_space.space_id}", ITEMS, vectors)


def stamps(count: int) -> pa.Array:
    """The present, `count` times."""
    return timestamps(np.full(count, time.time_ns() // 1000, np.int64))


@dataclass
class Running:
    """A server process."""

    process: subprocess.Popen[bytes]
    address: str
    admin_address: str
    metrics_address: str
    stderr: Path

    def end(self, number: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Signal it and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


def launch(home: Home, name: str, *command: str, **environment: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a server (by default `python -m serving`) on free ports in a process of its own."""
    stderr = home.logs / f"{name}.err"
    settings = {"TRIPTYCH_HOME": str(home.root), "TRIPTYCH_SERVE_PORT": "0", "OMP_NUM_THREADS": "1", **environment}
    with stderr.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *(command or ("-m", "serving"))],
            cwd=REPOSITORY,
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=file,
        )
    return process, stderr


def wait_for_log(process: subprocess.Popen[bytes], stderr: Path, event: str, seconds: float = START_SECONDS) -> dict:
    """The first log line of this event, as a dictionary."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for line in stderr.read_text(errors="replace").splitlines():
            if f'"event": "{event}"' in line:
                return json.loads(line)
        assert process.poll() is None, stderr.read_text(errors="replace")[-3000:]
        time.sleep(0.1)
    raise AssertionError(f"no {event!r} within {seconds} s: {stderr.read_text(errors='replace')[-3000:]}")


@contextlib.contextmanager
def running(home: Home, name: str, *command: str, until: str = "serving", **environment: str) -> Iterator[Running]:
    """A server that has logged `until`; killed at the end if it still runs."""
    process, stderr = launch(home, name, *command, **environment)
    try:
        about = wait_for_log(process, stderr, "listening")
        wait_for_log(process, stderr, until)
        yield Running(process, about["address"], about["admin_address"], about["metrics_address"], stderr)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        process.stdout.close()


def png(colour: str = "red", size: int = 48) -> bytes:
    """An encoded picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def wav(frequency: float = 440.0, seconds: float = 1.5) -> bytes:
    """An encoded sound, 16 kHz mono."""
    samples = np.sin(2 * np.pi * frequency * np.arange(int(16_000 * seconds)) / 16_000)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 20_000).astype("<i2").tobytes())
    return buffer.getvalue()


def until(holds, seconds: float = 15.0, every: float = 0.1):
    """Call `holds` until it returns something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := holds():
            return value
        time.sleep(every)
    raise AssertionError(f"did not happen within {seconds} s")


def metric(address: str, name: str) -> float:
    """One unlabelled or summed metric."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def reasons(reply) -> set[str]:
    """Degraded reasons of a reply of the client library."""
    return {one.reason for one in reply.degraded}


def new_client(server: Running, timeout: float = 20.0) -> Client:
    """A client of a running server."""
    return Client(server.address, timeout=timeout)

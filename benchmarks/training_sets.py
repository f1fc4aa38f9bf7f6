"""Point-in-time training sets beside Feast's own call, on the same repository: time, and memory above what the imports take.

Parts: `versions` joins labels to vectors of which there are many versions, in one join as Feast does it; `labels` joins ten times as many
labels to see whether memory follows them. Every measurement is a process of its own, since a peak of memory cannot be taken back.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Options, Record, run

PARTS: Final = ("versions", "labels")
SEED: Final = 7
DIM: Final = 512
KEYS: Final = 50
VERSIONS: Final = 200
QUICK_VERSIONS: Final = 50
LABELS: Final = 20_000
MORE_LABELS: Final = 200_000
VERSION_US: Final = 1_000_000  # from one version to the next


def measure(options: Options, record: Record) -> None:
    """All wanted parts, on one repository."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        versions = QUICK_VERSIONS if options.quick else VERSIONS
        write_rows(root, versions)
        ours = child(root, "ours", LABELS, versions)
        if options.wants("versions"):
            stock = child(root, "stock", LABELS, versions)
            record.claim("training_set_wall_stock_over_ours", stock["seconds"] / ours["seconds"], "ratio", bar=2)
            record.claim("training_set_memory_stock_over_ours", stock["mib"] / ours["mib"], "ratio", bar=4)
            record.note("stock", stock)
        record.note("ours", ours)
        if options.wants("labels"):
            more = child(root, "ours", MORE_LABELS, versions)
            record.claim("training_set_memory_10x_labels", more["mib"] / ours["mib"], "ratio", bar=2, better="lower")
            record.note("ours, ten times as many labels", more)
        record.note("data", {"keys": KEYS, "versions of each": versions, "dim": DIM, "labels": LABELS})


def write_rows(root: Path, versions: int) -> None:
    """The source: every key's vector anew in every version."""
    count = KEYS * versions
    flat = np.random.default_rng(SEED).standard_normal(count * DIM).astype(np.float32)
    offsets = np.arange(0, count * DIM + 1, DIM, dtype=np.int32)
    rows = {
        "thing_id": np.tile([f"thing {n}" for n in range(KEYS)], versions),
        "vector": pa.ListArray.from_arrays(offsets, flat),
        "event_timestamp": _times(np.repeat(np.arange(versions) * VERSION_US, KEYS)),
    }
    pq.write_table(pa.table(rows), root / "rows.parquet")


def _times(us: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(us, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


def child(root: Path, side: str, labels: int, versions: int) -> dict[str, float]:
    """Seconds and MiB of one join in a new process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training_sets", "join", str(root), side]
    done = subprocess.run([*command, str(labels), str(versions)], check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def join(root: Path, side: str, labels: int, versions: int) -> dict[str, float]:
    """In the new process: join `labels` by `side`, and count memory from when everything is imported and the labels are there."""
    import pandas as pd

    from feature_store.feast_history import point_in_time

    store = _store(root)
    rng = np.random.default_rng(SEED)
    keys = [f"thing {n}" for n in rng.integers(0, KEYS, labels)]
    at = pd.to_datetime(rng.integers(1, versions * VERSION_US, labels), unit="us", utc=True)
    frame = pd.DataFrame({"thing_id": keys, "event_timestamp": at})
    before, started = _peak_mib(), time.perf_counter()
    if side == "ours":
        point_in_time(store, frame, ["things:vector"], root / "ours.parquet")
    else:
        job = store.get_historical_features(frame, ["things:vector"], full_feature_names=True)
        pq.write_table(job.to_arrow(), root / "stock.parquet", compression="zstd")
    return {"seconds": time.perf_counter() - started, "mib": _peak_mib() - before}


def _store(root: Path) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Array, Float32, String

    config = RepoConfig(
        project="training",
        registry=str(root / "registry.db"),
        provider="local",
        offline_store={"type": "duckdb"},
        online_store={"type": "sqlite", "path": str(root / "online.db")},
        entity_key_serialization_version=3,
        repo_path=str(root),
    )
    thing = Entity(name="thing", join_keys=["thing_id"], value_type=ValueType.STRING)
    fields = [Field(name="thing_id", dtype=String), Field(name="vector", dtype=Array(Float32))]
    source = FileSource(name="rows", path=str(root / "rows.parquet"), timestamp_field="event_timestamp")
    store = FeatureStore(config=config)
    store.apply([thing, FeatureView(name="things", entities=[thing], schema=fields, source=source)])
    return store


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["join"]:
        folder, which, label_count, version_count = sys.argv[2:]
        print(json.dumps(join(Path(folder), which, int(label_count), int(version_count))))
    else:
        run(measure, PARTS, "Point-in-time training sets beside Feast's own call.")

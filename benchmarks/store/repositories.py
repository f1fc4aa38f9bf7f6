"""Two Feast repositories over the same Parquet source and the same Milvus server: one with this project's plug-ins, one as Feast comes.

Both use the DuckDB offline store, which of Feast's own is the fastest and the one that loses no rows. Stock holds a single dim per
store; here every vector has the same one, so that its store is used as it is, without any override.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlparse

import yaml

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

START: Final = datetime(2024, 1, 1, tzinfo=UTC)
END: Final = datetime(2026, 6, 1, tzinfo=UTC)
HNSW: Final = {"M": 16, "efConstruction": 200}
SIDES: Final = ("triptych", "stock")


def settings(side: str, folder: Path, uri: str, dim: int, ef: int, stock_batch_rows: int) -> dict[str, Any]:
    """A repository's `feature_store.yaml`."""
    common = {
        "project": "bench",
        "provider": "local",
        "registry": str(folder / "registry.db"),
        "entity_key_serialization_version": 3,
        "offline_store": {"type": "duckdb"},
    }
    if side == "triptych":
        home = str(folder / "home")
        return {
            **common,
            "online_store": {"type": "feature_store.feast_online.TriptychOnlineStore", "home": home},
            "batch_engine": {"type": "feature_store.feast_engine.TriptychComputeEngine"},
        }
    address = urlparse(uri)
    return {
        **common,
        "online_store": {
            "type": "milvus",
            "host": f"http://{address.hostname}",
            "port": address.port,
            "embedding_dim": dim,
            "index_type": "HNSW",
            "metric_type": "COSINE",
            "index_params": HNSW,
            "search_params": {"ef": ef},
        },
        # Without a batch size Feast sends a single message, which is above Milvus's limit.
        "materialization_config": {"online_write_batch_size": stock_batch_rows},
    }


def open_repository(folder: Path, configuration: dict[str, Any]) -> "FeatureStore":
    """The repository in `folder`, made of `configuration`."""
    from feast import FeatureStore

    (folder / "home").mkdir(parents=True, exist_ok=True)
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))
    return FeatureStore(repo_path=str(folder))


def apply_view(store: "FeatureStore", name: str, source: Path, dim: int, index: str = "HNSW") -> "FeatureView":
    """Register the view and create it online: one vector per item, never expiring."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float32

    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    vector = Field(
        name="vector", dtype=Array(Float32), vector_index=True, vector_length=dim, vector_search_metric="COSINE"
    )
    view = FeatureView(
        name=name,
        entities=[item],
        ttl=timedelta(0),
        schema=[vector],
        source=FileSource(
            name=f"{name}_source",
            path=str(source),
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        ),
        tags={"index": index},
    )
    store.apply([item, view])
    return view

"""Feast's definitions: two entities, one view per (entity, embedding space), profiles, histories, and the services over them.

Everything here follows from the root folder: the spaces in its `spaces.yaml`, and the checkpoints in its `models/`. No logic beyond
that lives in this folder, and nothing heavy is imported.
"""

import sys
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, Project, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Float64, Int64, String

from feature_store.home import find_home
from feature_store.pins import Pins, read_pins
from feature_store.spaces import SpaceEntry, embeddings_folder, read_entries, view_name

HOME = find_home()
# Feast reads 0 as "never expires": an item's vector is true until a newer version or a tombstone replaces it.
NEVER = timedelta(0)

project = Project(name="triptych", description="a multimodal feature store for recommender systems")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="a catalogue item")
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="a user")
ENTITIES = {"item": item, "user": user}


def _source(name: str, folder: Path) -> FileSource:
    return FileSource(
        name=f"{name}_table",
        path=str(folder),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )


def _view(name: str, entity: str, folder: Path, fields: list[Field], tags: dict[str, str]) -> FeatureView:
    return FeatureView(
        name=name,
        entities=[ENTITIES[entity]],
        ttl=NEVER,
        schema=fields,
        source=_source(name, folder),
        tags={"deleted_column": "deleted", **tags},
    )


def _embedding_view(entry: SpaceEntry) -> FeatureView:
    space = entry.space
    vector = Field(
        name="vector",
        dtype=Array(Float32),
        vector_index=True,
        vector_length=space.dim,
        vector_search_metric="COSINE",
        description=space.description,
    )
    tags = {"space_id": space.space_id, "modality": space.modality, "kind": space.kind, "index": "FLAT"}
    folder = embeddings_folder(HOME, entry.entity, space.space_id)
    return _view(entry.view, entry.entity, folder, [vector], tags)


def _readable(pins: Pins) -> bool:
    """Whether the checkpoint's manifest could be read; a damaged one is warned of, and must not stop the others."""
    if pins.error:
        print(f"warning: no service for the damaged checkpoint {pins.model_id}: {pins.error}", file=sys.stderr)
    return not pins.error


def _model_service(pins: Pins, views: dict[str, FeatureView]) -> FeatureService:
    spaces = [*pins.space_ids.values(), f"fused_{pins.model_id}"]
    names = [view_name(entity, space_id) for space_id in spaces for entity in ENTITIES]
    wanted = [views[name] for name in names if name in views]
    features = [item_profile, user_history, *wanted]
    return FeatureService(name=f"ranker_{pins.model_id}", features=features, tags={"model_id": pins.model_id})


item_profile = _view(
    "item_profile",
    "item",
    HOME.tables / "items",
    [
        Field(name="title", dtype=String),
        Field(name="category", dtype=String),
        Field(name="price", dtype=Float64),
        Field(name="tags", dtype=Array(String)),
        Field(name="image", dtype=String),
        Field(name="audio", dtype=String),
        Field(name="updated_us", dtype=Int64),
    ],
    {},
)
user_profile = _view("user_profile", "user", HOME.tables / "users", [Field(name="profile_text", dtype=String)], {})
user_history = _view(
    "user_history",
    "user",
    HOME.tables / "user_history",
    [
        Field(name="item_ids", dtype=Array(String)),
        Field(name="event_types", dtype=Array(String)),
        Field(name="event_ids", dtype=Array(String)),
        Field(name="timestamps_us", dtype=Array(Int64)),
        Field(name="values", dtype=Array(Float64)),
    ],
    {},
)

# A retired space gives no view: `feast apply` drops its collection, and its table stays.
EMBEDDING_VIEWS = {entry.view: _embedding_view(entry) for entry in read_entries(HOME)}
ITEM_VIEWS = [view for name, view in EMBEDDING_VIEWS.items() if name.startswith("item_")]
SERVICES = {
    f"ranker_{pins.model_id}": _model_service(pins, EMBEDDING_VIEWS) for pins in read_pins(HOME) if _readable(pins)
}

catalogue = FeatureService(
    name="catalogue", features=[item_profile, *ITEM_VIEWS], description="everything known about items"
)
# Feast collects a module's attributes.
globals().update(EMBEDDING_VIEWS)
globals().update(SERVICES)

"""Feast online stores under test, and short names for what Feast's interface wants: views, entity keys, values and rows.

Everything here goes through Feast's own `OnlineStore` interface, so that any store can be put behind it.
"""

import itertools
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import HealthCheck, settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Feast's warnings are about itself
    from feast import (  # noqa: F401 - for the tests
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        Field,
        FileSource,
        LabelView,
        PushSource,
        RepoConfig,
        ValueType,
        types,
    )
    from feast.feature_view import DUMMY_ENTITY_FIELD
    from feast.filter_models import ComparisonFilter, CompoundFilter  # noqa: F401 - for the tests
    from feast.infra.online_stores.milvus_online_store.milvus import MilvusOnlineStore
    from feast.infra.online_stores.online_store import OnlineStore
    from feast.protos.feast.core.Registry_pb2 import Registry  # noqa: F401 - for the tests
    from feast.protos.feast.types import Value_pb2  # noqa: F401 - for the tests
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import (
        BoolList,
        BytesList,
        DoubleList,
        FloatList,
        Int32List,
        Int64List,
        StringList,
        Value,
    )
    from feast.stream_feature_view import StreamFeatureView  # noqa: F401 - for the tests

    from feature_store.feast_online import TriptychOnlineStore
    from feature_store.milvus_core import MilvusCore

DIM = 4
NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
MISSING = (None, None)
THING = Entity(name="thing", join_keys=["thing_id"], value_type=ValueType.STRING)
NUMBER = Entity(name="number", join_keys=["number_id"], value_type=ValueType.INT64)
SHOP = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
KEY_TYPES = {"thing_id": types.String, "number_id": types.Int64, "shop_id": types.Int64}
LISTS = {
    "string": StringList,
    "json": StringList,
    "uuid": StringList,
    "time_uuid": StringList,
    "decimal": StringList,
    "bytes": BytesList,
    "bool": BoolList,
    "int32": Int32List,
    "int64": Int64List,
    "float": FloatList,
    "double": DoubleList,
    "unix_timestamp": Int64List,
}
_numbers = itertools.count()
more_examples = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
# For what writes, which on a standalone server takes a tick of its clock, 0.2 s: few examples with many rows each.
few_examples = settings(more_examples, max_examples=5)


def at(hours=0, **more):
    """An instant, counted from a fixed one."""
    return NOW + timedelta(hours=hours, **more)


def value(slot, content):
    """Feast's message of a scalar, or of a list for a list; None is the message without a value."""
    if content is None:
        return Value()
    if isinstance(content, list):
        return Value(**{f"{slot}_list_val": LISTS[slot](val=content)})
    return Value(**{f"{slot}_val": content})


def title(text):
    """The features of a row that has a title alone."""
    return {"title": value("string", text)}


def titles_of(store, view, keys):
    """The texts of titles, None where the row is missing."""
    return [found and found.string_val for found in store.features(view, "title", keys)]


def vector(numbers):
    """A vector as Feast's message."""
    return value("float", [float(number) for number in numbers])


def key(thing=None, **parts):
    """An entity key: of a thing by its id, or of any join keys, in the order in which they are given."""
    parts = {"thing_id": thing} if thing is not None else parts
    values = [Value(int64_val=part) if isinstance(part, int) else Value(string_val=part) for part in parts.values()]
    return EntityKey(join_keys=list(parts), entity_values=values)


def row(entity_key, features, event=NOW, created=None):
    """A row as Feast hands it to `online_write_batch`; a text stands for a thing's key."""
    # A copy: some stores put the keys among the features.
    return (key(entity_key) if isinstance(entity_key, str) else entity_key, dict(features), event, created)


def vector_field(name="vector", dim=DIM, metric="COSINE"):
    """The field of a view's vector."""
    return Field(
        name=name, dtype=types.Array(types.Float32), vector_index=True, vector_length=dim, vector_search_metric=metric
    )


def view_of(name, fields=None, *, entities=(THING,), vectors=(), ttl=timedelta(0), tags=None, online=True):
    """A feature view of scalars and lists by name, and of vectors; its source is never read."""
    join_keys = [entity.join_key for entity in entities]
    schema = [Field(name=field, dtype=dtype) for field, dtype in (fields or {}).items()]
    view = FeatureView(
        name=name,
        entities=list(entities),
        schema=[*schema, *vectors, *(Field(name=join_key, dtype=KEY_TYPES[join_key]) for join_key in join_keys)],
        source=FileSource(name=f"{name}_file", path="never_read.parquet", timestamp_field="event_timestamp"),
        ttl=ttl,
        tags=tags or {},
        online=online,
    )
    view.entity_columns = view.entity_columns or [DUMMY_ENTITY_FIELD]  # as `apply` has it
    return view


def push_source(name):
    """A source that rows are pushed to; its file is never read."""
    file = FileSource(name=f"{name}_file", path="never_read.parquet", timestamp_field="event_timestamp")
    return PushSource(name=name, batch_source=file)


def unit(numbers):
    """The vectors [..., dim] at norm 1, float32."""
    numbers = np.asarray(numbers, np.float32)
    return numbers / np.linalg.norm(numbers, axis=-1, keepdims=True)


def free_name(base="things"):
    """A name that no other view has."""
    return f"{base}_n{next(_numbers)}x"


def free_ids(*names):
    """Ids that no other test uses."""
    mark = next(_numbers)
    return [f"{mark}:{name}" for name in names]


SHARED = {
    "titles": {"fields": {"title": types.String}},
    "numbered": {"fields": {"title": types.String}, "entities": (NUMBER,)},
    "offers": {"fields": {"title": types.String}, "entities": (THING, SHOP)},
    "vectors": {"fields": {"title": types.String}, "vectors": (vector_field(),)},
}


@dataclass(frozen=True, repr=False)
class Store:
    """An online store and the repository configuration under which it is called."""

    name: str
    config: RepoConfig
    online: OnlineStore
    views: dict[str, FeatureView] = field(default_factory=dict)
    """Views that tests share, each with keys of its own, since making a view takes a server seconds; by name in `SHARED`."""

    def __repr__(self):
        return self.name

    def prepared(self):
        """The store with all shared views."""
        self.views.update((name, view_of(free_name(name), **options)) for name, options in SHARED.items())
        self.apply(*self.views.values())
        return self

    def apply(self, *views, drop=()):
        """Make the views, and drop others, as `feast apply` asks a store to."""
        self.online.update(self.config, list(drop), list(views), [], [], partial=False)

    def made(self, fields=None, **options):
        """A new view under a name of its own."""
        view = view_of(free_name(), fields, **options)
        self.apply(view)
        return view

    def write(self, view, *rows):
        """Write the rows in one batch."""
        self.online.online_write_batch(self.config, view, list(rows), None)

    def read(self, view, keys, features=None):
        """(event time in UTC, features by name) of each key; a text stands for a thing's key."""
        asked = [key(k) if isinstance(k, str) else k for k in keys]
        names = features or [feature.name for feature in view.features]  # Feast always names them
        rows = self.online.online_read(self.config, view, asked, names)
        return [(time and utc(time), found) for time, found in rows]

    def features(self, view, name, keys):
        """One feature's messages, None where the row is missing."""
        return [found and found[name] for _, found in self.read(view, keys, [name])]

    def nearest(self, view, query, k, features=(), **options):
        """Hits of one query vector, best first, as Feast asks for them."""
        return self.online.retrieve_online_documents_v2(
            self.config, view, list(features), [float(number) for number in query], k, **options
        )

    def collections(self):
        """Names of all collections on the store's server."""
        with MilvusCore(self.config.online_store.uri) as core:
            return core.list_views()

    def reopened(self):
        """The same store in an instance of its own, which knows nothing of what this one did."""
        return Store(self.name, self.config, type(self.online)())


def utc(time):
    """A store's time; Feast's rule is that one without a zone is UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def triptych_store(name, folder, uri, **settings):
    """The plug-in on the Milvus at `uri`, with writers' leases under `folder`."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    online = {
        "type": "feature_store.feast_online.TriptychOnlineStore",
        "home": str(home),
        "uri": uri,
        "timeout_seconds": 10.0,
        **settings,
    }
    return Store(name, repo_config(folder, online), TriptychOnlineStore())


def stock_store(name, folder, uri):
    """Feast's own Milvus store, with the one dim that it can have, and reads that see what was written."""
    online = {"type": "milvus", "uri": uri, "embedding_dim": DIM, "consistency_level": "Strong"}
    return Store(name, repo_config(folder, online), MilvusOnlineStore())


def repo_config(folder, online_store):
    """A repository's configuration with this online store."""
    return RepoConfig(
        project="conformance",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder / 'registry.db'}"},
        online_store=online_store,
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
    )

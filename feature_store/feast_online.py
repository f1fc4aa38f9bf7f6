"""Feast's online store on the columnar Milvus core: a thin adapter, usable from any Feast repository.

online_store:
type: feature_store.feast_online.TriptychOnlineStore
uri: http://127.0.0.1:19530      # left out: the Milvus that `triptych up` started for `home`; TRIPTYCH_MILVUS_URI wins
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from feast import Entity, FeatureView, LabelView, RepoConfig, StreamFeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from numpy.typing import NDArray
from pydantic import Field, SecretStr, field_validator

from feature_store.connection import connect, milvus_uri, store_name
from feature_store.errors import StoreRequestError
from feature_store.feast_types import entity_id, entity_key, rows_table, store_ids, value_rows, view_schema
from feature_store.home import FEAST_YAML_VARIABLE, HOME_VARIABLE, Home, find_home
from feature_store.lease import Leases
from feature_store.ledger import ledger_of
from feature_store.milvus_core import MilvusCore
from feature_store.milvus_filters import Filter
from feature_store.milvus_reply import SearchResult
from feature_store.rebuilding import NEW, OLD
from feature_store.view_changes import change_of, make
from feature_store.writing import ViewWriter, Written

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WAIT_FOR_WRITER_SECONDS = 60.0
VIEWS_AT_ONCE = 4
FeastRow = tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]
Named = str | int | Mapping[str, Any] | EntityKey  # what a person names a row by
ReadRow = tuple[datetime | None, dict[str, Value] | None]


class TriptychOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Settings under `online_store` in `feature_store.yaml`; Feast fills in `${VARIABLES}`, where secrets belong."""

    type: Literal["feature_store.feast_online.TriptychOnlineStore"] = "feature_store.feast_online.TriptychOnlineStore"
    home: str | None = None
    """Root folder, relative to the repository, which holds writers' leases; found as the `triptych` command finds it where left out."""
    uri: str = Field("", repr=False)  # it may hold a password
    """`http://host:port` or, for TLS, `https://host:port`; left out: the Milvus that `triptych up` started for the home."""
    token: SecretStr = SecretStr("")
    """`user:password` or an API key; TRIPTYCH_MILVUS_TOKEN wins."""
    user: str = ""
    password: SecretStr = SecretStr("")
    db_name: str = ""
    """Database on the server; TRIPTYCH_MILVUS_DB wins."""
    ca_file: str = ""
    """PEM file of the authority that signed the server's certificate; the system's own where left out."""
    timeout_seconds: float = 30.0
    channels: int = 1
    """Connections to the server, used in turn."""

    @field_validator("home")
    @classmethod
    def _exists(cls, home: str | None) -> str | None:
        """Say what is missing here, since Feast would go on to fail on a registry that nobody has made."""
        if home is not None and not Path(home).is_dir():
            raise ValueError(f"there is no root folder {Path(home).resolve()} yet: run `triptych up`")
        chosen = os.environ.get(HOME_VARIABLE)
        if home is not None and chosen and Path(chosen).expanduser().resolve() != Path(home).resolve():
            yaml = Path(chosen).expanduser().resolve() / "feature_store.yaml"
            raise ValueError(
                f"{HOME_VARIABLE} is {chosen}, and this feature_store.yaml is for {Path(home).resolve()}: "
                f"export {FEAST_YAML_VARIABLE}={yaml}, as `triptych up` says"
            )
        return home


def home_of(config: Any) -> Home:
    """The home that a plug-in's settings name."""
    return Home(Path(config.home).resolve()) if config.home else find_home()


def leases_of(config: RepoConfig) -> Leases:
    """The leases of a repository's views."""
    return Leases(ledger_of(home_of(config.online_store)), store=store_of(config))


def store_of(config: RepoConfig) -> str:
    """What names the Milvus in use in the watermarks."""
    return store_name(config.online_store.uri, config.online_store.db_name)


class TriptychOnlineStore(OnlineStore):  # type: ignore[misc]
    """Reads and writes Feast views through one `MilvusCore` per process and address."""

    def __init__(self) -> None:
        self._core: tuple[str, MilvusCore] | None = None

    def core(self, config: RepoConfig) -> MilvusCore:
        """The connection; a new one where Milvus was started again elsewhere. Raises `StoreUnavailable`."""
        settings = config.online_store
        home = home_of(settings)
        uri = milvus_uri(home, settings.uri)
        if self._core is None or self._core[0] != uri:
            self._core = (
                uri,
                connect(
                    home,
                    settings.timeout_seconds,
                    uri=settings.uri,
                    token=settings.token.get_secret_value(),
                    user=settings.user,
                    password=settings.password.get_secret_value(),
                    db=settings.db_name,
                    ca_file=settings.ca_file,
                    channels=settings.channels,
                ),
            )
        return self._core[1]

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads run on the event loop; writes on worker threads."""
        return SupportedAsyncMethods(read=True, write=True)

    # Views

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],  # noqa: ARG002 - Feast's signature
        entities_to_keep: Sequence[Entity],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """Create what is missing, add what can be added, drop by exact name. Raises `SchemaDriftError` before anything is changed."""
        core, leases = self.core(config), leases_of(config)
        wanted = [view_schema(view) for view in tables_to_keep if getattr(view, "online", True)]  # label views too
        existing = core.list_views()
        changes = [change_of(core, schema, existing) for schema in wanted]
        with ThreadPoolExecutor(VIEWS_AT_ONCE) as pool:
            list(pool.map(lambda change: make(core, change, leases, WAIT_FOR_WRITER_SECONDS), changes))
        _drop(core, leases, tables_to_delete)

    def plan(self, config: RepoConfig, desired_registry_proto: Registry) -> list[Any]:
        """Print what `feast apply` would change in Milvus; Feast itself shows only what its own stores would."""
        core = self.core(config)
        registry = desired_registry_proto
        views = [
            *map(FeatureView.from_proto, registry.feature_views),
            *map(StreamFeatureView.from_proto, registry.stream_feature_views),
            *map(LabelView.from_proto, registry.label_views),
        ]
        existing = core.list_views()
        for view in views:
            if view.online:
                print(f"Milvus: {change_of(core, view_schema(view), existing, strict=False)}")
        return []

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:  # noqa: ARG002
        """Drop the views, by exact name."""
        _drop(self.core(config), leases_of(config), tables)

    # Writing

    @contextmanager
    def writer(
        self, config: RepoConfig, table: FeatureView, *, distinct: bool = False, rewrite: bool = False
    ) -> Iterator[ViewWriter]:
        """The view's only writer for the length of a `with` block. Raises `LeaseError` where another does not end."""
        with (
            leases_of(config).hold(table.name, WAIT_FOR_WRITER_SECONDS) as lease,
            ViewWriter(self.core(config), table.name, lease, distinct=distinct, rewrite=rewrite) as writer,
        ):
            yield writer

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Store rows that Feast made (push sources, other engines); our own engine writes columns instead."""
        with self.writer(config, table) as writer:
            writer.write(rows_table(writer.schema, data))
        if progress is not None:
            progress(len(data))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """`online_write_batch` on a worker thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def delete(
        self,
        config: RepoConfig,
        table: FeatureView,
        ids: Sequence[Named],
        event_timestamp: datetime | None = None,
    ) -> Written:
        """Delete rows as of `event_timestamp` (now): they are missing from then on, and older rows that arrive later stay hidden.

        A row is named by its entity's id, by a mapping of several join keys to their values, or by Feast's EntityKey.
        """
        keys = store_ids(table, ids)
        with self.writer(config, table) as writer:
            writer.delete(keys, [event_timestamp or datetime.now(UTC)] * len(keys))
        return writer.written

    # Reading

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """(event time, features) per key, in order; (None, None) where the row is missing, deleted or older than the view's TTL."""
        ids, names = _asked(table, entity_keys, requested_features)
        return _rows(table, names, self.core(config).read_columns(table.name, ids, [*names, "event_timestamp"]))

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """`online_read` on the running event loop."""
        ids, names = _asked(table, entity_keys, requested_features)
        core = self.core(config)
        return _rows(table, names, await core.read_columns_async(table.name, ids, [*names, "event_timestamp"]))

    def read_vectors(
        self, config: RepoConfig, table: FeatureView, ids: Sequence[Named]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
        """Vectors [n, dim], present [n], event_timestamp us [n], in the order of `ids` (as in `delete`): without a message per value."""
        core = self.core(config)
        if core.describe_view(table.name).vector_field is None:
            raise StoreRequestError(f"view {table.name} has no vector to read")
        return core.read_vectors(table.name, store_ids(table, ids))

    def search(
        self,
        config: RepoConfig,
        table: FeatureView,
        vectors: NDArray[np.float32],
        k: int,
        filter: Filter = None,  # noqa: A002 - the word of Feast's users
        output: Sequence[str] = (),
    ) -> SearchResult:
        """The `k` nearest rows of each query vector [q, dim]: ids, scores and the features in `output`; see `MilvusCore.search`."""
        return self.core(config).search(table.name, vectors, k, filter, output)

    def retrieve_online_documents_v2(
        self,
        config: RepoConfig,
        table: FeatureView,
        requested_features: list[str] | None,
        embedding: list[float] | None,
        top_k: int,
        distance_metric: str | None = None,
        query_string: str | None = None,
        filters: Filter = None,
        include_feature_view_version_metadata: bool = False,  # noqa: ARG002 - Feast's signature
    ) -> list[tuple[datetime | None, EntityKey | None, dict[str, Value] | None]]:
        """The `top_k` nearest rows with their own features and score, as feature `distance`, best first.

        Raises `StoreRequestError` for text queries, and for another metric than the view's.
        """
        schema = self.core(config).describe_view(table.name)
        if embedding is None or query_string is not None:
            raise StoreRequestError(f"view {table.name} is searched by vectors; keyword search is not offered")
        if distance_metric and distance_metric.upper() != schema.metric:
            raise StoreRequestError(f"view {table.name} is indexed for {schema.metric}, not {distance_metric}")
        names = [name for name in requested_features or [] if name in {f.name for f in table.features}]
        query = np.asarray([embedding], np.float32)
        found = self.search(config, table, query, top_k, filters, [*names, "event_timestamp"])
        rows = _rows(table, names, {name: values[0] for name, values in found.fields.items()})
        return [
            (time, entity_key(table, key), {**(features or {}), "distance": Value(float_val=score)})
            for key, score, (time, features) in zip(found.ids[0], found.scores[0], rows, strict=True)
        ]

    async def close(self) -> None:
        """Close the connections."""
        if self._core is not None:
            await self._core[1].channel.close_async()
            self._core[1].close()
            self._core = None


def _drop(core: MilvusCore, leases: Leases, views: Sequence[FeatureView]) -> None:
    """Drop the views by exact name, and what a rebuild of them that ended half-way has left."""
    for view in views:
        with leases.hold(view.name, WAIT_FOR_WRITER_SECONDS):
            for name in (view.name, view.name + NEW, view.name + OLD):
                core.drop_view(name)


def _asked(
    table: FeatureView, entity_keys: Sequence[EntityKey], requested: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Ids and feature names of a read."""
    return [entity_id(key) for key in entity_keys], list(requested or (feature.name for feature in table.features))


def _rows(table: FeatureView, names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[ReadRow]:
    times = columns["event_timestamp"]
    features = value_rows(table, names, columns) if names else [{} for _ in times]
    return [
        (None, None) if us is None else (_EPOCH + timedelta(microseconds=us), row)
        for us, row in zip(times, features, strict=True)
    ]

"""Feast's online store on the columnar Milvus core: a thin adapter, usable from any Feast repository.

online_store:
type: feature_store.feast_online.TriptychOnlineStore
home: ../.triptych    # whose milvus.json to read; TRIPTYCH_MILVUS_URI wins
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from pydantic import field_validator

from feature_store.connection import connect, milvus_uri
from feature_store.feast_types import entity_id, rows_table, value_row, view_schema
from feature_store.home import FEAST_YAML_VARIABLE, HOME_VARIABLE, Home, find_home
from feature_store.lease import Leases
from feature_store.milvus_core import MilvusCore

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WAIT_FOR_WRITER_SECONDS = 60.0


class TriptychOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Settings under `online_store` in `feature_store.yaml`."""

    type: Literal["feature_store.feast_online.TriptychOnlineStore"] = "feature_store.feast_online.TriptychOnlineStore"
    home: str | None = None
    """Root folder, relative to the repository; found as the `triptych` command finds it where left out."""

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


class TriptychOnlineStore(OnlineStore):  # type: ignore[misc]
    """Reads and writes Feast views through one `MilvusCore` per process and address."""

    def __init__(self) -> None:
        self._core: tuple[str, MilvusCore] | None = None

    def core(self, config: RepoConfig) -> MilvusCore:
        """The connection; a new one where Milvus was started again elsewhere. Raises `StoreUnavailable`."""
        home = home_of(config.online_store)
        uri = milvus_uri(home)
        if self._core is None or self._core[0] != uri:
            self._core = (uri, connect(home))
        return self._core[1]

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads and writes are offered on the event loop too, on worker threads."""
        return SupportedAsyncMethods(read=True, write=True)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],  # noqa: ARG002 - Feast's signature
        entities_to_keep: Sequence[Entity],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """Create what is missing, check what is there, drop by exact name. Raises `SchemaDriftError`, before anything is changed."""
        core = self.core(config)
        wanted = [view_schema(view) for view in tables_to_keep if isinstance(view, FeatureView) and view.online]
        existing = set(core.list_views())
        for schema in wanted:
            if schema.name in existing:
                core.check_drift(schema)
        for schema in wanted:
            core.create_view(schema)
        for view in tables_to_delete:
            core.drop_view(view.name)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:  # noqa: ARG002
        """Drop the views, by exact name."""
        core = self.core(config)
        for view in tables:
            core.drop_view(view.name)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Store rows that Feast made (push sources, other engines); our own engine writes columns instead."""
        with Leases(home_of(config.online_store).leases).hold(table.name, WAIT_FOR_WRITER_SECONDS) as lease:
            self.core(config).upsert(table.name, rows_table(view_schema(table), data), lease=lease)
        if progress is not None:
            progress(len(data))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """`online_write_batch` on a worker thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """(event time, features) per key, in order; (None, None) where the row is missing or deleted."""
        schema = view_schema(table)
        names = requested_features or [feature.name for feature in table.features]
        columns = self.core(config).read_columns(
            table.name, [entity_id(k) for k in entity_keys], [*names, "event_timestamp"]
        )
        rows = zip(columns["event_timestamp"], *(columns[name] for name in names), strict=True)
        return [
            (None, None) if event is None else (_datetime(event), value_row(schema, names, values))
            for event, *values in rows
        ]

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """`online_read` on a worker thread."""
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    async def close(self) -> None:
        """Close the connection."""
        if self._core is not None:
            self._core[1].close()
            self._core = None


def _datetime(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=us)

"""Feast's compute engine for materialization: streams record batches from DuckDB into the columnar core.

An incremental load goes by when rows were made (`created`), so that backfills and late rows are loaded; its first run is unbounded.
An explicit `feast materialize START END` goes by valid time. Sources that are not Parquet files are left to Feast's own engine.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from feast import FeatureView, FileSource
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel

from feature_store.connection import store_name
from feature_store.errors import FeatureStoreError
from feature_store.feast_online import WAIT_FOR_WRITER_SECONDS, TriptychOnlineStore, home_of
from feature_store.feast_source import NewestRows, Window
from feature_store.feast_types import view_schema
from feature_store.lease import Lease, Leases
from feature_store.milvus_core import MilvusCore
from feature_store.watermarks import Watermark, Watermarks

if TYPE_CHECKING:
    from collections.abc import Callable

# What Feast makes of a first run of `materialize-incremental` for a view without a ttl.
FEAST_FIRST_SPAN = timedelta(weeks=52)
CLOCK_SLACK = timedelta(minutes=1)


class TriptychComputeEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Settings under `batch_engine` in `feature_store.yaml`."""

    type: Literal["feature_store.feast_engine.TriptychComputeEngine"] = (
        "feature_store.feast_engine.TriptychComputeEngine"
    )
    home: str | None = None
    """Root folder, which holds leases and watermarks; as for the online store."""
    batch_rows: int = 5_000
    """Rows in memory at a time."""
    overlap_seconds: int = 600
    """How long a writer may take from stamping `created` to publishing a part; rows seen twice are recognised and skipped."""


@dataclass(frozen=True)
class Loaded:
    """What one load of a view did, in rows."""

    stored: int
    unchanged: int


class TriptychComputeEngine(LocalComputeEngine):  # type: ignore[misc]
    """Materializes Parquet sources column by column; `loaded` holds what was done, by view.

    `progress`, where set, is called with (view, rows done, rows in all) in place of Feast's own progress bar.
    """

    def __init__(self, **settings: Any) -> None:
        keep = {name: settings[name] for name in ("repo_config", "offline_store", "online_store")}
        super().__init__(**keep)
        own = {name: value for name, value in settings.items() if name not in keep}
        self.config = TriptychComputeEngineConfig(**own)
        self.loaded: dict[str, Loaded] = {}
        self.progress: Callable[[str, int, int], None] | None = None
        self._started = datetime.now(UTC)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        if not isinstance(self.online_store, TriptychOnlineStore) or not isinstance(view.batch_source, FileSource):
            return super()._materialize_one(registry, task, **kwargs)
        job_id = f"{view.name}-{task.start_time}-{task.end_time}"
        try:
            self.loaded[view.name] = done = self._load(view, task)
        except FeatureStoreError as error:
            return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.ERROR, error=error)
        print(f"{view.name}: {done.stored} rows stored, {done.unchanged} there already")
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)

    def _load(self, view: FeatureView, task: MaterializationTask) -> Loaded:
        core = self.online_store.core(self.repo_config)
        schema = view_schema(view)
        core.check_drift(schema)
        home = home_of(self.config)
        marks = Watermarks(home.leases, store_name())
        window = self._window(view, task, None if core.count(view.name) == 0 else marks.read(task.project, view.name))
        with Leases(home.leases).hold(view.name, WAIT_FOR_WRITER_SECONDS) as lease:
            rows = NewestRows(view, schema, window, self.config.overlap_seconds * 1_000_000)
            try:
                done = self._stream(core, view.name, rows, task, lease)
            finally:
                rows.close()
        if window.start_us is None and rows.created_us is not None:
            marks.write(task.project, view.name, Watermark(rows.created_us, window.end_us))
        return done

    def _stream(self, core: MilvusCore, view: str, rows: NewestRows, task: MaterializationTask, lease: Lease) -> Loaded:
        stored = unchanged = 0
        bar = task.tqdm_builder(rows.count) if task.tqdm_builder and rows.count and not self.progress else None
        try:
            for batch in rows.batches(self.config.batch_rows):
                written = core.upsert(view, batch, lease=lease)
                stored, unchanged = stored + written.stored, unchanged + written.stale
                if bar is not None:
                    bar.update(batch.num_rows)
                if self.progress is not None:
                    self.progress(view, stored + unchanged, rows.count)
        finally:
            if bar is not None:
                bar.close()
        if stored:
            core.flush(view)
        return Loaded(stored, unchanged)

    def _window(self, view: FeatureView, task: MaterializationTask, mark: Watermark | None) -> Window:
        end_us = _us(task.end_time)
        return Window(end_us, mark=mark) if self._is_incremental(view, task) else Window(end_us, _us(task.start_time))

    def _is_incremental(self, view: FeatureView, task: MaterializationTask) -> bool:
        """Whether the start was chosen by Feast rather than by a person: its last end, or now minus a ttl or a year."""
        if view.materialization_intervals:
            return bool(_aware(task.start_time) == _aware(view.most_recent_end_time))
        now_then = _aware(task.start_time) + (view.ttl or FEAST_FIRST_SPAN)
        return bool(self._started - CLOCK_SLACK <= now_then <= datetime.now(UTC) + CLOCK_SLACK)


def _aware(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _us(time: datetime) -> int:
    return (_aware(time) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

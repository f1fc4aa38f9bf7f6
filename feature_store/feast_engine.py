"""Feast's compute engine for materialization: streams record batches from DuckDB into the columnar core.

An incremental load goes by when rows were made (`created`), so that backfills and late rows are loaded; its first run is unbounded.
An explicit `feast materialize START END` goes by valid time. Sources that are not Parquet files are left to Feast's own engine.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel

from feature_store.ahead import ahead
from feature_store.errors import StoreRequestError
from feature_store.feast_online import TriptychOnlineStore, home_of, leases_of, store_of
from feature_store.feast_source import NewestRows, Window, is_local_parquet
from feature_store.feast_types import MICROSECONDS, is_message, view_schema
from feature_store.ledger import ledger_of
from feature_store.watermarks import Watermark, Watermarks
from feature_store.writing import ViewWriter

# What Feast makes of a first run of `materialize-incremental` for a view without a ttl.
FEAST_FIRST_SPAN = timedelta(weeks=52)
CLOCK_SLACK = timedelta(minutes=1)


class TriptychComputeEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Settings under `batch_engine` in `feature_store.yaml`."""

    type: Literal["feature_store.feast_engine.TriptychComputeEngine"] = (
        "feature_store.feast_engine.TriptychComputeEngine"
    )
    batch_rows: int = 5_000
    """Rows in memory at a time."""
    views_at_once: int = 2
    """Views that are loaded in parallel."""
    overlap_seconds: int = 600
    """How long a writer may take from stamping `created` to publishing a part; rows seen twice are recognised and skipped."""


@dataclass(frozen=True)
class Loaded:
    """What one load of a view did, in rows; `total` is what the store holds after it, tombstones too, as counted there."""

    stored: int
    unchanged: int
    total: int


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

    @property
    def supports_batch(self) -> bool:
        """Feast hands over all views at once, which are then loaded in parallel."""
        return True

    def materialize(
        self, registry: BaseRegistry, tasks: MaterializationTask | list[MaterializationTask], **kwargs: Any
    ) -> list[LocalMaterializationJob]:
        """A job per view, in order; those that failed carry their error, with which the command then ends."""
        every = tasks if isinstance(tasks, list) else [tasks]
        with ThreadPoolExecutor(max(1, self.config.views_at_once)) as pool:
            return list(pool.map(lambda task: self._materialize_one(registry, task, **kwargs), every))

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        if not isinstance(self.online_store, TriptychOnlineStore) or not _is_columnar(view):
            return super()._materialize_one(registry, task, **kwargs)
        job_id = f"{view.name}-{task.start_time}-{task.end_time}"
        try:
            self.loaded[view.name] = done = self._load(view, task)
        except Exception as error:  # noqa: BLE001 - Feast raises it once the other views are done
            print(f"{view.name}: failed: {error}")
            return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.ERROR, error=error)
        print(f"{view.name}: {done.stored} rows stored, {done.unchanged} there already; {done.total} verified")
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)

    def _load(self, view: FeatureView, task: MaterializationTask) -> Loaded:
        core, config = self.online_store.core(self.repo_config), self.repo_config
        schema = view_schema(view)
        core.check_drift(schema)
        marks, leases = Watermarks(ledger_of(home_of(config.online_store)), store_of(config)), leases_of(config)

        def must_load_all() -> bool:
            return leases.has_late(view.name) or leases.has_added(view.name)

        def select() -> tuple[Window, NewestRows]:
            mark = marks.read(task.project, view.name)
            if mark is not None and (core.count_rows(view.name) == 0 or must_load_all()):
                mark = None
            window = self._window(view, task, mark)
            overlap_us = self.config.overlap_seconds * MICROSECONDS
            return window, NewestRows(view, schema, window, overlap_us, config.repo_path)

        window, rows = select()  # before the lease is taken, since it may take longer than a lease lasts
        rewrite = leases.has_added(view.name)
        with self.online_store.writer(config, view, distinct=True, rewrite=rewrite) as writer:
            started = leases.now()
            if window.mark is not None and (writer.rows_before == 0 or must_load_all()):
                window, rows = select()
            self._stream(writer, view.name, rows, task)
            total = self._verify(writer, view.name)
            if window.start_us is None and rows.created_us is not None:
                marks.write(task.project, view.name, Watermark(rows.created_us, window.end_us))
                if window.mark is None:
                    leases.forget_late(view.name, started)
                    if rewrite:
                        leases.forget_added(view.name, started)
        return Loaded(writer.written.stored, writer.written.stale, total)

    def _stream(self, writer: ViewWriter, view: str, rows: NewestRows, task: MaterializationTask) -> None:
        done = 0
        with self._bar(task, rows.count) as advance, closing(ahead(rows.batches(self.config.batch_rows))) as batches:
            for batch in batches:
                writer.write(batch)
                done += batch.num_rows
                advance(batch.num_rows)
                if self.progress is not None:
                    self.progress(view, done, rows.count)
        writer.drain()

    @contextmanager
    def _bar(self, task: MaterializationTask, count: int) -> Iterator[Callable[[int], Any]]:
        """Feast's own progress bar, where nobody shows another."""
        if self.progress is not None or not task.tqdm_builder or not count:
            yield lambda _: None
            return
        with closing(task.tqdm_builder(count)) as bar:
            yield bar.update

    def _verify(self, writer: ViewWriter, view: str) -> int:
        """Count the view's rows: those of before, and one for each new id. Then seal what was written."""
        core = self.online_store.core(self.repo_config)
        found: int = core.count_rows(view)
        wanted = (writer.rows_before or 0) + writer.written.new
        if found != wanted:
            raise StoreRequestError(
                f"view {view} holds {found} rows after the load, and {wanted} were acknowledged: materialize it again"
            )
        if writer.written.stored:
            core.seal(view)
        return found

    def _window(self, view: FeatureView, task: MaterializationTask, mark: Watermark | None) -> Window:
        end_us = _us(task.end_time)
        return Window(end_us, mark=mark) if self._is_incremental(view, task) else Window(end_us, _us(task.start_time))

    def _is_incremental(self, view: FeatureView, task: MaterializationTask) -> bool:
        """Whether the start was chosen by Feast rather than by a person: its last end, or now minus a ttl or a year."""
        if view.materialization_intervals:
            return bool(_aware(task.start_time) == _aware(view.most_recent_end_time))
        now_then = _aware(task.start_time) + (view.ttl or FEAST_FIRST_SPAN)
        return bool(self._started - CLOCK_SLACK <= now_then <= datetime.now(UTC) + CLOCK_SLACK)


def _is_columnar(view: FeatureView) -> bool:
    """Whether the view's rows are those of local Parquet files, with nothing to be computed or turned into Feast's messages in between."""
    source = view.batch_source
    if any(getattr(view, name, None) for name in ("feature_transformation", "udf", "aggregations")):
        return False
    if view.entities == [DUMMY_ENTITY_NAME] or any(is_message(feature.dtype) for feature in view.features):
        return False
    return is_local_parquet(source)


def _aware(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _us(time: datetime) -> int:
    return (_aware(time) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

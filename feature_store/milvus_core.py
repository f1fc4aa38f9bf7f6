"""The columnar core: views in Milvus, written and read as columns, newest version first, without Feast.

A row carries its valid time, its making time and a tombstone flag, so that any arrival order ends in the same state. Several writers
of one view need a lease (`lease.py`), since Milvus has no conditional upsert; readers need nothing.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from feature_store.errors import StoreRequestError, StoreUnavailable, ViewNotFoundError
from feature_store.lease import Lease
from feature_store.milvus_batch import Batch, prepare
from feature_store.milvus_channel import INDEX_EXISTS, NOT_LOADED, MilvusChannel
from feature_store.milvus_reply import (
    SearchResult,
    feature_column,
    pairs,
    record_batch,
    search_result,
    stored_names,
    vectors_in_order,
)
from feature_store.milvus_schema import (
    CREATED,
    DELETED,
    EVENT,
    KEY,
    ViewSchema,
    check_drift,
    create_request,
    described,
    index_request,
)
from feature_store.milvus_wire import (
    encode_columns,
    ids_expression,
    placeholder_group,
    quote,
    scalar_values,
)
from feature_store.schemas import Times, as_us, timestamps

READ_IDS_PER_REQUEST: Final = 4_096
WRITE_BYTES_PER_REQUEST: Final = 16 << 20
WRITE_ROWS_PER_REQUEST: Final = 5_000
WRITES_IN_FLIGHT: Final = 2
COUNT_FIRST_ROWS: Final = 500
LIVE: Final = f"{DELETED} == false"
LOAD_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Written:
    """How many rows an upsert stored, and how many were older than what was there."""

    stored: int
    stale: int


class MilvusCore:
    """Views on one Milvus server; safe to share between threads.

    Every method raises `StoreUnavailable` where the server does not answer, and `ViewNotFoundError` where the view is not there.
    """

    def __init__(self, uri: str, *, token: str = "", db: str = "", timeout_seconds: float = 30.0) -> None:
        self.channel = MilvusChannel(uri, token=token, db=db, timeout_seconds=timeout_seconds)
        self._schemas: dict[str, ViewSchema] = {}
        self._written_at: dict[str, int] = {}  # Milvus's own timestamps, by which this process reads its own writes

    # Views

    def create_view(self, schema: ViewSchema) -> None:
        """Create the view, index and load it; where it exists, check it. Raises `SchemaDriftError`."""
        try:
            stored = self.describe_view(schema.name, refresh=True)
        except ViewNotFoundError:
            self.channel.call("CreateCollection", create_request(schema))
            stored = schema
        check_drift(stored, schema)
        # Also where the collection exists: this finishes what a process that died half-way began.
        self._create_index(schema)
        self.load(schema.name)
        self._schemas[schema.name] = schema

    def _create_index(self, schema: ViewSchema) -> None:
        try:
            self.channel.call("CreateIndex", index_request(schema), LOAD_SECONDS)
        except StoreRequestError as error:
            if error.code != INDEX_EXISTS:
                raise

    def describe_view(self, name: str, *, refresh: bool = False) -> ViewSchema:
        """The view's schema, as its collection carries it."""
        if refresh or name not in self._schemas:
            self._schemas.pop(name, None)
            reply = self.channel.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name=name))
            self._schemas[name] = described(reply, name)
        return self._schemas[name]

    def check_drift(self, schema: ViewSchema) -> None:
        """Raise `SchemaDriftError` where the stored view is not `schema`."""
        check_drift(self.describe_view(schema.name, refresh=True), schema)

    def list_views(self) -> list[str]:
        """Names of all collections, sorted."""
        reply = self.channel.call("ShowCollections", milvus_pb2.ShowCollectionsRequest())
        return sorted(reply.collection_names)

    def drop_view(self, name: str) -> bool:
        """Drop exactly this view; False where it was not there."""
        self._schemas.pop(name, None)
        self._written_at.pop(name, None)
        if name not in self.list_views():
            return False
        self.channel.call("DropCollection", milvus_pb2.DropCollectionRequest(collection_name=name))
        return True

    def load(self, name: str) -> None:
        """Load the view into the server's memory and wait for it; after a restart this happens by itself at the first read."""
        self.channel.call(
            "LoadCollection", milvus_pb2.LoadCollectionRequest(collection_name=name, replica_number=1), LOAD_SECONDS
        )
        deadline = time.monotonic() + LOAD_SECONDS
        request = milvus_pb2.GetLoadStateRequest(collection_name=name)
        while self.channel.call("GetLoadState", request).state != common_pb2.LoadStateLoaded:
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"view {name} is not loaded after {LOAD_SECONDS:.0f} s")
            time.sleep(0.1)

    # Writing

    def upsert(self, view: str, rows: pa.RecordBatch | pa.Table, *, lease: Lease | None = None) -> Written:
        """Store the rows that are newer than what is there: later `event_timestamp` wins, then later `created`.

        `rows` has the view's key column, `event_timestamp`, all features, and may have `created` and `deleted`.
        Raises `RefusedRowsError` before anything is written, and `LeaseError` where the lease was lost.
        """
        schema = self.describe_view(view)
        table = pa.table(rows) if isinstance(rows, pa.RecordBatch) else rows
        batch = prepare(schema, table)
        if not len(batch):
            return Written(0, 0)
        requests = [self._upsert_request(schema, part) for part in self._newer_parts(schema, batch)]
        for first in range(0, len(requests), WRITES_IN_FLIGHT):
            if lease is not None:
                lease.check()
            futures = [self.channel.start("Upsert", r) for r in requests[first : first + WRITES_IN_FLIGHT]]
            for future in futures:
                self._wrote(view, self.channel.finish(future))
        stored = sum(request.num_rows for request in requests)
        return Written(stored, len(batch) - stored)

    def _newer_parts(self, schema: ViewSchema, batch: Batch) -> Iterator[Batch]:
        step = max(1, min(WRITE_ROWS_PER_REQUEST, WRITE_BYTES_PER_REQUEST // (4 * schema.stored_dim)))
        # A count may cost the server a pass over the keys, so it is asked for where it can save many reads.
        is_new = len(batch) >= COUNT_FIRST_ROWS and self._count(schema.name, "", strong=True) == 0
        for first in range(0, len(batch), step):
            part = batch.take(np.arange(first, min(first + step, len(batch))))
            newer = part if is_new else part.take(self._newer_rows(schema.name, part))
            if len(newer):
                yield newer

    def _newer_rows(self, view: str, part: Batch) -> NDArray[np.int64]:
        times = {
            key: (event, created)
            for reply in self._query_ids(view, part.keys, [EVENT, CREATED], strong=True)
            for key, event, created in zip(*(scalar_values(reply[name]) for name in (KEY, EVENT, CREATED)), strict=True)
        }
        mine = zip(part.keys, part.event_us.tolist(), part.created_us.tolist(), strict=True)
        return np.asarray(
            [i for i, (key, *at) in enumerate(mine) if key not in times or tuple(at) > times[key]], np.int64
        )

    @staticmethod
    def _upsert_request(schema: ViewSchema, part: Batch) -> milvus_pb2.UpsertRequest:
        columns = encode_columns(schema, part.keys, part.table, part.vectors)
        return milvus_pb2.UpsertRequest(collection_name=schema.name, fields_data=columns, num_rows=len(part))

    def _wrote(self, view: str, reply: milvus_pb2.MutationResult) -> None:
        self._written_at[view] = max(self._written_at.get(view, 0), reply.timestamp)

    def delete(self, view: str, ids: Sequence[str], event_timestamp: Times, *, lease: Lease | None = None) -> Written:
        """Store tombstones: from `event_timestamp` on these ids are missing, and older rows that arrive later stay hidden."""
        schema = self.describe_view(view)
        columns: dict[str, Any] = {
            schema.key: pa.array(ids, pa.string()),
            "event_timestamp": timestamps(as_us(event_timestamp, len(ids))),
            "deleted": pa.array(np.ones(len(ids), np.bool_)),
            **{name: pa.nulls(len(ids), arrow) for name, arrow in schema.fields.items()},
        }
        if schema.vector_field:
            columns[schema.vector_field] = pa.nulls(len(ids), pa.list_(pa.float32()))
        return self.upsert(view, pa.table(columns), lease=lease)

    def flush(self, view: str, timeout_seconds: float = 60.0) -> None:
        """Seal what was written and wait for it: searches over sealed rows are an order of magnitude faster."""
        reply = self.channel.call("Flush", milvus_pb2.FlushRequest(collection_names=[view]), timeout_seconds)
        request = milvus_pb2.GetFlushStateRequest(
            segmentIDs=reply.coll_segIDs[view].data, flush_ts=reply.coll_flush_ts.get(view, 0), collection_name=view
        )
        deadline = time.monotonic() + timeout_seconds
        while not self.channel.call("GetFlushState", request).flushed:
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"view {view} is not flushed after {timeout_seconds:.0f} s")
            time.sleep(0.1)

    # Reading

    def read_vectors(
        self, view: str, ids: Sequence[str], *, strong: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
        """Vectors [n, dim], present [n], event_timestamp us [n], in the order of `ids`; zeros where missing or deleted.

        `strong` waits until everything written anywhere before the call is visible; else reads may lag other processes' writes.
        """
        schema = self.describe_view(view)
        replies = self._query_ids(view, ids, [EVENT, DELETED, schema.stored_vector], strong=strong)
        return vectors_in_order(schema, ids, replies)

    async def read_vectors_async(
        self, view: str, ids: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
        """`read_vectors` on the running event loop."""
        known = self._schemas.get(view)
        schema = known if known is not None else await asyncio.to_thread(self.describe_view, view)
        requests = self._id_requests(view, ids, [EVENT, DELETED, schema.stored_vector], strong=False)
        replies = await asyncio.gather(*(self._query_async(view, request) for request in requests))
        return vectors_in_order(schema, ids, replies)

    def read_columns(
        self, view: str, ids: Sequence[str], fields: Sequence[str], *, strong: bool = False
    ) -> dict[str, list[Any]]:
        """Features as Python values in the order of `ids`, None where missing; timestamps are microseconds.

        `event_timestamp` and `created` may be asked for too, and the vector, which comes as a float32 [dim] array per id.
        """
        schema = self.describe_view(view)
        replies = self._query_ids(view, ids, [DELETED, *stored_names(schema, fields)], strong=strong)
        rows: dict[str, list[Any]] = {}
        for reply in replies:
            columns = [feature_column(schema, reply, name) for name in fields]
            gone, keys = scalar_values(reply[DELETED]), scalar_values(reply[KEY])
            rows.update((key, row) for key, dead, *row in zip(keys, gone, *columns, strict=True) if not dead)
        nothing = [None] * len(fields)
        found = [rows.get(i, nothing) for i in ids]
        return {name: [row[at] for row in found] for at, name in enumerate(fields)}

    def scan(self, view: str, fields: Sequence[str] = (), batch: int = 4_096) -> Iterator[pa.RecordBatch]:
        """All live rows in batches, ordered by id: the view's key, `event_timestamp`, and the features or vector asked for."""
        schema = self.describe_view(view)
        names = [EVENT, DELETED, *stored_names(schema, fields)]
        last: str | None = None
        while True:
            where = f"{KEY} > {quote(last)}" if last is not None else f'{KEY} > ""'
            reply = self._query(view, self._page_request(view, where, names, batch))
            keys = list(scalar_values(reply[KEY])) if KEY in reply else []
            if keys:
                yield record_batch(schema, fields, reply)
            if len(keys) < batch:
                return
            last = keys[-1]

    def search(
        self,
        view: str,
        vectors: NDArray[np.float32],
        k: int,
        expr: str = "",
        fields: Sequence[str] = (),
        params: Mapping[str, object] | None = None,
    ) -> SearchResult:
        """The `k` nearest live rows of each query vector [q, dim], best first; `expr` filters by features, in Milvus's language.

        `params` overrides the view's search parameters, such as `{"ef": 64}`.
        """
        schema = self.describe_view(view)
        queries = np.atleast_2d(np.asarray(vectors, np.float32))
        if queries.shape[1] != schema.dim:
            raise StoreRequestError(f"queries of view {view} must be [q, {schema.dim}], not {list(queries.shape)}")
        request = self._search_request(schema, queries, k, expr, fields, params)
        results = self._loaded(view, lambda: self.channel.call("Search", request)).results
        return search_result(schema, results, len(queries), fields)

    def count(self, view: str) -> int:
        """How many live rows the view has, as of now."""
        return self._count(view, "", strong=True) - self._count(view, f"{DELETED} == true", strong=True)

    def healthy(self) -> bool:
        """Whether the server answers."""
        return self.channel.healthy()

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Requests

    def _consistency(self, view: str, *, strong: bool) -> dict[str, int]:
        if strong:
            return {"consistency_level": common_pb2.Strong, "guarantee_timestamp": 0}
        if view in self._written_at:
            return {"consistency_level": common_pb2.Session, "guarantee_timestamp": self._written_at[view]}
        return {"consistency_level": common_pb2.Bounded, "guarantee_timestamp": 2}

    def _search_request(
        self,
        schema: ViewSchema,
        queries: NDArray[np.float32],
        k: int,
        expr: str,
        fields: Sequence[str],
        params: Mapping[str, object] | None,
    ) -> milvus_pb2.SearchRequest:
        defaults: dict[str, object] = {"ef": max(64, 2 * k)} if schema.index == "HNSW" else {}
        options = defaults | dict(params or {})
        parameters = {
            "anns_field": schema.stored_vector,
            "topk": k,
            "metric_type": schema.metric,
            "params": options,
            "round_decimal": -1,
        }
        return milvus_pb2.SearchRequest(
            collection_name=schema.name,
            dsl=f"{LIVE} and ({expr})" if expr else LIVE,
            dsl_type=common_pb2.BoolExprV1,
            placeholder_group=placeholder_group(queries),
            output_fields=stored_names(schema, fields),
            search_params=pairs(parameters),
            nq=len(queries),
            **self._consistency(schema.name, strong=False),
        )

    def _id_requests(
        self, view: str, ids: Sequence[str], fields: Sequence[str], *, strong: bool
    ) -> list[milvus_pb2.QueryRequest]:
        unique = list(dict.fromkeys(ids))
        return [
            milvus_pb2.QueryRequest(
                collection_name=view,
                expr=ids_expression(unique[first : first + READ_IDS_PER_REQUEST]),
                output_fields=fields,
                **self._consistency(view, strong=strong),
            )
            for first in range(0, len(unique), READ_IDS_PER_REQUEST)
        ]

    def _page_request(self, view: str, where: str, names: Sequence[str], limit: int) -> milvus_pb2.QueryRequest:
        # "iterator" asks for the rows with the smallest keys, in order; without it a limit may return any rows.
        pages = pairs({"limit": limit, "iterator": "True", "reduce_stop_for_best": "True"})
        return milvus_pb2.QueryRequest(
            collection_name=view,
            expr=where,
            output_fields=names,
            query_params=pages,
            **self._consistency(view, strong=True),
        )

    def _query_ids(self, view: str, ids: Sequence[str], fields: Sequence[str], *, strong: bool) -> list[dict[str, Any]]:
        return [self._query(view, request) for request in self._id_requests(view, ids, fields, strong=strong)]

    def _query(self, view: str, request: milvus_pb2.QueryRequest) -> dict[str, Any]:
        reply = self._loaded(view, lambda: self.channel.call("Query", request))
        return {data.field_name: data for data in reply.fields_data}

    async def _query_async(self, view: str, request: milvus_pb2.QueryRequest) -> dict[str, Any]:
        try:
            reply = await self.channel.call_async("Query", request)
        except StoreRequestError as error:
            if error.code != NOT_LOADED:
                raise
            await asyncio.to_thread(self.load, view)
            reply = await self.channel.call_async("Query", request)
        return {data.field_name: data for data in reply.fields_data}

    def _count(self, view: str, expr: str, *, strong: bool) -> int:
        request = milvus_pb2.QueryRequest(
            collection_name=view, expr=expr, output_fields=["count(*)"], **self._consistency(view, strong=strong)
        )
        return int(scalar_values(self._query(view, request)["count(*)"])[0])

    def _loaded(self, view: str, call: Any) -> Any:
        """`call()`, loading the view and calling again where a restarted server has not loaded it."""
        try:
            return call()
        except StoreRequestError as error:
            if error.code != NOT_LOADED:
                raise
            self.load(view)
            return call()

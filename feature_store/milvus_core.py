"""The columnar core: views in Milvus, written and read as columns, newest version first, without Feast.

A row carries its valid time, its making time and a tombstone flag, so that any arrival order ends in the same state. Several writers
of one view need a lease (`lease.py`), since Milvus has no conditional upsert; readers need nothing. Writing itself is `writing.py`.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from feature_store.errors import StoreRequestError, StoreUnavailable, ViewNotFoundError
from feature_store.heap import keep_large_buffers
from feature_store.lease import Lease
from feature_store.milvus_batch import checked_queries
from feature_store.milvus_channel import INDEX_EXISTS, NOT_LOADED, MilvusChannel
from feature_store.milvus_filters import Filter, expression
from feature_store.milvus_reply import (
    SearchResult,
    columns_in_order,
    pairs,
    record_batch,
    search_result,
    stored_names,
    vectors_in_order,
)
from feature_store.milvus_schema import (
    DELETED,
    EVENT,
    KEY,
    ViewSchema,
    alter_request,
    check_drift,
    create_request,
    described,
    drift,
    index_request,
)
from feature_store.milvus_wire import ids_expression, placeholder_group, quote, scalar_values
from feature_store.schemas import Times, now_us
from feature_store.writing import ViewWriter, Written

READ_IDS_PER_REQUEST: Final = 4_096
LIVE: Final = f"{DELETED} == false"
LOAD_SECONDS: Final = 120.0
REPLACED_RETRY_SECONDS: Final = 0.2


class MilvusCore:
    """Views on one Milvus server; safe to share between threads.

    Every method raises `StoreUnavailable` where the server does not answer, and `ViewNotFoundError` where the view is not there.
    """

    def __init__(self, uri: str, **connection: Any) -> None:
        """`connection` holds what `MilvusChannel` takes: credentials, database, CA file, timeout, number of channels."""
        keep_large_buffers()
        self.channel = MilvusChannel(uri, **connection)
        self._schemas: dict[str, ViewSchema] = {}
        self._known: set[str] = set()  # names of views that were seen
        self._written_at: dict[str, int] = {}  # Milvus's own timestamps, by which this process reads its own writes

    # Views

    def create_view(self, schema: ViewSchema) -> None:
        """Create the view, index and load it; where it exists, check it and change what its rows do not depend on.

        Raises `SchemaDriftError` for every other difference; new features are added by `rebuilding.rebuild`.
        """
        try:
            stored = self.describe_view(schema.name, refresh=True)
        except ViewNotFoundError:
            self.channel.call("CreateCollection", create_request(schema))
            stored = schema
        check_drift(stored, schema)
        if drift(stored, schema):
            self.channel.call("AlterCollection", alter_request(schema))
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
            self._known.add(name)
        return self._schemas[name]

    def check_drift(self, schema: ViewSchema) -> None:
        """Raise `SchemaDriftError` where the stored view is not `schema`."""
        check_drift(self.describe_view(schema.name, refresh=True), schema)

    def rename_view(self, name: str, new: str) -> None:
        """Give a view another name, which must be free."""
        self.channel.call("RenameCollection", milvus_pb2.RenameCollectionRequest(oldName=name, newName=new))
        self._schemas.pop(name, None)
        self._written_at.pop(name, None)

    def list_views(self) -> list[str]:
        """Names of all collections, sorted."""
        reply = self.channel.call("ShowCollections", milvus_pb2.ShowCollectionsRequest())
        return sorted(reply.collection_names)

    def drop_view(self, name: str) -> bool:
        """Drop exactly this view; False where it was not there."""
        self._schemas.pop(name, None)
        self._known.discard(name)
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
        """Store the rows that are newer than what is there, and wait for it; see `ViewWriter.write`."""
        with ViewWriter(self, view, lease) as writer:
            writer.write(rows)
        return writer.written

    def delete(self, view: str, ids: Sequence[str], event_timestamp: Times, *, lease: Lease | None = None) -> Written:
        """Store tombstones and wait for it; see `ViewWriter.delete`."""
        with ViewWriter(self, view, lease) as writer:
            writer.delete(list(ids), event_timestamp)
        return writer.written

    def wrote(self, view: str, timestamp: int) -> None:
        """Note a write's time, in Milvus's own measure, so that this process reads its own writes."""
        self._written_at[view] = max(self._written_at.get(view, 0), timestamp)

    def seal(self, view: str, timeout_seconds: float = 60.0) -> milvus_pb2.FlushResponse:
        """Let nothing more into the segments that were written, so that the server stores and indexes them, which is not waited for.

        What was acknowledged is in the server's log already; searches over indexed segments are an order of magnitude faster.
        """
        return self.channel.call("Flush", milvus_pb2.FlushRequest(collection_names=[view]), timeout_seconds)

    def flush(self, view: str, timeout_seconds: float = 60.0) -> None:
        """`seal`, and wait until everything is in the server's files."""
        reply = self.seal(view, timeout_seconds)
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
        schema = await self._describe_async(view)
        requests = self.id_requests(view, ids, [EVENT, DELETED, schema.stored_vector], strong=False)
        replies = await asyncio.gather(*(self._query_async(view, request) for request in requests))
        return vectors_in_order(schema, ids, replies)

    def read_columns(
        self, view: str, ids: Sequence[str], fields: Sequence[str], *, strong: bool = False
    ) -> dict[str, list[Any]]:
        """Features as Python values in the order of `ids`, None where missing; timestamps are microseconds.

        `event_timestamp` and `created` may be asked for too, and the vector, which comes as a float32 [dim] array per id.
        """
        schema = self.describe_view(view)
        names = list(dict.fromkeys([EVENT, DELETED, *stored_names(schema, fields)]))
        return columns_in_order(schema, ids, fields, self._query_ids(view, ids, names, strong=strong))

    async def read_columns_async(self, view: str, ids: Sequence[str], fields: Sequence[str]) -> dict[str, list[Any]]:
        """`read_columns` on the running event loop."""
        schema = await self._describe_async(view)
        names = list(dict.fromkeys([EVENT, DELETED, *stored_names(schema, fields)]))
        requests = self.id_requests(view, ids, names, strong=False)
        replies = await asyncio.gather(*(self._query_async(view, request) for request in requests))
        return columns_in_order(schema, ids, fields, replies)

    def scan(self, view: str, fields: Sequence[str] = (), batch: int = 4_096) -> Iterator[pa.RecordBatch]:
        """All live rows in batches, ordered by id: the view's key, `event_timestamp`, and the features or vector asked for."""
        schema = self.describe_view(view)
        for reply in self.pages(view, [EVENT, DELETED, *stored_names(schema, fields)], batch):
            yield record_batch(schema, fields, reply)

    def pages(self, view: str, names: Sequence[str], rows: int = 4_096) -> Iterator[dict[str, Any]]:
        """All rows as stored, tombstones too, ordered by id: replies of at most `rows` rows with the collection's fields `names`."""
        last: str | None = None
        while True:
            where = f"{KEY} > {quote(last)}" if last is not None else f'{KEY} > ""'
            reply = self._query(view, self._page_request(view, where, names, rows))
            keys = scalar_values(reply[KEY]) if KEY in reply else []
            if keys:
                yield reply
            if len(keys) < rows:
                return
            last = keys[-1]

    def search(
        self,
        view: str,
        vectors: NDArray[np.float32],
        k: int,
        where: Filter = None,
        fields: Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
    ) -> SearchResult:
        """The `k` nearest live rows of each query vector [q, dim], best first, with their own scores.

        Args:
            view: name of the view.
            vectors: queries, float32 [q, dim], or [dim] for one.
            k: hits per query, at most.
            where: a filter by features (`milvus_filters`); a text is taken as an expression in Milvus's own language.
            fields: features to return with each hit; `event_timestamp`, `created` and the vector may be asked for too.
            params: search parameters in place of the view's own, such as `{"ef": 200}`.

        Raises:
            StoreRequestError: the queries' dim or a field is not the view's, a query is not finite, or the filter does not fit the view.
        """
        schema = self.describe_view(view)
        queries = checked_queries(schema, vectors, k)
        options = schema.search_options(k, params)
        request = self._search_request(schema, queries, k, self._visible(schema, where), fields, options)
        results = self._loaded(view, lambda: self.channel.call("Search", request)).results
        return search_result(schema, results, len(queries), fields)

    @staticmethod
    def _visible(schema: ViewSchema, where: Filter) -> str:
        """The rows that a search may find, as an expression."""
        clauses = [LIVE]
        if schema.ttl_us is not None:
            clauses.append(f"{EVENT} >= {now_us() - schema.ttl_us}")
        if where is not None and where != "":
            clauses.append(f"({expression(schema, where)})")
        return " and ".join(clauses)

    def count(self, view: str) -> int:
        """How many rows the view has that are not deleted, as of now."""
        return self.count_rows(view) - self._count(view, f"{DELETED} == true")

    def count_rows(self, view: str) -> int:
        """How many rows the view has, tombstones too, as of now."""
        return self._count(view, "")

    def start_count_rows(self, view: str) -> Callable[[], int]:
        """`count_rows`, asked for now; what is returned waits for the answer."""
        reply = self.start_query(view, self._count_request(view, ""))
        return lambda: _counted(reply())

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
        where: str,
        fields: Sequence[str],
        options: Mapping[str, Any],
    ) -> milvus_pb2.SearchRequest:
        parameters = {
            "anns_field": schema.stored_vector,
            "topk": k,
            "metric_type": schema.metric,
            "params": options,
            "round_decimal": -1,
        }
        return milvus_pb2.SearchRequest(
            collection_name=schema.name,
            dsl=where,
            dsl_type=common_pb2.BoolExprV1,
            placeholder_group=placeholder_group(queries),
            output_fields=stored_names(schema, fields),
            search_params=pairs(parameters),
            nq=len(queries),
            **self._consistency(schema.name, strong=False),
        )

    def id_requests(
        self, view: str, ids: Sequence[str], fields: Sequence[str], *, strong: bool
    ) -> list[milvus_pb2.QueryRequest]:
        """Queries for the rows of `ids`, each for as many as one reply should hold."""
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
        requests = self.id_requests(view, ids, fields, strong=strong)
        if len(requests) == 1:
            return [self._query(view, requests[0])]
        waiting = [self.start_query(view, request) for request in requests]
        return [wait() for wait in waiting]

    def start_query(self, view: str, request: milvus_pb2.QueryRequest) -> Callable[[], dict[str, Any]]:
        """Send a query; what is returned waits for its reply, asking again where the view must be loaded or was swapped.

        It may be called again where it raised, and then sends the query anew.
        """
        first = iter([self.channel.start("Query", request)])

        def send() -> Any:
            future = next(first, None)
            return self.channel.finish(future) if future is not None else self.channel.call("Query", request)

        return lambda: _by_name(self._loaded(view, send))

    def _query(self, view: str, request: milvus_pb2.QueryRequest) -> dict[str, Any]:
        return _by_name(self._loaded(view, lambda: self.channel.call("Query", request)))

    async def _describe_async(self, view: str) -> ViewSchema:
        known = self._schemas.get(view)
        return known if known is not None else await asyncio.to_thread(self.describe_view, view)

    async def _query_async(self, view: str, request: milvus_pb2.QueryRequest) -> dict[str, Any]:
        try:
            return _by_name(await self.channel.call_async("Query", request))
        except (StoreRequestError, ViewNotFoundError) as error:
            await asyncio.to_thread(self._mend, view, error)
        return _by_name(await self.channel.call_async("Query", request))

    def _count(self, view: str, expr: str) -> int:
        return _counted(self._query(view, self._count_request(view, expr)))

    def _count_request(self, view: str, expr: str) -> milvus_pb2.QueryRequest:
        strong = self._consistency(view, strong=True)
        return milvus_pb2.QueryRequest(collection_name=view, expr=expr, output_fields=["count(*)"], **strong)

    def _loaded(self, view: str, call: Callable[[], Any]) -> Any:
        """`call()`, and once more where the view had to be loaded first, or was being swapped for a rebuilt one."""
        try:
            return call()
        except (StoreRequestError, ViewNotFoundError) as error:
            self._mend(view, error)
            return call()

    def _mend(self, view: str, error: StoreRequestError | ViewNotFoundError) -> None:
        """Do what a second try needs, or raise the error."""
        if isinstance(error, ViewNotFoundError):
            if view not in self._known:
                raise error
            self._schemas.pop(view, None)  # It was here: a rebuilt one may be taking its place at this moment.
            time.sleep(REPLACED_RETRY_SECONDS)
        elif error.code == NOT_LOADED:
            self.load(view)
        else:
            raise error


def _counted(reply: dict[str, Any]) -> int:
    return int(scalar_values(reply["count(*)"])[0])


def _by_name(reply: Any) -> dict[str, Any]:
    return {data.field_name: data for data in reply.fields_data}

"""The one way by which rows get into a view: materialisation, pushes and deletions all go through `ViewWriter`.

It checks rows, drops those that are older than what is stored, and keeps several requests under way, so that checking, encoding, looking
up and storing overlap. Who may write is the lease's business; what a row looks like on the wire is `milvus_wire`'s.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa
import structlog
import tenacity

from feature_store.errors import FeatureStoreError, LateWriteError, StoreRequestError, StoreUnavailable
from feature_store.lease import LATE_SECONDS, Lease
from feature_store.milvus_batch import Batch, prepare
from feature_store.milvus_schema import CREATED, EVENT, KEY, ViewSchema
from feature_store.milvus_wire import scalar_values, upsert_request
from feature_store.schemas import Times, as_us, timestamps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feature_store.milvus_core import MilvusCore

WRITE_BYTES_PER_REQUEST: Final = 16 << 20  # of vectors
MAX_REQUEST_BYTES: Final = 48 << 20  # Milvus takes 64 MiB
WRITE_ROWS_PER_REQUEST: Final = 5_000
WRITES_IN_FLIGHT: Final = 2
LOOKS_IN_FLIGHT: Final = 2
RETRY_SECONDS: Final = 60.0
RATE_LIMITED: Final = 8  # Milvus's code for a request to be sent again later

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Written:
    """How many rows were stored, how many were older than what was there, and how many of the stored have a new id."""

    stored: int
    stale: int
    new: int = field(default=0, compare=False)

    def __add__(self, other: "Written") -> "Written":
        return Written(self.stored + other.stored, self.stale + other.stale, self.new + other.new)


@dataclass(frozen=True)
class _Look:
    """Rows whose stored versions have been asked for; `wait` gives id -> (event, created) of those there are."""

    batch: Batch
    wait: Callable[[], dict[str, tuple[int, int]]]


@dataclass(frozen=True)
class _Sent:
    """An upsert under way."""

    request: bytes
    rows: int
    future: Any


class ViewWriter:
    """Writes one view; a context manager that waits for what is under way. Not to be shared between threads.

    Args:
        core: the connection.
        view: name of the view, which must exist.
        lease: the right to write it; without one the caller vouches for being the only writer.
        distinct: the caller promises that no id occurs in two calls, so that a call need not wait for the one before.
        rewrite: rows that are there already, with the same times, are written again: they may bring features that were added since.

    Raises:
        ViewNotFoundError: there is no such view.
        StoreUnavailable: Milvus has not answered for `RETRY_SECONDS`.
    """

    def __init__(
        self,
        core: "MilvusCore",
        view: str,
        lease: Lease | None = None,
        *,
        distinct: bool = False,
        rewrite: bool = False,
    ) -> None:
        self.schema: ViewSchema = core.describe_view(view, refresh=True)
        self.written = Written(0, 0)
        self._core, self._view, self._lease, self._distinct = core, view, lease, distinct
        self._rewrite = rewrite
        self._step = max(1, min(WRITE_ROWS_PER_REQUEST, WRITE_BYTES_PER_REQUEST // (4 * self.schema.stored_dim)))
        self._looks: deque[_Look] = deque()
        self._sent: deque[_Sent] = deque()
        self._is_unsure = False  # whether a request was sent whose outcome is not known
        self._counting = core.start_count_rows(view) if distinct else None

    @cached_property
    def rows_before(self) -> int | None:
        """Rows of the view when the writer began, tombstones too; None where it was not asked for (`distinct`)."""
        return None if self._counting is None else self._counting()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self._settle()

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Store the rows that are newer than what is there: later `event_timestamp` wins, then later `created`.

        `rows` has the view's key column, `event_timestamp`, all features, and may have `created` and `deleted`. Raises
        `RefusedRowsError` naming the row before anything of `rows` is written, and `LeaseError` where the lease was lost.
        """
        table = pa.table(rows) if isinstance(rows, pa.RecordBatch) else rows
        batch = prepare(self.schema, table)
        parts = [self._look(part) for part in self._parts(batch)]
        for look in parts:
            self._looks.append(look)
            while len(self._looks) > LOOKS_IN_FLIGHT:
                self._send(self._looks.popleft())
        if not self._distinct:
            self.drain()

    def delete(self, ids: list[str], event_timestamp: Times) -> None:
        """Store tombstones: from `event_timestamp` on these ids are missing, and older rows that arrive later stay hidden."""
        columns: dict[str, Any] = {
            self.schema.key: pa.array(ids, pa.string()),
            "event_timestamp": timestamps(as_us(event_timestamp, len(ids))),
            "deleted": pa.array(np.ones(len(ids), np.bool_)),
            **{name: pa.nulls(len(ids), arrow) for name, arrow in self.schema.fields.items()},
        }
        if self.schema.vector_field:
            columns[self.schema.vector_field] = pa.nulls(len(ids), pa.list_(pa.float32()))
        self.write(pa.table(columns))

    def drain(self) -> None:
        """Wait until everything is stored. Raises what a request failed with."""
        while self._looks:
            self._send(self._looks.popleft())
        while self._sent:
            self._finish_first()

    def _finish_first(self) -> None:
        self._finish(
            self._sent[0]
        )  # Still among those under way while it is waited for: an interrupt must not lose it.
        self._sent.popleft()

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        for first in range(0, len(batch), self._step):
            yield batch.slice(first, min(self._step, len(batch) - first))

    def _look(self, part: Batch) -> _Look:
        """Ask for the stored versions of a part, without waiting for the reply."""
        if self.rows_before == 0:  # Nobody else writes under the lease: nothing needs to be looked up.
            return _Look(part, dict)
        replies = [
            self._core.start_query(self._view, request)
            for request in self._core.id_requests(self._view, part.keys, [EVENT, CREATED], strong=True)
        ]
        return _Look(part, lambda: {k: v for reply in replies for k, v in _times(self._retried(reply))})

    def _send(self, look: _Look) -> None:
        stored = look.wait()
        newer = _newer(look.batch, stored, rewrite=self._rewrite) if stored else look.batch
        new = sum(key not in stored for key in newer.keys) if stored else len(newer)
        self.written += Written(len(newer), len(look.batch) - len(newer), new)
        if not len(newer):
            return
        self._send_rows(newer)

    def _send_rows(self, rows: Batch) -> None:
        """Send rows in one request, or in halves where long texts and lists make it too large for one."""
        request = upsert_request(self.schema, rows.keys, rows.table, rows.vectors)
        if len(request) > MAX_REQUEST_BYTES and len(rows) > 1:
            half = len(rows) // 2
            self._send_rows(rows.slice(0, half))
            self._send_rows(rows.slice(half, len(rows) - half))
            return
        while len(self._sent) >= WRITES_IN_FLIGHT:
            self._finish_first()
        self._sent.append(_Sent(request, len(rows), self._start(request)))

    def _start(self, request: bytes) -> Any:
        timeout = min(self._core.channel.timeout_seconds, LATE_SECONDS / 2)
        if self._lease is not None:
            self._lease.check()
            timeout = min(timeout, self._lease.remaining_seconds())
        return self._core.channel.start_upsert(request, timeout)

    def _finish(self, sent: _Sent) -> None:
        """Wait for an upsert, sending it again where that may help: the same rows a second time change nothing."""
        futures = iter([sent.future])
        reply = self._retried(lambda: self._reply(next(futures, None) or self._start(sent.request)))
        if reply.upsert_cnt != sent.rows:
            raise StoreRequestError(f"view {self._view}: {reply.upsert_cnt} of {sent.rows} rows were stored")
        self._core.wrote(self._view, reply.timestamp)
        self._confirm()

    def _confirm(self) -> None:
        """Raise `LateWriteError` where the view was another writer's before the last answer came; that is then remembered."""
        if self._lease is not None and not self._lease.confirm():
            raise LateWriteError(
                f"the lease of view {self._view} ended while rows were being written, and another writer has it: older rows may "
                "lie over newer ones. The next materialization of the view is a full one, which mends it"
            )

    def _reply(self, future: Any) -> Any:
        was_unsure, self._is_unsure = (
            self._is_unsure,
            True,
        )  # Without an answer it may be stored yet, later than what is written next.
        try:
            reply = self._core.channel.finish(future)
        except StoreRequestError as error:
            self._is_unsure = was_unsure or error.code == 0  # A code is Milvus's own answer.
            raise
        self._is_unsure = was_unsure
        return reply

    def _settle(self) -> None:
        """Wait for what an error left under way, since the lease is given back next; what may come late is remembered."""
        self._looks.clear()
        was_cut_short = bool(self._sent)
        while self._sent:
            with suppress(FeatureStoreError):
                self._reply(self._sent.popleft().future)
        if self._lease is not None and self._is_unsure:
            self._lease.remember_late()
        if was_cut_short:
            self._confirm()

    def _retried(self, call: Callable[[], Any]) -> Any:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5.0),
            stop=tenacity.stop_after_delay(RETRY_SECONDS),
            before_sleep=self._tell,
            reraise=True,
        )(call)

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("a write is tried again", view=self._view, attempt=state.attempt_number, error=str(error))


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, StoreRequestError):
        return error.code == RATE_LIMITED or "not ready" in str(error)
    return isinstance(error, StoreUnavailable)


def _times(reply: dict[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    if KEY in reply:
        keys, event, created = (scalar_values(reply[name]) for name in (KEY, EVENT, CREATED))
        yield from zip(keys, zip(event, created, strict=True), strict=True)


def _newer(part: Batch, stored: dict[str, tuple[int, int]], *, rewrite: bool) -> Batch:
    """The rows that are newer than what is stored under their id; with `rewrite` those that are as new, too."""
    mine = zip(part.keys, zip(part.event_us.tolist(), part.created_us.tolist(), strict=True), strict=True)
    nothing = (np.iinfo(np.int64).min, 0)
    rows: NDArray[np.int64] = np.flatnonzero(
        [at > stored.get(key, nothing) or (rewrite and at == stored.get(key)) for key, at in mine]
    )
    return part if len(rows) == len(part) else part.take(rows)

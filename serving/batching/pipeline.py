"""The whole way from a call's items to its vectors.

`Preparer` cleans, looks up, decodes and prepares; an `Inbox` holds what is ready; `Forwarders` forward, finish and settle.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from encoders.decode_pool import DecodePool
from encoders.media import MediaLimits
from encoders.staged import StagedEncoder
from serving.batching.cache import Jobs
from serving.batching.forwarders import Forwarders
from serving.batching.inbox import Inbox
from serving.batching.jobs import Call, Item, RowGroup, UnitRow
from serving.batching.preparing import TEXT, Errand, Preparer
from serving.batching.queue import Lane, Policy
from serving.metrics import Metrics

if TYPE_CHECKING:
    from concurrent.futures import Future

TEXT_THREADS: Final = 1  # a tokenizer does thousands of texts a second


class Pipeline:
    """Threads, queues and cache of one server.

    Args:
        load: makes the encoders; run on a thread of ours, once.
        prepared_bytes: of decoded pictures and sounds that wait for a forward pass; decoding pauses beyond.
        limits: what files the decoders take.
        on_state: told, from our threads, when it begins and ceases to serve.
    """

    def __init__(
        self,
        load: Callable[[], Iterable[StagedEncoder]],
        metrics: Metrics,
        *,
        cache_bytes: int,
        decode_workers: int,
        prepared_bytes: int,
        limits: MediaLimits = MediaLimits(),  # noqa: B008  (frozen)
        on_state: Callable[[bool], None],
        policy: Policy = Policy(),  # noqa: B008  (frozen)
    ) -> None:
        self._load = load
        self._encoders: dict[str, StagedEncoder] = {}
        self._decoding = DecodePool(decode_workers, limits)
        self.jobs = Jobs(cache_bytes, metrics)
        self._inbox: Inbox[UnitRow] = Inbox(self._budget, policy, attrgetter("nbytes"))
        self.forwarders = Forwarders(self._loaded, self._inbox, self.jobs, metrics, on_state)
        parts = (self._decoding.decode, self.jobs, self._inbox.push, metrics, policy)
        self._texts = Preparer("prepare texts", TEXT_THREADS, *parts)
        self._media = Preparer(
            "prepare media", decode_workers, *parts, partial(self._inbox.wait_for_room, prepared_bytes)
        )
        for lane in Lane:
            metrics.queue_rows.labels(lane.name.lower()).set_function(partial(self._inbox.depth, lane))

    def start(self) -> "Future[None]":
        """Load, warm up and serve; the future is done when it does, or fails with what loading failed with."""
        return self.forwarders.start()

    def add(self, encoder: StagedEncoder) -> None:
        """Take another encoder, which is warm, beside those that were loaded."""
        self._encoders = {**self._encoders, encoder.space.space_id: encoder}

    def submit(self, call: Call, items: Sequence[Item]) -> None:
        """Set all items of a call on their way; each is settled once, whatever happens."""
        now = time.monotonic()
        texts: dict[tuple[str, bool], list[Item]] = {}
        for item in items:
            if item.modality == TEXT:
                texts.setdefault((item.encoder.space.space_id, item.query), []).append(item)
            else:
                self._media.submit(Errand(call, [item], now))
        for together in texts.values():
            self._texts.submit(Errand(call, together, now))

    @property
    def waiting(self) -> int:
        """Rows that wait for a forward pass."""
        return len(self._inbox)

    def prune(self) -> None:
        """Let go of what nobody waits for any more and no thread has begun; to be called when a call was abandoned."""
        for preparer in (self._texts, self._media):
            preparer.prune()

    def close(self) -> None:
        """Settle everything: what is being encoded with its vector, what waits with `Unavailable`."""
        self._inbox.lift_bound()  # a preparer that waited for room could not end
        self._texts.close()
        self._media.close()
        self.forwarders.close()
        self._decoding.close()

    def _loaded(self) -> list[StagedEncoder]:
        self._encoders = {encoder.space.space_id: encoder for encoder in self._load()}
        if any(encoder.space.modality != TEXT for encoder in self._encoders.values()):
            self._decoding.warm_up()
        return list(self._encoders.values())

    def _budget(self, group: RowGroup) -> int:
        return self._encoders[group.space_id].budget(group.own)

"""What is known of a user at an instant: stored history, events recorded since, events of the session, and the profile vector.

When the store is down, the history that this process saw last stands in for it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from feature_store.errors import ViewNotFoundError
from feature_store.event_log import EventLog
from feature_store.history import Events, history_as_of, merge_events
from feature_store.milvus_core import MilvusCore
from feature_store.spaces import view_name
from protos.triptych.v1 import common_pb2
from serving import convert
from serving.settings import ServeSettings
from serving.store import NO_ANSWER, Store
from serving.workers import Worker

HISTORY_VIEW: Final = "user_history"
HISTORY_FIELDS: Final = ("event_ids", "item_ids", "event_types", "values", "timestamps_us")
REMEMBERED_USERS: Final = 10_000
MAX_LOGGED_EVENTS: Final = 500
UNKNOWN_USER: Final = common_pb2.DEGRADED_REASON_UNKNOWN_USER
STORE_UNAVAILABLE: Final = common_pb2.DEGRADED_REASON_STORE_UNAVAILABLE


@dataclass(frozen=True)
class Stored:
    """What the vector store holds of a user; `profile_us` is the instant from which the profile is true."""

    history: Events = field(default_factory=Events)
    profile: NDArray[np.float32] | None = None
    profile_us: int = 0

    def profile_at(self, at_us: int) -> NDArray[np.float32] | None:
        """The profile vector if it was there strictly before `at_us`."""
        return self.profile if self.profile_us < at_us else None


@dataclass(frozen=True)
class KnownUser:
    """History strictly before the request's instant, the profile vector, and what was missing."""

    history: Events
    profile: NDArray[np.float32] | None = None
    degraded: tuple[common_pb2.Degradation, ...] = ()


class Users:
    """Reads users; one per process."""

    def __init__(self, store: Store, log: EventLog, settings: ServeSettings) -> None:
        self._store = store
        self._log = log
        self._reading = Worker("history", settings.queue_capacity)
        self._seen: LRUCache[tuple[str, str], Stored] = LRUCache(REMEMBERED_USERS)

    async def read(
        self, user_id: str, session: Sequence[common_pb2.Event], at_us: int, now_us: int, text_space: str = ""
    ) -> KnownUser:
        """The user as of `at_us`, asked at `now_us`; the profile vector is that of `text_space`, if one is named."""
        recorded = self._reading.run(self._log.newest_of, user_id, at_us, MAX_LOGGED_EVENTS)
        (stored, degraded), logged = await asyncio.gather(self._stored(user_id, text_space), recorded)
        # The stored form of an event wins over the log's copy of it: they are the same, but the store's was joined offline.
        events = merge_events(
            stored.history, convert.history_events(logged), convert.session_events(session, at_us, now_us)
        )
        history, profile = history_as_of(events, at_us), stored.profile_at(at_us)
        if not degraded and not len(events) and profile is None:
            detail = f"nothing is known of user {user_id!r}"
            degraded = (common_pb2.Degradation(reason=UNKNOWN_USER, detail=detail, count=1),)
        return KnownUser(history, profile, degraded)

    async def _stored(self, user_id: str, text_space: str) -> tuple[Stored, tuple[common_pb2.Degradation, ...]]:
        try:
            stored = await self._store.read(lambda core: _read_stored(core, user_id, text_space))
        except NO_ANSWER as error:
            detail = f"history as this server last saw it, and what was recorded here since: {error}"
            degraded = common_pb2.Degradation(reason=STORE_UNAVAILABLE, detail=detail)
            return self._seen.get((user_id, text_space), Stored()), (degraded,)
        self._seen[user_id, text_space] = stored
        return stored, ()

    def close(self) -> None:
        """End the reading thread."""
        self._reading.close()


def _read_stored(core: MilvusCore, user_id: str, text_space: str) -> Stored:
    return Stored(_read_history(core, user_id), *_read_profile(core, user_id, text_space))


def _read_history(core: MilvusCore, user_id: str) -> Events:
    try:
        columns: dict[str, list[Any]] = core.read_columns(HISTORY_VIEW, [user_id], list(HISTORY_FIELDS))
    except ViewNotFoundError:
        return Events()
    event_ids, item_ids, event_types, values, times = (columns[name][0] or [] for name in HISTORY_FIELDS)
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    return Events(list(event_ids), list(item_ids), list(event_types), numbers, np.array(times, np.int64))


def _read_profile(core: MilvusCore, user_id: str, text_space: str) -> tuple[NDArray[np.float32] | None, int]:
    if not text_space:
        return None, 0
    try:
        vectors, present, times_us = core.read_vectors(view_name("user", text_space), [user_id])
    except ViewNotFoundError:
        return None, 0
    return (vectors[0], int(times_us[0])) if present[0] else (None, 0)

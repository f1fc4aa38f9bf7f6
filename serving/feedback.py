"""FeedbackService: what users did, on disk before it is acknowledged."""

import sqlite3
from typing import Any, Final

import grpc

from feature_store.event_log import EventLog
from protos.triptych.v1 import feedback_pb2, feedback_pb2_grpc
from serving import convert
from serving.errors import Unavailable
from serving.settings import ServeSettings
from serving.validation import check_record
from serving.workers import Worker

# A transaction takes about a millisecond, so the queue may be longer than the encoders'.
QUEUE_FACTOR: Final = 8
# A full disk or a long transaction of another process does not pass in a moment.
RETRY_SECONDS: Final = 5.0


class FeedbackService(feedback_pb2_grpc.FeedbackServiceServicer):
    """Writes to the event log from one thread, each request in one synced transaction."""

    def __init__(self, log: EventLog, settings: ServeSettings) -> None:
        self._log = log
        self._settings = settings
        self._writer = Worker("events", QUEUE_FACTOR * settings.queue_capacity)

    async def RecordEvents(  # noqa: N802 - gRPC's name
        self, request: feedback_pb2.RecordEventsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> feedback_pb2.RecordEventsResponse:
        """Record all events or none; see the proto for the errors."""
        del context
        now = convert.now_us()
        check_record(request, self._settings, now)
        events = convert.logged_events(request.events, now)
        try:
            recorded, duplicates = await self._writer.run(self._log.append, events)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"nothing was recorded: the event log says {error}", RETRY_SECONDS) from error
        ids = [event.event_id for event in events]
        return feedback_pb2.RecordEventsResponse(recorded=recorded, duplicates=duplicates, event_ids=ids)

    def close(self) -> None:
        """Finish the write under way; a caller whose write was dropped was never answered."""
        self._writer.close()

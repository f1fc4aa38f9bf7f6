"""Settings of the serving process, read from the environment at its edge: `TRIPTYCH_SERVE_PORT`, ...

Inside, rooms get the frozen object; nothing else reads the environment.
"""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MEBIBYTE = 1024 * 1024


class ServeSettings(BaseSettings):
    """What an operator may set.

    Attributes:
        port, admin_port, metrics_port: 0 lets the system choose; the chosen ones are printed and written to `serve.json`.
        metrics: whether to tell Prometheus at all.
        default_deadline_seconds: for calls that bring none; a longer one is cut to `max_deadline_seconds`.
        queue_capacity: jobs that may wait for each worker; past it calls get RESOURCE_EXHAUSTED.
        permits: calls of one method that may be under way at once; bulk calls of Embed may hold half of them.
        max_bytes_in_flight: of Embed requests under way at once; bulk calls may hold half.
        max_batch: inputs of one Embed call.
        queue_rows: rows (a text, a picture, a window of sound) that may wait for their forward pass.
        decode_workers: processes that decode pictures and sounds.
        decode_seconds: how long one picture or sound may take them.
        max_prepared_bytes: of decoded pictures and sounds that wait for their forward pass; decoding pauses beyond.
        cache_bytes: of vectors that are kept for whoever asks for the same again; 0 keeps none.
        store_timeout_seconds: how long a request waits for Milvus before it goes on without.
        store_retry_seconds: after a failure, how long Milvus is left alone.
        refresh_seconds: how often changes of vectors and of the stable model are looked for.
        drain_seconds: how long calls under way may go on after SIGTERM.
        max_session_events, max_excluded: session events, and excluded items, of one request.
        retrieve_k: candidates that are retrieved where a Rank request says nothing.
    """

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_SERVE_", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=0, ge=0, le=65535)
    metrics: bool = True
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=0, ge=0, le=65535)
    encoders: str | None = None
    default_deadline_seconds: float = Field(default=5.0, gt=0)
    max_deadline_seconds: float = Field(default=60.0, gt=0)
    queue_capacity: int = Field(default=64, ge=1)
    permits: int = Field(default=128, ge=1)
    store_timeout_seconds: float = Field(default=0.5, gt=0)
    store_retry_seconds: float = Field(default=2.0, ge=0)
    refresh_seconds: float = Field(default=5.0, gt=0)
    drain_seconds: float = Field(default=10.0, ge=0)
    max_message_bytes: int = Field(default=64 * MEBIBYTE, ge=MEBIBYTE)
    max_batch: int = Field(default=64, ge=1)
    max_bytes_in_flight: int = Field(default=256 * MEBIBYTE, ge=1)
    queue_rows: int = Field(default=4096, ge=1)
    decode_workers: int = Field(default=2, ge=1)
    decode_seconds: float = Field(default=10.0, gt=0)
    max_prepared_bytes: int = Field(default=256 * MEBIBYTE, ge=1)
    cache_bytes: int = Field(default=64 * MEBIBYTE, ge=0)
    max_candidates: int = Field(default=5_000, ge=1)
    max_events: int = Field(default=1_000, ge=1)
    max_session_events: int = Field(default=500, ge=0)
    max_excluded: int = Field(default=5_000, ge=0)
    retrieve_k: int = Field(default=200, ge=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

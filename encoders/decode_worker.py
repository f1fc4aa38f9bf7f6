"""One decoding process: reads jobs from a socket, decodes, and answers. `encoders.decode_pool` starts it; nobody else needs to.

Run as `python -m encoders.decode_worker SOCKET_FD MEMORY_FD LIMITS`. Media and decoded samples lie in the shared memory file; the
socket carries only small JSON messages. The process ends by itself when its parent is gone, and holds no torch.
"""

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from encoders._picture_files import check_picture_file
from encoders._pictures import decode_pixels
from encoders._sounds import decode_at_own_rate
from encoders._source import MediaLimits, describe, out_of_memory, read_source
from encoders.errors import MediaError

MAX_MESSAGE_BYTES: Final = 1 << 16
_MAX_REASON_CHARS: Final = 2_000
# The parent ends a decode that takes too long. Should it have died meanwhile, an alarm does, this many seconds later.
_ALARM_GRACE_SECONDS: Final = 5.0


def main(arguments: list[str]) -> None:
    """Serve until the parent closes its end of the socket."""
    connection = socket.socket(fileno=int(arguments[0]))
    memory, limits = int(arguments[1]), MediaLimits(**json.loads(arguments[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    _preload()
    resource.setrlimit(resource.RLIMIT_AS, (limits.max_decode_memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.max_decode_memory_bytes,) * 2)  # of the shared memory
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _silence()
    connection.send(b"ready")
    while job := connection.recv(MAX_MESSAGE_BYTES):
        signal.setitimer(signal.ITIMER_REAL, limits.max_decode_seconds + _ALARM_GRACE_SECONDS)
        answer = _answer(json.loads(job), memory, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(json.dumps(answer).encode())


def _preload() -> None:
    """Load what decodes before the first job's time is taken; one thread each, since there are several processes."""
    import av
    import soundfile  # noqa: F401  (loaded, not used here)
    from PIL import AvifImagePlugin, Image

    Image.preinit()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    av.logging.set_level(None)


def _silence() -> None:
    """C libraries complain to stderr about damaged files; the errors that count travel over the socket."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _answer(job: dict[str, Any], memory: int, limits: MediaLimits) -> dict[str, Any]:
    try:
        source = _source(job, memory)
        return _picture(source, memory, limits) if job["modality"] == "image" else _sound(source, memory, limits)
    except MediaError as error:
        return _refusal(error)
    except MemoryError:
        return _refusal(out_of_memory())


def _refusal(error: MediaError) -> dict[str, Any]:
    return {"code": error.code, "reason": str(error)[:_MAX_REASON_CHARS]}


def _source(job: dict[str, Any], memory: int) -> bytes | Path:
    """The file's bytes, from the shared memory, or its path, in hexadecimal since names need not be UTF-8."""
    if job["path"] is None:
        return os.pread(memory, job["bytes"], 0)
    return Path(os.fsdecode(bytes.fromhex(job["path"])))


def _picture(source: bytes | Path, memory: int, limits: MediaLimits) -> dict[str, Any]:
    data = read_source(source, limits)
    size, pixels = decode_pixels(data, limits)
    _put(memory, pixels)
    return {"size": size, "kind": describe(data), "frames": check_picture_file(data, limits)}


def _sound(source: bytes | Path, memory: int, limits: MediaLimits) -> dict[str, Any]:
    samples, rate, kind = decode_at_own_rate(source, limits)
    return {"rate": rate, "kind": kind, "bytes": _put(memory, np.ascontiguousarray(samples).data.cast("B"))}


def _put(memory: int, content: bytes | memoryview) -> int:
    """Write `content` to the shared memory and return its length; one call writes at most 2 GiB."""
    view, done = memoryview(content), 0
    while done < len(view):
        done += os.pwrite(memory, view[done:], done)
    return done


if __name__ == "__main__":
    main(sys.argv[1:])

"""Decoding in processes of their own: a file that crashes, hangs or bloats a decoder harms only itself.

Decoders are large C programs, fed with files from strangers. Here each runs in a child process with limits on memory and time,
which is killed and replaced when it breaks them. Pixels and samples come back through shared memory; resampling stays here.
"""

import contextlib
import dataclasses
import json
import operator
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, overload

import numpy as np
from PIL import Image

from encoders._picture_files import several_note
from encoders._sounds import MAX_RATE_HZ, MIN_RATE_HZ, Samples, to_16_khz
from encoders._source import MEBIBYTE, MediaLimits, read_source
from encoders.decode_worker import MAX_MESSAGE_BYTES
from encoders.errors import MEDIA_CODES, EncoderError, MediaError

_START_SECONDS: Final = 60.0
_CLOSE_SECONDS: Final = 2.0
# A dying process closes its socket a moment before its exit status is there.
_EXIT_SECONDS: Final = 0.2
_CHANNELS: Final = 3
_SAMPLE_BYTES: Final = 4
# What an answer that makes no sense ends in, deep nesting of its JSON included.
_NONSENSE: Final = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RecursionError, TypeError, ValueError)  # fmt: skip
# What a worker's memory may keep between jobs; a larger answer's pages are given back. A photo of 12 megapixels fits.
_KEPT_BYTES: Final = 48 * MEBIBYTE
# One thread for each library. Memory of this size stays with the child's allocator: given back and taken anew for every picture,
# its page faults would cost more than decoding.
_CHILD_SETTINGS: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(32 * MEBIBYTE),
    "MALLOC_TRIM_THRESHOLD_": str(64 * MEBIBYTE),
}


class DecodePool:
    """Processes that decode; callers bring the threads and wait for a free one. Nothing starts before the first decode.

    Args:
        workers: number of processes, 1 or more; decoding is CPU work, so cores.
        limits: what is accepted; `max_decode_seconds` and `max_decode_memory_bytes` are what a process is killed for.
    """

    def __init__(self, workers: int = 2, limits: MediaLimits = MediaLimits()) -> None:  # noqa: B008  (frozen)
        if workers < 1:
            raise ValueError(f"a decode pool needs at least 1 worker, not {workers}")
        self.limits = limits
        self._workers = [_Worker(limits) for _ in range(workers)]
        self._idle = list(self._workers)
        self._changed = threading.Condition()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that are running now."""
        processes = [worker.process for worker in self._workers]  # read once: callers replace them meanwhile
        return [process.pid for process in processes if process and process.poll() is None]

    @overload
    def decode(self, modality: Literal["image"], source: bytes | Path) -> Image.Image: ...
    @overload
    def decode(self, modality: Literal["audio"], source: bytes | Path) -> Samples: ...
    @overload
    def decode(self, modality: str, source: bytes | Path) -> Any: ...

    def decode(self, modality: str, source: bytes | Path) -> Any:
        """The picture as RGB, or the sound as float32 mono [samples] at 16 kHz, that `source` (a file, or its bytes) holds.

        Raises:
            MediaError: as `decode_image` and `decode_audio`; `decode_timeout`, `decoder_crashed`.
            EncoderError: the pool is closed, or its processes do not start.
        """
        return self.decode_with_notes(modality, source)[0]

    def decode_with_notes(self, modality: str, source: bytes | Path) -> tuple[Any, tuple[str, ...]]:
        """As `decode`, and what a caller should be told of the file, in words that files of one kind share. Same errors."""
        if modality not in {"image", "audio"}:
            raise ValueError(f"modality {modality!r} must be 'image' or 'audio'")
        if isinstance(source, bytes):
            read_source(source, self.limits)  # refused here, it need not travel
        worker = self._take()
        try:
            decoded = worker.decode(modality, source)
        except EncoderError:
            if self._closed:
                raise EncoderError("the decode pool was closed during a decode") from None
            raise
        finally:
            self._give_back(worker)
        return (to_16_khz(*decoded), ()) if isinstance(decoded, _Sound) else decoded

    def warm_up(self) -> None:
        """Start all processes at once and wait until the first is ready, so that no decode pays for it."""
        worker = self._take()
        try:
            worker.ensure_ready()
        finally:
            self._give_back(worker)

    def _take(self) -> "_Worker":
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self._closed)
            if self._closed:
                raise EncoderError("the decode pool is closed")
            for worker in self._idle:
                worker.ensure_started()
            return self._idle.pop()

    def _give_back(self, worker: "_Worker") -> None:
        with self._changed:
            self._idle.append(worker)
            self._changed.notify()
            if self._closed:
                worker.stop()

    def close(self) -> None:
        """End all processes; a decode that is running fails with an `EncoderError`. Closing twice is closing once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for worker in self._workers:
                if worker in self._idle:
                    worker.stop()
                else:
                    worker.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Picture(NamedTuple):
    """A picture as RGB, and what is to be told of its file."""

    pixels: Image.Image
    notes: tuple[str, ...]


class _Sound(NamedTuple):
    """Mono samples at `rate` Hz, and what kind of file they are from."""

    samples: Samples
    rate: int
    kind: str


class _Worker:
    """One child process, its socket and its shared memory. One caller at a time."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket
        self._memory: int
        self._ready = self._killed = False
        self._buffer = bytearray()  # for small pictures, reused: fresh memory costs page faults

    def ensure_started(self) -> None:
        """Start the process if there is none, without waiting for it."""
        if self.process is not None and self.process.poll() is not None:
            self.stop()  # it was ended from outside between two jobs: no file is to blame
        if self.process is None:
            self._start()

    def _start(self) -> None:
        with contextlib.ExitStack() as unless_started:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                unless_started.enter_context(ours)
                with theirs:
                    memory = os.memfd_create("decoded")
                    unless_started.callback(os.close, memory)
                    process = self._popen(theirs.fileno(), memory)
            except OSError as error:
                remedy = "close files or programs, or raise their limits (ulimit -n, ulimit -u)"
                raise EncoderError(f"the decoding process cannot be started: {error}; {remedy}") from error
            unless_started.pop_all()
        self._socket, self._memory, self._ready, self.process = ours, memory, False, process
        if self._killed:  # meanwhile: whoever killed did not see this one
            process.kill()

    def _popen(self, theirs: int, memory: int) -> subprocess.Popen[bytes]:
        limits = json.dumps(dataclasses.asdict(self._limits))
        return subprocess.Popen(
            # -P: what lies in the current folder must not stand in for a module
            [sys.executable, "-P", "-m", "encoders.decode_worker", str(theirs), str(memory), limits],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs, memory),
            env=_environment(),
        )

    def ensure_ready(self) -> None:
        """Wait until the process has loaded its decoders."""
        self.ensure_started()
        if self._ready:
            return
        self._socket.settimeout(_START_SECONDS)
        try:
            self._ready = self._socket.recv(MAX_MESSAGE_BYTES) == b"ready"
        except OSError:
            self._ready = False
        if not self._ready:
            raise EncoderError(f"the decoding process did not start ({self._end()}); its stderr says why")

    def decode(self, modality: str, source: bytes | Path) -> _Picture | _Sound:
        """What the file holds; a process that breaks a limit or answers nonsense is replaced."""
        self.ensure_ready()
        message = self._ask(modality, source)
        try:
            answer = json.loads(message)
            refused = answer.get("code")
            if refused not in MEDIA_CODES:
                return self._picture(answer) if modality == "image" else self._sound(answer)
            error = MediaError(refused, str(answer["reason"]))
        except _NONSENSE as nonsense:
            self._replace(kill=True)
            what = f"the decoding process answered nonsense ({type(nonsense).__name__}: {nonsense})"
            raise MediaError("decoder_crashed", what) from nonsense
        raise error

    def _ask(self, modality: str, source: bytes | Path) -> bytes:
        """Send one job and wait for its answer, as it came."""
        deadline = time.monotonic() + self._limits.max_decode_seconds
        path = os.fsencode(source.absolute()).hex() if isinstance(source, Path) else None
        if isinstance(source, bytes):
            _write(self._memory, source)
        job = {"modality": modality, "path": path, "bytes": 0 if isinstance(source, Path) else len(source)}
        try:
            self._socket.settimeout(self._limits.max_decode_seconds)
            self._socket.send(json.dumps(job).encode())
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            message = self._socket.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            self._replace()
            limit = f"the limit of {self._limits.max_decode_seconds:g} s"
            raise MediaError("decode_timeout", f"decoding took longer than {limit}; it was ended") from None
        except OSError:
            message = b""
        if not message:
            raise MediaError("decoder_crashed", f"the decoder did not survive this file ({self._replace()})")
        return message

    # The process may have been taken over by a file: nothing that it says is believed before it was compared with the limits.

    def _picture(self, answer: dict[str, Any]) -> _Picture:
        width, height = map(operator.index, answer["size"])
        if min(width, height) < 1:
            raise ValueError(f"{width} x {height} pixels")
        length = self._checked(width * height * _CHANNELS, self._limits.max_image_pixels * _CHANNELS)
        note = several_note(answer["kind"]) if operator.index(answer["frames"]) > 1 else None
        pixels = self._buffer if length <= _KEPT_BYTES else bytearray(length)
        if len(pixels) < length:
            pixels = self._buffer = bytearray(length)
        self._read(memoryview(pixels)[:length])
        # Copied into Pillow's own layout, so that the buffer is free again.
        picture = Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)
        return _Picture(picture, (note,) if note else ())

    def _sound(self, answer: dict[str, Any]) -> _Sound:
        rate, length = operator.index(answer["rate"]), operator.index(answer["bytes"])
        if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise ValueError(f"{rate} Hz")
        self._checked(length, (self._limits.max_audio_seconds * rate + 1) * _SAMPLE_BYTES)
        samples = np.empty(length // _SAMPLE_BYTES, np.float32)
        self._read(samples.data.cast("B"))
        if not np.isfinite(samples).all():
            raise ValueError("samples that are not numbers")
        return _Sound(samples, rate, str(answer["kind"]))

    def _checked(self, length: int, limit: float) -> int:
        """`length` in bytes, which is within `limit` and there."""
        most = min(limit, os.fstat(self._memory).st_size)
        if not 0 < length <= most:
            raise ValueError(f"{length} bytes, of at most {most}")
        return length

    def _read(self, target: memoryview) -> None:
        """Fill `target` from the shared memory. It is copied, not mapped: the process could change or cut what is shared."""
        done = 0
        while done < len(target):
            got = os.preadv(self._memory, [target[done:]], done)
            if not got:
                raise ValueError(f"{done} of {len(target)} bytes")
            done += got
        if len(target) > _KEPT_BYTES:
            os.ftruncate(self._memory, 0)

    def _replace(self, *, kill: bool = False) -> str:
        """End the process, start another (without waiting for it), and say how the old one ended."""
        if kill and self.process is not None:
            self.process.kill()  # rather than see whether it ends by itself
        ending = self._end()
        with contextlib.suppress(EncoderError):  # the next job says so
            self._start()
        return ending

    def _end(self) -> str:
        """Kill the process and say in words how it ended."""
        process = self.process
        if process is None:
            return "it was not running"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_SECONDS)
        process.kill()
        status = process.wait()
        self._release()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def kill(self) -> None:
        """End the process at once, and any that follows; the caller that waits for it finds a closed socket. From any thread."""
        self._killed = True
        process = self.process  # read once: that caller may be replacing it
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Close the socket, at which an idle process ends by itself, and see it ended."""
        if self.process is None:
            return
        self._socket.close()
        try:
            self.process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._release()

    def _release(self) -> None:
        self._socket.close()
        os.close(self._memory)
        self.process = None


def _write(memory: int, content: bytes) -> None:
    view, done = memoryview(content), 0
    while done < len(view):
        done += os.pwrite(memory, view[done:], done)


def _environment() -> dict[str, str]:
    """The child's environment, with this package on its path if it is not installed."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | _CHILD_SETTINGS
    if root not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return environment

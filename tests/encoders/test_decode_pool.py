import contextlib
import functools
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from encoders.decode_pool import DecodePool
from encoders.errors import EncoderError, MediaError
from encoders.media import MediaLimits, decode_audio, decode_image
from tests.encoders import media_files
from tests.encoders.media_files import ffmpeg_file, file_of, gif_frames, noise_picture, picture, sound_file, tone

ROOT = Path(__file__).resolve().parents[2]
PICTURE = file_of(noise_picture(size=(500, 375)), "JPEG")


@pytest.fixture(scope="module")
def pool():
    with DecodePool(2) as pool:
        yield pool


slow_picture = functools.cache(media_files.slow_picture)


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_results_equal_decoding_in_the_caller(pool, tmp_path):
    """A picture and a sound, as bytes and as files, come back exactly as in-process decoding gives them."""
    loop = sound_file(tone(rate=44_100), 44_100, "FLAC")
    for name, data in (("a.jpg", PICTURE), ("b.flac", loop)):
        (tmp_path / name).write_bytes(data)
    for source in (PICTURE, tmp_path / "a.jpg"):
        decoded = pool.decode("image", source)
        assert decoded.mode == "RGB"
        assert decoded.tobytes() == decode_image(PICTURE).tobytes()
    for source in (loop, tmp_path / "b.flac"):
        np.testing.assert_array_equal(pool.decode("audio", source), decode_audio(loop))


def test_names_that_are_not_utf_8_and_relative_paths(pool, tmp_path, monkeypatch):
    """A path means in the child what it means to the caller."""
    name = os.fsdecode(b"pict\xff.png")
    (tmp_path / name).write_bytes(file_of(picture()))
    monkeypatch.chdir(tmp_path)
    assert pool.decode("image", Path(name)).size == (48, 32)


@pytest.mark.parametrize(
    ("modality", "source", "code"),
    [
        ("image", b"", "empty"),
        ("image", b"text", "unsupported_format"),
        ("image", PICTURE[:2000], "truncated"),
        ("image", Path("/no/such/file"), "not_found"),
        ("audio", PICTURE, "unsupported_format"),
        ("audio", sound_file(tone(0.01)), "too_short"),
    ],
)
def test_refusals_keep_their_code_and_reason(pool, modality, source, code):
    """What in-process decoding refuses, the pool refuses with the same code and words."""
    with pytest.raises(MediaError) as there:
        pool.decode(modality, source)
    with pytest.raises(MediaError) as here:
        {"image": decode_image, "audio": decode_audio}[modality](source)
    assert there.value.code == here.value.code == code
    assert str(there.value) == str(here.value)


def test_many_callers_share_few_processes(pool):
    """Eight threads over two processes: every answer goes to the caller whose file it was."""

    def size_of(width):
        return pool.decode("image", file_of(picture((width, 8)))).size

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(size_of, range(1, 200))) == [(width, 8) for width in range(1, 200)]
    assert len(pool.pids) == 2


def test_a_slow_decode_is_ended_and_harms_nobody_else():
    """A picture over the time limit is refused with the limit, its process is replaced, and neighbours never notice."""
    slow = slow_picture(7_000)
    with DecodePool(2, MediaLimits(max_decode_seconds=0.25)) as pool, ThreadPoolExecutor(4) as threads:
        pool.warm_up()
        start = time.monotonic()
        doomed = threads.submit(pool.decode, "image", slow)
        others = [threads.submit(pool.decode, "image", file_of(picture())) for _ in range(20)]
        with pytest.raises(MediaError, match=r"longer than the limit of 0\.25 s") as caught:
            doomed.result()
        assert caught.value.code == "decode_timeout"
        assert time.monotonic() - start < 10
        assert {other.result().size for other in others} == {(48, 32)}
        assert pool.decode("image", file_of(picture())).size == (48, 32)


def test_pictures_do_not_share_memory():
    """A picture keeps its pixels when the same process decodes another, small or large."""
    with DecodePool(1) as pool:
        for size in ((64, 48), (5_000, 4_000)):
            first = pool.decode("image", file_of(picture(size, (255, 0, 0))))
            pool.decode("image", file_of(picture(size, (0, 0, 255))))
            assert first.getpixel((0, 0)) == first.getpixel((size[0] - 1, size[1] - 1)) == (255, 0, 0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_in_mid_decode_is_that_items_error(how):
    """A process that dies over a file: that file's error names the signal, and the next file is decoded."""
    with DecodePool(1) as pool, ThreadPoolExecutor(1) as threads:
        pool.warm_up()
        pid = pool.pids[0]
        doomed = threads.submit(pool.decode, "image", slow_picture(7_000))
        wait_until(lambda: "R" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0])
        os.kill(pid, how)
        with pytest.raises(MediaError, match=how.name) as caught:
            doomed.result()
        assert caught.value.code == "decoder_crashed"
        assert pool.decode("image", PICTURE).size == (500, 375)
        assert pool.pids != [pid]


def test_a_process_that_died_between_jobs_is_nobodys_fault(pool):
    """An idle process that was ended from outside is replaced before the next file is given to it."""
    pool.warm_up()
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not is_running(pid))
    assert pool.decode("image", PICTURE).size == (500, 375)


def test_memory_is_limited():
    """A picture within the pixel limit, but over the process's memory limit, is refused; the next is decoded."""
    with DecodePool(1, MediaLimits(max_decode_memory_bytes=400 << 20)) as pool:
        with pytest.raises(MediaError, match="memory than the limit of 400 MiB") as caught:
            pool.decode("image", slow_picture(7_000))
        assert caught.value.code == "too_large"
        assert pool.decode("image", PICTURE).size == (500, 375)


def test_closing_ends_the_processes_and_their_callers():
    """After close no process is left, a waiting caller gets an error, and so does the next."""
    pool = DecodePool(1)
    pool.warm_up()
    pids = pool.pids
    with ThreadPoolExecutor(2) as threads:
        callers = [threads.submit(pool.decode, "image", slow_picture(7_000)) for _ in range(2)]
        time.sleep(0.1)
        pool.close()
        for caller in callers:
            with pytest.raises(EncoderError, match="closed"):
                caller.result()
    wait_until(lambda: not any(map(is_running, pids)))
    assert pool.pids == []
    with pytest.raises(EncoderError, match="closed"):
        pool.decode("image", PICTURE)
    pool.close()


def test_children_end_when_the_parent_is_killed(tmp_path):
    """A parent that dies without closing leaves no process behind."""
    script = "import sys; from encoders.decode_pool import DecodePool; p = DecodePool(2); p.warm_up(); print(*p.pids, flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    pids = list(map(int, parent.stdout.readline().split()))
    assert len(pids) == 2
    parent.kill()
    parent.communicate()
    wait_until(lambda: not any(map(is_running, pids)))


def test_the_current_folder_does_not_matter(tmp_path, monkeypatch):
    """Modules that lie in the current folder are not taken for the real ones."""
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with DecodePool(1) as pool:
        assert pool.decode("image", PICTURE).size == (500, 375)


def test_no_torch_in_the_children(pool):
    """A decoding process stays small: torch is not loaded in it."""
    pool.decode("audio", sound_file(tone(rate=8_000), 8_000))
    assert all("libtorch" not in Path(f"/proc/{pid}/maps").read_text() for pid in pool.pids)


def test_a_process_that_cannot_start_is_not_the_files_fault(monkeypatch):
    """Where the interpreter fails, the error speaks of the process, not of the file."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with DecodePool(1) as pool, pytest.raises(EncoderError, match="did not start") as caught:
        pool.decode("image", PICTURE)
    assert not isinstance(caught.value, MediaError)


def test_wrong_use_is_named():
    """No workers and no such modality are errors of the program."""
    with pytest.raises(ValueError, match="at least 1"):
        DecodePool(0)
    with DecodePool(1) as pool, pytest.raises(ValueError, match="'film'"):
        pool.decode("film", PICTURE)


def test_threads_are_not_needed(pool):
    """The pool starts no threads of its own."""
    before = threading.active_count()
    pool.decode("image", PICTURE)
    assert threading.active_count() == before


def test_opus_at_48_khz_is_resampled_here(pool):
    """The child answers at the file's own rate; the caller gets 16 kHz."""
    data = ffmpeg_file(tone(rate=48_000), 48_000, "webm", "libopus")
    assert len(pool.decode("audio", data)) == pytest.approx(16_000, abs=400)


# A decoder that was taken over by what it reads: it answers with the file's own bytes, and claims 64 GiB of media.
TAKEN_OVER = """#!{python} -I
import json, os, socket, sys
connection, memory = socket.socket(fileno=int(sys.argv[-3])), int(sys.argv[-2])
connection.send(b"ready")
while job := connection.recv(65536):
    answer = os.pread(memory, json.loads(job)["bytes"], 0)
    os.ftruncate(memory, 1 << 36)
    connection.send(answer)
"""


@pytest.fixture
def taken_over(tmp_path, monkeypatch):
    """Decoding processes answer with what they are given."""
    program = tmp_path / "python"
    program.write_text(TAKEN_OVER.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def picture_answer(width, height, kind="PNG picture", frames=1):
    return json.dumps({"size": [width, height], "kind": kind, "frames": frames}).encode()


def sound_answer(length, rate=16_000, kind="WAV sound"):
    return json.dumps({"bytes": length, "rate": rate, "kind": kind}).encode()


NONSENSE = [
    *((modality, data) for modality in ("image", "audio") for data in (
        b"\xff", b"{", b"null", b"[]", b"{}", b"[" * 60_000, b'{"code": "empty"}', b'{"code": ["empty"]}', b'{"code": "new"}',
    )),
    *(("image", picture_answer(*size)) for size in (
        (0, 5), (-3, -3), (1.5, 2), ("2", 2), (10**9, 10**9), (10**30, 10**30), (100_000, 7_000), (float("inf"), 1), (float("nan"), 1),
    )),
    ("image", b'{"size": [3], "kind": "PNG picture", "frames": 1}'),
    ("image", picture_answer(2, 2, frames="2")),
    ("image", picture_answer(2, 2, "picture no. 7", 2)),
    ("image", picture_answer(2, 2, ["GIF picture"], 2)),
    *(("audio", sound_answer(length)) for length in (0, -4, 3.5, "8", 1 << 34, 10**30, float("inf"))),
    *(("audio", sound_answer(4_000, rate)) for rate in (0, -1, 1, 16_000.5, "16000", 10**9, float("nan"))),
]  # fmt: skip


def test_nothing_that_a_decoding_process_says_is_believed(taken_over):
    """Answers that are none, or claim sizes without limit, cost their own item alone, no memory, and the process."""
    with DecodePool(1) as pool:
        tracemalloc.start()
        try:
            for modality, data in NONSENSE:
                pool.warm_up()
                before = pool.pids
                tracemalloc.reset_peak()
                with pytest.raises(MediaError) as caught:
                    pool.decode(modality, data)
                assert caught.value.code == "decoder_crashed", data[:80]
                assert tracemalloc.get_traced_memory()[1] < 16 << 20, data[:80]
                assert before != pool.pids, data[:80]
        finally:
            tracemalloc.stop()


def test_samples_that_are_not_numbers_are_found_here(taken_over):
    """A process that hands over NaN, which would end a whole stream of encoding, harms its own item."""
    kind = "--" + "a\u0080\x7f" * 1_000  # four bytes each in UTF-8: as float32 no number
    answer = json.dumps({"kind": kind, "bytes": 3_200, "rate": 16_000}, ensure_ascii=False).encode()
    assert np.isnan(np.frombuffer(answer, np.float32, 800)).any()
    with DecodePool(1) as pool, pytest.raises(MediaError, match="not numbers") as caught:
        pool.decode("audio", answer)
    assert caught.value.code == "decoder_crashed"


def test_closing_and_asking_amid_replacements(taken_over):
    """Pools that are closed, and asked for their processes, while those are replaced: errors are the pool's own, nothing is left."""
    before, interval = threading.active_count(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def use(pool):
        """The codes of this caller's items until the pool's own error, and that."""
        codes = set()
        while True:
            try:
                pool.decode("image", b"nonsense")
            except MediaError as error:
                codes.add(error.code)
            except EncoderError as error:
                return codes, str(error)

    try:
        for attempt in range(20):
            pool = DecodePool(2)
            with ThreadPoolExecutor(3) as threads:
                callers = [threads.submit(use, pool) for _ in range(3)]
                end = time.monotonic() + 0.02 * (attempt % 5) + 0.03
                while time.monotonic() < end:
                    assert len(pool.pids) <= 2
                pool.close()
                for codes, message in (caller.result() for caller in callers):
                    assert codes <= {"decoder_crashed"}
                    assert "closed" in message
            assert pool.pids == []
    finally:
        sys.setswitchinterval(interval)
    assert threading.active_count() == before


def test_without_file_descriptors_the_error_names_the_remedy():
    """Short of descriptors a pool says what to raise, loses none, and decodes once there are enough."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held, errors = [os.dup(0)], []
    with DecodePool(1) as pool:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 24, limits[1]))
            with contextlib.suppress(OSError):
                held.extend(os.dup(0) for _ in itertools.count())
            for _ in range(12):
                open_before = descriptors()
                try:
                    pool.decode("image", PICTURE)
                    break
                except EncoderError as error:
                    errors.append(str(error))
                assert descriptors() == open_before
                os.close(held.pop())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in held:
                os.close(descriptor)
    assert 4 <= len(errors) < 12
    assert all("cannot be started" in error and "ulimit -n" in error for error in errors)


def descriptors():
    """Open file descriptors of this process; asking each needs none."""
    count = 0
    for descriptor in range(4096):
        try:
            os.fstat(descriptor)
            count += 1
        except OSError:
            pass
    return count


def test_notes_are_the_same_for_files_of_a_kind(pool):
    """That only the first frame counts is told with the picture, without a number; of stills and sounds there is nothing to tell."""
    for count in (2, 3, 900):
        image, notes = pool.decode_with_notes("image", gif_frames(count))
        assert image.size == (1, 1)
        assert notes == ("the GIF picture has several frames: only the first counts",)
    pages = file_of(picture(), "TIFF", save_all=True, append_images=[picture()])
    assert pool.decode_with_notes("image", pages)[1] == ("the TIFF picture has several pages: only the first counts",)
    for kind in ("PNG", "JPEG", "BMP", "GIF"):
        assert pool.decode_with_notes("image", file_of(picture(), kind))[1] == ()
    samples, notes = pool.decode_with_notes("audio", sound_file(tone()))
    assert (len(samples), notes) == (16_000, ())

import collections
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from encoders.decode_pool import DecodePool
from encoders.errors import MEDIA_CODES, MediaError
from encoders.media import MediaLimits, decode_audio, decode_image
from tests.encoders.damage import damaged_files, repaired, whole_files

ROOT = Path(__file__).resolve().parents[2]
DECODE_SECONDS = 5.0
MOST_GROWTH = 1.1
MOST_REPEATS = 4
# Decodes a corpus without torch, and prints resident bytes before and after and how many files gave media.
SMALL_PROCESS = """
import ctypes, gc, json, sys
from encoders._pictures import decode_image
from encoders._sounds import decode_at_own_rate
from encoders.errors import MediaError
from encoders.media import MediaLimits, describe_media
from tests.encoders.damage import damaged_files

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def run(seed, count):
    good = 0
    for modality, name, data in damaged_files(seed, count):
        try:
            (decode_image if modality == "image" else decode_at_own_rate)(data, MediaLimits())
            describe_media(data)
            good += 1
        except MediaError:
            pass
        except BaseException:
            print(name, file=sys.stderr)
            raise
    return good

seed, count = map(int, sys.argv[1:])
run(seed + 1, 300)
before = resident()
good = run(seed, count)
print(json.dumps([before, resident(), good, "torch" in sys.modules]))
"""


def resident_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def outcome_of(pool, modality, data):
    """How a file ended, `media` or a code, and after how many seconds."""
    start = time.monotonic()
    try:
        pool.decode(modality, data)
    except MediaError as error:
        return (error.code if str(error) else "no reason"), time.monotonic() - start
    return "media", time.monotonic() - start


def decode_corpus(pool, seed, count):
    """Decode on as many threads as there are processes; counts of outcomes and the longest time."""
    with ThreadPoolExecutor(2) as threads:
        tasks = ((modality, data) for modality, _, data in damaged_files(seed, count))
        outcomes = list(threads.map(lambda task: outcome_of(pool, *task), tasks))
    return collections.Counter(code for code, _ in outcomes), max(seconds for _, seconds in outcomes)


def check_pool(seed, count):
    with DecodePool(2, MediaLimits(max_decode_seconds=DECODE_SECONDS)) as pool:
        decode_corpus(pool, seed, count)  # libraries load, and allocators grow to what the same files will need again
        pids, growth = pool.pids, []
        # A leak grows each time; which process gets a large file is chance, and it grows once for having it.
        while len(growth) < MOST_REPEATS and (not growth or growth[-1] >= MOST_GROWTH):
            before = statistics.median(map(resident_bytes, pids))
            codes, longest = decode_corpus(pool, seed, count)
            print(f"seed {seed}: {count} files, longest {longest:.2f} s, {dict(codes.most_common())}")
            assert sum(codes.values()) == count
            assert set(codes) <= {"media", *MEDIA_CODES}
            assert longest < DECODE_SECONDS + 1
            assert pool.pids == pids, f"a decoder was replaced: {codes}"
            assert count / 10 < codes["media"] < count * 0.6
            growth.append(statistics.median(map(resident_bytes, pids)) / before)
        assert growth[-1] < MOST_GROWTH, f"resident memory grows each time, by {growth}"


def check_small_process(seed, count):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SMALL_PROCESS, str(seed), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    before, after, good, has_torch = json.loads(done.stdout)
    print(f"seed {seed}: {count} files, {good} gave media, resident {before:,} bytes before and {after:,} after")
    assert after < MOST_GROWTH * before
    assert not has_torch


def test_damaged_files_in_the_pool(seed):
    """Of 2,000 damaged files each gives media or a stated error, none kills, hangs or bloats a decoding process, the second time either."""
    check_pool(seed, 2_000)


def test_damaged_files_in_process(seed):
    """Decoded in one process, the same 2,000 end without a crash, and its memory is back to within a tenth."""
    check_small_process(seed, 2_000)


@pytest.mark.long
@pytest.mark.parametrize("run", range(1, 11))
def test_many_damaged_files(seed, run):
    """Ten times as many, other ones."""
    check_pool(seed + 1000 * run, 2_000)
    check_small_process(seed + 1000 * run, 2_000)


def test_the_corpus_is_made_of_whole_files():
    """What is damaged was good before: every file decodes, and mending checksums leaves a whole file as it was."""
    files = whole_files()
    assert 40 <= len(files) <= 50
    for modality, _, data in files:
        {"image": decode_image, "audio": decode_audio}[modality](data)
        assert bytes(repaired(data)) == data


def test_a_seed_makes_one_corpus(seed):
    """The same seed makes the same files, another seed others."""
    assert list(damaged_files(seed, 100)) == list(damaged_files(seed, 100))
    assert list(damaged_files(seed, 100)) != list(damaged_files(seed + 1, 100))

"""The embedding service at production size: its throughput beside bulk encoding, its latency beside one warm forward pass.

A real server process with BERT-base (random weights: speed does not depend on them) and a load generator in a process of its own; all
texts are distinct, so that the cache helps nobody. Parts: `online` holds 64 callers of single texts against bulk encoding of the same
encoder, before and after; `latency` calls at random instants at half that rate, now alone, now beside a bulk client, in turn.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.common import Options, Record, run
from benchmarks.load.embed import Plan
from benchmarks.production import media, models
from triptych.client import Client

PARTS: Final = ("online", "latency")
CALLERS: Final = 64
BULK_CALLS: Final = 2
START_SECONDS: Final = 180.0
FORWARDS: Final = 5
SLOWEST_SHARE: Final = 0.02


@dataclass(frozen=True)
class Sizes:
    """How much is run: texts of one bulk run, seconds of the closed loop and of each open segment, and how many of those."""

    bulk_texts: int
    online_seconds: float
    segment_seconds: float
    segments: int


FULL: Final = Sizes(bulk_texts=800, online_seconds=40.0, segment_seconds=30.0, segments=3)
QUICK: Final = Sizes(bulk_texts=100, online_seconds=16.0, segment_seconds=10.0, segments=1)


class Site:
    """The model, the texts and the server of one run."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        from encoders.text import TextEncoder

        self.folder, self.sizes = folder, sizes
        self.bert = models.bert_base(folder / "bert-base")
        self.encoder = TextEncoder(self.bert)
        self.encoder.warm_up()
        self.words = media.whole_words(self.tokenizer)
        self._made = 0
        self.address = ""

    @property
    def tokenizer(self) -> Any:
        """WordPiece, as the folder has it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.bert)

    def texts(self, count: int) -> list[str]:
        """Texts that no other call gives: a number is put before each."""
        made = [f"{self._made + i} {text}" for i, text in enumerate(media.texts(count, self.words))]
        self._made += count
        return made

    def bulk_per_second(self) -> float:
        """Texts that the project's own bulk path encodes in a second."""
        from encoders.bulk import encode_stream

        texts = self.texts(self.sizes.bulk_texts)
        start = time.perf_counter()
        done = sum(1 for _ in encode_stream(self.encoder, texts, lambda text: text))
        return done / (time.perf_counter() - start)

    def load(self, seconds: float, expected: float, **plan: Any) -> dict[str, Any]:
        """What a load generator of its own process saw; `expected` calls a second at most."""
        lines = self.folder / "texts"
        count = int(expected * seconds * 2) + CALLERS * 4
        lines.write_text("\n".join(self.texts(count * (2 if plan.get("bulk_calls") else 1))))
        given = json.dumps(asdict(Plan(self.address, str(lines), seconds, **plan)))
        command = [sys.executable, "-m", "benchmarks.load.embed"]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
        happened: dict[str, Any] = json.loads(done.stdout)
        return happened

    def forward_seconds(self, rows: int, length: int) -> float:
        """One warm forward of this shape, with as many threads as the server gives one; the fastest of some."""
        import torch

        from encoders.bulk import compute_with
        from encoders.staged import Unit

        threads = torch.get_num_threads()
        compute_with(self.encoder.lanes(threads)[1], others=threads)
        units = [Unit("text", length, [101, *range(2000, 2000 + length - 2), 102][:length]) for _ in range(rows)]
        seconds = []
        for _ in range(FORWARDS):
            start = time.perf_counter()
            self.encoder.forward(units)
            seconds.append(time.perf_counter() - start)
        compute_with(threads, others=threads)
        return min(seconds)


def measure(options: Options, record: Record) -> None:
    """Start a server and hold it against its encoder."""
    with tempfile.TemporaryDirectory() as name:
        site = Site(Path(name), QUICK if options.quick else FULL)
        before = site.bulk_per_second()
        with serving(site):
            online = measure_online(site, before, record, claim=options.wants("online"))
            if options.wants("latency"):
                measure_latency(site, online, record)


@contextlib.contextmanager
def serving(site: Site) -> Iterator[None]:
    """A server process around the site's model, as an operator would start it; stopped at the end."""
    profile = site.folder / "encoders.yaml"
    profile.write_text(f"text: {{source: {site.bert}}}\n")
    home = site.folder / "home"
    settings = {
        "TRIPTYCH_HOME": str(home),
        "TRIPTYCH_ENCODERS": str(profile),
        "TRIPTYCH_SERVE_PORT": "0",
        "TRIPTYCH_SERVE_DEFAULT_DEADLINE_SECONDS": "30",
    }
    with (site.folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving"],
            env={**os.environ, **settings},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        site.address = wait_for_address(process, home / "serve.json", site.folder / "server.log")
        yield
    finally:
        process.terminate()
        process.wait(60)


def wait_for_address(process: subprocess.Popen[bytes], file: Path, log: Path) -> str:
    """The address of a server that is SERVING."""
    end = time.monotonic() + START_SECONDS
    while not file.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)
    address = str(json.loads(file.read_text())["address"])
    with Client(address) as client:
        client.wait_until_healthy(START_SECONDS)
    return address


# ---- online ----------------------------------------------------------------------------------------------------------


def measure_online(site: Site, before: float, record: Record, *, claim: bool) -> float:
    """64 callers that wait for each answer; texts per second. Bulk is measured before and after, since neighbours come and go."""
    closed = site.load(
        site.sizes.online_seconds, 2 * before, callers=CALLERS, skip_seconds=site.sizes.online_seconds / 4
    )
    check(closed)
    online = float(closed["per_second"])
    if claim:
        after = site.bulk_per_second()
        record.claim("online_over_bulk", online / ((before + after) / 2), "ratio", bar=0.75)
        record.note("bulk_texts_per_second", {"before": round(before, 1), "after": round(after, 1)})
        record.note("online", {"texts_per_second": round(online, 1), **summary(closed)})
    return online


def check(happened: dict[str, Any]) -> None:
    """A benchmark of refusals would say nothing."""
    if happened["refused"]:
        raise RuntimeError(f"calls were refused: {happened['refused']}")


# ---- latency ---------------------------------------------------------------------------------------------------------


def measure_latency(site: Site, online: float, record: Record) -> None:
    """Half the rate that 64 callers reached, alone and beside a bulk client, segment by segment in turn."""
    rate = online / 2
    alone: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    for seed in range(site.sizes.segments):
        for seen, bulk_calls in ((alone, 0), (beside, BULK_CALLS)):
            seen.append(site.load(site.sizes.segment_seconds, 3 * rate, rate=rate, bulk_calls=bulk_calls, seed=seed))
            check(seen[-1])
    claim_latency(site, pooled(alone), pooled(beside), record)
    record.note("half_load_calls_per_second", round(rate, 1))


def pooled(segments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All calls of several segments."""
    return {
        "seconds": [one for segment in segments for one in segment["seconds"]],
        "shapes": [one for segment in segments for one in segment["shapes"]],
        "bulk_per_second": float(np.mean([segment["bulk_per_second"] for segment in segments])),
        "cpu_share": float(np.mean([segment["cpu_share"] for segment in segments])),
    }


def claim_latency(site: Site, alone: dict[str, Any], beside: dict[str, Any], record: Record) -> None:
    """p99 over a warm forward of the shape that the calls around p99 were in; and what bulk adds to p99."""
    p99, p99_beside = (float(np.percentile(one["seconds"], 99)) for one in (alone, beside))
    rows, length = slow_shape(alone["seconds"], alone["shapes"])
    forward = site.forward_seconds(rows, length)
    record.claim("p99_over_batch_forward_at_half_load", p99 / forward, "ratio", bar=3.0, better="lower")
    record.claim("interactive_p99_with_bulk_over_without", p99_beside / p99, "ratio", bar=1.5, better="lower")
    chosen = f"the median batch, by padded tokens, of the slowest {SLOWEST_SHARE:.0%} of calls at half load"
    record.note("warm_forward", {"shape": chosen, "rows": rows, "padded_to": length, "ms": round(1000 * forward, 1)})
    record.note("half_load", summary(alone))
    record.note(
        "half_load_beside_bulk", {**summary(beside), "bulk_texts_per_second": round(beside["bulk_per_second"], 1)}
    )


def slow_shape(seconds: Sequence[float], shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(rows, length) of the median batch, by padded tokens, of the slowest calls: p99 lies in their middle.

    The 99th percentile of all shapes would be another thing: a long text that came at a quiet time is not slow.
    """
    slowest = sorted(zip(seconds, shapes, strict=True), key=lambda call: call[0])[
        -max(1, round(len(seconds) * SLOWEST_SHARE)) :
    ]
    batches = sorted((shape for _, shape in slowest), key=lambda shape: shape[0] * shape[1])
    rows, length = batches[len(batches) // 2]
    return rows, length


def summary(happened: dict[str, Any]) -> dict[str, Any]:
    """Latencies and batches of a run, for people."""
    milliseconds = 1000 * np.array(happened["seconds"])
    rows = [shape[0] for shape in happened["shapes"]]
    return {
        "calls": len(milliseconds),
        "p50_ms": round(float(np.percentile(milliseconds, 50)), 1),
        "p99_ms": round(float(np.percentile(milliseconds, 99)), 1),
        "rows_per_batch_p50": float(np.percentile(rows, 50)),
        "load_generator_cpu_share": round(happened["cpu_share"], 3),
    }


if __name__ == "__main__":
    run(measure, PARTS, __doc__ or "")

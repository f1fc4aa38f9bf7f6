"""The embedding service at production size: its throughput beside bulk encoding, its latency beside one warm forward pass.

A real server process with BERT-base (random weights: speed does not depend on them) and a load generator in a process of its own; all
texts are distinct, so that the cache helps nobody. Parts: `online` holds 64 callers of single texts against bulk encoding of the same
encoder; `latency` calls at random instants at half the rate that those callers had, alone and beside a bulk client.

A shared machine may be 1.4 times as fast at some times as at others, for minutes. So everything is measured in rounds, each ratio is taken
within a round, and the median of the rounds counts.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
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
FORWARDS: Final = 9
SLOWEST_SHARE: Final = 0.02


@dataclass(frozen=True)
class Sizes:
    """How much is run in a round: texts of the bulk run, seconds of the closed loop and of each open segment; and the rounds."""

    bulk_texts: int
    online_seconds: float
    segment_seconds: float
    rounds: int


FULL: Final = Sizes(bulk_texts=400, online_seconds=20.0, segment_seconds=30.0, rounds=5)
QUICK: Final = Sizes(bulk_texts=100, online_seconds=10.0, segment_seconds=10.0, rounds=1)


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
        """One warm forward of this shape, with as many threads as the server gives one; the median of some."""
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
        return float(np.median(seconds))


def measure(options: Options, record: Record) -> None:
    """Start a server and hold it against its encoder."""
    with tempfile.TemporaryDirectory() as name:
        site = Site(Path(name), QUICK if options.quick else FULL)
        site.bulk_per_second()  # warm
        with serving(site):
            rounds = [one_round(site, seed, latency=options.wants("latency")) for seed in range(site.sizes.rounds)]
    if options.wants("online"):
        claim_online(rounds, record)
    if options.wants("latency"):
        claim_latency(rounds, record)


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


# ---- one round -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """What one round saw: texts a second in bulk, and what the load generators say; the shape of a slow batch and its forward's seconds."""

    bulk_per_second: float
    closed: dict[str, Any]
    alone: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, int] = (0, 0)
    forward_seconds: float = 0.0


def one_round(site: Site, seed: int, *, latency: bool) -> Round:
    """Bulk; 64 callers that wait for each answer; half their rate alone, and beside a bulk client; one forward of the slow calls' shape."""
    bulk, seconds = site.bulk_per_second(), site.sizes.online_seconds
    closed = checked(site.load(seconds, 2 * bulk, callers=CALLERS, skip_seconds=seconds / 4))
    if not latency:
        return Round(bulk, closed)
    rate, seconds = closed["per_second"] / 2, site.sizes.segment_seconds
    alone = checked(site.load(seconds, 3 * rate, rate=rate, seed=seed))
    shape = slow_shape(alone["seconds"], alone["shapes"])
    forward = site.forward_seconds(*shape)
    beside = checked(site.load(seconds, 3 * rate, rate=rate, bulk_calls=BULK_CALLS, seed=seed))
    return Round(bulk, closed, alone, beside, shape, forward)


def checked(happened: dict[str, Any]) -> dict[str, Any]:
    """What happened; a benchmark of refusals would say nothing."""
    if happened["refused"]:
        raise RuntimeError(f"calls were refused: {happened['refused']}")
    return happened


def p99(happened: dict[str, Any]) -> float:
    """Seconds within which 99 of 100 calls were answered."""
    return float(np.percentile(happened["seconds"], 99))


# ---- claims ----------------------------------------------------------------------------------------------------------


def claim_online(rounds: Sequence[Round], record: Record) -> None:
    """Texts a second of 64 callers over those in bulk."""
    ratios = [one.closed["per_second"] / one.bulk_per_second for one in rounds]
    record.claim("online_over_bulk", float(np.median(ratios)), "ratio", bar=0.75)
    record.note("online_over_bulk_by_round", rounded(ratios, 3))
    record.note("bulk_texts_per_second_by_round", rounded([one.bulk_per_second for one in rounds], 1))
    record.note("online_texts_per_second_by_round", rounded([one.closed["per_second"] for one in rounds], 1))
    record.note("online_last_round", summary(rounds[-1].closed))


def claim_latency(rounds: Sequence[Round], record: Record) -> None:
    """p99 over a warm forward of the shape that the calls around p99 were in; and what bulk adds to p99."""
    over_forward = [p99(one.alone) / one.forward_seconds for one in rounds]
    with_bulk = [p99(one.beside) / p99(one.alone) for one in rounds]
    record.claim(
        "p99_over_batch_forward_at_half_load", float(np.median(over_forward)), "ratio", bar=3.0, better="lower"
    )
    record.claim(
        "interactive_p99_with_bulk_over_without", float(np.median(with_bulk)), "ratio", bar=1.5, better="lower"
    )
    record.note("p99_over_batch_forward_by_round", rounded(over_forward, 2))
    record.note("p99_with_bulk_over_without_by_round", rounded(with_bulk, 2))
    record.note("half_load_calls_per_second_by_round", rounded([one.closed["per_second"] / 2 for one in rounds], 1))
    record.note("half_load_p99_ms_by_round", rounded([1000 * p99(one.alone) for one in rounds], 1))
    chosen = f"the median batch, by padded tokens, of the slowest {SLOWEST_SHARE:.0%} of calls at half load"
    record.note("warm_forward_shape", chosen)
    record.note("warm_forward_rows_and_length_by_round", [list(one.shape) for one in rounds])
    record.note("warm_forward_ms_by_round", rounded([1000 * one.forward_seconds for one in rounds], 1))
    record.note("half_load_last_round", summary(rounds[-1].alone))
    beside = rounds[-1].beside
    record.note("beside_bulk_last_round", summary(beside) | {"bulk_per_second": round(beside["bulk_per_second"], 1)})


def rounded(values: Sequence[float], digits: int) -> list[float]:
    """Numbers for people."""
    return [round(value, digits) for value in values]


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

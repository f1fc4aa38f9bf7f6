"""Bulk encoding at production size: what the hardware could do, what a script would do, and what the peers do, in the same run.

BERT-base, open_clip's ViT-B/32 and wav2vec2-base with random weights; 2,000 texts, 500 photographs, 200 clips of a stated seed. Everything that is
compared is run in turn and the best of the repeats counts, so that both sides meet the same neighbours. Rates that do not depend on the
count are taken on a part of the data, which the details state. `peers` makes venvs of several GB under `.peers/` on its first run.
"""

import atexit
import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.common import Options, Record, run
from benchmarks.peers.process import Peer, PeerError
from benchmarks.production import media, models, plain
from benchmarks.production.clocks import FORWARDS, best_forwards, best_shape, cores, in_turn, least_cpu_seconds, timed

PARTS: Final = ("text", "image", "audio", "compile", "peers")
COUNTS: Final = {
    "texts": 2000,
    "pictures": 500,
    "clips": 200,
    "naive_texts": 160,
    "naive_pictures": 128,
    "naive_clips": 32,
    "compared": 600,
}
QUICK_COUNTS: Final = {
    "texts": 240,
    "pictures": 96,
    "clips": 16,
    "naive_texts": 32,
    "naive_pictures": 32,
    "naive_clips": 4,
    "compared": 240,
}
REPEATS: Final = 3  # a run takes twenty minutes on two cores
QUICK_REPEATS: Final = 1
TOKENS_PER_BATCH: Final = (512, 1024, 2048, 4096)
PICTURES_PER_BATCH: Final = (8, 16, 32, 64)
CLIPS_PER_BATCH: Final = (1, 2, 4, 8)
PEER_BATCHES: Final = (2, 4, 8, 16, 32, 64)
CHOOSING_SHARE: Final = 8  # every eighth input is enough to choose a peer's batch size
COSINE_ITEMS: Final = 32


class Site:
    """The models and the media of one run, made when first asked for."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder = folder
        self.counts, self.repeats = (QUICK_COUNTS, QUICK_REPEATS) if options.quick else (COUNTS, REPEATS)

    @cached_property
    def bert(self) -> Path:
        """BERT-base."""
        return models.bert_base(self.folder / "bert-base")

    @cached_property
    def clip(self) -> Path:
        """open_clip's ViT-B/32."""
        return models.clip_vit_b_32(self.folder / "clip-vit-b-32")

    @cached_property
    def wav2vec2(self) -> Path:
        """wav2vec2-base."""
        return models.wav2vec2_base(self.folder / "wav2vec2-base")

    @cached_property
    def texts(self) -> list[str]:
        """Texts of mixed length."""
        return media.texts(self.counts["texts"], media.whole_words(self.tokenizer))

    @cached_property
    def tokenizer(self) -> Any:
        """BERT's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.bert)

    @cached_property
    def pictures(self) -> list[Path]:
        """JPEG files of photographs."""
        return media.photographs(self.folder / "pictures", self.counts["pictures"])

    @cached_property
    def clips(self) -> list[Path]:
        """FLAC files of 5 s."""
        return media.clips(self.folder / "clips", self.counts["clips"])


def measure_all(options: Options, record: Record) -> None:
    """All wanted parts, each on the same data."""
    from encoders.weights import quiet

    measures = {
        "text": measure_text,
        "image": measure_image,
        "audio": measure_audio,
        "compile": measure_compiled,
        "peers": measure_peers,
    }
    record.note("gpu", "not measured")
    with tempfile.TemporaryDirectory() as name, quiet():
        site = Site(Path(name), options)
        record.note("counts", site.counts)
        for part in PARTS:
            if options.wants(part):
                measures[part](site, record)


# ---- text, image, audio ----------------------------------------------------------------------------------------------


def measure_text(site: Site, record: Record) -> None:
    """Bulk texts beside bare forward passes of the best batch shape, and beside the naive way."""
    import torch

    from encoders.text import TextEncoder

    encoder, naive = warm(TextEncoder(site.bert, device="cpu")), plain.naive_texts(site.bert)
    model = plain.transformer(site.bert, precision())
    rows = site.tokenizer(site.texts, truncation=True)["input_ids"]
    forwards, shapes = best_forwards(model, rows, TOKENS_PER_BATCH, plain.text_batches)
    part = site.texts[: site.counts["naive_texts"]]
    seconds, vectors = in_turn(
        site.repeats,
        {
            **forwards,
            "bulk": partial(bulk_texts, encoder, site.texts),
            "naive": partial(naive, part),
        },
    )
    tokens = [len(ids) for ids in rows]
    naive_all = seconds["naive"] * sum(tokens) / sum(tokens[: len(part)])  # a text's cost is its tokens'
    record.claim("text_bulk_over_forward", fastest_forward(seconds) / seconds["bulk"], "ratio", bar=0.9)
    record.claim("text_over_naive", naive_all / seconds["bulk"], "ratio", bar=4.0)
    note(record, "text", len(rows), {**seconds, "naive": naive_all}, least_cosine(vectors), shapes)
    record.note(
        "text_tokens", {"p50": float(np.median(tokens)), "p95": float(np.percentile(tokens, 95)), "all": sum(tokens)}
    )
    record.note("text_bulk_tokens_per_second", round(sum(tokens) / seconds["bulk"]))
    record.note("torch", {"version": torch.__version__, "threads": torch.get_num_threads(), "dtype": str(precision())})


def measure_image(site: Site, record: Record) -> None:
    """Bulk photographs, decoding included, beside what all cores could do without waiting, and beside the naive way."""
    from encoders.image import ImageEncoder

    encoder, naive = warm(ImageEncoder(site.clip, device="cpu")), plain.naive_pictures(site.clip)
    part = site.pictures[: site.counts["naive_pictures"]]
    tower = plain.image_tower(site.clip, precision())
    pixels = ready_pixels(encoder, part)
    shape = best_shape(tower, pixels, PICTURES_PER_BATCH, plain.batched, plain.forward_side_by_side)
    jobs = {
        "decode": partial(ready_pixels, encoder, part),
        "forward": partial(plain.forward_all, tower, plain.batched(pixels, shape)),
    }
    ways = {"bulk": partial(bulk_pictures, encoder, site.pictures), "naive": partial(naive, part)}
    seconds, vectors = in_turn(site.repeats, {**ways, "forward": jobs["forward"]})
    busy, alone = least_cpu_seconds(site.repeats, jobs)
    rate, limit = len(site.pictures) / seconds["bulk"], cores() * len(part) / sum(busy.values())
    record.claim("image_bulk_over_limit", rate / limit, "ratio", bar=0.85)
    record.claim("image_over_naive", rate * seconds["naive"] / len(part), "ratio", bar=1.8)
    scale = len(site.pictures) / len(part)
    seconds = {**seconds, "naive": seconds["naive"] * scale, "forward": seconds["forward"] * scale}
    note(record, "image", len(site.pictures), seconds, least_cosine(vectors), {"forward": shape})
    for name, cpu in {"every_core_busy": busy, "one_core_alone": alone}.items():
        record.note(f"image_cpu_seconds_each_{name}", {job: round(taken / len(part), 5) for job, taken in cpu.items()})
        record.note(f"image_limit_per_second_{name}", round(cores() * len(part) / sum(cpu.values()), 1))
    record.note(
        "image_mean_kilobytes", round(float(np.mean([path.stat().st_size for path in site.pictures])) / 1000, 1)
    )


def measure_audio(site: Site, record: Record) -> None:
    """Bulk clips, decoding included, beside bare forward passes of the best batch shape, and beside the naive way."""
    import torch

    from encoders.audio import AudioEncoder

    encoder, naive = warm(AudioEncoder(site.wav2vec2, device="cpu")), plain.naive_clips(site.wav2vec2)
    part = site.clips[: site.counts["naive_clips"]]
    model = plain.transformer(site.wav2vec2, precision())
    ready = torch.from_numpy(np.stack(ready_samples(encoder, site.clips))).to(precision())
    forwards, shapes = best_forwards(model, ready, CLIPS_PER_BATCH, plain.batched)
    seconds, vectors = in_turn(
        site.repeats,
        {
            **forwards,
            "bulk": partial(bulk_clips, encoder, site.clips),
            "naive": partial(naive, part),
        },
    )
    naive_all = seconds["naive"] * len(site.clips) / len(part)
    record.claim("audio_bulk_over_forward", fastest_forward(seconds) / seconds["bulk"], "ratio", bar=0.9)
    record.claim("audio_over_naive", naive_all / seconds["bulk"], "ratio", bar=2.0)
    note(record, "audio", len(site.clips), {**seconds, "naive": naive_all}, least_cosine(vectors), shapes)


def fastest_forward(seconds: Mapping[str, float]) -> float:
    """Seconds of the bare forward passes in the faster of the two ways to use the cores."""
    return min(seconds[name] for name in FORWARDS)


def note(
    record: Record, modality: str, count: int, seconds: Mapping[str, float], cosine: float, shapes: Mapping[str, int]
) -> None:
    """The numbers behind a modality's claims."""
    record.note(f"{modality}_per_second", {name: round(count / taken, 2) for name, taken in seconds.items()})
    record.note(f"{modality}_least_cosine_to_float32", round(cosine, 6))
    record.note(f"{modality}_best_forward_shape", dict(shapes))


# ---- compiled --------------------------------------------------------------------------------------------------------


def measure_compiled(site: Site, record: Record) -> None:
    """The compiled bulk path beside our own eager one; compilation is left out and stated."""
    from encoders.image import ImageEncoder
    from encoders.text import TextEncoder

    texts, pictures = site.texts[: site.counts["compared"]], site.pictures
    jobs = {
        "text": [
            partial(bulk_texts, TextEncoder(site.bert, device="cpu", compile=compiled), texts)
            for compiled in (False, True)
        ],
        "image": [
            partial(bulk_pictures, ImageEncoder(site.clip, device="cpu", compile=compiled), pictures)
            for compiled in (False, True)
        ],
    }
    for (modality, (eager, compiled)), bar in zip(jobs.items(), (1.4, 1.25), strict=True):
        eager()  # loads the model
        first, _ = timed(compiled)
        seconds, vectors = in_turn(site.repeats, {"eager": eager, "compiled": compiled})
        record.claim(f"{modality}_compiled_over_eager", seconds["eager"] / seconds["compiled"], "ratio", bar=bar)
        details = {
            "compilation_seconds": first - seconds["compiled"],
            "per_second": len(vectors["eager"]) / seconds["compiled"],
        }
        cosine = plain.least_cosine(vectors["compiled"], vectors["eager"])
        record.note(f"{modality}_compiled", {**details, "least_cosine_to_eager": round(cosine, 6)})


# ---- peers -----------------------------------------------------------------------------------------------------------


def measure_peers(site: Site, record: Record) -> None:
    """sentence-transformers on texts and photographs, infinity on texts, each in its own venv and process, in turn with ours."""
    from encoders.image import ImageEncoder
    from encoders.text import TextEncoder

    texts, pictures = site.texts[: site.counts["compared"]], site.pictures
    ours = partial(bulk_texts, warm(TextEncoder(site.bert, device="cpu")), texts)
    reference = plain.naive_texts(site.bert)(texts[:COSINE_ITEMS])
    for peer, claim in (
        ("sentence-transformers", "text_over_sentence_transformers"),
        ("infinity", "text_over_infinity"),
    ):
        compare(site, record, claim, partial(Peer, peer, site.bert, "text"), texts, ours, reference)
    ours = partial(bulk_pictures, warm(ImageEncoder(site.clip, device="cpu")), pictures)
    reference = plain.naive_pictures(site.clip)(pictures[:COSINE_ITEMS])
    folder = models.clip_for_transformers(site.clip, site.folder / "clip-for-transformers")
    start = partial(Peer, "sentence-transformers", folder, "image")
    compare(site, record, "image_over_sentence_transformers", start, list(map(str, pictures)), ours, reference)


def compare(
    site: Site,
    record: Record,
    claim: str,
    start: Callable[[Path], Peer],
    inputs: Sequence[str],
    ours: Callable[[], Any],
    reference: Any,
) -> None:
    """Claim how many times faster ours is than a peer at the peer's own best batch size; say why where the peer cannot be had."""
    whole, part, out = (site.folder / f"{claim}.{kind}" for kind in ("json", "part.json", "npy"))
    whole.write_text(json.dumps(list(inputs)))
    part.write_text(json.dumps(list(inputs[::CHOOSING_SHARE])))
    try:
        with start(site.folder / f"{claim}.log") as peer:
            peer.encode(part, PEER_BATCHES[0])  # warm
            tried = {size: peer.encode(part, size) for size in PEER_BATCHES}
            size = min(tried, key=lambda batch: tried[batch])
            pairs = [(peer.encode(whole, size, out), timed(ours)) for _ in range(site.repeats)]
    except PeerError as error:
        record.note(f"{claim}_not_measured", str(error))
        return
    theirs, best = min(pair[0] for pair in pairs), min(pair[1][0] for pair in pairs)
    record.claim(claim, theirs / best, "ratio", bar=1.0)
    record.note(f"{claim}_peer", {**peer.versions, "best_batch": size, "per_second": round(len(inputs) / theirs, 2)})
    record.note(f"{claim}_ours_per_second", round(len(inputs) / best, 2))
    cosines = {
        "peer": plain.least_cosine(np.load(out), reference),
        "ours": plain.least_cosine(pairs[0][1][1], reference),
    }
    record.note(f"{claim}_least_cosine_to_float32", {name: round(cosine, 6) for name, cosine in cosines.items()})


# ---- ways to encode --------------------------------------------------------------------------------------------------


def warm(encoder: Any) -> Any:
    """The encoder with its model loaded and run once."""
    encoder.warm_up()
    return encoder


def bulk_texts(encoder: Any, texts: Sequence[str]) -> Any:
    from encoders.media import clean_text

    return bulk(encoder, texts, clean_text)


def bulk_pictures(encoder: Any, paths: Sequence[Path]) -> Any:
    from encoders.media import sha256_hex

    return bulk(encoder, paths, partial(decoding_pool().decode, "image"), sha256_hex)


def bulk_clips(encoder: Any, paths: Sequence[Path]) -> Any:
    from encoders.media import sha256_hex

    return bulk(encoder, paths, partial(decoding_pool().decode, "audio"), sha256_hex)


def bulk(
    encoder: Any, sources: Sequence[Any], decode: Callable[[Any], Any], key: Callable[[Any], Any] | None = None
) -> Any:
    """Unit vectors [n, dim] by the bulk path, as ingestion calls it: files are hashed, and decoded in processes of their own."""
    from encoders.bulk import encode_stream

    return np.stack(list(encode_stream(encoder, sources, decode, key=key)))


@functools.cache
def decoding_pool() -> Any:
    """As many decoding processes as ingestion has, already started."""
    from encoders.decode_pool import DecodePool

    pool = DecodePool(max(2, cores()))
    atexit.register(pool.close)
    pool.warm_up()
    return pool


def ready_pixels(encoder: Any, paths: Sequence[Path]) -> Any:
    """Decoded and transformed pictures [n, 3, 224, 224] in the encoder's precision, one after the other."""
    import torch

    from encoders.media import decode_image

    units = [encoder.prepare([decode_image(path)])[0][0] for path in paths]
    return torch.stack([torch.as_tensor(unit.data) for unit in units]).to(precision())


def ready_samples(encoder: Any, paths: Sequence[Path]) -> list[Any]:
    """Decoded and normalised clips, one after the other."""
    from encoders.media import decode_audio

    return [encoder.prepare([decode_audio(path)])[0][0].data for path in paths]


def least_cosine(vectors: Mapping[str, Any]) -> float:
    """The smallest cosine of the bulk path to the naive way's float32 vectors."""
    return plain.least_cosine(vectors["bulk"], vectors["naive"])


def precision() -> Any:
    """The precision that the encoders choose here."""
    from encoders.device import choose_compute

    return choose_compute("cpu").torch_dtype


if __name__ == "__main__":
    run(
        measure_all,
        PARTS,
        "Bulk encoding at production size, beside the hardware's limit, a plain script and the peers.",
    )

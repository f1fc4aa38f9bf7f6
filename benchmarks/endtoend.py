"""The demo's stages end to end, each encoder beside its bare model, and Rank beside an empty gRPC call.

Parts: `stages` walks a generated catalogue through the project's own commands and holds the whole demo to its time and its ranker to
what can be known (each stage's rate is a detail); `encode` gives each encoder's speed as a share of the bare forward passes of its
model on the very same ready tensors; `rank` gives Rank over all items as a multiple of an empty call, taken in turn.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from benchmarks.common import Options, Record, best_pair, run
from triptych.client import Client
from triptych.demo.catalogue import make_catalogue, write_catalogue
from triptych.demo.run import Shop, learn, make_shop, measure, serve, store
from triptych.demo.story import lift
from triptych.demo.walk import Walk

PARTS: Final = ("stages", "encode", "rank")
SEED: Final = 7
ITEMS: Final = 300
USERS: Final = 400
QUICK_ITEMS: Final = 80
QUICK_USERS: Final = 150
DEMO_SECONDS: Final = 240.0
RANK_CALLS: Final = 200
RANK_WARM_UP_CALLS: Final = 10
RANK_OVER_EMPTY_CALL: Final = 50.0  # Rank reads a store and scores hundreds of items, where an empty call only travels


def measure_all(options: Options, record: Record) -> None:
    """All wanted parts; the walk serves both `stages` and `rank`."""
    if options.wants("encode"):
        measure_encoders(options, record)
    if options.wants("stages") or options.wants("rank"):
        with tempfile.TemporaryDirectory() as folder:
            walk_through(Path(folder), options, record)


# ---- stages ----------------------------------------------------------------------------------------------------------


def walk_through(folder: Path, options: Options, record: Record) -> None:
    """The demo's walk, on less data where `--quick`, without its report."""
    items, users = (QUICK_ITEMS, QUICK_USERS) if options.quick else (ITEMS, USERS)
    home = folder / "home"
    with Walk(home, folder / "logs", Console(stderr=True)) as walk:
        shop = make_shop(walk, folder / "catalogue", SEED, items=items, users=users)
        store(walk, shop)
        learn(walk, SEED)
        serve(walk, shop)
        if options.wants("rank"):
            measure_rank(walk.address, shop, record)
        metrics = measure(walk, shop, home, SEED) if options.wants("stages") else {}
        with walk.stage("down", "stop"):
            walk.stop()
    if options.wants("stages"):
        claim_stages(walk.seconds, shop, record)
        claim_quality(metrics, record)


def claim_stages(seconds: dict[str, float], shop: Shop, record: Record) -> None:
    """The whole demo against its target; work per second by stage, process start included, are the numbers behind it."""
    items, users = len(shop.catalogue.items), len(shop.world.truth.user_ids)
    work = {  # stage -> detail, work done
        "ingest": ("ingest_items_per_second", items),
        "users": ("users_built_per_second", users),
        "materialize": ("materialize_entities_per_second", items + users),
        "train": ("train_labels_per_second", len(shop.world.events)),
    }
    for stage, (name, done) in work.items():
        record.note(name, round(done / seconds[stage], 1))
    record.note("seconds", seconds)
    record.claim("demo_seconds", sum(seconds.values()), "s", bar=DEMO_SECONDS, better="lower")


def claim_quality(metrics: dict[str, float], record: Record) -> None:
    """How much of what can be known the ranker learned, and how much of that without the content."""
    learned, shuffled = lift(metrics, "ndcg_at_10"), lift(metrics, "ndcg_at_10_shuffled_content")
    record.claim("lift_to_oracle", learned, "of NDCG@10", bar=0.5)
    record.claim("lift_to_oracle_shuffled_content", shuffled, "of NDCG@10", bar=round(learned / 3, 4), better="lower")
    record.note("metrics", metrics)


# ---- encode ----------------------------------------------------------------------------------------------------------


def measure_encoders(options: Options, record: Record) -> None:
    """Each encoder on the demo's own media, decoded beforehand, against its model alone, on one thread.

    With more threads a busy neighbour makes either side several times slower at random, and the ratio means nothing.
    """
    import torch

    from encoders.profiles import load_profile

    encoders, count = load_profile("bundled"), QUICK_ITEMS if options.quick else ITEMS
    texts, pictures, loops = read_media(count)
    jobs = (
        ("text", encoders.text, texts),
        ("image", encoders.image, pictures),
        ("audio", encoders.audio, loops),
    )
    repeats, threads = 2 if options.quick else 5, torch.get_num_threads()
    torch.set_num_threads(1)
    for modality, encoder, media in jobs:
        encode = partial(encoder.encode, media)
        batches = record_batches(encoder, encode)
        bare, whole = best_pair(repeats, partial(replay, encoder, batches), encode)
        record.claim(f"encode_{modality}_of_bare_forward", bare / whole, "ratio", bar=0.6)
        record.note(f"encode_{modality}_items_per_second", round(len(media) / whole, 1))
        record.note(f"bare_forward_{modality}_items_per_second", round(len(media) / bare, 1))
    torch.set_num_threads(threads)


def read_media(count: int) -> tuple[list[str], list[Any], list[Any]]:
    """The demo's texts, pictures and loops, decoded; broken files left out."""
    from encoders.media import decode_audio, decode_image

    catalogue = make_catalogue(SEED, count=count)
    good = [item for item in catalogue.items if not {item.image, item.audio} & set(catalogue.corrupt)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_catalogue(catalogue, folder, SEED)
        pictures = [decode_image(folder / item.image) for item in good if item.image]
        loops = [decode_audio(folder / item.audio) for item in good if item.audio]
    return [f"{item.title}. {item.description}" for item in good], pictures, loops


# The model alone on a ready batch: the peer is the very model inside.
BARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "text": lambda encoder, batch: encoder._model(input_ids=batch[0], attention_mask=batch[1]),  # noqa: SLF001
    "image": lambda encoder, batch: encoder._model.visual(batch[1]),  # noqa: SLF001
    "audio": lambda encoder, batch: encoder._model(batch),  # noqa: SLF001
}


def record_batches(encoder: Any, job: Callable[[], object]) -> list[Any]:
    """The ready batches that `job` forwards: what the bare model needs to do the same work."""
    batches, launch = [], encoder.launch

    def launch_noted(batch: Any) -> Any:
        batches.append(batch)
        return launch(batch)

    encoder.launch = launch_noted
    try:
        job()
    finally:
        del encoder.launch
    return batches


def replay(encoder: Any, batches: Sequence[Any]) -> None:
    """The bare forward passes."""
    import torch

    bare = BARE[encoder.space.modality]
    with torch.inference_mode():
        for batch in batches:
            bare(encoder, batch)


# ---- rank ------------------------------------------------------------------------------------------------------------


def measure_rank(address: str, shop: Shop, record: Record) -> None:
    """Rank over all items as candidates, and over retrieved ones, beside an empty call on the same channel."""
    users, items = shop.world.truth.user_ids, shop.world.truth.item_ids
    with Client(address) as client:
        empty, given, found = median_ms(
            users,
            lambda _: client.healthy(),
            lambda user: client.rank(user, items, top_n=10),
            lambda user: client.rank(user, top_n=10),
        )
    record.claim("rank_over_empty_call", given / empty, "ratio", bar=RANK_OVER_EMPTY_CALL, better="lower")
    record.note("empty_grpc_call_p50_ms", round(empty, 3))
    record.note("rank_all_items_p50_ms", round(given, 3))
    record.note("rank_retrieved_p50_ms", round(found, 3))
    record.note("rank_all_items_per_second", round(len(items) / given * 1000))


def median_ms(users: Sequence[str], *calls: Callable[[str], object]) -> list[float]:
    """Median milliseconds of `RANK_CALLS` runs of each call over different users, taken in turn after a warm-up."""
    taken = [[timed_ms(call, users[n % len(users)]) for call in calls] for n in range(RANK_WARM_UP_CALLS + RANK_CALLS)]
    return [float(median) for median in np.median(taken[RANK_WARM_UP_CALLS:], axis=0)]


def timed_ms(call: Callable[[str], object], user: str) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call(user)
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    run(
        measure_all,
        PARTS,
        "The demo end to end: its stages, its encoders beside their models, Rank beside an empty call.",
    )

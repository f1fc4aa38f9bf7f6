"""The demo from end to end: makes a shop, walks it through the real commands, measures, and writes what there is to see.

Everything lies under one output folder: the catalogue, a root folder of its own, logs, `report.html` and `metrics.json`.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from triptych.demo.catalogue import ITEMS, Catalogue, make_catalogue, write_catalogue
from triptych.demo.report import write_report
from triptych.demo.story import METRICS, Story, choose_people, tell_person
from triptych.demo.table import show
from triptych.demo.truth import USERS, World, make_world, write_world
from triptych.demo.walk import StageError, Walk

MODEL_ID: Final = "demo"
TOP_N: Final = 10
EXIT_PARTIAL: Final = 3
PARTS: Final = ("catalogue", "home", "logs", "report.html", "metrics.json")
MARKER: Final = ".triptych-demo"  # says that what bears the names in PARTS beside it is a demo's, and may be removed


@dataclass(frozen=True)
class Shop:
    """The generated data and where it lies."""

    catalogue: Catalogue
    world: World
    folder: Path

    @property
    def manifest(self) -> Path:
        """What `triptych ingest` reads."""
        return self.folder / "manifest.csv"


def run_demo(out: Path, *, seed: int, keep: bool, console: Console) -> int:
    """Run the demo and return its exit code.

    0 when every stage went well and exactly the planted files were quarantined, else 1. Stops what it started unless `keep`.
    """
    out = out.resolve()
    try:
        _clear(out)
        story = _walk(out, seed, keep, console)
    except StageError as error:
        console.print(f"[bold red]the demo failed:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    write_report(story, out / "report.html")
    write_metrics(story, out / "metrics.json")
    show(story, console)
    console.print(f"\n[bold]Open[/] {escape(str(out / 'report.html'))}", highlight=False, soft_wrap=True)
    return _verdict(story, console)


def _clear(out: Path) -> None:
    """Remove what an earlier demo left in `out`; refuse where it is somebody else's, or where the demo's processes still run."""
    present = [name for name in PARTS if os.path.lexists(out / name)]
    if present and not (out / MARKER).is_file():
        raise StageError(
            f"{out} has {', '.join(present)}, and no demo made that folder: the demo would replace them. Choose another folder with "
            "--out, or move them away"
        )
    for name in ("milvus.json", "serve.json"):
        if _alive(out / "home" / name):
            raise StageError(
                f"an earlier demo still runs, see {out / 'home' / name}: stop its server, then run "
                f"`TRIPTYCH_HOME={out / 'home'} triptych down`"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text("`triptych demo` made this folder, and replaces what it made when it runs again.\n")
    except OSError as error:
        raise StageError(f"cannot write into {out}: {error}; choose another folder with --out") from error
    for name in present:
        if (out / name).is_dir() and not (out / name).is_symlink():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink()


def _alive(record: Path) -> bool:
    """Whether the process named in a milvus.json or serve.json still runs and is one of ours."""
    try:
        command = Path(f"/proc/{int(json.loads(record.read_text())['pid'])}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return b"milvus" in command or b"triptych" in command


def _walk(out: Path, seed: int, keep: bool, console: Console) -> Story:
    home = out / "home"
    with Walk(home, out / "logs", console, keep_running=keep) as walk:
        shop = make_shop(walk, out / "catalogue", seed)
        quarantined = store(walk, shop)
        learn(walk, seed)
        replies = serve(walk, shop)
        metrics = measure(walk, shop, home, seed)
        if not keep:
            with walk.stage("down", "stop the server and the store"):
                walk.stop()
    return Story(
        people=[tell_person(shop.catalogue, shop.world, user, reply) for user, reply in replies.items()],
        metrics=metrics,
        quarantined=quarantined,
        counts={
            "items": len(shop.catalogue.items),
            "users": len(shop.world.truth.user_ids),
            "interactions": len(shop.world.events),
        },
        seconds=walk.seconds,
        media=shop.folder,
        home=home,
        corrupt=shop.catalogue.corrupt,
    )


def make_shop(walk: Walk, folder: Path, seed: int, *, items: int = ITEMS, users: int = USERS) -> Shop:
    """Draw the catalogue and its users, and write their files."""
    with walk.stage("catalogue", f"draw {items} postcards and the tastes of {users} users"):
        catalogue = make_catalogue(seed, count=items)
        world = make_world(catalogue, seed, users=users)
        write_catalogue(catalogue, folder, seed)
        write_world(world, folder)
    return Shop(catalogue, world, folder)


def store(walk: Walk, shop: Shop) -> list[tuple[str, str]]:
    """Store, ingest, users, first materialization; return the quarantined (file, reason) pairs."""
    with walk.stage("up", "start the embedded vector store"):
        walk.start_store()
    with walk.stage("ingest", "check and encode texts, pictures and sounds"):
        report = walk.triptych_json("ingest", str(shop.manifest), ok=(0, EXIT_PARTIAL))
    interactions, profiles = shop.folder / "interactions.csv", shop.folder / "profiles.csv"
    with walk.stage("users", "histories, interests, encoded reviews"):
        walk.triptych("users", "build", "--interactions", str(interactions), "--profiles", str(profiles))
    with walk.stage("materialize", "apply the feature definitions, load the store"):
        walk.triptych("materialize")
    return read_quarantine(report, shop.folder)


def read_quarantine(report: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """(file relative to the manifest, reason) of each refusal that an ingestion's report points to."""
    path = report.get("quarantine_file")
    lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    refusals = [json.loads(line) for line in lines if line.strip()]
    root = f"{folder}/"
    return [(str(r["value"]).removeprefix(root), str(r["reason"]).replace(root, "")) for r in refusals]


def learn(walk: Walk, seed: int) -> None:
    """Train, promote, and load the fused vectors."""
    with walk.stage("train", "train the fusion ranker"):
        walk.triptych("train", "--model-id", MODEL_ID, "--preset", "tiny", "--seed", str(seed), "--promote")
    with walk.stage("fused", "load the ranker's own vectors"):
        walk.triptych("materialize")


def serve(walk: Walk, shop: Shop) -> dict[str, Any]:
    """Start the service and rank for three users; return the replies by user."""
    with walk.stage("serve", "start the gRPC service"):
        address = walk.start_server()
    people = choose_people(shop.world)
    with walk.stage("rank", "rank for three users, from other processes"):
        call = ("client", "rank", "--target", address, "--top-n", str(TOP_N))
        # A degraded reply is a reply: the table says what was missing.
        return {user: walk.triptych_json(*call, user, ok=(0, EXIT_PARTIAL)) for user in people}


def measure(walk: Walk, shop: Shop, home: Path, seed: int) -> dict[str, float]:
    """What `judge` measures."""
    with walk.stage("measure", "popularity, oracle, shuffled content"):
        truth = str(shop.folder / "truth.npz")
        arguments = ("--home", str(home), "--model-id", MODEL_ID, "--truth", truth, "--seed", str(seed))
        measured: dict[str, float] = json.loads(walk.python("triptych.demo.judge", *arguments))
        return measured


def write_metrics(story: Story, path: Path) -> Path:
    """Write the demo's numbers: the metrics, `items`, `quarantined`, and `seconds` by stage."""
    numbers: dict[str, Any] = {key: story.metrics[key] for key in METRICS}
    numbers |= {"items": story.counts["items"], "quarantined": len(story.quarantined), "seconds": dict(story.seconds)}
    path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return path


def _verdict(story: Story, console: Console) -> int:
    refused, planted = {file for file, _ in story.quarantined}, set(story.corrupt)
    if refused != planted or len(story.quarantined) != len(planted):
        found = f"{', '.join(sorted(refused)) or 'nothing'}, not {', '.join(sorted(planted))}"
        console.print(f"[bold red]the quarantine is not what was planted:[/] {escape(found)}", highlight=False)
        return 1
    console.print(
        f"[green]All stages went well in {sum(story.seconds.values()):.0f} s;[/] "
        f"the {len(planted)} files broken on purpose, and no others, were quarantined."
    )
    return 0

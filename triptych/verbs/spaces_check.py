"""`triptych spaces check`: whether a space is ready to take the place of another."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from triptych.console import EXIT_PARTIAL, console, err, print_json
from triptych.options import JsonOption

if TYPE_CHECKING:
    from contextlib import ExitStack

    from feature_store.home import Home
    from feature_store.milvus_core import MilvusCore
    from feature_store.space_check import Drift, SpaceCheck


def check(
    space: Annotated[str, typer.Argument(help="Id of the new space.", show_default=False)],
    against: Annotated[
        str | None,
        typer.Option(
            help="Id of the old space. Default: the modality's that the stable model reads, else another in use."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the items that are searched with.")] = 0,
    json: JsonOption = False,
) -> None:
    """Measure a space and compare it with another: what it has, what it finds, and how its vectors lie.

    Coverage: live items of the old space that the new one has too. Label coverage: interactions that join a vector in the old space,
    strictly before them, and do in the new one. Overlap: nearest items that both spaces agree on; each is searched by its own vectors
    alone, for vectors of two spaces are never compared. Recall: what Milvus finds in the new view against exact search, where the view
    is loaded. Drift: mean cosine of random pairs, norms, and equal vectors of items that are not equal.

    Exit code 0: ready; 3: not ready, with the reasons and their thresholds; 1: it could not be measured.
    """
    from contextlib import ExitStack

    from feature_store.home import find_home
    from feature_store.space_check import check_space
    from feature_store.spaces import find_entry

    home = find_home()
    entry = find_entry(home, space)
    old = find_entry(home, against).space.space_id if against else _rival(home, space)
    with ExitStack() as stack, err.status("measuring") as status:
        core = _core(home, stack)
        found = check_space(
            home,
            space,
            old,
            core,
            entity=entry.entity,
            seed=seed,
            progress=lambda stage: status.update(f"measuring {stage}"),
        )
    if json:
        print_json(found.to_dict())
    else:
        _print(found)
    raise SystemExit(0 if found.ready else EXIT_PARTIAL)


def _rival(home: "Home", space_id: str) -> str | None:
    """The space that this one is to replace."""
    from feature_store.spaces import ACTIVE, find_entry, read_entries
    from ranker import checkpoint
    from triptych.verbs.spaces_choice import stable_pins

    entry = find_entry(home, space_id)
    pinned = stable_pins(home, checkpoint.stable(home)).get(entry.space.modality)
    others = [
        e
        for e in read_entries(home)
        if (e.entity, e.space.modality) == (entry.entity, entry.space.modality)
        and e.space.base_space_id is None
        and e.space.space_id != space_id
    ]
    others.sort(key=lambda e: (e.space.space_id != pinned, e.state != ACTIVE))
    return others[0].space.space_id if others else None


def _core(home: "Home", stack: "ExitStack") -> "MilvusCore | None":
    from feature_store.connection import connect
    from feature_store.errors import StoreUnavailable

    try:
        core: MilvusCore = stack.enter_context(connect(home, timeout_seconds=30.0))
        core.list_views()
    except StoreUnavailable:
        return None
    return core


def _print(found: "SpaceCheck") -> None:
    table = Table("figure", found.space_id, found.against or "no other space", title="the new space and the old one")
    if found.coverage is not None:
        examples = f" (missing: {', '.join(found.missing)} ...)" if found.missing else ""
        table.add_row("live items of the old one", f"{found.coverage:.2%}{examples}", "100%")
    if found.label_coverage is not None:
        table.add_row(
            "labels that join a vector", f"{found.labels_both:,}", f"{found.labels_old:,} of {found.labels:,}"
        )
    if found.overlap is not None:
        table.add_row("neighbours in common, of 10", f"{found.overlap:.1%}", f"by chance {found.chance:.1%}")
    recall = found.not_loaded if found.recall is None else f"{found.recall:.4f}"
    table.add_row("recall@10 of Milvus", recall, "")
    old = found.drift_old
    for name, value in _figures(found.drift).items():
        table.add_row(name, value, _figures(old)[name] if old else "")
    console.print(table)
    for problem in found.problems:
        err.print(f"not ready: {problem}", style="yellow", markup=False, soft_wrap=True)
    console.print(verdict(found), markup=False, highlight=False, soft_wrap=True)


def _figures(drift: "Drift") -> dict[str, str]:
    return {
        "vectors": f"{drift.vectors:,}",
        "mean cosine of random pairs": f"{drift.mean_cosine:.4f}",
        "norms": f"{drift.min_norm:.6f} to {drift.max_norm:.6f}",
        "items with a vector that another has": f"{drift.duplicates:.2%}",
        "... of other content": f"{drift.collapsed:.2%}",
    }


def verdict(found: "SpaceCheck") -> str:
    """One line: ready or not, and what it was held against."""
    from feature_store import space_check as limits

    held = (
        f"coverage and label coverage >= {limits.MIN_COVERAGE}, recall@10 >= {limits.MIN_RECALL}, overlap >= "
        f"{limits.MIN_OVERLAP_OVER_CHANCE:g} x chance (from {limits.FEWEST_FOR_OVERLAP} items on), mean cosine <= {limits.MAX_MEAN_COSINE}, "
        f"equal vectors of other content <= {limits.MAX_COLLAPSED:.0%}"
    )
    state = "READY" if found.ready else "NOT READY"
    unloaded = " Not in Milvus yet, so recall was not judged." if found.recall is None else ""
    return f"{state} ({held}).{unloaded}"

"""The demo's result in the terminal: who was shown what and why, and how well that went."""

from collections.abc import Mapping
from typing import Final

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from triptych.demo.catalogue import Item
from triptych.demo.story import MODALITIES, Person, Result, Story
from triptych.demo.vocabulary import SOUNDS, STYLES, TOPICS

COLOURS: Final = {"text": "cyan", "image": "magenta", "audio": "yellow", "id": "green", "other": "bright_black"}
VERBS: Final = {"text": "reads", "image": "looks", "audio": "listens"}
BAR_CELLS: Final = 18
NARROW_BAR_CELLS: Final = 12
METRIC_CELLS: Final = 40
WIDE_COLUMNS: Final = 110


def show(story: Story, console: Console) -> None:
    """Print one panel for each person, then the metrics; less of each where the terminal is narrow."""
    for person in story.people:
        console.print(_person(person, wide=console.width >= WIDE_COLUMNS))
    console.print(_metrics(story))


def _person(person: Person, *, wide: bool) -> Panel:
    loves = Text.assemble("loves ")
    for m in sorted(MODALITIES, key=lambda m: -person.weights[m]):
        loves.append(f"{person.favourites[m]}", f"bold {COLOURS[m]}").append(f" ({VERBS[m]} {person.weights[m]:.0%})  ")
    table = _columns(wide=wide)
    for place, result in enumerate(person.results, 1):
        attributes = [_attribute(result, m) for m in MODALITIES]
        met = Text(" ").join(a for a, m in zip(attributes, MODALITIES, strict=True) if m in result.matches)
        shown = attributes if wide else [met]
        row: list[str | Text] = [str(place), Text(result.item.title), *shown, f"{result.score:.2f}"]
        because = [Text(result.because[0][0].title if result.because else "")] if wide else []
        table.add_row(*row, share_bar(result.shares, BAR_CELLS if wide else NARROW_BAR_CELLS), *because)
    title = f"[bold]{escape(person.user_id)}[/] after {person.history_length} postcards"
    note = f"ranked by {person.model_id} in {person.milliseconds:.0f} ms" + "".join(f", {d}" for d in person.degraded)
    return Panel(Group(loves, Text(), table), title=title, subtitle=f"[dim]{escape(note)}[/]", border_style="blue")


def _columns(*, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    table.add_column("", justify="right", style="dim")
    table.add_column("postcard", ratio=5, no_wrap=True)
    for title in ("words", "picture", "sound") if wide else ("meets the taste",):
        table.add_column(title, no_wrap=True)
    table.add_column("score", justify="right")
    table.add_column("made of", width=BAR_CELLS if wide else NARROW_BAR_CELLS, no_wrap=True)
    if wide:
        table.add_column("because of", ratio=4, no_wrap=True, style="dim")
    return table


def attribute_name(item: Item, modality: str) -> str:
    """The planted attribute that the item shows in `modality`; empty where it has no such part."""
    if modality == "text":
        return TOPICS[item.topic].name
    if modality == "image":
        return STYLES[item.style] if item.image else ""
    return SOUNDS[item.sound] if item.audio else ""


def _attribute(result: Result, modality: str) -> Text:
    name = attribute_name(result.item, modality) or "-"
    return Text(f"● {name}", COLOURS[modality]) if modality in result.matches else Text(f"  {name}", "dim")


def share_bar(shares: Mapping[str, float], cells: int = BAR_CELLS) -> Text:
    """Blocks in proportion to what each group adds to the score; what counts against it is left out."""
    gains = {group: max(0.0, share) for group, share in shares.items()}
    total = sum(gains.values()) or 1.0
    bar, done, drawn = Text(), 0.0, 0
    for group, gain in gains.items():
        done += gain
        end = round(cells * done / total)
        bar.append("█" * (end - drawn), COLOURS.get(group, "white"))
        drawn = end
    return bar


def _metrics(story: Story) -> Panel:
    m = story.metrics
    rows = (
        ("popularity", m["ndcg_at_10_popularity"], "bright_black"),
        ("ranker, content shuffled", m["ndcg_at_10_shuffled_content"], "red"),
        ("ranker", m["ndcg_at_10"], "bold green"),
        ("oracle (the planted truth)", m["ndcg_at_10_oracle"], "blue"),
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    top = max(value for _, value, _ in rows) or 1.0
    for name, value, colour in rows:
        table.add_row(name, Text("█" * max(1, round(METRIC_CELLS * value / top)), colour), f"{value:.3f}")
    legend = Text("colours above:  ")
    for group, colour in COLOURS.items():
        legend.append(f"█ {group}  ", colour)
    said = Text.assemble(
        "The ranker learned ", (f"{story.lift:.0%}", "bold green"), " of what can be known; with the media shuffled over the items, ",
        (f"{story.shuffled_lift:.0%}", "bold red"), f". AUC {m['auc']:.3f}, Recall@20 {m['recall_at_20']:.3f}.",
    )  # fmt: skip
    return Panel(
        Group(table, Text(), said, legend), title="NDCG@10 on the last fifth of the events", border_style="green"
    )

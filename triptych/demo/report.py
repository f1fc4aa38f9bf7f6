"""The demo's HTML report: one file that needs no other, with pictures, sounds, scores, reasons and metrics inside it.

`render` gives the page as text. Pictures become small WebP images and loops small Ogg Vorbis files, each embedded once.
"""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from triptych.demo.catalogue import Item
from triptych.demo.story import MODALITIES, Person, Result, Story
from triptych.demo.table import attribute_name

THUMBNAIL_PIXELS: Final = 160
COLOURS: Final = {"text": "#2a9d8f", "image": "#c84b9b", "audio": "#e9a23b", "id": "#6c8ebf", "other": "#9aa0a6"}
WORDS: Final = {"text": "reader", "image": "looker", "audio": "listener"}
SHARE_GROUPS: Final = ("text", "image", "audio", "id", "other")
SHOWN_REASONS: Final = 3
_BAR_WIDTH: Final = 460


def render(story: Story) -> str:
    """The whole page."""
    shown = {item.item_id: item for person in story.people for item in _items_of(person)}
    template = Template(files("triptych.demo").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        legend=_legend(),
        headline=_headline(story),
        metrics=_metrics(story),
        people="\n".join(_person(person, story) for person in story.people),
        quarantine=_quarantine(story),
        stages=_stages(story),
        home=escape(str(story.home)),
        user=escape(story.people[0].user_id) if story.people else "user-000",
        sounds=json.dumps({item_id: sound for item_id, item in shown.items() if (sound := _sound(item, story))}),
        pictures=_picture_rules(shown.values(), story),
    )


def write_report(story: Story, path: Path) -> Path:
    """Write the page to `path` and return it."""
    path.write_text(render(story), encoding="utf-8")
    return path


def _items_of(person: Person) -> Iterator[Item]:
    yield from person.history
    for result in person.results:
        yield result.item
        yield from (item for item, _ in result.because[:SHOWN_REASONS])


# ---- media -----------------------------------------------------------------------------------------------------------


def _readable(relative: str, story: Story) -> bool:
    return bool(relative) and relative not in story.corrupt


def _picture_rules(items: Iterable[Item], story: Story) -> str:
    """One CSS rule for each picture, so that a picture shown ten times is embedded once."""
    from PIL import Image

    rules = []
    for item in items:
        if not _readable(item.image, story):
            continue
        with Image.open(story.media / item.image) as picture:
            buffer = io.BytesIO()
            picture.convert("RGB").resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS).save(
                buffer, "WEBP", quality=82
            )
        rules.append(f".{item.item_id}{{background-image:url({_data('image/webp', buffer)})}}")
    return "\n".join(rules)


def _sound(item: Item, story: Story) -> str | None:
    import soundfile

    if not _readable(item.audio, story):
        return None
    samples, rate = soundfile.read(story.media / item.audio, dtype="float32")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="OGG", subtype="VORBIS")
    return _data("audio/ogg", buffer)


def _data(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ---- fragments -------------------------------------------------------------------------------------------------------


def _legend() -> str:
    return "".join(f'<span><i style="background:{COLOURS[group]}"></i>{group}</span>' for group in SHARE_GROUPS)


def _headline(story: Story) -> str:
    return (
        f"<b>{story.lift:.0%}</b> of what can be known about these users' next choices was learned from the media; "
        f"<b>{max(0.0, story.shuffled_lift):.0%}</b> when the media are shuffled over the items."
    )


def _bars(rows: Sequence[tuple[str, float, str]], unit: str) -> str:
    """Horizontal bars as inline SVG."""
    top = max((value for _, value, _ in rows), default=1.0) or 1.0
    drawn = []
    for i, (name, value, colour) in enumerate(rows):
        y, width = 8 + 34 * i, max(2.0, _BAR_WIDTH * value / top)
        drawn.append(
            f'<text x="218" y="{y + 16}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="230" y="{y}" width="{width:.1f}" height="22" rx="4" fill="{colour}"/>'
            f'<text x="{230 + width + 8:.1f}" y="{y + 16}" class="value">{value:{unit}}</text>'
        )
    return f'<svg viewBox="0 0 760 {34 * len(rows) + 10}" role="img">{"".join(drawn)}</svg>'


def _metrics(story: Story) -> str:
    m = story.metrics
    rows = [
        ("popularity", m["ndcg_at_10_popularity"], "#b8bcc4"),
        ("ranker, content shuffled", m["ndcg_at_10_shuffled_content"], "#d9776c"),
        ("ranker", m["ndcg_at_10"], "#2a9d8f"),
        ("oracle: the planted truth", m["ndcg_at_10_oracle"], "#3d5a80"),
    ]
    tiles = (
        ("AUC", f"{m['auc']:.3f}"),
        ("Recall@20", f"{m['recall_at_20']:.3f}"),
        *(
            (("NDCG@10, items never seen in training", f"{m['ndcg_at_10_unseen']:.3f}"),)
            if "ndcg_at_10_unseen" in m
            else ()
        ),
        *((name, f"{count:,}") for name, count in story.counts.items()),
    )
    drawn = "".join(f"<div><b>{value}</b><small>{escape(name)}</small></div>" for name, value in tiles)
    return f'<div class="plot">{_bars(rows, ".3f")}</div><div class="tiles">{drawn}</div>'


def _stages(story: Story) -> str:
    return _bars([(name, seconds, "#8d99ae") for name, seconds in story.seconds.items()], ".1f")


def _quarantine(story: Story) -> str:
    rows = "".join(f"<li><code>{escape(file)}</code> {escape(reason)}</li>" for file, reason in story.quarantined)
    return f"<ul>{rows}</ul>"


def _card(item: Item, story: Story, kind: str) -> str:
    """A picture that plays its loop when clicked; a blank one where the item has no picture that can be read."""
    has_picture, has_sound = _readable(item.image, story), _readable(item.audio, story)
    classes = f"pic {kind} {item.item_id if has_picture else 'blank'}{' loud' if has_sound else ''}"
    seen = ", ".join(name for m in MODALITIES if (name := attribute_name(item, m)))
    label = escape(f"{item.title} ({seen})", quote=True)
    blank = "" if has_picture else "<em>no picture</em>"
    return f'<button class="{classes}" data-id="{item.item_id}" title="{label}" aria-label="{label}">{blank}</button>'


def _remembered(item: Item, story: Story) -> str:
    return (
        f"<figure>{_card(item, story, 'small')}<figcaption>{escape(attribute_name(item, 'text'))}</figcaption></figure>"
    )


def _person(person: Person, story: Story) -> str:
    kind = WORDS[max(MODALITIES, key=lambda m: person.weights[m])]
    loves = "".join(
        f'<span class="chip" style="--c:{COLOURS[m]}">{escape(person.favourites[m])} <small>{m} {person.weights[m]:.0%}</small></span>'
        for m in MODALITIES
    )
    words = f"<blockquote>{escape(person.words)}</blockquote>" if person.words else ""
    history = "".join(_remembered(item, story) for item in person.history)
    scale = max((sum(max(0.0, s) for s in r.shares.values()) for r in person.results), default=1.0) or 1.0
    rows = "".join(_row(place, result, scale, story) for place, result in enumerate(person.results, 1))
    notes = "".join(f'<p class="note">degraded: {escape(reason)}</p>' for reason in person.degraded)
    return f"""<section class="person">
<header><h2>{escape(person.user_id)}, the {kind}</h2><div>{loves}</div></header>{words}
<h3>History <small>newest {len(person.history)} of {person.history_length}</small></h3><div class="history">{history}</div>
<h3>Top ten <small>ranked by {escape(person.model_id)} in {person.milliseconds:.0f} ms</small></h3>{notes}
<table><thead><tr><th></th><th></th><th>postcard</th><th class="num">score</th><th>what the score is made of</th>
<th>because of</th><th class="num" title="Place by the planted probability among all the items that are new to this user">true place</th></tr></thead>
<tbody>{rows}</tbody></table></section>"""


def _row(place: int, result: Result, scale: float, story: Story) -> str:
    item = result.item
    tags = "".join(_tag(result, modality) for modality in MODALITIES)
    because = "".join(_card(one, story, "tiny") for one, _ in result.because[:SHOWN_REASONS])
    return (
        f'<tr><td class="num">{place}</td><td>{_card(item, story, "mid")}</td>'
        f'<td class="what"><b>{escape(item.title)}</b><div>{tags}</div><small>{escape(item.description)}</small></td>'
        f'<td class="num">{result.score:.2f}</td><td>{_share_bar(result, scale)}</td><td class="why">{because}</td>'
        f'<td class="num">{result.true_place}</td></tr>'
    )


def _tag(result: Result, modality: str) -> str:
    name = attribute_name(result.item, modality)
    if not name:
        return ""
    met = " met" if modality in result.matches else ""
    return f'<span class="tag{met}" style="--c:{COLOURS[modality]}">{escape(name)}</span>'


def _share_bar(result: Result, scale: float) -> str:
    """What adds to the score as a stacked bar; what takes from it is said below."""
    parts = "".join(
        f'<i style="width:{100 * share / scale:.1f}%;background:{COLOURS.get(group, "#777")}" title="{escape(group)} {share:+.2f}"></i>'
        for group, share in result.shares.items()
        if share > 0
    )
    against = ", ".join(f"{escape(group)} {share:+.2f}" for group, share in result.shares.items() if share < -0.005)
    return f'<div class="bar">{parts}</div>' + (f'<small class="against">against: {against}</small>' if against else "")

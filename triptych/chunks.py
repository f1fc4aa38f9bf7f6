"""Inputs of any number in requests of the size that a server takes. Files are read when their request is sent, not before."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from protos.triptych.v1 import embedding_pb2

MAX_INPUTS: Final = 64
# Half of what a server accepts as one message, so that two may be under way.
MAX_REQUEST_BYTES: Final = 32 * 1024 * 1024

Media = bytes | Path | str
Source = tuple[str, Media]


def sources(texts: Sequence[str], images: Sequence[Media], audio: Sequence[Media]) -> list[Source]:
    """(field, content) of texts, then pictures, then sounds; `TypeError` where one is given for a list."""
    for name, given in {"texts": texts, "images": images, "audio": audio}.items():
        if isinstance(given, (str, bytes, Path)):
            raise TypeError(f"{name} must be a list, even of one, not a {type(given).__name__}")
    return [
        *(("text", text) for text in texts),
        *(("image", image) for image in images),
        *(("audio", sound) for sound in audio),
    ]


def chunks(given: Iterable[Source]) -> Iterator[list[Source]]:
    """Consecutive lists of at most 64 inputs and 32 MiB; a larger input has one to itself."""
    chunk: list[Source] = []
    held = 0
    for source in given:
        size = size_of(source)
        if chunk and (len(chunk) == MAX_INPUTS or held + size > MAX_REQUEST_BYTES):
            yield chunk
            chunk, held = [], 0
        chunk.append(source)
        held += size
    if chunk:
        yield chunk


def size_of(source: Source) -> int:
    """Bytes that an input will take."""
    kind, content = source
    if isinstance(content, bytes):
        return len(content)
    return len(str(content).encode(errors="replace")) if kind == "text" else Path(content).stat().st_size


def inputs(chunk: Iterable[Source]) -> list[embedding_pb2.EmbedInput]:
    """The messages of a chunk; reads its files."""
    read: Iterable[tuple[str, Any]] = ((kind, one if kind == "text" else read_media(one)) for kind, one in chunk)
    return [embedding_pb2.EmbedInput(**{kind: content}) for kind, content in read]


def read_media(source: Media) -> bytes:
    """Bytes of a picture or a sound: as given, or of the file."""
    return source if isinstance(source, bytes) else Path(source).read_bytes()

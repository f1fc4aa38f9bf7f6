import hashlib

import pytest

from encoders.errors import MediaError
from encoders.media import MediaLimits, clean_text, sha256_hex


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  two\n\twords ", "two words"),
        ("null\x00byte", "nullbyte"),
        ("e\u0301", "é"),
        ("lone\ud800surrogate", "lonesurrogate"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
        ("中文　文本", "中文 文本"),
    ],
)
def test_texts_are_tidied(raw, cleaned):
    """White space collapses, what no tokenizer can take goes, and letters of every script stay."""
    assert clean_text(raw) == cleaned


@pytest.mark.parametrize("raw", ["", "  \n", "\x00\x07"])
def test_nothing_left_is_empty(raw):
    """A text without a letter is refused as empty."""
    with pytest.raises(MediaError) as caught:
        clean_text(raw)
    assert caught.value.code == "empty"


@pytest.mark.parametrize("length", [11, 100_000])
def test_a_text_over_the_limit_is_too_large(length):
    """The refusal tells the length and the limit."""
    with pytest.raises(MediaError, match="the limit is 10") as caught:
        clean_text("x" * length, MediaLimits(max_text_chars=10))
    assert caught.value.code == "too_large"


def test_100_000_characters_are_too_many_by_default():
    """The default limit refuses a text of 100,000 characters and takes one of 50,000."""
    with pytest.raises(MediaError, match="100,000 characters"):
        clean_text("x" * 100_000)
    assert len(clean_text("x" * 50_000)) == 50_000


def test_sha256_of_bytes_and_of_a_file(tmp_path):
    """A file and its bytes have one digest; a missing file is a `MediaError`."""
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert sha256_hex(path) == sha256_hex(b"abc") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(MediaError) as caught:
        sha256_hex(tmp_path / "none")
    assert caught.value.code == "not_found"


def test_codes_are_a_closed_set():
    """A code that is not listed cannot be raised."""
    with pytest.raises(ValueError, match="must be one of"):
        MediaError("oops", "message")

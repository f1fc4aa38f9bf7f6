"""README.md says what the committed results say."""

import json
from pathlib import Path

import pytest

from benchmarks import readme

BARE = "before\n<!-- results of one -->\n<!-- end of results -->\nafter\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    claims = [
        {"name": "fast", "value": 1.23456, "unit": "ratio", "bar": 1.0, "better": "higher", "holds": True},
        {"name": "slow", "value": 250.0, "unit": "s", "bar": 240, "better": "lower", "holds": False},
    ]
    (tmp_path / "one.json").write_text(json.dumps({"claims": claims}))
    return tmp_path


def test_readme_is_what_the_results_say():
    """Nobody writes a number by hand."""
    readme.main(["--check"])


def test_a_place_is_filled_and_filled_again(results: Path):
    """The table stands between the comments, a missed bar is told, and filling twice changes nothing."""
    text = readme.filled(BARE.replace("-->\n<", "-->\nstale\n<", 1), results)
    assert "| `fast` | 1.23 | ratio | ≥ 1 | holds |" in text
    assert "| `slow` | 250 | s | ≤ 240 | **missed** |" in text
    assert "stale" not in text
    assert text.startswith("before\n<!-- results of one -->\n|")
    assert text.endswith("|\n<!-- end of results -->\nafter\n")
    assert readme.filled(text, results) == text


def test_results_that_are_not_there_are_named(tmp_path: Path):
    """A place without a file is an error, not an empty table."""
    with pytest.raises(FileNotFoundError, match=r"one\.json"):
        readme.filled("<!-- results of one -->\nstale\n<!-- end of results -->\n", tmp_path)

"""README.md, docs/operations.md and docs/results.md say what the committed results say."""

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


def test_sizes_and_costs_are_tables_too(tmp_path: Path):
    """Other kinds of tables come from the details, one line for each that matches."""
    weighed = {f"{name}_bytes_per_item": 2100 for name in ("disk", "disk_index", "memory", "peak_memory")}
    weighed["log_bytes_per_item"] = 1
    weighed |= {f"{name}_over_vector": 1.03 for name in ("disk", "disk_index", "memory", "peak_memory")}
    cost = dict.fromkeys(("load_seconds", "load_cpu_us_per_row", "load_peak_mb", "settle_seconds"), 7)
    cost |= dict.fromkeys(("read500_ms", "read500_bare_ms", "search100_ms", "search100_bare_ms"), 2.25)
    details = {
        "options": {},
        "embedded_5_4_FLAT": weighed | {"log_bytes_per_item": 0},
        "standalone_10000_512_HNSW": weighed,
        "size_1000": cost | {"search100_recall": 0.5},
    }
    (tmp_path / "one.json").write_text(json.dumps({"claims": [], "details": details}))
    sizes = readme.filled("<!-- sizes of one -->\n<!-- end of sizes -->", tmp_path).splitlines()
    assert sizes[3:5] == [
        "| embedded | 5 | 4 | FLAT | 2,100 (1.03) | not told apart | 2,100 (1.03) | 2,100 (1.03) |",
        "| standalone | 10,000 | 512 | HNSW | 2,100 (1.03) | 2,100 (1.03) | 2,100 (1.03) | 2,100 (1.03) |",
    ]
    costs = readme.filled("<!-- costs of one -->\n<!-- end of costs -->", tmp_path).splitlines()
    assert costs[3] == "| 1,000 | 7.0 | 7 | 7 | 7 | 2.2 (2.2) | 2.2 (2.2) | 0.500 |"
    assert (len(sizes), len(costs)) == (6, 5)

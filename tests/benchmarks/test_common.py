"""The one form of the benchmarks: claims, merging, exit code."""

import json
import math
import re
from pathlib import Path

import pytest

from benchmarks.common import Claim, Options, Record, best_pair, document, merged, run


def one_part(options: Options, record: Record) -> None:
    if options.wants("fast"):
        record.claim("fast_rows_per_second", 120.0, "rows/s", bar=100.0)
    if options.wants("slow"):
        record.claim("slow_p50_ms", 30.0 if options.quick else 90.0, "ms", bar=50.0, better="lower")
        record.note("empty_call_ms", 0.2)


def test_a_claim_holds_on_the_right_side_of_its_bar():
    """Higher and lower are better in their own directions, and the bar itself is reached."""
    assert Claim("a", 2.0, "s", 2.0, "lower").holds
    assert Claim("a", 2.0, "s", 2.0, "higher").holds
    assert not Claim("a", 2.1, "s", 2.0, "lower").holds
    assert not Claim("a", 1.9, "s", 2.0, "higher").holds


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_claimed(value: float):
    """NaN and infinity are refused, as values and as bars."""
    with pytest.raises(ValueError, match="finite"):
        Claim("a", value, "s", 1.0, "lower")
    with pytest.raises(ValueError, match="finite"):
        Claim("a", 1.0, "s", value, "lower")


def test_the_json_has_the_one_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """machine, date, claims with exactly six fields; a claim that does not hold is still a finished run."""
    run(one_part, ("fast", "slow"), "test", ["--json", str(tmp_path / "out" / "x.json")])
    report = json.loads((tmp_path / "out" / "x.json").read_text())
    assert {"machine", "date", "claims"} <= set(report)
    assert all(set(claim) == {"name", "value", "unit", "bar", "better", "holds"} for claim in report["claims"])
    assert [claim["holds"] for claim in report["claims"]] == [True, False]
    printed = capsys.readouterr().out
    assert "does not hold" in printed
    assert re.search(r"empty_call_ms\W+0\.2", printed), "details are printed beside the claims"


def test_only_replaces_its_own_claims(tmp_path: Path):
    """A run with --only keeps what another run measured, in place; a full run replaces the file."""
    path = tmp_path / "x.json"
    run(one_part, ("fast", "slow"), "test", ["--json", str(path)])
    run(one_part, ("fast", "slow"), "test", ["--quick", "--only", "slow", "--json", str(path)])
    claims = {claim["name"]: claim["value"] for claim in json.loads(path.read_text())["claims"]}
    assert claims == {"fast_rows_per_second": 120.0, "slow_p50_ms": 30.0}
    assert list(claims) == ["fast_rows_per_second", "slow_p50_ms"]


def test_what_was_not_measured_is_left_out(tmp_path: Path):
    """With --only and no file yet, there are only the claims of that part."""
    run(one_part, ("fast", "slow"), "test", ["--only", "fast", "--json", str(tmp_path / "x.json")])
    assert [c["name"] for c in json.loads((tmp_path / "x.json").read_text())["claims"]] == ["fast_rows_per_second"]


def test_merging_keeps_details_of_both():
    """Numbers behind the claims are merged like the claims."""
    old, new = Record(), Record()
    one_part(Options(), old)
    new.note("other", 1)
    both = merged(document(old), document(new))
    assert both["details"] == {"empty_call_ms": 0.2, "other": 1}
    assert len(both["claims"]) == 2


def test_an_unknown_part_is_wrong_usage():
    """--only takes the names of parts; another name ends with exit code 2."""
    with pytest.raises(SystemExit) as left:
        run(one_part, ("fast", "slow"), "test", ["--only", "nothing"])
    assert left.value.code == 2


def test_a_pair_is_taken_in_turn():
    """Peer and own job alternate, as many times as asked for, and the fastest of each counts."""
    calls = []
    peer, ours = best_pair(3, lambda: calls.append("peer"), lambda: calls.append("ours"))
    assert calls == ["peer", "ours"] * 3
    assert 0 <= peer < 1
    assert 0 <= ours < 1


def test_committed_results_are_in_the_one_form():
    """Every committed JSON has finite claims whose `holds` agrees with their numbers."""
    for path in (Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json"):
        for claim in json.loads(path.read_text())["claims"]:
            fields = {name: claim[name] for name in ("name", "value", "unit", "bar", "better")}
            assert Claim(**fields).holds == claim["holds"]

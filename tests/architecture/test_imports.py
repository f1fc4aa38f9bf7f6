import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("protos", "encoders", "feature_store", "feature_repo", "ingest", "ranker", "serving", "triptych")
# What each room may import of the others. `encoders.space` is the one module of encoders that the stores use.
ALLOWED = {
    "protos": set(),
    "encoders": set(),
    "feature_store": {"encoders.space"},
    "feature_repo": {"encoders.space", "feature_store"},
    "ingest": {"encoders", "feature_store"},
    "ranker": {"encoders.space", "feature_store"},
    "serving": {"protos", "encoders", "feature_store", "ranker"},
    "triptych": set(ROOMS),
}
NO_TORCH = ("feature_store", "feature_repo")


def files(room: str) -> list[Path]:
    return [p for p in sorted((ROOT / room).rglob("*.py")) if "_pb2" not in p.name]


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth of its code; `from a import b` counts as `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the room instead"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def covered(name: str, allowed: set[str]) -> bool:
    """Whether `name` is one of `allowed` or inside it, or is a package on the way to it (`encoders` of `encoders.space`)."""
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    """A room imports only the rooms before it in the row."""
    wrong = []
    for path in files(room):
        for name in imported(path):
            top = name.split(".")[0]
            if (
                top in ROOMS
                and top != room
                and not covered(name, ALLOWED[room])
                and name not in {a.split(".")[0] for a in ALLOWED[room]}
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_only_the_feast_adapters_import_feast():
    """Feast is imported by the definitions and the `feast_*` adapters alone: servers and the command line stay quick."""
    wrong = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in files(room)
        if any(name == "feast" or name.startswith("feast.") for name in imported(path))
        and room != "feature_repo"
        and not (room == "feature_store" and path.name.startswith("feast_"))
    ]
    assert not wrong


@pytest.mark.parametrize("room", NO_TORCH)
def test_the_stores_do_not_import_torch(room):
    """Neither the feature store nor the Feast definitions import torch."""
    wrong = [str(path) for path in files(room) if any(name.split(".")[0] == "torch" for name in imported(path))]
    assert not wrong


@pytest.mark.parametrize(
    "module", ["encoders.space", "encoders", "feature_store.tables", "triptych.cli", "triptych.client"]
)
def test_light_modules_stay_light(module):
    """These modules load neither torch nor feast nor transformers, as a fresh interpreter shows."""
    code = f"import sys, {module}; print(sorted({{'torch', 'feast', 'transformers', 'open_clip'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_verb_has_a_module_with_an_app_and_help():
    """The verb table and the folder of verbs agree; a verb's sub-command may have a file of its own, `<verb>_<command>.py`."""
    from triptych.cli import VERBS

    there = {path.stem.partition("_")[0] for path in files("triptych/verbs") if path.stem != "__init__"}
    assert there == set(VERBS)


def test_packages_are_listed_explicitly():
    """Every package folder of the rooms is in pyproject's list, and no test, benchmark or example is."""
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(p.parent.relative_to(ROOT).parts) for room in ROOMS for p in (ROOT / room).rglob("__init__.py")}
    assert listed == there

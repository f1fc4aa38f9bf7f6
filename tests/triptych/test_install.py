import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_BASE_INSTALL_MB = 160
LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv", ".triptych", "build", "out", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def run(*command, cwd):
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=60)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A virtual environment with nothing but `pip install .`, made from a copy so that the build leaves nothing here."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_BEHIND)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "--quiet", folder / "source"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder / "venv"


def test_the_base_install_is_small(base):
    """Client and command, with all that they need and pip itself, stay under 160 MB."""
    assert megabytes(base) < MAX_BASE_INSTALL_MB


def test_the_base_command_works(base, tmp_path):
    """Without extras the command shows its help, and the client verb says plainly that no server answers."""
    assert "ingest" in run(base / "bin/triptych", "--help", cwd=tmp_path).stdout
    done = run(base / "bin/triptych", "client", "rank", "u1", "--target", "127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "127.0.0.1:9" in done.stderr


def test_a_verb_that_needs_more_names_the_extra(base, tmp_path):
    """A verb whose packages are not installed says which extra has them."""
    manifest = tmp_path / "m.csv"
    manifest.write_text("item_id,title\na,one\n")
    done = subprocess.run(
        [base / "bin/triptych", "ingest", manifest], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "pip install '.[store]'" in done.stderr


def test_the_client_library_needs_the_base_install_only(base, tmp_path):
    """`triptych.client` imports and names the server that does not answer."""
    code = "from triptych.client import Client\nwith Client('127.0.0.1:9', timeout=2) as c: print(c.healthy())"
    done = run(base / "bin/python", "-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "False", done.stderr

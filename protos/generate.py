"""Generate the Python stubs beside the `.proto` files, or check that they are up to date.

`python protos/generate.py` writes them; `python protos/generate.py --check` exits 1 and names the stale ones. The include
root is the repository's, so that a stub is imported as `from protos.triptych.v1 import ranking_pb2`.
"""

import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = Path("protos/triptych/v1")
STUBS: Final = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Run protoc with the mypy plug-ins into `out`; raises `RuntimeError` if it fails."""
    import grpc_tools
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).with_name(f'protoc-gen-{name}')}"
        for name in ("mypy", "mypy_grpc")
    ]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *plugins, *outputs, *sources]) != 0:
        raise RuntimeError("protoc failed")


def stale_stubs() -> list[str]:
    """Names of stubs that differ from what the sources generate, are missing, or have no source."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, here = _stubs(Path(folder)), _stubs(ROOT)
    return sorted(name for name in fresh.keys() | here.keys() if fresh.get(name) != here.get(name))


def _stubs(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for pattern in STUBS for path in (root / PACKAGE).glob(pattern)}


def main(arguments: list[str]) -> int:
    """Generate, or with `--check` compare."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not arguments:
        generate(ROOT)
        return 0
    stale = stale_stubs()
    if stale:
        print(f"stale: {', '.join(stale)}; run `make protos`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Generate protos/gen from protos/routecast, or check that the committed output is what would be generated.

`python -m tools.protos` writes, `python -m tools.protos --check` compares and exits with 1 when a file is stale.
"""

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "protos"
OUTPUT = SOURCE / "gen"


def generate(target: Path) -> None:
    """Write modules, gRPC stubs and type stubs of every proto below `target`."""
    protos = sorted((SOURCE / "routecast").rglob("*.proto"))
    scripts = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"-I{SOURCE}",
        f"-I{resources.files('grpc_tools') / '_proto'}",
        *(f"--plugin=protoc-gen-{plugin}={scripts / f'protoc-gen-{plugin}'}" for plugin in ("mypy", "mypy_grpc")),
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        *(str(proto) for proto in protos),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed; its message is above")
    for folder in sorted(
        {p for proto in target.rglob("*.py") for p in proto.parents if p.is_relative_to(target / "routecast")}
    ):
        (folder / "__init__.py").write_text("")


def stale(fresh: Path) -> list[str]:
    """Return the generated files that differ between `fresh` and the committed output."""
    names = {
        p.relative_to(root) for root in (fresh, OUTPUT) for p in root.rglob("*.py*") if p.suffix in {".py", ".pyi"}
    }
    return sorted(
        str(name)
        for name in names
        if not (fresh / name).exists()
        or not (OUTPUT / name).exists()
        or (fresh / name).read_bytes() != (OUTPUT / name).read_bytes()
    )


def main() -> None:
    """Generate, or check with --check."""
    if "--check" not in sys.argv[1:]:
        OUTPUT.mkdir(exist_ok=True)
        generate(OUTPUT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        if different := stale(Path(folder)):
            sys.exit("stale generated files, run `make proto`:\n  " + "\n  ".join(different))


if __name__ == "__main__":
    main()

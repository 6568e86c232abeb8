"""Generate `ledger/v1` from `proto/ledger/v1`, or with --check say whether it is what would be generated."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

import grpc_tools
from google.rpc import status_pb2
from grpc_tools import protoc

ROOT: Final = Path(__file__).resolve().parent.parent
PROTO: Final = ROOT / "proto"
PACKAGE: Final = Path("ledger/v1")
GENERATED: Final = "*_pb2*.py*"  # leaves __init__.py alone, which is written by hand
INCLUDES: Final = (PROTO, Path(grpc_tools.__file__).parent / "_proto", Path(status_pb2.__file__).parents[2])
PLUGINS: Final = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def main() -> None:
    """Write what is generated, or exit 1 with the names of the files that differ from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is not as generated")
    check = parser.parse_args().check

    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        wanted = contents(Path(folder) / PACKAGE)
    differing = differences(wanted, contents(ROOT / PACKAGE))
    if not check:
        write(wanted, differing)
    elif differing:
        lines = [f"{PACKAGE / name}: {what}" for name, what in differing.items()]
        sys.exit("\n".join([*lines, "The generated code is not that of proto/: run make proto"]))


def generate(out: Path) -> None:
    """Run protoc over every file of the contract. Paths on this machine stay out of what is generated."""
    sources = sorted(path.relative_to(PROTO).as_posix() for path in (PROTO / PACKAGE).glob("*.proto"))
    # The plugins stand beside the interpreter: the environment need not be activated.
    plugins = [f"--plugin={name}={Path(sys.executable).with_name(name)}" for name in PLUGINS]
    outputs = [
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        # Not abstract: an rpc that a service leaves out answers UNIMPLEMENTED.
        f"--mypy_grpc_out=quiet,generate_concrete_servicer_stubs:{out}",
    ]
    code = protoc.main(["protoc", *(f"-I{include}" for include in INCLUDES), *plugins, *outputs, *sources])
    if code:
        sys.exit(code)


def contents(folder: Path) -> dict[str, bytes]:
    """The generated files in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob(GENERATED))}


def differences(wanted: dict[str, bytes], found: dict[str, bytes]) -> dict[str, str]:
    """What is wrong with each file that is not as generated."""
    wrong = {}
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            wrong[name] = "missing"
        elif name not in wanted:
            wrong[name] = "has no .proto any more"
        elif wanted[name] != found[name]:
            wrong[name] = "differs"
    return wrong


def write(wanted: dict[str, bytes], names: dict[str, str]) -> None:
    """Write, or remove, only the files that differ."""
    folder = ROOT / PACKAGE
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in wanted:
            (folder / name).write_bytes(wanted[name])
        else:
            (folder / name).unlink()


if __name__ == "__main__":
    main()

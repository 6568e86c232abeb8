"""Pin requirements/*.in with hashes, for every platform and Python that we support, into requirements/*.txt.

The files name packages, versions and hashes, and no address: where packages come from is up to who installs them.
"""

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent.parent / "requirements"

for name in ("runtime", "dev"):
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
            *("--generate-hashes", "--no-header", "--no-emit-index-url", "--no-annotate", "--upgrade"),
            *(f"requirements/{name}.in", "-o", f"requirements/{name}.txt"),
        ],
        cwd=REQUIREMENTS.parent,
        check=True,
    )

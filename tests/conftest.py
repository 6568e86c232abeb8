"""What all tests share: how Hypothesis runs, and that programs are compiled once."""

import os

from hypothesis import settings

# Tests start hundreds of programs. Where this is set, as in many containers, each would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No deadline: the first example pays for imports, and a busy machine is no failure.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=2_000)
settings.load_profile("default")

"""What all tests share: how Hypothesis runs."""

from hypothesis import settings

# No deadline: the first example pays for imports, and a busy machine is no failure.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=2_000)
settings.load_profile("default")

"""What every test starts from: counters at zero, and a state directory of its own run."""

import os
import tempfile

# Before anything reads it: pseudonym keys made by tests stay out of the developer's home.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="sottovoce-tests-")

import hypothesis
import pytest

from sottovoce import guard

# What is tested is never how fast this machine is now.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _counters_at_zero():
    guard.failures.clear()
    guard.undecodable.clear()

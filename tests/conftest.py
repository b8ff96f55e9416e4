"""What every test starts from: counters at zero, and a state directory of its own run."""

import os
import shutil
import tempfile

# Before anything reads it: pseudonym keys made by tests stay out of the developer's home.
STATE = os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="sottovoce-tests-")

import hypothesis
import pytest

from sottovoce import guard
from sottovoce.privacy import policy

# What is tested is never how fast this machine is now.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _counters_at_zero():
    guard.failures.clear()
    guard.undecodable.clear()


@pytest.fixture
def no_policy():
    """No policy of the process, as before anything is started; then again the one that was."""
    before = list(policy._active)
    policy._active.clear()
    yield
    policy._active[:] = before


def pytest_unconfigure():
    shutil.rmtree(STATE, ignore_errors=True)

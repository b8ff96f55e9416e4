from collections import Counter

import pytest

from sottovoce import guard
from sottovoce.privacy.policy import Policy
from sottovoce.settings import Settings

SECRET = "a secret of the tests"


@pytest.fixture(autouse=True)
def failures(monkeypatch):
    """Errors that a test provokes are counted for that test alone."""
    monkeypatch.setattr(guard, "failures", Counter())
    return guard.failures


@pytest.fixture
def policy():
    return Policy(Settings(key=SECRET))


@pytest.fixture
def make_policy():
    def make(**settings):
        return Policy(Settings(**{"key": SECRET, **settings}))

    return make

import pytest

from sottovoce.privacy.policy import Policy
from sottovoce.settings import Settings

SECRET = "a secret of the tests"


@pytest.fixture
def policy():
    return Policy(Settings(key=SECRET))


@pytest.fixture
def make_policy():
    def make(**settings):
        return Policy(Settings(**{"key": SECRET, **settings}))

    return make

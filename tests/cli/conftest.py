import contextlib

import pytest

from sottovoce.cli.local import Receiver
from sottovoce.cli.store import Store


class Current:
    """Where the one receiver of the tests writes to: the store of the test that runs."""

    store = None

    def add(self, request, rows):
        self.store.add(request, rows)


@pytest.fixture(scope="session")
def running():
    # Starting and stopping a server takes a fifth of a second: once, not once a test.
    current = Current()
    with Receiver(current, port=0) as receiver:
        yield receiver, current


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "local.db", create=True)
    yield made
    made.close()


@pytest.fixture
def receiver(running, store):
    receiver, current = running
    current.store = store
    return receiver


@pytest.fixture
def closing():
    with contextlib.ExitStack() as stack:
        yield stack.callback

import contextlib

import pytest

from sottovoce.cli.local import Receiver
from sottovoce.cli.store import Store


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "local.db", create=True)
    yield made
    made.close()


@pytest.fixture
def receiver(store):
    with Receiver(store, port=0) as running:
        yield running


@pytest.fixture
def closing():
    with contextlib.ExitStack() as stack:
        yield stack.callback

"""Fixtures of the rooms that talk to `ProviderServer` through hooked libraries."""

import pytest

from servers.calls import Calls
from servers.provider import ProviderServer
from sottovoce import guard
from sottovoce.clients import generated
from sottovoce.guard import ImportHooks, Patches
from sottovoce.transports import httpx as wire


@pytest.fixture(scope="session")
def running_server():
    with ProviderServer() as server:
        yield server


@pytest.fixture
def server(running_server):
    running_server.scenarios.clear()
    running_server.requests.clear()
    running_server.gate.set()
    return running_server


@pytest.fixture
def no_failures():
    """No hook swallowed an error of its own."""
    guard.failures.clear()
    guard.undecodable.clear()
    yield
    assert not guard.failures


@pytest.fixture
def calls(no_failures):
    """The calls that the openai SDK makes, hooked as its instrumentor hooks it."""
    calls = Calls()
    hooks, patches = ImportHooks(), Patches()
    generated.install(calls, hooks, patches)
    wire.install_wire()
    yield calls
    hooks.stop()
    wire.remove_wire()
    patches.undo()


@pytest.fixture
def raw_calls(no_failures):
    """The calls that httpx and httpx2 make without an SDK."""
    calls = Calls()
    wire.install_wire()
    wire.set_raw_recorder(calls)
    yield calls
    wire.set_raw_recorder(None)
    wire.remove_wire()

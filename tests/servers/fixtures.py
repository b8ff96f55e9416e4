"""Fixtures of the rooms that talk to `ProviderServer` through hooked libraries."""

import asyncio
import re
from contextlib import contextmanager

import pytest

from servers.calls import Calls
from servers.drivers import Async, Sync
from servers.provider import ProviderServer
from sottovoce import guard, transports
from sottovoce.clients import generated
from sottovoce.guard import ImportHooks, Patches
from sottovoce.transports import httpx as wire


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def driver(request):
    driver = request.param()
    yield driver
    driver.stop()


def fresh(server):
    """A server that several tests share, as it was when it was started."""
    server.scenarios.clear()
    server.requests.clear()
    if hasattr(server, "gate"):
        server.gate.set()
    return server


@contextmanager
def hooked(install, *more, calls=None):
    """The calls that a room of `clients` makes, hooked by its `install` with what it needs more."""
    calls, hooks, patches = calls or Calls(), ImportHooks(), Patches()
    install(calls, hooks, patches, *more)
    transports.install_wire()
    try:
        yield calls
    finally:
        hooks.stop()
        transports.remove_wire()
        patches.undo()


def played(server, plays, make, act, close):
    """What an app sees that makes a client, acts with it and closes it, while the server plays."""
    server.play(*plays)
    client = make()
    try:
        return act(client)
    except (Exception, asyncio.CancelledError) as raised:
        said = re.sub("0x[0-9a-f]+", "", str(raised))
        return [type(raised), said, type(raised.__cause__)]
    finally:
        server.gate.set()
        close(client)


def one_call(server, run, hooked):
    """The call that is left when `run` is done a second time, within ``hooked(calls)``.

    Nothing differs from the first time, neither for the app nor for the server.
    """
    guard.failures.clear()
    calls = Calls()
    before = run()
    asked = [(path, body) for path, _, body in server.requests]
    with hooked(calls):
        after = run()
    assert after == before
    assert [(path, body) for path, _, body in server.requests] == 2 * asked
    call = calls.wait()
    assert calls.only is call
    assert not guard.failures
    assert "secret" not in repr(call.facts)
    return call


def impatient(response):
    """Let the app wait for more of httpx's `response` a tenth of a second, however late it began."""
    response.request.extensions["timeout"]["read"] = 0.1


def cancelled_while_reading(driver, ask):
    """Cancel the task that reads an asynchronous stream, which `ask` gives, once it waits."""
    reading = asyncio.Event()

    async def read():
        opened = await ask()
        reading.set()
        async for _ in opened:
            pass

    async def main():
        task = asyncio.ensure_future(read())
        await reading.wait()
        task.cancel()
        await task

    return driver.do(main)


@pytest.fixture(scope="session")
def running_server():
    with ProviderServer() as server:
        yield server


@pytest.fixture
def server(running_server):
    return fresh(running_server)


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

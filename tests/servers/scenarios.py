"""Every way a call of an SDK can go, without us and with us: one call, and no difference to the app.

A test module derives a `Test…` class from `Scenarios` and gives it an `Sdk`.
"""

import asyncio
import http.client
import re
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from servers import fixtures
from servers.drivers import Async, Sync
from sottovoce import guard
from sottovoce.call import Call, current_call

MESSAGES = [{"role": "user", "content": "a secret question"}]

VARYING = re.compile(r"0x[0-9a-f]+|\d\d:\d\d:\d\d|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Addresses of objects, times of day, ids of requests."""


@dataclass(frozen=True)
class Asked:
    """One thing to ask an SDK for.

    Attributes:
        ask: with the client; gives a result, or a stream to read.
        operation: of the call.
        facts: that the answer tells.
        items: that the app reads from the stream; 0 when it is none.
        chunks: counted of it; the last event of some protocols is none.
        model: that the call names.
        provider: that it names, where it is not the SDK's.
    """

    ask: Any
    operation: str
    facts: dict
    items: int = 0
    chunks: int = 0
    model: str | None = "tiny"
    provider: str | None = None


@dataclass(frozen=True)
class Sdk:
    """An SDK.

    Attributes:
        room: of `clients`.
        serve: makes its server.
        make: gets a driver, a URL, a timeout and makes a client.
        close: closes one.
        asked: what it can do, by name.
        provider: that its calls name.
        refused: exceptions when an answer has status 400.
        unreachable: exceptions when nobody listens.
        slow: exceptions when nobody answers.
        cut: exceptions when a body breaks off.
        failing: exceptions for an error within a stream, none where the app is told of none; and
            the codes of such errors.
        odd: exceptions for an answer with status 400 that do not tell the status.
        attempts: what it tries when it is told to come again, 1 for no retries.
    """

    room: ModuleType
    serve: Any
    make: Any
    close: Any
    asked: dict[str, Asked]
    provider: str
    refused: tuple
    unreachable: tuple
    slow: tuple
    cut: tuple
    failing: tuple
    odd: tuple = ()
    attempts: int = 1


@contextmanager
def hooked(sdk):
    """Hook an SDK as its instrumentor does; give what it records."""
    guard.failures.clear()
    guard.undecodable.clear()
    with fixtures.hooked(sdk.room.install) as calls:
        yield calls
    assert not guard.failures


def shown(thing):
    """What the app sees of a result."""
    return type(thing), VARYING.sub("", repr(thing))


def raised(error):
    """What it sees of an exception, its class first."""
    said = VARYING.sub("", str(error))
    beneath = [type(error.__cause__), type(error.__context__)]
    return [type(error), said, *beneath, vars(error).keys()]


class Scenarios:
    """The tests."""

    sdk: Sdk

    @pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
    def driver(self, request):
        driver = request.param()
        yield driver
        driver.stop()

    @pytest.fixture(scope="class")
    @classmethod
    def running(cls):
        with cls.sdk.serve() as server:
            yield server

    @pytest.fixture
    def server(self, running):
        running.scenarios.clear()
        running.requests.clear()
        running.gate.set()
        return running

    def see(self, driver, server, asked, *scenarios, url=None, timeout=30, count=None):
        """Everything the app sees of one call."""
        server.play(*scenarios)
        client = self.sdk.make(driver, url or server.url, timeout)
        try:
            got = driver.do(asked.ask, client)
            if not asked.items:
                return [shown(got)]
            return [type(got), *map(shown, driver.items(got, count))]
        except Exception as error:
            return raised(error)
        finally:
            got = None
            if count:
                driver.collect()
            self.sdk.close(driver, client)

    def both(self, driver, server, asked, *scenarios, **more):
        """The same without us and with us: what the app saw, and our calls."""
        without = self.see(driver, server, asked, *scenarios, **more)
        server.requests.clear()
        with hooked(self.sdk) as calls:
            seen = self.see(driver, server, asked, *scenarios, **more)
            assert seen == without
            calls.wait()
        assert current_call.get() is None
        assert "secret" not in repr([call.facts for call in calls.ended_calls])
        return seen, calls

    def each(self, *, streamed):
        return [asked for asked in self.sdk.asked.values() if bool(asked.items) is streamed]

    @pytest.mark.parametrize("scenario", ["ok", "gzip", "bytewise"])
    def test_an_answer(self, driver, server, scenario):
        for asked in self.sdk.asked.values():
            seen, calls = self.both(driver, server, asked, scenario)
            call = calls.only
            assert (call.outcome, call.error, call.attempts) == ("completed", None, 1)
            assert (call.operation, call.model) == (asked.operation, asked.model)
            assert call.provider == (asked.provider or self.sdk.provider)
            assert (call.address, call.port, call.local) == ("127.0.0.1", server.port, True)
            assert {**call.facts, **asked.facts} == call.facts
            assert (call.stream, call.chunks) == (bool(asked.items), asked.chunks)
            assert len(seen) == (asked.items or 0) + 1
            assert not guard.undecodable

    def test_an_error_of_the_server(self, driver, server):
        for asked in self.sdk.asked.values():
            seen, calls = self.both(driver, server, asked, "400")
            raised = seen[0]
            assert raised in (*self.sdk.refused, *self.sdk.odd)
            error = raised if raised in self.sdk.odd else "400"
            assert (calls.only.outcome, calls.only.error) == ("failed", error)

    def test_trying_again_is_one_call(self, driver, server):
        for asked in self.each(streamed=False):
            scenarios = ["429"] * (self.sdk.attempts - 1)
            _, calls = self.both(driver, server, asked, *scenarios)
            assert (calls.only.outcome, calls.only.attempts) == ("completed", self.sdk.attempts)
            assert len(server.requests) == self.sdk.attempts

    def test_nobody_listens(self, driver, server):
        with socket.socket() as taken:
            # Nobody else can, either, as long as this one is open.
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            for asked in self.sdk.asked.values():
                seen, calls = self.both(driver, server, asked, url=url, timeout=5)
                assert seen[0] in self.sdk.unreachable
                assert (calls.only.outcome, calls.only.error) == ("failed", seen[0])

    def test_nobody_answers(self, driver, server):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            # Until the app gives up is waited for: one of each kind.
            for asked in self.each(streamed=False)[:1] + self.each(streamed=True)[:1]:
                seen, calls = self.both(driver, server, asked, url=url, timeout=0.3)
                assert seen[0] in self.sdk.slow
                assert (calls.only.outcome, calls.only.error) == ("failed", seen[0])

    @pytest.mark.parametrize("scenario", ["cut", "disconnect"])
    def test_an_answer_that_breaks_off(self, driver, server, scenario):
        for asked in self.sdk.asked.values():
            seen, calls = self.both(driver, server, asked, scenario)
            assert seen[0] in self.sdk.cut
            assert calls.only.outcome == "failed"
            # requests makes an exception of its own of what happened to the body.
            assert calls.only.error in (seen[0], http.client.IncompleteRead)

    def test_an_error_in_a_stream(self, driver, server):
        errors, codes = self.sdk.failing
        for asked in self.each(streamed=True):
            seen, calls = self.both(driver, server, asked, "error")
            assert not errors or seen[0] in errors
            assert calls.only.outcome == "failed"
            assert calls.only.error in codes

    def test_a_stream_that_is_dropped_is_no_error(self, driver, server):
        for asked in self.each(streamed=True):
            seen, calls = self.both(driver, server, asked, "slow", count=2)
            assert len(seen) == 3
            call = calls.only
            assert (call.outcome, call.error) == ("abandoned", None)
            assert call.end_ns == call.last_chunk_ns

    def test_a_stream_that_is_never_read(self, driver, server):
        for asked in self.each(streamed=True):
            with hooked(self.sdk) as calls:
                client = self.sdk.make(driver, server.url, 30)
                stream = driver.do(asked.ask, client)
                assert current_call.get() is None
                del stream
                driver.collect()
                self.sdk.close(driver, client)
                if calls.opened_calls:
                    calls.wait()
            assert len(calls.opened_calls) == len(server.requests)
            assert {call.outcome for call in calls.ended_calls} <= {"abandoned"}
            server.requests.clear()

    def test_the_app_reads_outside_the_call(self, driver, server):
        for asked in self.each(streamed=True):
            with hooked(self.sdk) as calls:
                client = self.sdk.make(driver, server.url, 30)
                stream = driver.do(asked.ask, client)
                inside = [current_call.get()]
                if driver.name == "sync":
                    inside += [current_call.get() for _ in stream]
                else:
                    driver.items(stream)
                self.sdk.close(driver, client)
            assert set(inside) == {None}
            assert calls.only.outcome == "completed"

    @pytest.mark.parametrize("early", [False, True], ids=["within", "before"])
    def test_a_task_that_is_cancelled(self, server, early):
        async def main(asked):
            client = self.sdk.make(Async, server.url, 30)
            reading = asyncio.Event()

            async def read():
                stream = asked.ask(client)
                if not hasattr(stream, "__aiter__"):
                    stream = await stream
                async for _ in stream:
                    reading.set()
                    server.gate.clear()

            task = asyncio.create_task(read())
            if early:
                await asyncio.to_thread(server.came.wait, 30)
            else:
                await reading.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await self.sdk.close(None, client)

        for asked in self.each(streamed=True):
            server.came.clear()
            server.play("slow")
            if early:
                server.gate.clear()
            with hooked(self.sdk) as calls:
                asyncio.run(asyncio.wait_for(main(asked), 30))
                call = calls.wait()
            assert (call.outcome, call.chunks > 0) == ("cancelled", not early)
            server.gate.set()

    def test_a_call_within_a_call_is_the_outer_ones(self, driver, server):
        for asked in self.sdk.asked.values():
            with hooked(self.sdk) as calls:
                outer = Call(calls, operation="chat", provider="other")
                token = current_call.set(outer)
                self.see(driver, server, asked)
                current_call.reset(token)
                outer.end()
            assert calls.opened_calls == [outer]

    def test_calls_at_the_same_time_are_not_confused(self, server):
        asked = list(self.sdk.asked.values())

        async def one(client, each):
            result = each.ask(client)
            if not hasattr(result, "__aiter__"):
                result = await result
            if each.items:
                async for _ in result:
                    assert current_call.get() is None

        async def main():
            client = self.sdk.make(Async, server.url, 30)
            await asyncio.gather(*(one(client, each) for each in asked * 3))
            await self.sdk.close(None, client)

        with hooked(self.sdk) as calls:
            asyncio.run(main())
        done = sorted(call.operation for call in calls.ended_calls)
        assert done == sorted(each.operation for each in asked * 3)
        assert all(call.outcome == "completed" for call in calls.ended_calls)

    def test_suppressed_and_undone(self, driver, server):
        with hooked(self.sdk) as calls:
            calls.suppressed = True
            for asked in self.sdk.asked.values():
                self.see(driver, server, asked)
            assert not calls.opened_calls
        for asked in self.sdk.asked.values():
            self.see(driver, server, asked)
        assert not calls.opened_calls

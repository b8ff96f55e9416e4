"""Calls wherever an app makes them: loops, tasks, threads, forks, and the end of the process.

Each is one span, child of what the app has open where it asks; and the app's own context,
objects and exceptions are what they are without us.
"""

import asyncio
import contextvars
import copy
import gc
import os
import pickle
import re
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import anthropic
import anyio
import httpx
import httpx2
import ollama
import openai
import pytest
import requests
import trio
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from delivery.launcher import run
from delivery.sink import Sink
from servers import anthropic as claude
from servers import ollama as llama
from sottovoce import guard, instrumentors
from sottovoce.call import current_call
from sottovoce.settings import Settings

SAID = [{"role": "user", "content": "a secret question"}]
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
OUTCOME = "sottovoce.call.outcome"
NUMBER = "gen_ai.request.max_tokens"
"""Every call of a test asks for another number of tokens: so its span is told from the others."""


class App:
    """An app with a tracer of its own, and everything here instrumented."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self._tracers = TracerProvider()
        self._tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._kinds = []
        self.open = self._tracers.get_tracer("the app").start_as_current_span

    def instrument(self):
        settings = Settings(key="a key of these tests")
        names = ("OpenAI", "Anthropic", "Ollama", "HTTPX", "Requests", "AioHTTP")
        for name in (*names, "URLLib3", "HTTPClient"):
            self._kinds.append(getattr(instrumentors, f"{name}Instrumentor")())
            self._kinds[-1].instrument(
                tracer_provider=self._tracers, meter_provider=MeterProvider(), settings=settings
            )

    def uninstrument(self):
        while self._kinds:
            self._kinds.pop().uninstrument()

    def spans(self, count=None):
        """Ours, by number; waits for those that another thread ends."""
        deadline = time.monotonic() + 60
        while True:
            every = self._exporter.get_finished_spans()
            ours = [each for each in every if each.instrumentation_scope.name == "sottovoce"]
            if count is None or len(ours) >= count or time.monotonic() > deadline:
                break
            gc.collect()
            time.sleep(0.01)
        assert count is None or len(ours) == count
        found = {each.attributes[NUMBER]: each for each in ours}
        assert len(found) == len(ours)
        return found

    def only(self):
        [span] = self.spans(1).values()
        return span

    def parents(self):
        """Number of a call -> name of the app's span that it is a child of."""
        names = {
            each.context.span_id: each.name
            for each in self._exporter.get_finished_spans()
            if each.instrumentation_scope.name == "the app"
        }
        return {
            number: span.parent and names[span.parent.span_id]
            for number, span in self.spans().items()
        }


@pytest.fixture
def app(no_policy):
    made = App()
    guard.failures.clear()
    made.instrument()
    yield made
    made.uninstrument()
    assert current_call.get() is None
    assert not guard.failures


def outcome(span):
    return span.attributes[OUTCOME], span.status.status_code.name


def of_openai(server, later=False, http=None):
    module = httpx2.AsyncClient if later else httpx2.Client
    return (openai.AsyncOpenAI if later else openai.OpenAI)(
        base_url=server.url + "/v1",
        api_key="key",
        max_retries=0,
        http_client=http or module(verify=False, timeout=30),
    )


def asked(number, **more):
    return {"model": "tiny", "messages": SAID, "max_tokens": number, **more}


def mine():
    """The app's own span, as its code sees it."""
    span = trace.get_current_span()
    return getattr(span, "name", None)


# At the same time.


async def test_two_hundred_calls_of_three_sdks_in_one_loop(app, server):
    with claude.serve() as second, llama.serve() as third:
        gpt = of_openai(server, later=True)
        other = anthropic.AsyncAnthropic(base_url=second.url, api_key="key", max_retries=0)
        own = ollama.AsyncClient(host=third.url)

        async def one(number):
            name = f"user {number}"
            with app.open(name):
                streamed = number % 2 == 0
                which = number % 3
                if which == 0:
                    answer = await gpt.chat.completions.create(**asked(number, stream=streamed))
                elif which == 1:
                    answer = await other.messages.create(**asked(number, stream=streamed))
                else:
                    answer = await own.chat(
                        "tiny", SAID, stream=streamed, options={"num_predict": number}
                    )
                assert mine() == name
                assert current_call.get() is None
                if streamed:
                    async for _ in answer:
                        assert mine() == name
                        assert current_call.get() is None
                await asyncio.sleep(0)
                assert mine() == name

        await asyncio.gather(*(one(number) for number in range(1, 201)))
        await gpt.close()
        await other.close()
        await own._client.aclose()
    spans = app.spans(200)
    assert app.parents() == {number: f"user {number}" for number in range(1, 201)}
    assert {outcome(span) for span in spans.values()} == {("completed", "UNSET")}
    assert len({span.context.trace_id for span in spans.values()}) == 200


def test_fifty_threads(app, server):
    client = of_openai(server)
    together = threading.Barrier(50)
    wrong = []

    def one(number):
        with app.open(f"user {number}"):
            together.wait(30)
            stream = client.chat.completions.create(**asked(number, stream=True))
            for _ in stream:
                if (mine(), current_call.get()) != (f"user {number}", None):
                    wrong.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(1, 51)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    app.spans(50)
    assert app.parents() == {number: f"user {number}" for number in range(1, 51)}
    client.close()


def test_a_pool_of_threads_that_is_given_the_apps_context(app, server):
    client = of_openai(server)
    with app.open("user"), ThreadPoolExecutor(4) as pool:
        given = [
            pool.submit(contextvars.copy_context().run, client.chat.completions.create, **asked(n))
            for n in range(1, 9)
        ]
        # Without it a thread has no span open, whatever ran in it before.
        bare = pool.submit(client.chat.completions.create, **asked(9))
        assert all(each.result(30).choices for each in [*given, bare])
    app.spans(9)
    assert app.parents() == dict.fromkeys(range(1, 9), "user") | {9: None}
    client.close()


# Other loops, and cancellation.


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("library", [httpx, httpx2])
def test_anyio_on_either_loop(app, server, library, loop):
    async def one(http, number):
        with app.open(f"user {number}"):
            url = server.url + "/v1/chat/completions"
            if number % 2:
                answer = await http.post(url, json=asked(number))
                assert answer.json()["choices"]
            else:
                body = asked(number, stream=True)
                async with http.stream("POST", url, json=body) as answer:
                    async for _ in answer.aiter_lines():
                        assert mine() == f"user {number}"

    async def main():
        async with library.AsyncClient(verify=False, timeout=30) as http:
            async with anyio.create_task_group() as group:
                for number in range(1, 11):
                    group.start_soon(one, http, number)

    anyio.run(main, backend=loop)
    spans = app.spans(10)
    assert app.parents() == {number: f"user {number}" for number in range(1, 11)}
    assert {outcome(span) for span in spans.values()} == {("completed", "UNSET")}


# trio reports the SDK's own generators, which stop at the last event, with us or without.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_an_sdk_on_trio(app, server):
    async def one(client, number):
        with app.open(f"user {number}"):
            async with await client.chat.completions.create(**asked(number, stream=True)) as stream:
                async for _ in stream:
                    assert mine() == f"user {number}"

    async def main():
        async with of_openai(server, later=True) as client, trio.open_nursery() as nursery:
            for number in range(1, 6):
                nursery.start_soon(one, client, number)

    trio.run(main)
    app.spans(5)
    assert app.parents() == {number: f"user {number}" for number in range(1, 6)}


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_cancelled_scope(app, server, library, loop):
    """A stream whose server says no more is cancelled: no failure of the provider."""
    server.play("slow")

    async def main():
        async with library.AsyncClient(verify=False, timeout=30) as http:
            with app.open("user"), anyio.CancelScope() as scope:
                url = server.url + "/v1/chat/completions"
                async with http.stream("POST", url, json=asked(1, stream=True)) as answer:
                    async for _ in answer.aiter_lines():
                        server.gate.clear()
                        scope.cancel()
            assert scope.cancelled_caught

    anyio.run(main, backend=loop)
    server.gate.set()
    assert app.only().attributes[OUTCOME] in {"cancelled", "abandoned"}
    assert app.parents() == {1: "user"}


async def test_a_timeout_of_the_apps_own(app, server):
    server.play("slow")
    client = of_openai(server, later=True)

    async def read():
        async for _ in await client.chat.completions.create(**asked(1, stream=True)):
            server.gate.clear()

    with app.open("user"):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read(), 1)
        assert mine() == "user"
    server.gate.set()
    await client.close()
    span = app.only()
    assert span.attributes[OUTCOME] == "cancelled"
    assert app.parents() == {1: "user"}


async def test_a_group_of_tasks_of_which_one_fails(app, server):
    """The others are cancelled; what had been answered stays answered."""
    client = of_openai(server, later=True)
    reading = asyncio.Event()

    async def whole():
        with app.open("first"):
            await client.chat.completions.create(**asked(1))

    async def streamed():
        with app.open("second"):
            server.play("slow")
            async for _ in await client.chat.completions.create(**asked(2, stream=True)):
                server.gate.clear()
                reading.set()

    async def fails():
        await reading.wait()
        raise KeyError

    await whole()
    # `asyncio.TaskGroup` where there is one.
    group = getattr(asyncio, "TaskGroup", None)
    try:
        if group is not None:
            async with group() as tasks:
                tasks.create_task(streamed())
                tasks.create_task(fails())
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(streamed)
                tasks.start_soon(fails)
    except BaseException as raised:
        assert [type(each) for each in raised.exceptions] == [KeyError]
    server.gate.set()
    await client.close()
    spans = app.spans(2)
    assert [spans[n].attributes[OUTCOME] for n in (1, 2)] == ["completed", "cancelled"]
    assert app.parents() == {1: "first", 2: "second"}


# Streams that are not read as they are meant to be.


def test_a_stream_that_is_closed_by_another_thread(app, server):
    server.play("slow")
    client = of_openai(server)
    with app.open("user"):
        stream = client.chat.completions.create(**asked(1, stream=True))
        next(stream)
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join(30)
    assert outcome(app.only()) == ("abandoned", "UNSET")
    assert app.parents() == {1: "user"}
    client.close()


async def test_a_stream_that_another_task_reads_and_closes(app, server):
    client = of_openai(server, later=True)
    server.play("ok", "slow")

    async def opened(number):
        with app.open(f"user {number}"):
            return await client.chat.completions.create(**asked(number, stream=True))

    async def read(stream, name):
        with app.open(name):
            count = 0
            async for _ in stream:
                assert mine() == name
                count += 1
            return count

    first = await asyncio.create_task(opened(1))
    assert await asyncio.create_task(read(first, "reader")) > 1
    second = await asyncio.create_task(opened(2))
    await anext(second)
    await asyncio.create_task(second.close())
    spans = app.spans(2)
    assert [outcome(spans[n])[0] for n in (1, 2)] == ["completed", "abandoned"]
    assert app.parents() == {1: "user 1", 2: "user 2"}
    await client.close()


def test_a_generator_of_the_apps_that_is_never_started_asks_nothing(app, server):
    client = of_openai(server)

    def words(number):
        yield from client.chat.completions.create(**asked(number, stream=True))

    never, started = words(1), words(2)
    next(started)
    never.close()
    started.close()
    del never, started
    assert list(app.spans(1)) == [2]
    assert len(server.requests) == 1
    client.close()


def test_a_tool_that_asks_between_chunks_is_a_sibling(app, server):
    """The stream's span is not current where the app reads: what it asks meanwhile is the app's."""
    client = of_openai(server)
    with app.open("user"):
        stream = client.chat.completions.create(**asked(1, **WITH_USAGE))
        for count, _ in enumerate(stream):
            if count == 1:
                with app.open("tool"):
                    client.chat.completions.create(**asked(2))
            if count == 2:
                client.chat.completions.create(**asked(3))
        assert mine() == "user"
    spans = app.spans(3)
    assert app.parents() == {1: "user", 2: "tool", 3: "user"}
    assert spans[1].start_time < spans[2].start_time
    assert spans[2].end_time < spans[1].end_time
    client.close()


def test_uninstrumented_while_a_stream_is_read(app, server):
    client = of_openai(server)
    stream = client.chat.completions.create(**asked(1, **WITH_USAGE))
    first = next(stream)
    app.uninstrument()
    rest = [each.choices for each in stream]
    again = [each.choices for each in client.chat.completions.create(**asked(2, **WITH_USAGE))]
    assert [first.choices, *rest] == again
    span = app.only()
    assert outcome(span) == ("completed", "UNSET")
    assert span.attributes["gen_ai.usage.input_tokens"] == 11
    client.close()


# What ends with the connection, where HTTP itself cannot tell that something is missing.

START = (
    b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    b'data: {"model": "tiny", "choices": [{"index": 0, "delta": {"content": "w"}}]}\n\n'
)
FINISHED = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
ENDS = {
    "nothing more": (b"", "failed"),
    "half an event": (FINISHED[:30], "failed"),
    "a reason to finish": (FINISHED, "completed"),
    "the last event": (b"data: [DONE]\n\n", "completed"),
}


@pytest.fixture
def said_by_hand():
    """Answers one request with bytes, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = []

        def answers(data):
            def serve():
                connection, _ = listening.accept()
                with connection:
                    got = b""
                    while not got.endswith(b"}"):
                        got += connection.recv(1 << 16)
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass

            threads.append(threading.Thread(target=serve))
            threads[-1].start()
            return f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"

        yield answers
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()


def by_httpx(url, body, library=httpx):
    with library.stream("POST", url, json=body) as answer:
        return b"".join(answer.iter_bytes())


def by_requests(url, body):
    with requests.post(url, json=body, stream=True) as answer:
        return b"".join(answer.iter_content(7))


def by_aiohttp(url, body):
    async def main():
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            return await answer.read()

    return asyncio.run(main())


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("ask", [by_httpx, by_requests, by_aiohttp])
def test_a_stream_that_ends_with_the_connection(app, said_by_hand, ask, end):
    rest, expected = ENDS[end]
    got = ask(said_by_hand(START + rest), asked(1, stream=True))
    assert got == (START + rest).partition(b"\r\n\r\n")[2]
    span = app.only()
    assert span.attributes[OUTCOME] == expected
    error = "http.client.IncompleteRead" if expected == "failed" else None
    assert span.attributes.get("error.type") == error


# What the app gets.

VARYING = re.compile(r"0x[0-9a-f]+|\d\d:\d\d:\d\d|\d+\.\d+")


def tried(function, *arguments):
    try:
        result = function(*arguments)
    except Exception as error:
        return type(error), VARYING.sub("", str(error))
    return type(result), VARYING.sub("", repr(result))


def looked_at(thing):
    """What an app may do with an object besides using it."""
    return {
        "class": [type(thing), *type(thing).__mro__],
        "repr": tried(repr, thing),
        "copy": tried(copy.copy, thing),
        "deepcopy": tried(copy.deepcopy, thing),
        "pickle": tried(lambda: pickle.loads(pickle.dumps(thing))),
        "equal": tried(lambda: (thing == thing, thing == copy.copy(thing))),
        "names": sorted(dir(thing)),
    }


def whole_httpx(server, library=httpx):
    return library.post(server.url + "/v1/chat/completions", json=asked(1), verify=False)


def read_httpx(server, library=httpx):
    url = server.url + "/v1/chat/completions"
    with library.stream("POST", url, json=asked(1, stream=True), verify=False) as answer:
        answer.read()
    return answer


def read_requests(server):
    url = server.url + "/v1/chat/completions"
    answer = requests.post(url, json=asked(1, stream=True), stream=True)
    assert answer.content
    return answer


def streams(server):
    client = of_openai(server)
    stream = client.chat.completions.create(**asked(1, stream=True))
    list(stream)
    return stream


OBJECTS = {
    "openai": lambda server: of_openai(server).chat.completions.create(**asked(1)),
    "openai raw": lambda server: (
        of_openai(server).chat.completions.with_raw_response.create(**asked(1)).http_response
    ),
    "openai chunk": lambda server: next(
        of_openai(server).chat.completions.create(**asked(1, stream=True))
    ),
    "openai stream": streams,
    "httpx": whole_httpx,
    "httpx2": lambda server: whole_httpx(server, httpx2),
    "httpx read": read_httpx,
    "httpx2 read": lambda server: read_httpx(server, httpx2),
    "requests": lambda server: requests.post(server.url + "/v1/chat/completions", json=asked(1)),
    "requests read": read_requests,
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_what_they_are_without_us(app, server, name):
    with_us = looked_at(OBJECTS[name](server))
    assert len(app.spans(1)) == 1
    app.uninstrument()
    assert with_us == looked_at(OBJECTS[name](server))


# The process.

PROGRAM = """
import os, sys
import httpx, openai, requests
client = openai.OpenAI(base_url=URL + "/v1", api_key="key", max_retries=0)
asked = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}
def opened():
    stream = client.chat.completions.create(**asked)
    next(stream)
    return stream
"""


def program(server, rest):
    return f"URL = {server.url!r}\n{PROGRAM}\n{rest}"


OPEN = {
    "sdk": "kept = opened()",
    "in a cycle": "kept = [opened()]; kept.append(kept); del kept",
    "httpx": """
kept = httpx.Client().send(
    httpx.Request("POST", URL + "/v1/chat/completions", json=asked), stream=True)
next(kept.iter_lines())
""",
    "requests": """
kept = requests.post(URL + "/v1/chat/completions", json=asked, stream=True)
next(kept.iter_lines())
""",
    "read by a thread": """
import threading
stream, reading = opened(), threading.Event()
def read():
    reading.set()
    for _ in stream:
        pass
threading.Thread(target=read, daemon=True).start()
reading.wait()
""",
    "a loop that is left": """
import asyncio
async def main():
    global kept
    later = openai.AsyncOpenAI(base_url=URL + "/v1", api_key="key", max_retries=0)
    kept = await later.chat.completions.create(**asked)
    await anext(kept)
asyncio.run(main())
""",
}

CLOSED_TOO_EARLY = "RuntimeError: aclose(): asynchronous generator is already running"


@pytest.mark.e2e
@pytest.mark.parametrize("name", OPEN)
def test_the_process_ends_with_a_stream_open(server, name):
    """As it does without us: at once, with the same words, and the call is told."""
    server.play("slow", "slow")
    closing = threading.Timer(0.5, server.gate.clear)  # what is under way then says no more
    with Sink() as sink:
        told = run(program(server, OPEN[name]), OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    closing.cancel()
    bare = run(program(server, OPEN[name]), launcher=False)
    assert (told.code, bare.code) == (0, 0)
    if name != "a loop that is left":
        assert told.err == bare.err
    else:
        # asyncio closes generators one inside the other in the order of a set, by address: with or
        # without us, whether one of the library's is closed too early is chance.
        assert set(re.findall(r"^\w*Error: .*", told.err, re.MULTILINE)) <= {CLOSED_TOO_EARLY}
        assert "sottovoce" not in told.err
    assert [span.name.split(" ")[0] for _, _, span in sink.spans] == ["chat"]
    [(_, _, span)] = sink.spans
    said = {each.key: each.value.string_value for each in span.attributes}
    assert said[OUTCOME] == "abandoned"
    assert span.status.code == 0


FORKED = """
import warnings; warnings.simplefilter("ignore")
stream = opened()
pid = os.fork()
if pid == 0:
    CHILD
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert len(list(stream)) > 1
"""


@pytest.mark.e2e
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("child", ["pass", "del stream", "client.chat.completions.create(**asked)"])
def test_a_fork_while_a_stream_is_read(server, child):
    """The stream is the parent's; the child tells of what it asks itself."""
    with Sink() as sink:
        told = run(
            program(server, FORKED.replace("CHILD", child)),
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert (told.code, told.err) == (0, "")
    outcomes = Counter(
        each.value.string_value
        for _, _, span in sink.spans
        for each in span.attributes
        if each.key == OUTCOME
    )
    own = child.startswith("client")
    assert outcomes == Counter(completed=1, **({"abandoned": 1} if own else {}))

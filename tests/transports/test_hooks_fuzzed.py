"""Whatever the objects that pass our hooks are like: the app gets its own results and errors."""

import asyncio
import functools
import io

import aiohttp
import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sottovoce import guard, transports
from sottovoce.call import current_call
from sottovoce.clients import generated
from sottovoce.guard import ImportHooks
from sottovoce.transports import aiohttp as aiohttp_room
from sottovoce.transports import http_client, requests, urllib3
from sottovoce.transports import httpx as wire

fuzzed = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Hostile:
    """An object whose attributes are as given; some raise when they are looked at."""

    def __init__(self, attributes):
        object.__setattr__(self, "attributes", attributes)

    def __getattribute__(self, name):
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        attributes = object.__getattribute__(self, "attributes")
        if name not in attributes:
            raise AttributeError(name)
        value = attributes[name]
        if isinstance(value, type) and issubclass(value, Exception):
            raise value("a secret message")
        return value


class AppError(Exception):
    pass


class Raising:
    """A recorder that breaks its promise."""

    def __init__(self, broken):
        self.broken = broken

    def __getattr__(self, name):
        def method(*_):
            if name in self.broken:
                raise ValueError(name)
            return name

        return method


errors = st.sampled_from([AttributeError, ValueError, RecursionError, KeyError, TypeError])
odd = (
    st.none()
    | st.booleans()
    | st.integers(-5, 700)
    | st.text(max_size=5)
    | st.binary(max_size=20)
    | st.lists(st.none(), max_size=2)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
    | errors
    | st.builds(object)
)


@st.composite
def hostile(draw, **attributes):
    """An object with these attributes, but for one at most that is odd, raises or is not there."""
    values = {name: draw(strategy) for name, strategy in attributes.items()}
    victim = draw(st.none() | st.sampled_from(sorted(values)))
    if victim is not None:
        values[victim] = draw(odd)
        if draw(st.booleans()):
            del values[victim]
    return Hostile(values)


keys = st.sampled_from(
    ["model", "stream", "messages", "usage", "n", "stop", "tools", "input", "role", "content"]
) | st.text(max_size=4)

bodies = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.builds(object),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
urls = hostile(
    scheme=st.sampled_from(["http", "https"]),
    host=st.sampled_from(["api.openai.com", "localhost", ""]),
    port=st.integers(0, 70000),
    path=st.sampled_from(["/v1/chat/completions", "/v1/embeddings", "/"]),
)
paths = st.sampled_from(
    ["/chat/completions", "/responses", "/embeddings", "/other", "http://x:bad/chat/completions"]
)
all_options = hostile(
    method=st.sampled_from(["post", "get"]),
    url=paths,
    json_data=st.dictionaries(keys, bodies, max_size=5),
    extra_json=st.dictionaries(keys, bodies, max_size=2),
)
asked = hostile(
    method=st.sampled_from(["POST", "GET"]),
    url=urls,
    _content=st.sampled_from([b'{"model": "x", "stream": true}', b"{", b""]),
)
headers = st.dictionaries(
    st.sampled_from(["content-type", "content-encoding"]),
    st.sampled_from(["application/json", "text/event-stream", "gzip", "br", "x", ""]),
)
answers = hostile(
    status_code=st.sampled_from([200, 204, 302, 404]),
    headers=headers,
    _content=st.binary(max_size=30),
    content=st.binary(max_size=30),
    stream=st.builds(httpx2.ByteStream, st.binary(max_size=30)),
)
broken = st.sets(st.sampled_from(["enabled", "opened", "enter", "leave", "ended"]), max_size=1)


@pytest.fixture(autouse=True)
def clean():
    guard.failures.clear()
    yield
    assert current_call.get() is None


def both(make_wrapper, make_async_wrapper, outcome, *arguments):
    """Call a wrapped function and coroutine function whose originals do `outcome`."""

    def original(*args, **kwargs):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    @functools.wraps(original)
    async def original_async(*args, **kwargs):
        return original()

    for run in (
        lambda: make_wrapper(original)(*arguments),
        lambda: asyncio.run(make_async_wrapper(original_async)(*arguments)),
    ):
        try:
            result = run()
        except BaseException as error:
            # asyncio before Python 3.11 raises a cancellation of its own.
            assert error is outcome or type(error) is type(outcome) is asyncio.CancelledError
        else:
            assert result is outcome


outcomes = st.builds(AppError) | st.builds(asyncio.CancelledError) | st.builds(GeneratorExit)


@fuzzed
@given(options=all_options, base=urls, result=odd | outcomes, broken=broken)
def test_clients(options, base, result, broken):
    hooks = ImportHooks()
    door = generated._Door(Raising(broken), hooks, (), generated.FAMILIES["openai"][1])
    both(door.wrap, door.wrap_async, result, Hostile({"base_url": base}), None, options)
    both(door.wrap, door.wrap_async, result, Hostile({}), None, options)
    assert current_call.get() is None


@fuzzed
@given(request=asked, response=answers | outcomes | odd, broken=broken)
def test_transports(request, response, broken):
    library = wire._Library(httpx2)
    wire.install_wire()
    wire.set_raw_recorder(Raising(broken))
    try:
        both(library.wrap_send, library.wrap_async_send, response, object(), request)
    finally:
        wire.set_raw_recorder(None)
        wire.remove_wire()
    assert current_call.get() is None


prepared = hostile(
    method=st.sampled_from(["POST", "GET", "post"]),
    url=st.sampled_from(["http://x/v1/chat/completions", "http://[/chat/completions", "/", ""]),
    body=st.sampled_from([b'{"model": "x", "stream": true}', "{", None]) | odd,
)
raws = hostile(
    tell=st.just(lambda: 0),
    _original_response=hostile(
        fp=st.builds(lambda data: io.BufferedReader(io.BytesIO(data)), st.binary(max_size=30)),
        length=st.none() | st.integers(0, 30),
        chunked=st.booleans(),
        headers=headers,
    ),
)
read_later = hostile(
    status=st.sampled_from([200, 404]),
    status_code=st.sampled_from([200, 404]),
    headers=headers,
    history=st.just(()) | odd,
    raw=raws,
    content=st.builds(lambda: aiohttp.StreamReader(Loop(), 9, loop=Loop())) | odd,
    tell=st.just(lambda: 0),
    fp=st.builds(lambda data: io.BufferedReader(io.BytesIO(data)), st.binary(max_size=30)),
    length=st.none() | st.integers(0, 30),
    chunked=st.booleans(),
    _content=st.sampled_from([False, None, b"{}", True]),
    _body=st.sampled_from([None, b"{}"]),
    _original_response=st.none() | odd,
)


class Loop:
    """As much of an event loop as a `StreamReader` asks for."""


def once(wrapped, outcome, *arguments):
    """As `both`, of a wrapped function alone."""
    try:
        result = wrapped(*arguments)
    except BaseException as error:
        assert error is outcome
    else:
        assert result is outcome


def original_of(outcome):
    def original(*args, **kwargs):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return original


@fuzzed
@given(
    request=prepared,
    url=paths | odd,
    body=st.sampled_from([b'{"model": "x"}', None]) | odd,
    response=read_later | outcomes | odd,
    broken=broken,
)
def test_other_transports(request, url, body, response, broken):
    names = tuple(transports.TRANSPORTS)
    transports.install_wire(*names)
    for name in names:
        transports.set_raw_recorder(name, Raising(broken))
    original = original_of(response)

    async def original_async(*args, **kwargs):
        return original()

    connection = Hostile({"host": "x", "port": 80})
    try:
        once(requests._wrap_send(original), response, object(), request)
        for where in (urllib3._where, urllib3._where_of_pool):
            wrapped = urllib3._wrapper(where, tries=where is urllib3._where_of_pool)(original)
            once(wrapped, response, object(), "POST", url, body)
        once(http_client._wrap_request(original), response, connection, "POST", url, body)
        once(http_client._wrap_getresponse(original), response, connection)
        ask = aiohttp_room._wrap_request(original_async)
        for session in (object(), Hostile({"_build_url": lambda url: url})):
            once(
                lambda session=session: asyncio.run(ask(session, "POST", url, json=body)),
                response,
            )
    finally:
        for name in names:
            transports.set_raw_recorder(name, None)
        transports.remove_wire(*names)
    assert current_call.get() is None


@fuzzed
@given(
    chunks=st.lists(
        st.binary(max_size=30)
        | st.sampled_from(
            [b'data: {"usage": {}}\n\n', b"data: [DONE]\n\n", b'data: {"choices": 1}\n\n', b"\r\n"]
        ),
        max_size=6,
    ),
    error=st.none() | st.builds(AppError),
    headers=headers,
    broken=broken,
)
def test_bytes(chunks, error, headers, broken):
    class Stream(httpx2.SyncByteStream, httpx2.AsyncByteStream):
        def __iter__(self):
            yield from chunks
            if error is not None:
                raise error

        async def __aiter__(self):
            for chunk in self:
                yield chunk

    def answer(request):
        return httpx2.Response(200, headers=headers, stream=Stream())

    async def answer_later(request):
        return answer(request)

    got = []
    url, body = "http://here/v1/chat/completions", {"model": "x", "stream": True}

    async def main():
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer_later)) as client:
            async with client.stream("POST", url, json=body) as response:
                async for chunk in response.aiter_raw():
                    got.append(chunk)

    wire.install_wire()
    wire.set_raw_recorder(Raising(broken))
    try:
        for run in (lambda: read(answer, url, body, got), lambda: asyncio.run(main())):
            got.clear()
            try:
                run()
            except AppError as raised:
                assert raised is error
            else:
                assert error is None
            assert b"".join(got) == b"".join(chunks)
    finally:
        wire.set_raw_recorder(None)
        wire.remove_wire()


def read(answer, url, body, got):
    with httpx2.Client(transport=httpx2.MockTransport(answer)) as client:
        with client.stream("POST", url, json=body) as response:
            for chunk in response.iter_raw():
                got.append(chunk)

"""Libraries on libraries: a request is one attempt of one call, whoever is hooked, in any order."""

import asyncio
import gc
import http.client
import io
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import aiohttp
import h2.config
import h2.connection
import h2.events
import httpx
import httpx2
import pytest
import requests
import urllib3
import wrapt

from servers.byhand import CHUNKS, EVENTS, WHOLE, ByHandServer
from servers.calls import Calls, Locking
from servers.http_apps import APPS
from servers.provider import MODEL
from sottovoce import exchange, guard, transports
from sottovoce.guard import Patches
from sottovoce.protocols import routes

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}]}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
BODY = json.dumps(CHAT).encode()


@pytest.fixture(scope="module")
def server():
    with ByHandServer() as server:
        yield server


@pytest.fixture
def calls():
    """The calls that every library makes without an SDK."""
    calls = Calls()
    names = transports.TRANSPORTS
    transports.install_wire(*names)
    for name in names:
        transports.set_raw_recorder(name, calls)
    yield calls
    for name in names:
        transports.set_raw_recorder(name, None)
    transports.remove_wire(*names)
    assert not guard.failures


def answered(call, stream=False):
    assert (call.outcome, call.error) == ("completed", None)
    assert call.facts["response_model"] == MODEL
    assert call.facts["output_tokens"] == 7
    assert call.chunks == (CHUNKS if stream else 0)
    return True


# Who counts.


def test_retries_of_urllib3_below_requests_are_attempts_of_one_call(calls, server):
    session = requests.Session()
    retry = urllib3.Retry(2, status_forcelist=[500], allowed_methods=None, raise_on_status=False)
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
    response = session.post(server.at("500"), json=CHAT)
    assert response.status_code == 500
    assert (calls.only.attempts, calls.only.error) == (3, "500")
    session.close()


def test_retries_of_urllib3_are_attempts(calls, server):
    retry = urllib3.Retry(2, status_forcelist=[500], allowed_methods=None)
    with urllib3.PoolManager() as manager, pytest.raises(urllib3.exceptions.MaxRetryError):
        manager.request("POST", server.at("500"), body=BODY, retries=retry)
    assert (calls.only.attempts, calls.only.error) == (3, urllib3.exceptions.MaxRetryError)


def test_a_pool_alone(calls, server):
    with urllib3.HTTPConnectionPool("127.0.0.1", server.port) as pool:
        pool.urlopen("POST", "/whole/v1/chat/completions?key=secret", BODY)
    assert answered(calls.only)
    assert (calls.only.address, calls.only.port) == ("127.0.0.1", server.port)


def test_what_is_switched_off_above_is_seen_below(calls, server):
    transports.set_raw_recorder("requests", None)
    assert requests.post(server.at("whole"), json=CHAT).json()["model"] == MODEL
    assert answered(calls.only)
    transports.set_raw_recorder("urllib3", None)
    requests.post(server.at("whole"), json=CHAT)
    assert len(calls.opened_calls) == 1


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("httpx", 4),  # two libraries, sync and async
        ("requests", 1),
        ("aiohttp", 1),
        ("urllib3", 2),  # requests sits on it
        ("http_client", 2),  # urllib sits on it
    ],
)
def test_each_library_is_switched_by_itself(server, name, count):
    calls = Calls()
    transports.install_wire(name)
    transports.set_raw_recorder(name, calls)
    for app in APPS.values():
        app(server.at("whole"), "whole", {"json": CHAT})
    transports.set_raw_recorder(name, None)
    for app in APPS.values():
        app(server.at("whole"), "whole", {"json": CHAT})
    transports.remove_wire(name)
    assert (
        len(calls.ended_calls)
        == {
            "httpx": 4,  # two libraries, sync and async
            "requests": 1,
            "aiohttp": 1,
            "urllib3": 2,  # requests sits on it
            "http_client": 2,  # urllib sits on it
        }[name]
    )
    assert all(answered(call) for call in calls.ended_calls)


@pytest.mark.parametrize("body", [b"{}", "", None, b"\xff", b"[1]"])
def test_a_request_that_is_none_of_a_models_is_left_alone(calls, server, body):
    for path in ("/whole/v1/traces", "/whole/v1/other", "/whole/responses"):
        requests.post(server.url + path, data=body)
        urllib3.request("POST", server.url + path, body=body)
    requests.get(server.at("whole"))
    assert not calls.opened_calls


def test_a_call_of_an_sdk_counts_its_requests_whichever_library_sends_them(calls, server):
    route = routes.match("POST", "/v1/chat/completions")
    target = exchange.server("http", "127.0.0.1", server.port, "/", ())
    call = exchange.open_call(calls, route, {"request_model": "tiny"}, target)
    tokens = exchange.enter(call)
    requests.post(server.at("429"), json=CHAT)
    urllib3.request("POST", server.at("500"), body=BODY, retries=False)
    requests.post(server.at("whole"), json=CHAT)
    exchange.leave(call, tokens)
    exchange.end(call)
    assert calls.only.attempts == 3
    assert answered(call)


def test_a_call_in_a_hook_of_the_app_is_another_one(calls, server):
    asked = []

    def hook(response, *args, **kwargs):
        if not asked:
            asked.append(1)
            requests.post(server.at("whole"), json={**CHAT, "model": "other"})

    requests.post(server.at("whole"), json=CHAT, hooks={"response": hook})
    assert [call.model for call in calls.ended_calls] == ["other", "tiny"]
    assert [call.attempts for call in calls.ended_calls] == [1, 1]


async def test_a_call_in_a_middleware_of_the_app_is_another_one(calls, server):
    async def middleware(request, handler):
        async with session.post(
            server.at("whole"), json={**CHAT, "model": "other"}, middlewares=()
        ) as response:
            await response.read()
        return await handler(request)

    async with aiohttp.ClientSession() as session:
        async with session.post(
            server.at("whole"), json=CHAT, middlewares=(middleware,)
        ) as response:
            await response.read()
    assert [call.model for call in calls.ended_calls] == ["other", "tiny"]


SEAMS = {
    "requests": (requests.Session, "send"),
    "urllib3": (urllib3.HTTPConnectionPool, "urlopen"),
    "httpx": (httpx.Client, "send"),
    "http.client": (http.client.HTTPConnection, "request"),
}


@pytest.mark.parametrize("order", ["above", "below", "above, off", "below, off"])
@pytest.mark.parametrize("name", SEAMS)
def test_another_instrumentation_of_the_same_seam_goes_on(server, name, order):
    """As the ones of OpenTelemetry do it, with wrapt, and undo it."""
    owner, attribute = SEAMS[name]
    before = vars(owner)[attribute]
    seen = []

    def theirs(wrapped, instance, args, kwargs):
        seen.append(1)
        return wrapped(*args, **kwargs)

    def install():
        wrapt.wrap_function_wrapper(owner, attribute, theirs)

    calls = Calls()
    if order.startswith("below"):
        install()
    transports.install_wire(*transports.TRANSPORTS)
    for each in transports.TRANSPORTS:
        transports.set_raw_recorder(each, calls)
    if order.startswith("above"):
        install()
    try:
        if order.endswith("off"):
            transports.remove_wire(*transports.TRANSPORTS)
        APPS[name](server.at("whole"), "whole", {"json": CHAT})
        assert len(seen) == 1
        assert len(calls.ended_calls) == (0 if order.endswith("off") else 1)
        if order.endswith("off"):
            transports.install_wire(*transports.TRANSPORTS)
            APPS[name](server.at("whole"), "whole", {"json": CHAT})
            assert len(seen) == 2
            assert len(calls.ended_calls) == 1
    finally:
        for each in transports.TRANSPORTS:
            transports.set_raw_recorder(each, None)
        transports.remove_wire(*transports.TRANSPORTS)
        setattr(owner, attribute, before)


def test_unhooked_all_is_as_before():
    def seams():
        return [
            requests.Session.send,
            urllib3.HTTPConnectionPool.urlopen,
            urllib3.PoolManager.urlopen,
            http.client.HTTPConnection.request,
            http.client.HTTPConnection.getresponse,
            aiohttp.ClientSession._request,
            aiohttp.StreamReader.set_exception,
            httpx.Client.send,
            httpx2.AsyncClient.send,
        ]

    before = seams()
    transports.install_wire(*transports.TRANSPORTS)
    assert not any(now is then for now, then in zip(seams(), before, strict=True))
    transports.install_wire("requests")
    transports.remove_wire(*transports.TRANSPORTS)
    assert requests.Session.send is not before[0]
    transports.remove_wire("requests")
    assert seams() == before


# Requests.


class Upload:
    """A body that is read once, by the library."""

    def __init__(self):
        self.reads = 0

    def __iter__(self):
        self.reads += 1
        yield b'{"model": '
        yield b'"tiny"}'


@pytest.mark.parametrize("name", ["httpx", "httpx2", "requests", "urllib3", "http.client"])
def test_a_streamed_upload_is_read_by_the_library_alone(calls, server, name):
    upload = Upload()
    kind = "content" if name.startswith("httpx") else "data"
    if name == "http.client":
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        headers = {"Transfer-Encoding": "chunked"}
        connection.request(
            "POST", "/whole/v1/chat/completions", upload, headers, encode_chunked=True
        )
        assert connection.getresponse().read() == WHOLE
        connection.close()
    else:
        APPS[name](server.at("whole"), "whole", {kind: upload})
    assert upload.reads == 1
    call = calls.only
    assert answered(call)
    assert call.model is None
    assert call.attempts == 1


async def test_a_streamed_upload_of_aiohttp(calls, server):
    reads = []

    async def upload():
        reads.append(1)
        yield b'{"model": "tiny"}'

    async with aiohttp.ClientSession() as session:
        async with session.post(server.at("whole"), data=upload()) as response:
            await response.read()
        async with session.post(server.at("whole"), data=io.BytesIO(b"{}")) as response:
            await response.read()
    assert reads == [1]
    assert [answered(call) for call in calls.ended_calls] == [True, True]


@pytest.mark.parametrize("name", APPS)
def test_nobody_listens(calls, name):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        APPS[name](f"http://127.0.0.1:{port}/v1/chat/completions", "whole", {"json": CHAT})
    call = calls.only
    assert call.outcome == "failed"
    assert issubclass(call.error, Exception)


@pytest.mark.parametrize("data", [BODY, BODY.decode(), bytearray(BODY), io.BytesIO(BODY)])
def test_bodies_of_several_types(calls, server, data):
    with urllib3.PoolManager() as manager:
        manager.request("POST", server.at("whole"), body=data)
    assert answered(calls.only)
    assert calls.only.model == ("tiny" if isinstance(data, (bytes, str)) else None)


@pytest.mark.parametrize("kind", ["json", "data", "text"])
async def test_bodies_of_aiohttp(calls, server, kind):
    body = {"json": CHAT} if kind == "json" else {"data": BODY if kind == "data" else BODY.decode()}
    async with aiohttp.ClientSession(server.url) as session:
        async with session.post("/whole/v1/chat/completions", **body) as response:
            await response.json()
    assert answered(calls.only)
    assert (calls.only.model, calls.only.port) == ("tiny", server.port)


def test_through_a_proxy(calls, server):
    # The stand-in answers whatever host the request is for.
    url = "http://api.openai.com/whole/v1/chat/completions"
    requests.post(url, json=CHAT, proxies={"http": server.url})
    with urllib3.ProxyManager(server.url) as manager:
        manager.request("POST", url, body=BODY)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": server.url}))
    opener.open(url, BODY).read()
    for call in calls.ended_calls:
        assert answered(call)
        assert (call.provider, call.address, call.port) == ("openai", "api.openai.com", 80)
    assert len(calls.ended_calls) == 3


@pytest.mark.parametrize("path", ["/whole/generate", "/whole/completion", "/whole/embedding"])
def test_a_path_that_others_use_too_is_a_models_on_own_hosts_alone(calls, server, path):
    body = {"inputs": "x", "prompt": "x", "content": "x", "parameters": {"max_new_tokens": 5}}
    requests.post(f"http://somebody.example{path}", json=body, proxies={"http": server.url})
    assert not calls.opened_calls
    requests.post(server.url + path, json={"text": "inputs prompt content max_new_tokens"})
    assert not calls.opened_calls
    requests.post(server.url + path, json=body)
    assert calls.only.local


# Responses.


@pytest.mark.parametrize("stream", [False, True])
def test_connections_go_back_to_the_pool(server, stream):
    def ask():
        before = server.connections
        scenario, body = ("stream", STREAM) if stream else ("whole", CHAT)
        data = json.dumps(body).encode()
        with requests.Session() as session:
            for _ in range(3):
                assert session.post(server.at(scenario), json=body, stream=stream).content
        with urllib3.PoolManager() as manager:
            for _ in range(3):
                response = manager.request(
                    "POST", server.at(scenario), body=data, preload_content=not stream
                )
                list(response.stream())
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for _ in range(3):
            connection.request("POST", f"/{scenario}/v1/chat/completions", data)
            connection.getresponse().read()
        connection.close()

        async def main():
            async with aiohttp.ClientSession() as session:
                for _ in range(3):
                    async with session.post(server.at(scenario), json=body) as response:
                        await response.read()

        asyncio.run(main())
        return server.connections - before

    plain = ask()
    calls = Calls()
    transports.install_wire(*transports.TRANSPORTS)
    for name in transports.TRANSPORTS:
        transports.set_raw_recorder(name, calls)
    assert ask() == plain == 4
    for name in transports.TRANSPORTS:
        transports.set_raw_recorder(name, None)
    transports.remove_wire(*transports.TRANSPORTS)
    assert all(answered(call, stream and call.chunks) for call in calls.ended_calls)
    assert len(calls.ended_calls) == 12


def test_a_response_of_requests_is_pickled(calls, server):
    response = requests.post(server.at("stream"), json=STREAM, stream=True)
    twin = pickle.loads(pickle.dumps(response))
    assert twin.content == response.content == b"".join(EVENTS)
    assert answered(calls.only, stream=True)


def test_the_socket_is_found_where_it_was(calls, server):
    with requests.post(server.at("stream"), json=STREAM, stream=True) as response:
        assert isinstance(response.raw._fp.fp.raw._sock, socket.socket)
        assert response.raw.fileno() == response.raw._fp.fp.raw._sock.fileno()
        assert response.raw.readable()
        assert response.content
    assert answered(calls.only, stream=True)


def test_a_reader_of_text_on_top(calls, server):
    with requests.post(server.at("stream"), json=STREAM, stream=True) as response:
        response.raw.auto_close = False
        text = io.TextIOWrapper(response.raw, encoding="utf-8").read()
    assert text.encode() == b"".join(EVENTS)
    assert answered(calls.only, stream=True)


async def test_data_that_is_put_back_counts_once(calls, server):
    async with aiohttp.ClientSession() as session:
        async with session.post(server.at("stream"), json=STREAM) as response:
            content = response.content
            await content.wait_eof()
            first = await content.read(9)
            with pytest.deprecated_call():
                content.unread_data(first)
            assert await content.read() == b"".join(EVENTS)
    assert answered(calls.only, stream=True)


async def test_a_session_that_leaves_bodies_compressed(calls, server):
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        async with session.post(server.at("stream_gzip"), json=STREAM) as response:
            assert (await response.read())[:2] == b"\x1f\x8b"
    call = calls.only
    assert call.facts["output_tokens"] == 7


def test_a_pool_that_leaves_bodies_compressed(calls, server):
    for preload in (True, False):
        response = urllib3.request(
            "POST",
            server.at("whole_gzip"),
            body=BODY,
            decode_content=False,
            preload_content=preload,
        )
        assert (response.data)[:2] == b"\x1f\x8b"
    assert [answered(call) for call in calls.ended_calls] == [True, True]


# Ends.


async def test_a_cancelled_task(calls, server):
    async with aiohttp.ClientSession() as session:

        async def ask(scenario):
            async with session.post(server.at(scenario), json=STREAM) as response:
                got.set()
                await response.read()

        for scenario in ("hangs", "stream_hangs"):
            got = asyncio.Event()
            task = asyncio.create_task(ask(scenario))
            if scenario == "stream_hangs":
                await got.wait()
            for _ in range(20):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert calls.only.outcome == "cancelled"
            calls.opened_calls.clear()
            calls.ended_calls.clear()


@pytest.mark.parametrize("scenario", ["stream_hangs", "stream_open_hangs"])
@pytest.mark.parametrize("kept", [True, False])
async def test_a_session_that_is_closed_before_its_answer_was_read(calls, server, scenario, kept):
    async with aiohttp.ClientSession() as session:
        response = await session.post(server.at(scenario), json=STREAM)
        if not kept:
            del response
    for _ in range(5):
        await asyncio.sleep(0)
    response = None
    gc.collect()
    assert (calls.wait().outcome, calls.only.error) == ("abandoned", None)


async def test_a_timeout_for_all_of_it(calls, server):
    timeout = aiohttp.ClientTimeout(total=0.2)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        with pytest.raises(asyncio.TimeoutError):
            async with session.post(server.at("stream_hangs"), json=STREAM) as response:
                async for _ in response.content:
                    pass
    assert calls.only.outcome == "failed"
    assert issubclass(calls.only.error, asyncio.TimeoutError)


def test_a_connection_of_http_client_that_nobody_asks_for_the_answer(calls, server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/whole/v1/chat/completions", BODY)
    assert not calls.ended_calls
    connection.close()
    connection.request("POST", "/whole/v1/chat/completions", BODY)
    assert calls.ended_calls[0].outcome == "abandoned"
    assert connection.getresponse().read() == WHOLE
    connection.request("POST", "/whole/v1/chat/completions", BODY)
    connection.close()
    del connection
    gc.collect()
    assert [call.outcome for call in calls.ended_calls] == ["abandoned", "completed", "abandoned"]


def test_a_request_of_http_client_that_is_sent_step_by_step(calls, server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)

    def put(connection, path):
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", str(len(BODY)))
        connection.endheaders()
        connection.send(BODY)

    put(connection, "/whole/v1/chat/completions")
    assert connection.getresponse().read() == WHOLE
    assert answered(calls.only)
    put(connection, "/whole/v1/responses")  # who knows whose, when nothing says which model
    connection.getresponse().read()
    with pytest.raises(http.client.CannotSendRequest):
        put(connection, "/whole/v1/chat/completions")
        put(connection, "/whole/v1/chat/completions")
    connection.close()
    del connection
    gc.collect()
    outcomes = [call.outcome for call in calls.ended_calls]
    assert outcomes == ["completed", "failed", "abandoned"]


def test_a_hundred_threads(calls, server):
    apps = [app for name, app in APPS.items() if "async" not in name and name != "aiohttp"]
    found = []

    def ask(number):
        how, scenario, body = [
            ("whole", "whole", CHAT),
            ("lines", "stream", STREAM),
            ("chunks", "stream_length", STREAM),
        ][number % 3]
        found.append(apps[number % len(apps)](server.at(scenario), how, {"json": body}))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 100
    assert len(calls.ended_calls) == 100
    assert all(answered(call, call.stream) for call in calls.ended_calls)


async def test_a_hundred_tasks(calls, server):
    async with aiohttp.ClientSession() as session, httpx.AsyncClient(verify=False) as client:

        async def ask(number):
            if number % 2:
                async with client.stream("POST", server.at("stream"), json=STREAM) as response:
                    return b"".join([part async for part in response.aiter_bytes()])
            async with session.post(server.at("stream"), json=STREAM) as response:
                return b"".join([part async for part in response.content.iter_any()])

        bodies = await asyncio.gather(*(ask(number) for number in range(100)))
    assert set(bodies) == {b"".join(EVENTS)}
    assert len(calls.ended_calls) == 100
    assert all(answered(call, stream=True) for call in calls.ended_calls)


def dropped_by_requests(server):
    response = requests.post(server.at("stream_hangs"), json=STREAM, stream=True)
    parts = response.iter_content(5)
    next(parts)
    return response, parts


def dropped_by_http_client(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/stream_hangs/v1/chat/completions", json.dumps(STREAM))
    return connection, connection.getresponse()


def dropped_unanswered(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/stream_hangs/v1/chat/completions", json.dumps(STREAM))
    return connection


@pytest.mark.parametrize("make", [dropped_by_requests, dropped_by_http_client, dropped_unanswered])
def test_what_is_dropped_inside_a_lock_of_the_recorder_does_not_hang(server, make):
    calls = Locking()
    names = ("requests", "http_client")
    transports.install_wire(*names)
    for name in names:
        transports.set_raw_recorder(name, calls)
    cycle = [make(server)]
    cycle.append(cycle)
    with calls.lock:
        del cycle
        gc.collect()
    assert calls.wait().outcome == "abandoned"
    for name in names:
        transports.set_raw_recorder(name, None)
    transports.remove_wire(*names)


@pytest.mark.parametrize("name", ["requests", "urllib3", "http.client", "urllib", "aiohttp"])
def test_we_make_no_reference_cycle(calls, server, name):
    def once():
        for how in ("whole", "lines", "some", "close"):
            APPS[name](server.at("stream"), how, {"json": STREAM})

    once()
    calls.opened_calls.clear()
    calls.ended_calls.clear()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        once()
        gc.collect()
        ours = [thing for thing in gc.garbage if type(thing).__module__.startswith("sottovoce")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not ours


def run(program, *arguments):
    code = f"import sys; sys.path[:0] = {sys.path!r}\n" + program
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_what_a_signal_raises_while_garbage_is_collected_reaches_the_app():
    program = """
import gc, signal, time
from sottovoce import dropped

class Stopped(Exception):
    pass

def stop(*_):
    raise Stopped

heap = [[] for _ in range(300_000)]
signal.signal(signal.SIGALRM, stop)
end = time.monotonic() + 20
try:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    while time.monotonic() < end:
        gc.collect()
except Stopped:
    print("stopped")
"""
    assert run(program) == b"stopped\n"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("library", [httpx, httpx2])
def test_what_a_signal_raises_in_the_middle_of_our_code_reaches_the_app(server, library, stream):
    class Stopped(Exception):
        pass

    class Signalled(Calls):
        def ended(self, call):
            super().ended(call)
            signal.raise_signal(signal.SIGUSR1)

    def stop(*_):
        raise Stopped

    before = signal.signal(signal.SIGUSR1, stop)
    transports.install_wire("httpx")
    transports.set_raw_recorder("httpx", Signalled())
    try:
        where = server.at("stream" if stream else "whole")
        with pytest.raises(Stopped):
            library.post(where, json=STREAM if stream else {**STREAM, "stream": False})
    finally:
        transports.set_raw_recorder("httpx", None)
        transports.remove_wire("httpx")
        signal.signal(signal.SIGUSR1, before)
    assert not guard.failures


def test_a_stream_that_is_open_when_the_process_ends_is_recorded(server):
    program = """
from servers.calls import Calls
from sottovoce import transports
import requests, urllib3, http.client, asyncio, aiohttp, json

class Telling(Calls):
    def ended(self, call):
        print(call.outcome, call.error)

names = transports.TRANSPORTS
transports.install_wire(*names)
calls = Telling()
for name in names:
    transports.set_raw_recorder(name, calls)
url = sys.argv[1]
body = {"model": "tiny", "stream": True}
one = requests.post(url, json=body, stream=True)
two = urllib3.request("POST", url, json=body, preload_content=False)
connection = http.client.HTTPConnection(url.split("/")[2])
connection.request("POST", "/stream_hangs/v1/chat/completions", json.dumps(body))
three = connection.getresponse()
other = http.client.HTTPConnection(url.split("/")[2])
other.request("POST", "/stream_hangs/v1/chat/completions", json.dumps(body))
loop = asyncio.new_event_loop()
async def main():
    session = aiohttp.ClientSession()
    return session, await session.post(url, json=body)
four = loop.run_until_complete(main())
"""
    out = run(program, server.at("stream_hangs"))
    assert out.split(b"\n")[:-1] == [b"abandoned None"] * 5


def test_a_child_ends_none_of_its_parents_calls(server):
    program = """
import os
from servers.calls import Calls
from sottovoce import transports
import requests
transports.install_wire("requests")
calls = Calls()
transports.set_raw_recorder("requests", calls)
url = sys.argv[1]
body = {"model": "tiny", "stream": True}
open_one = requests.post(url, json=body, stream=True)
parts = open_one.iter_content(5)
next(parts)
child = os.fork()
if child == 0:
    open_one.close()
    assert not calls.ended_calls
    assert requests.post(url.replace("stream_hangs", "whole"), json={"model": "x"}).ok
    os._exit(0 if len(calls.ended_calls) == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
open_one.close()
print(*[call.outcome for call in calls.ended_calls])
"""
    assert run(program, server.at("stream_hangs")) == b"abandoned\n"


def test_nothing_is_loaded_before_it_is_needed(server):
    program = """
from servers.calls import Calls
from sottovoce import transports
transports.install_wire(*transports.TRANSPORTS)
loaded = lambda: {name for name in sys.modules if name.startswith("sottovoce.")}
assert not {"httpx", "requests", "urllib3", "aiohttp", "httpx2"} & set(sys.modules)
assert loaded() <= {"sottovoce.transports", "sottovoce.guard", "sottovoce.call",
                    "sottovoce._version", "sottovoce.transports.http_client"}, loaded()
import requests
assert "sottovoce.transports.aiohttp" not in sys.modules
requests.post(sys.argv[1] + "/whole/v1/traces", data=b"spans")
assert "sottovoce.protocols" not in sys.modules
"""
    program = program.replace("from servers.calls import Calls\n", "")
    run(program, server.url)


def test_a_request_that_asks_no_model_loads_what_tells_it_and_no_more(server):
    program = """
from sottovoce import transports
import aiohttp, httpx, requests
for name in ("httpx", "aiohttp", "requests", "urllib3", "http_client"):
    transports.install_wire(name)
    transports.set_raw_recorder(name, object())
loaded = lambda: {name for name in sys.modules if name.startswith("sottovoce.")}
assert "sottovoce.transports.aiohttp" in loaded() and "sottovoce.transports.httpx" in loaded()
assert not [n for n in loaded() if n.startswith(("sottovoce.protocols", "sottovoce.exchange"))]
before = loaded()
requests.post(sys.argv[1] + "/whole/v1/traces", data=b"spans")
httpx.post(sys.argv[1] + "/whole/v1/traces", content=b"spans")
assert loaded() - before == {"sottovoce.protocols", "sottovoce.protocols.paths",
                             "sottovoce.protocols.routes"}, loaded() - before
"""
    run(program, server.url)


# Other ways to a server.


@pytest.fixture
def unix(tmp_path):
    """A server on a Unix socket, which answers one request and goes."""
    path = str(tmp_path / "s")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()

    def serve():
        connection, _ = listening.accept()
        with connection:
            while not connection.recv(1 << 16).endswith(b"}"):
                """The body may come by itself."""
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(WHOLE)}"
            )
            connection.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n" + WHOLE)

    thread = threading.Thread(target=serve)
    thread.start()
    yield path
    thread.join()
    listening.close()


async def test_a_unix_socket_by_aiohttp(calls, unix):
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(unix)) as session:
        async with session.post("http://here/v1/chat/completions", json=CHAT) as response:
            assert await response.read() == WHOLE
    assert answered(calls.only)


def test_a_unix_socket_by_httpx(calls, unix):
    transport = httpx.HTTPTransport(uds=unix, verify=False)
    with httpx.Client(transport=transport) as client:
        assert client.post("http://here/v1/chat/completions", json=CHAT).content == WHOLE
    assert answered(calls.only)


def test_a_unix_socket_by_http_client(calls, unix):
    class Connection(http.client.HTTPConnection):
        def connect(self):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(unix)

    connection = Connection("here")
    connection.request("POST", "/v1/chat/completions", BODY)
    assert connection.getresponse().read() == WHOLE
    assert answered(calls.only)
    connection.close()


def test_patches_of_ours_are_known_as_such():
    patches = Patches()
    transports.install_wire("requests")
    assert not patches.wrap(requests.Session, "send", lambda original: original)
    transports.remove_wire("requests")


class HTTP2:
    """A server that speaks HTTP/2 and nothing else, on one connection."""

    def __enter__(self):
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join()
        self._listening.close()

    def _serve(self):
        config = h2.config.H2Configuration(client_side=False)
        connection = h2.connection.H2Connection(config)
        peer, _ = self._listening.accept()
        with peer:
            connection.initiate_connection()
            peer.sendall(connection.data_to_send())
            while data := peer.recv(1 << 16):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.StreamEnded):
                        self._answer(connection, peer, event.stream_id)
                peer.sendall(connection.data_to_send())

    def _answer(self, connection, peer, stream):
        headers = [(":status", "200"), ("content-type", "text/event-stream")]
        connection.send_headers(stream, headers)
        for event in EVENTS:
            connection.send_data(stream, event)
            peer.sendall(connection.data_to_send())
        connection.end_stream(stream)


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_http_2(calls, library):
    with HTTP2() as server:
        url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
        with library.Client(http1=False, http2=True, verify=False) as client:
            for _ in range(2):
                with client.stream("POST", url, json=STREAM) as response:
                    assert response.http_version == "HTTP/2"
                    assert b"".join(response.iter_bytes()) == b"".join(EVENTS)
    assert [answered(call, stream=True) for call in calls.ended_calls] == [True, True]

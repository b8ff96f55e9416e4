"""Raw httpx and httpx2 to a model: recorded on any host, and nothing of it changes for the app."""

import asyncio
import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc

import httpx
import httpx2
import pytest
import trio

from servers.calls import Calls, Locking
from servers.provider import MODEL, WORDS
from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.transports import httpx as wire
from sottovoce.transports.wire import Watch

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}]}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
USAGE = {"input_tokens": 11, "output_tokens": 7, "finish_reasons": ["stop"]}
READS = ["iter_raw", "iter_bytes", "iter_text", "iter_lines", "read"]


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request):
    return request.param


@pytest.fixture
def url(server):
    return server.url + "/v1/chat/completions"


def answered(call):
    assert (call.outcome, call.error) == ("completed", None)
    assert call.facts["response_model"] == MODEL
    assert {**call.facts, **USAGE} == call.facts
    return True


def read_sync(response, how):
    if how == "read":
        return [response.read()]
    return list(getattr(response, how)())


async def read_async(response, how):
    if how == "read":
        return [await response.aread()]
    return [item async for item in getattr(response, "a" + how)()]


def test_post(library, raw_calls, server, url):
    response = library.post(url, json=CHAT)
    assert response.json()["model"] == MODEL
    call = raw_calls.only
    assert answered(call)
    assert (call.operation, call.provider, call.model) == ("chat", "openai_compatible", "tiny")
    assert (call.address, call.port, call.local) == ("127.0.0.1", server.port, True)
    assert (call.stream, call.attempts) == (False, 1)


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("coding", ["ok", "gzip"])
def test_streamed(library, raw_calls, server, url, body, how, coding):
    server.play(coding)
    with library.Client(verify=False) as client, client.stream("POST", url, json=body) as response:
        assert current_call.get() is None
        read_sync(response, how)
    assert answered(raw_calls.only)
    assert raw_calls.only.stream is (body is STREAM)
    assert raw_calls.only.chunks == (WORDS + 3 if body is STREAM else 0)


@pytest.mark.parametrize("how", READS)
async def test_streamed_on_asyncio(library, raw_calls, url, how):
    async with library.AsyncClient(verify=False) as client:
        async with client.stream("POST", url, json=STREAM) as response:
            await read_async(response, how)
    assert answered(raw_calls.only)
    assert raw_calls.only.chunks == WORDS + 3


@pytest.mark.parametrize("how", READS)
def test_streamed_on_trio(library, raw_calls, url, how):
    async def main():
        async with library.AsyncClient(verify=False) as client:
            await client.post(url, json=CHAT)
            async with client.stream("POST", url, json=STREAM) as response:
                await read_async(response, how)

    trio.run(main)
    assert len(raw_calls.ended_calls) == 2
    assert all(answered(call) for call in raw_calls.ended_calls)


def test_cancelled_on_trio(library, raw_calls, server, url):
    server.gate.clear()
    server.play("slow")

    async def read(client):
        async with client.stream("POST", url, json=STREAM) as response:
            await read_async(response, "iter_bytes")

    async def main():
        async with library.AsyncClient(verify=False) as client, trio.open_nursery() as nursery:
            server.came.clear()
            nursery.start_soon(read, client)
            assert await trio.to_thread.run_sync(server.came.wait, 30)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert raw_calls.only.outcome == "cancelled"


def test_a_stream_read_whole_has_facts_and_no_times(library, raw_calls, url):
    library.post(url, json=STREAM, verify=False)
    call = raw_calls.only
    assert answered(call)
    assert (call.stream, call.chunks, call.gaps) == (True, 0, None)


def test_abandoned(library, raw_calls, url):
    with (
        library.Client(verify=False) as client,
        client.stream("POST", url, json=STREAM) as response,
    ):
        next(response.iter_raw())
    call = raw_calls.only
    assert call.outcome == "abandoned"
    assert call.end_ns == call.last_chunk_ns


def test_dropped_unread(library, raw_calls, url):
    client = library.Client(verify=False)
    response = client.send(client.build_request("POST", url, json=STREAM), stream=True)
    del response
    gc.collect()
    assert raw_calls.wait().outcome == "abandoned"
    client.close()


def test_cut(library, raw_calls, server, url):
    server.play("cut")
    with (
        library.Client(verify=False) as client,
        client.stream("POST", url, json=STREAM) as response,
    ):
        with pytest.raises(library.RemoteProtocolError):
            response.read()
    assert raw_calls.only.error is library.RemoteProtocolError


@pytest.mark.parametrize("status", [400, 429, 503])
@pytest.mark.parametrize("stream", [False, True])
def test_refused(library, raw_calls, server, url, status, stream):
    server.play(str(status))
    with library.Client(verify=False) as client:
        response = client.send(client.build_request("POST", url, json=CHAT), stream=stream)
        assert response.status_code == status
        response.close()
    assert (raw_calls.only.outcome, raw_calls.only.error) == ("failed", str(status))
    assert "secret" not in repr(raw_calls.only.facts)


def test_no_connection(library, raw_calls):
    with pytest.raises(library.ConnectError):
        library.post("http://127.0.0.1:1/v1/chat/completions", json=CHAT)
    assert raw_calls.only.error is library.ConnectError


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stopped_program_failed_nothing(library, raw_calls, stop):
    def answer(request):
        raise stop

    with library.Client(transport=library.MockTransport(answer)) as client:
        with pytest.raises(stop):
            client.post("http://here/v1/chat/completions", json=CHAT)
    assert (raw_calls.only.outcome, raw_calls.only.error) == ("abandoned", None)


async def test_cancelled_before_the_answer(library, raw_calls):
    sending = asyncio.Event()

    async def never(request):
        sending.set()
        await asyncio.Event().wait()

    async with library.AsyncClient(transport=library.MockTransport(never)) as client:
        task = asyncio.create_task(client.post("http://here/v1/chat/completions", json=CHAT))
        await sending.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert raw_calls.only.outcome == "cancelled"


def test_the_call_is_current_while_it_is_sent(library, raw_calls, url):
    seen = []

    class Watching(library.HTTPTransport):
        def handle_request(self, request):
            seen.append((current_call.get(), raw_calls.entered))
            return super().handle_request(request)

    with library.Client(transport=Watching(verify=False)) as client:
        client.post(url, json=CHAT)
    assert seen == [(raw_calls.only, 1)]


def test_what_is_no_model_request_is_left_alone(library, raw_calls, server, url):
    library.get(url, verify=False)
    library.post(server.url + "/v1/other", json=CHAT, verify=False)
    library.post(server.url + "/surveys/responses", json={"answers": [1]}, verify=False)
    library.post(server.url + "/surveys/responses", files={"file": b"x"}, verify=False)
    assert not raw_calls.opened_calls


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("https://api.openai.com/v1/responses", None),
        ("https://gateway.example.org/v1/chat/completions", None),
        ("https://gateway.example.org/openai/deployments/mine/chat/completions", "mine"),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        lambda: {"content": b"no json"},
        lambda: {"json": {"input": "a secret question"}},
        lambda: {"files": {"file": b"x"}},
        lambda: {"content": iter([b'{"model": "tiny"}'])},
    ],
    ids=["not json", "no model", "upload", "iterator"],
)
def test_a_body_that_names_no_model_is_a_call_where_the_path_says_so(
    library, raw_calls, url, model, body
):
    def answer(request):
        request.read()
        return library.Response(200, json={"model": MODEL})

    with library.Client(transport=library.MockTransport(answer)) as client:
        client.post(url, **body())
    call = raw_calls.only
    assert (call.operation, call.model, call.local) == ("chat", model, False)
    assert call.facts["response_model"] == MODEL
    assert call.facts.get("request_model") == model


def test_own_hosts_are_local(library, raw_calls):
    wire.set_raw_recorder(raw_calls, own_hosts=("*.example.org",))
    answer = library.MockTransport(lambda _: library.Response(200, json={}))
    with library.Client(transport=answer) as client:
        client.post("https://llm.example.org/v1/chat/completions", json=CHAT)
    assert raw_calls.only.local


def test_without_a_raw_recorder_nothing_is_recorded(library, raw_calls, url):
    wire.set_raw_recorder(None)
    library.post(url, json=CHAT, verify=False)
    raw_calls.suppressed = True
    wire.set_raw_recorder(raw_calls)
    library.post(url, json=CHAT)
    assert not raw_calls.opened_calls


def test_unhooked_a_kept_method_passes_through_and_a_stream_in_flight_ends(library, server, url):
    calls = Calls()
    before = library.Client.send
    wire.install_wire()
    wire.set_raw_recorder(calls)
    client = library.Client(verify=False)
    kept = client.send
    response = kept(client.build_request("POST", url, json=STREAM), stream=True)
    wire.remove_wire()
    assert library.Client.send is before
    kept(client.build_request("POST", url, json=CHAT))
    response.read()
    wire.set_raw_recorder(None)
    wire.remove_wire()  # once too often: nothing happens
    assert answered(calls.only)
    client.close()


def responses(library, url, body):
    """What an app can see of a response that it reads in every way there is."""
    for stream in (False, True):
        for how in READS:
            with library.Client(verify=False) as client:
                response = client.send(client.build_request("POST", url, json=body), stream=stream)
                parts = read_sync(response, how) if stream or how != "iter_raw" else None
                response.close()
                headers = [pair for pair in response.headers.items() if pair[0] != "date"]
                yield (
                    type(response),
                    parts,
                    headers,
                    response.is_stream_consumed,
                    response.is_closed,
                    response.num_bytes_downloaded,
                    response.elapsed is not None,
                    isinstance(response.stream, library.SyncByteStream),
                )


@pytest.mark.parametrize("scenario", ["ok", "gzip", "bytewise", "malformed", "not_utf8"])
@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
def test_the_app_gets_the_same_with_and_without_hooks(library, server, url, body, scenario):
    server.play(*[scenario] * 20)
    plain = list(responses(library, url, body))
    calls = Calls()
    wire.install_wire()
    wire.set_raw_recorder(calls)
    hooked = list(responses(library, url, body))
    wire.set_raw_recorder(None)
    wire.remove_wire()
    for one, other in zip(plain, hooked, strict=True):
        # The network may cut the same bytes elsewhere.
        assert joined(one[1]) == joined(other[1])
        assert one[2:] == other[2:]
        assert one[0] is other[0]
    assert len(calls.ended_calls) == 10


def joined(parts):
    return parts and type(parts[0])().join(parts)


def test_chunks_pass_one_by_one_without_reading_ahead(library, raw_calls):
    asked = []

    class Stream(library.SyncByteStream):
        mark = "of the transport"

        def __iter__(self):
            for number in range(3):
                asked.append(number)
                yield b'data: {"choices": []}\n\n'

    def answer(request):
        return library.Response(200, headers={"content-type": "text/event-stream"}, stream=Stream())

    with library.Client(transport=library.MockTransport(answer)) as client:
        with client.stream("POST", "http://here/v1/chat/completions", json=STREAM) as response:
            assert asked == []
            for number, chunk in enumerate(response.iter_raw()):
                assert asked == list(range(number + 1))
                assert chunk == b'data: {"choices": []}\n\n'
    assert raw_calls.only.chunks == 3


def test_copies_and_pickles(library, raw_calls, url):
    client = library.Client(verify=False)
    response = client.send(client.build_request("POST", url, json=STREAM), stream=True)
    response.read()
    for twin in (copy.copy(response), pickle.loads(pickle.dumps(response))):
        assert twin.content == response.content
    assert copy.copy(response.stream)._stream is response.stream._stream
    assert answered(raw_calls.only)
    client.close()


def test_several_event_loops(library, raw_calls, url):
    async def main():
        async with library.AsyncClient(verify=False) as client:
            async with client.stream("POST", url, json=STREAM) as response:
                await read_async(response, "iter_lines")

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(raw_calls.ended_calls) == 3
    assert all(answered(call) for call in raw_calls.ended_calls)


def test_we_make_no_reference_cycle(raw_calls, url):
    # httpx2 has none of its own; httpx ties a response to its stream.
    def once():
        with httpx2.Client(verify=False) as client:
            with client.stream("POST", url, json=STREAM) as response:
                for _ in response.iter_lines():
                    pass
            with client.stream("POST", url, json=STREAM) as response:
                next(response.iter_raw())
            client.post(url, json=CHAT)

    once()
    raw_calls.opened_calls.clear()
    raw_calls.ended_calls.clear()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        once()
        gc.collect()
        ours = [thing for thing in gc.garbage if type(thing).__module__.startswith("sottovoce")]
        assert not ours
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def endless(library, chunks):
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "word "}}]}\n\n'

    class Stream(library.SyncByteStream):
        def __iter__(self):
            for _ in range(chunks):
                yield event
            yield b"data: [DONE]\n\n"

    def answer(request):
        return library.Response(200, headers={"content-type": "text/event-stream"}, stream=Stream())

    with library.Client(transport=library.MockTransport(answer)) as client:
        with client.stream("POST", "http://here/v1/chat/completions", json=STREAM) as response:
            for _ in response.iter_raw():
                pass


def test_memory_does_not_grow_with_the_stream(raw_calls):
    endless(httpx2, 10)
    peaks = []
    for chunks in (100, 20_000):
        gc.collect()
        tracemalloc.start()
        endless(httpx2, chunks)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert raw_calls.ended_calls[-1].chunks == 20_000
    assert peaks[1] < peaks[0] + 20_000


def closing_when_dropped(response):
    try:
        yield from response.iter_raw()
    finally:
        response.close()


@pytest.mark.parametrize("how", ["unread", "read a little"])
def test_a_stream_dropped_inside_a_lock_of_the_recorder_does_not_hang(server, url, how):
    # The garbage collector runs in the middle of anything: here, while the recorder's own
    # lock is held by the same thread.
    calls = Locking()
    wire.install_wire()
    wire.set_raw_recorder(calls)
    client = httpx2.Client(verify=False)
    response = client.send(client.build_request("POST", url, json=STREAM), stream=True)
    chunks = closing_when_dropped(response)
    if how == "read a little":
        next(chunks)
    cycle = [response, chunks]
    cycle.append(cycle)
    with calls.lock:
        del response, chunks, cycle
        gc.collect()
    assert calls.wait().outcome == "abandoned"
    wire.set_raw_recorder(None)
    wire.remove_wire()
    client.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("how", ["drop", "close", "read"])
def test_a_child_does_not_end_its_parents_calls(raw_calls, url, how):
    client = httpx2.Client(verify=False)
    response = client.send(client.build_request("POST", url, json=STREAM), stream=True)
    child = os.fork()
    if child == 0:
        try:
            if how != "drop":
                getattr(response, how)()
            del response
            gc.collect()
            library_works = httpx2.post(url, json=CHAT, verify=False).status_code == 200
            ended = len(raw_calls.ended_calls)
        finally:
            os._exit(0 if library_works and ended == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    if how == "read":  # what the child has read is gone
        response.close()
        assert raw_calls.only.outcome == "abandoned"
    else:
        response.read()
        assert answered(raw_calls.only)
    client.close()


def test_a_stream_that_is_open_when_the_process_ends_is_recorded(url):
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
import httpx2
from servers.calls import Calls
from sottovoce.transports import httpx as wire

class Telling(Calls):
    def ended(self, call):
        print(call.outcome, call.chunks, call.end_ns == call.last_chunk_ns)

wire.install_wire()
wire.set_raw_recorder(Telling())
client = httpx2.Client(verify=False)
request = client.build_request("POST", {url!r}, json={STREAM!r})
response = client.send(request, stream=True)
next(response.iter_lines())
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    outcome, chunks, at_the_last_chunk = done.stdout.split()
    assert (outcome, at_the_last_chunk) == (b"abandoned", b"True")
    assert int(chunks) >= 1


def test_one_module_under_two_names():
    program = """
import httpx2
httpx2.alias_httpx()
from sottovoce.transports import httpx as wire
plain = httpx2.Client.send
wire.install_wire()
import httpx
assert httpx is httpx2
assert httpx2.Client.send.__wrapped__ is plain
wire.remove_wire()
assert httpx2.Client.send is plain
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_library_is_imported_before_the_app_does():
    program = """
import sys
from sottovoce.transports import httpx as wire
from sottovoce.clients import generated
from sottovoce.guard import ImportHooks, Patches
wire.install_wire()
generated.install(None, ImportHooks(), Patches())
assert not {"httpx", "httpx2", "openai"} & set(sys.modules)
import httpx
assert hasattr(httpx.Client.send, "__wrapped__")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_coding_that_nobody_can_undo_is_counted(raw_calls):
    answer = httpx2.MockTransport(
        lambda _: httpx2.Response(
            200,
            headers={"content-type": "application/json", "content-encoding": "rot13"},
            content=httpx2.ByteStream(b"whatever"),
        )
    )
    with httpx2.Client(transport=answer) as client:
        with client.stream("POST", "http://here/v1/chat/completions", json=CHAT) as response:
            assert response.read() == b"whatever"
    assert raw_calls.only.outcome == "completed"
    assert guard.undecodable == {"encoding": 1}


def test_a_body_that_is_not_what_its_coding_says_is_the_apps_error_alone(raw_calls):
    answer = httpx2.MockTransport(
        lambda _: httpx2.Response(
            200,
            headers={"content-type": "application/json", "content-encoding": "gzip"},
            content=httpx2.ByteStream(b"whatever"),
        )
    )
    with httpx2.Client(transport=answer) as client:
        with client.stream("POST", "http://here/v1/chat/completions", json=CHAT) as response:
            assert list(response.iter_raw()) == [b"whatever"]
    assert raw_calls.only.outcome == "completed"
    assert guard.undecodable == {"encoding": 1}


def test_a_watch_half_built_is_silent():
    Watch.__new__(Watch).__del__()

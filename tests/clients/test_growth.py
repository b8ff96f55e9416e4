"""Many calls leave nothing behind: no memory that grows, no cycles for the collector."""

import gc
import time
import tracemalloc

import httpx
import openai
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from sottovoce.instrumentors import HTTPXInstrumentor, OpenAIInstrumentor
from sottovoce.privacy import gate
from sottovoce.privacy.policy import activate
from sottovoce.settings import Settings

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
WHOLE = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o",
    "choices": [CHOICE],
    "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13},
}
DELTA = {**WHOLE, "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}


class Nowhere(SpanExporter):
    spans = 0

    def export(self, spans):
        Nowhere.spans += len(spans)
        return SpanExportResult.SUCCESS


class Events(httpx.SyncByteStream):
    def __iter__(self):
        import json

        piece = b"data: " + json.dumps(DELTA).encode() + b"\n\n"
        yield from (piece, piece, piece, b"data: [DONE]\n\n")


def answer(request):
    if b'"stream":true' in request.content.replace(b" ", b""):
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Events())
    if b"refuse" in request.content:
        return httpx.Response(400, json={"error": {"message": "no"}})
    return httpx.Response(200, json=WHOLE)


@pytest.fixture
def client(no_failures):
    policy = activate(Settings(key="a key of these tests"))
    tracers = gate.gated_tracer_provider(policy)
    tracers.add_span_processor(SimpleSpanProcessor(Nowhere()))
    meters = gate.gated_meter_provider(policy, metric_readers=[InMemoryMetricReader()])
    applied = [OpenAIInstrumentor(), HTTPXInstrumentor()]
    for each in applied:
        each.instrument(
            tracer_provider=tracers, meter_provider=meters, settings=Settings(key="k" * 16)
        )
    http = httpx.Client(transport=httpx.MockTransport(answer))
    yield openai.OpenAI(api_key="k", http_client=http, max_retries=0), http
    for each in applied:
        each.uninstrument()


def calls(client, number, kinds=(0, 1, 2, 3, 4)):
    sdk, http = client
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
    for turn in range(number):
        kind = kinds[turn % len(kinds)]
        if kind == 0:
            sdk.chat.completions.create(**body)
        elif kind == 1:
            for _ in sdk.chat.completions.create(**body, stream=True):
                pass
        elif kind == 2:
            for _ in sdk.chat.completions.create(**body, stream=True):
                break
        elif kind == 3:
            http.post("https://api.openai.com/v1/chat/completions", json=body)
        else:
            try:
                sdk.chat.completions.create(**{**body, "model": "refuse"})
            except openai.BadRequestError:
                pass


def test_nothing_grows_with_the_number_of_calls(client):
    before = Nowhere.spans
    calls(client, 1500)
    gc.collect()
    tracemalloc.start()
    try:
        calls(client, 500)
        gc.collect()
        first = tracemalloc.get_traced_memory()[0]
        calls(client, 3000)
        gc.collect()
        deadline = time.monotonic() + 60  # dropped streams are ended by another thread
        while Nowhere.spans - before < 5000 and time.monotonic() < deadline:
            time.sleep(0.01)
        grown = tracemalloc.get_traced_memory()[0] - first
    finally:
        tracemalloc.stop()
    assert Nowhere.spans - before == 5000
    assert grown < 100 * 1024  # under 35 bytes a call: caches that fill, no call that stays


def reaches_itself(thing, garbage):
    """Whether `thing` is part of a cycle, and not merely held by one of the library's."""
    seen, todo = set(), [thing]
    while todo:
        for other in gc.get_referents(todo.pop()):
            if other is thing:
                return True
            if id(other) in garbage and id(other) not in seen:
                seen.add(id(other))
                todo.append(other)
    return False


def test_no_cycle_goes_through_what_is_ours(client):
    calls(client, 20)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        calls(client, 20)
        gc.collect()
        garbage = {id(thing) for thing in gc.garbage}
        # httpx's responses are cycles with their streams, in whose place ours stand: what hangs
        # on them is garbage with them, and must not be part of one itself.
        ours = [
            thing
            for thing in gc.garbage
            if type(thing).__module__.startswith("sottovoce")
            and type(thing).__name__ != "WatchedStream"
        ]
        assert ours
        assert not [thing for thing in ours if reaches_itself(thing, garbage)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()

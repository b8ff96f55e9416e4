"""What a call through the openai SDK costs with us: whole calls and streamed chunks.

CPU time of this thread, over an in-process transport (no sockets, no server), in rounds that
run every variant in a new order; medians and the middle half of the rounds. Run it with
`python benchmarks/http_calls.py [rounds]`.

Compared are: nothing at all; a span with twelve attributes and three histogram records written
by hand around the call, as an app would without us; our instrumentor with the same providers;
and our instrumentor with gated providers, as the launcher sets it up.
"""

import json
import random
import statistics
import sys
import time
from contextlib import contextmanager

import httpx2
import openai
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from sottovoce.instrumentors import OpenAIInstrumentor
from sottovoce.privacy import gate
from sottovoce.privacy.policy import activate
from sottovoce.settings import Settings

CALLS = 60
SHORT, LONG = 20, 520
STREAMS = 3

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "word " * 60, "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": USAGE,
}
MESSAGES = [{"role": "user", "content": "word " * 60}]


def event(delta, reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "system_fingerprint": "fp_1",
        "choices": [choice],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


class Events(httpx2.SyncByteStream):
    """A stream of as many chunks as the request asked for, each its own network chunk."""

    def __init__(self, chunks):
        self.chunks = chunks

    def __iter__(self):
        piece = event({"content": "word "})
        for _ in range(self.chunks):
            yield piece
        yield event({}, "stop")
        yield b"data: [DONE]\n\n"


def answer(request):
    body = json.loads(request.content)
    if body.get("stream"):
        chunks = int(body["user"])
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=Events(chunks))
    return httpx2.Response(200, json=WHOLE)


class Nowhere(SpanExporter):
    def export(self, spans):
        return SpanExportResult.SUCCESS


def providers():
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(Nowhere()))
    return tracers, MeterProvider([InMemoryMetricReader()])


def gated_providers(policy):
    tracers = gate.gated_tracer_provider(policy)
    tracers.add_span_processor(SimpleSpanProcessor(Nowhere()))
    return tracers, gate.gated_meter_provider(policy, metric_readers=[InMemoryMetricReader()])


class ByHand:
    """A bare span with twelve attributes and three histogram records."""

    def __init__(self):
        tracers, meters = providers()
        self.tracer = tracers.get_tracer("by-hand")
        meter = meters.get_meter("by-hand")
        self.duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
        self.usage = meter.create_histogram("gen_ai.client.token.usage", "{token}")

    def __call__(self, create, **kwargs):
        started = time.perf_counter()
        with self.tracer.start_as_current_span(
            "chat gpt-4o", kind=SpanKind.CLIENT, record_exception=False
        ) as span:
            answer = create(**kwargs)
            common = {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-4o",
                "gen_ai.response.model": answer.model,
                "server.address": "api.openai.com",
                "server.port": 443,
            }
            span.set_attributes(common)
            span.set_attributes(
                {
                    "gen_ai.request.temperature": 0.5,
                    "gen_ai.request.max_tokens": 100,
                    "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
                    "gen_ai.response.finish_reasons": ["stop"],
                    "sottovoce.call.outcome": "completed",
                }
            )
            self.duration.record(time.perf_counter() - started, common)
            self.usage.record(answer.usage.prompt_tokens, {**common, "gen_ai.token.type": "input"})
            self.usage.record(
                answer.usage.completion_tokens, {**common, "gen_ai.token.type": "output"}
            )
        return answer


def direct(create, **kwargs):
    return create(**kwargs)


@contextmanager
def plainly():
    yield direct


@contextmanager
def by_hand(hand=[]):  # noqa: B006 - made once
    if not hand:
        hand.append(ByHand())
    yield hand[0]


def instrumented(make):
    pair = make()

    @contextmanager
    def manager():
        instrumentor = OpenAIInstrumentor()
        instrumentor.instrument(
            tracer_provider=pair[0], meter_provider=pair[1], settings=Settings()
        )
        try:
            yield direct
        finally:
            instrumentor.uninstrument()

    return manager


def cpu(function):
    started = time.thread_time_ns()
    function()
    return (time.thread_time_ns() - started) / 1000


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    policy = activate(Settings(key="a key of the benchmark, not a secret"))
    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = openai.OpenAI(api_key="key", http_client=http)
    create = client.chat.completions.create
    variants = {
        "nothing": plainly,
        "span by hand": by_hand,
        "sottovoce": instrumented(providers),
        "sottovoce, gated": instrumented(lambda: gated_providers(policy)),
    }
    whole = {name: [] for name in variants}
    chunk = {name: [] for name in variants if name != "span by hand"}

    def calls(run):
        for _ in range(CALLS):
            run(create, model="gpt-4o", messages=MESSAGES, temperature=0.5, max_tokens=100)

    def stream(run, chunks):
        for _ in range(STREAMS):
            events = run(create, model="gpt-4o", messages=MESSAGES, stream=True, user=str(chunks))
            for _ in events:
                pass

    for number in range(rounds + 2):
        order = list(variants)
        random.shuffle(order)
        for name in order:
            with variants[name]() as run:
                calls_cost = cpu(lambda run=run: calls(run)) / CALLS
                if name in chunk:
                    # The slope between two lengths: the call's own cost falls out.
                    long = cpu(lambda run=run: stream(run, LONG))
                    short = cpu(lambda run=run: stream(run, SHORT))
                    chunk_cost = (long - short) / STREAMS / (LONG - SHORT)
            if number > 1:  # two rounds to warm up
                whole[name].append(calls_cost)
                if name in chunk:
                    chunk[name].append(chunk_cost)

    table("µs of CPU per whole chat call", whole, 1)
    ours = added(whole, "sottovoce")
    print(f"  sottovoce / span by hand: {ours / added(whole, 'span by hand'):.2f} times\n")
    table("µs of CPU per streamed chunk", chunk, 2)


def added(costs, name):
    pairs = zip(costs[name], costs["nothing"], strict=True)
    return statistics.median(cost - base for cost, base in pairs)


def table(title, costs, digits):
    print(title)
    print(f"  {'':18} {'median':>10} {'middle half':>22} {'added':>10}")
    for name, values in costs.items():
        low, middle, high = statistics.quantiles(values, n=4)
        extra = f"{added(costs, name):10.{digits}f}" if name != "nothing" else ""
        spread = f"{low:.{digits}f} … {high:.{digits}f}"
        print(f"  {name:18} {middle:10.{digits}f} {spread:>22} {extra}")


if __name__ == "__main__":
    main()

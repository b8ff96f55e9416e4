"""The least that an app would write by hand: a span, twelve attributes, three records a call."""

import time

import anthropic
import openai
from opentelemetry.trace import SpanKind

AT_START = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "server.address": "api.openai.com",
    "server.port": 443,
    "gen_ai.request.temperature": 0.5,
}
AT_END = {
    "gen_ai.response.model": "gpt-4o",
    "gen_ai.usage.input_tokens": 1011,
    "gen_ai.usage.output_tokens": 707,
    "gen_ai.response.finish_reasons": ["stop"],
    "gen_ai.response.id": "chatcmpl-1",
    "gen_ai.request.max_tokens": 100,
}
OF_RECORDS = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.response.model": "gpt-4o",
    "server.address": "api.openai.com",
    "server.port": 443,
}


def install(pipeline):
    """Wrap the one method of each client through which all its calls go."""
    hand = Hand(pipeline)
    for owner, wrap in (
        (openai._base_client.SyncAPIClient, hand.wrap),
        (openai._base_client.AsyncAPIClient, hand.wrap_async),
        (anthropic._base_client.SyncAPIClient, hand.wrap),
    ):
        owner.request = wrap(owner.request)


class Hand:
    def __init__(self, pipeline):
        self.tracer = pipeline.tracers.get_tracer("floor")
        meter = pipeline.meters.get_meter("floor")
        self.duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
        self.usage = meter.create_histogram("gen_ai.client.token.usage", "{token}")

    def wrap(self, original):
        def request(client, *args, **kwargs):
            span, started = self.open()
            answer = original(client, *args, **kwargs)
            if kwargs.get("stream"):
                answer._iterator = self.pass_on(answer._iterator, span, started)
            else:
                self.close(span, started)
            return answer

        return request

    def wrap_async(self, original):
        async def request(client, *args, **kwargs):
            span, started = self.open()
            answer = await original(client, *args, **kwargs)
            if kwargs.get("stream"):
                answer._iterator = Passed(self, answer._iterator, span, started)
            else:
                self.close(span, started)
            return answer

        return request

    def open(self):
        started = time.perf_counter_ns()
        span = self.tracer.start_span("chat gpt-4o", kind=SpanKind.CLIENT, attributes=AT_START)
        return span, started

    def close(self, span, started):
        span.set_attributes(AT_END)
        span.end()
        self.duration.record((time.perf_counter_ns() - started) * 1e-9, OF_RECORDS)
        self.usage.record(1011, {**OF_RECORDS, "gen_ai.token.type": "input"})
        self.usage.record(707, {**OF_RECORDS, "gen_ai.token.type": "output"})

    def pass_on(self, items, span, started):
        for item in items:
            time.perf_counter_ns()
            yield item
        self.close(span, started)


class Passed:
    """`pass_on` for an asynchronous stream; a generator would cost an event loop more."""

    def __init__(self, hand, items, span, started):
        self.next, self.end = items.__anext__, lambda: hand.close(span, started)

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            item = await self.next()
        except StopAsyncIteration:
            self.end()
            raise
        time.perf_counter_ns()
        return item

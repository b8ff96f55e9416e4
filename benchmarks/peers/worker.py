"""One instrumentation in one process: does what `benchmarks/peers.py` asks on its standard input.

    python worker.py INSTRUMENTATION SETTING URL

Asked is one JSON object a line, answered likewise: ``{"case": NAME, "calls": N}`` gives the CPU
time in µs a call; ``{"memory": NAME}`` the peak and what stays, in KiB; ``{"check": true}`` what
was seen of each situation in the table of correctness. CPU time is that of the whole process;
queues are flushed before and after, outside the measurement, to exporters that keep nothing.
"""

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
import tracemalloc
from pathlib import Path

NAME, SETTING, URL = sys.argv[1:4]
PROMPT = [{"role": "user", "content": "planted secret words " * 12}]
LONG_PROMPT = [{"role": "user", "content": "planted secret words " * 5000}]

import anthropic
import openai


class Pipeline:
    """Providers as an app would set them up, with exporters that keep nothing, or everything."""

    def __init__(self, keep=False):
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import (
            InMemoryMetricReader,
            MetricExporter,
            MetricExportResult,
            PeriodicExportingMetricReader,
        )
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
        from opentelemetry.sdk.trace.export import (
            BatchSpanProcessor,
            SimpleSpanProcessor,
            SpanExporter,
            SpanExportResult,
        )

        pipeline = self
        self.spans, self.started = [], 0

        class Spans(SpanExporter):
            def export(self, spans):
                if keep:
                    pipeline.spans.extend(spans)
                return SpanExportResult.SUCCESS

        class Metrics(MetricExporter):
            def export(self, *args, **kwargs):
                return MetricExportResult.SUCCESS

            def force_flush(self, *args, **kwargs):
                return True

            def shutdown(self, *args, **kwargs):
                pass

        class Started(SpanProcessor):
            def on_start(self, span, parent_context=None):
                pipeline.started += 1

        if keep:
            self.reader = InMemoryMetricReader()
        else:
            self.reader = PeriodicExportingMetricReader(Metrics(), export_interval_millis=3_600_000)
        if NAME == "sottovoce" and SETTING != "no gate":
            # As its launcher sets it up: everything passes the gate.
            from sottovoce.privacy import gate
            from sottovoce.privacy.policy import activate

            policy = activate(self.settings())
            self.tracers = gate.gated_tracer_provider(policy)
            self.meters = gate.gated_meter_provider(policy, metric_readers=[self.reader])
        else:
            self.tracers = TracerProvider()
            self.meters = MeterProvider([self.reader])
        if keep:
            self.tracers.add_span_processor(Started())
            self.tracers.add_span_processor(SimpleSpanProcessor(Spans()))
        else:
            self.tracers.add_span_processor(
                BatchSpanProcessor(Spans(), max_queue_size=1 << 16, schedule_delay_millis=3_600_000)
            )
        trace.set_tracer_provider(self.tracers)
        metrics.set_meter_provider(self.meters)

    @staticmethod
    def settings():
        from sottovoce.settings import Settings

        return Settings(key="a key of the benchmark, not a secret")

    def flush(self):
        self.tracers.force_flush()


def sottovoce(pipeline):
    from sottovoce.instrumentors import ALL

    for kind in ALL:
        kind().instrument(
            tracer_provider=pipeline.tracers,
            meter_provider=pipeline.meters,
            settings=pipeline.settings(),
        )


def official_genai(pipeline):
    from opentelemetry.instrumentation.genai.anthropic import AnthropicInstrumentor
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    both(pipeline, OpenAIInstrumentor, AnthropicInstrumentor)


def official_openai_v2(pipeline):
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

    both(pipeline, OpenAIInstrumentor)


def openllmetry(pipeline):
    from opentelemetry.instrumentation.anthropic import AnthropicInstrumentor
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    both(pipeline, OpenAIInstrumentor, AnthropicInstrumentor)


def openinference(pipeline):
    from openinference.instrumentation.anthropic import AnthropicInstrumentor
    from openinference.instrumentation.openai import OpenAIInstrumentor

    both(pipeline, OpenAIInstrumentor, AnthropicInstrumentor)


def both(pipeline, *kinds):
    for kind in kinds:
        kind().instrument(tracer_provider=pipeline.tracers, meter_provider=pipeline.meters)


def openlit(pipeline):
    import openlit

    # It takes the providers that are global already; its prices would come from the network.
    prices = Path(__file__).with_name("no_prices.json")
    openlit.init(capture_message_content="off" not in SETTING, pricing_json=str(prices))


def logfire(pipeline):
    import logfire
    from opentelemetry import trace

    logfire.configure(send_to_logfire=False, console=False, inspect_arguments=False)
    logfire.instrument_openai()
    logfire.instrument_anthropic()
    provider = trace.get_tracer_provider()
    for processor in pipeline.tracers._active_span_processor._span_processors:
        provider.add_span_processor(processor)


class floor:  # noqa: N801 - one of the functions above
    """The least that an app would write by hand: a span, twelve attributes, three records."""

    def __init__(self, pipeline):
        from opentelemetry import trace

        self.kind = trace.SpanKind.CLIENT
        self.tracer = pipeline.tracers.get_tracer("floor")
        meter = pipeline.meters.get_meter("floor")
        self.duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
        self.usage = meter.create_histogram("gen_ai.client.token.usage", "{token}")
        for module, owner in (
            (openai, "SyncAPIClient"),
            (openai, "AsyncAPIClient"),
            (anthropic, "SyncAPIClient"),
        ):
            base = getattr(module._base_client, owner)
            wrap = self.wrap_async if owner.startswith("Async") else self.wrap
            base.request = wrap(base.request)

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
                answer._iterator = self.pass_on_async(answer._iterator, span, started)
            else:
                self.close(span, started)
            return answer

        return request

    def open(self):
        started = time.perf_counter_ns()
        span = self.tracer.start_span(
            "chat gpt-4o",
            kind=self.kind,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-4o",
                "server.address": "api.openai.com",
                "server.port": 443,
                "gen_ai.request.temperature": 0.5,
            },
        )
        return span, started

    def close(self, span, started):
        common = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.response.model": "gpt-4o",
            "server.address": "api.openai.com",
            "server.port": 443,
        }
        span.set_attributes(
            {
                "gen_ai.response.model": "gpt-4o",
                "gen_ai.usage.input_tokens": 11,
                "gen_ai.usage.output_tokens": 7,
                "gen_ai.response.finish_reasons": ["stop"],
                "gen_ai.response.id": "chatcmpl-1",
                "gen_ai.request.max_tokens": 100,
            }
        )
        span.end()
        self.duration.record((time.perf_counter_ns() - started) * 1e-9, common)
        self.usage.record(11, {**common, "gen_ai.token.type": "input"})
        self.usage.record(7, {**common, "gen_ai.token.type": "output"})

    def pass_on(self, items, span, started):
        for item in items:
            time.perf_counter_ns()
            yield item
        self.close(span, started)

    async def pass_on_async(self, items, span, started):
        async for item in items:
            time.perf_counter_ns()
            yield item
        self.close(span, started)


SETUPS = {
    "floor": floor,
    "sottovoce": sottovoce,
    "official genai": official_genai,
    "official openai-v2": official_openai_v2,
    "OpenLLMetry": openllmetry,
    "OpenInference": openinference,
    "OpenLIT": openlit,
    "Logfire": logfire,
}


class Cases:
    def __init__(self):
        self.openai = openai.OpenAI(api_key="k", base_url=f"{URL}/v1")
        self.claude = anthropic.Anthropic(api_key="k", base_url=URL)

    def chat(self):
        self.openai.chat.completions.create(model="gpt-4o", messages=PROMPT, max_tokens=100)

    def big(self):
        self.openai.chat.completions.create(model="gpt-4o", messages=LONG_PROMPT)

    def stream(self, chunks=200):
        for _ in self.streamed(f"chunks-{chunks}"):
            pass

    def streamed(self, model):
        return self.openai.chat.completions.create(
            model=model, messages=PROMPT, stream=True, stream_options={"include_usage": True}
        )

    def async_streams(self):
        asyncio.run(self._async_streams())

    async def _async_streams(self):
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{URL}/v1") as client:

            async def one():
                stream = await client.chat.completions.create(
                    model="chunks-200", messages=PROMPT, stream=True
                )
                async for _ in stream:
                    pass

            await asyncio.gather(*(one() for _ in range(50)))

    def embeddings(self):
        self.openai.embeddings.create(
            model="text-embedding-3-small", input=["words"] * 8, encoding_format="float"
        )

    def responses(self):
        self.openai.responses.create(model="gpt-4o", input="planted secret words")

    def anthropic(self):
        self.claude.messages.create(model="claude-sonnet-4-5", max_tokens=100, messages=PROMPT)

    def anthropic_stream(self):
        for _ in self.claude.messages.create(
            model="chunks-200", max_tokens=100, messages=PROMPT, stream=True
        ):
            pass


class Checks(Cases):
    """Situations of the table of correctness, each by itself."""

    def chat_stream(self):
        for _ in self.streamed("gpt-4o"):
            pass

    def early_break(self):
        for _ in self.streamed("gpt-4o"):
            break

    def never_read(self):
        self.streamed("gpt-4o")

    def cut(self):
        with contextlib.suppress(Exception):
            for _ in self.streamed("cut"):
                pass

    def retried(self):
        self.openai.chat.completions.create(model="busy", messages=PROMPT)

    def refused(self):
        with contextlib.suppress(openai.BadRequestError):
            self.openai.chat.completions.create(model="refuse", messages=PROMPT)

    def raw_stream(self):
        create = self.openai.chat.completions.with_raw_response.create
        raw = create(
            model="gpt-4o",
            messages=PROMPT,
            stream=True,
            stream_options={"include_usage": True},
        )
        for _ in raw.parse():
            pass

    def iter_lines(self):
        create = self.openai.chat.completions.with_streaming_response.create
        with create(model="gpt-4o", messages=PROMPT) as response:
            for _ in response.iter_lines():
                pass

    def raw_http(self):
        import httpx

        body = {"model": "gpt-4o", "messages": PROMPT}
        httpx.post(f"{URL}/v1/chat/completions", json=body)

    def anthropic_break(self):
        for _ in self.claude.messages.create(
            model="claude-sonnet-4-5", max_tokens=100, messages=PROMPT, stream=True
        ):
            break


CHECKS = [
    "chat",
    "chat_stream",
    "raw_stream",
    "iter_lines",
    "early_break",
    "never_read",
    "cut",
    "retried",
    "refused",
    "responses",
    "embeddings",
    "anthropic",
    "anthropic_break",
    "raw_http",
]


def seen(pipeline, before):
    gc.collect()
    time.sleep(0.2)
    pipeline.flush()
    spans = pipeline.spans[before[0] :]
    return {
        "started": pipeline.started - before[1],
        "spans": [
            {
                "scope": span.instrumentation_scope.name,
                "name": span.name,
                "status": span.status.status_code.name,
                "attributes": {key: str(value) for key, value in (span.attributes or {}).items()},
                "text": span.to_json(),
            }
            for span in spans
        ],
    }


def check(pipeline):
    cases, found = Checks(), {}
    for name in CHECKS:
        before = len(pipeline.spans), pipeline.started
        with contextlib.suppress(Exception):
            getattr(cases, name)()
        found[name] = seen(pipeline, before)
    data = pipeline.reader.get_metrics_data()
    found["metrics"] = sorted(
        metric.name
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )
    return found


def memory(cases, name):
    call = {"stream": lambda: cases.stream(1000), "big": cases.big}[name]
    call()
    gc.collect()
    tracemalloc.start()
    base = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    call()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"peak": (peak - base) / 1024, "held": (held - base) / 1024}


def main():
    keep = SETTING.startswith("check")
    pipeline = None
    if NAME != "none":
        pipeline = Pipeline(keep=keep)
        built = time.process_time_ns()
        SETUPS[NAME](pipeline)
        start_up = (time.process_time_ns() - built) / 1e6
    else:
        start_up = 0.0
    print(json.dumps({"start_up_ms": start_up, "pid": os.getpid()}), flush=True)
    cases = Cases()
    for line in sys.stdin:
        asked = json.loads(line)
        if "check" in asked:
            told = check(pipeline)
        elif "memory" in asked:
            told = memory(cases, asked["memory"])
        else:
            call, calls = getattr(cases, asked["case"]), asked["calls"]
            if pipeline is not None:
                pipeline.flush()
            gc.collect()
            started = time.process_time_ns()
            for _ in range(calls):
                call()
            told = {"us": (time.process_time_ns() - started) / calls / 1000}
            if pipeline is not None:
                pipeline.flush()
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()

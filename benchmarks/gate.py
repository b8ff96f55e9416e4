"""What the gate costs for a span, a log record and a metric point, over handing it on as it is.

Run: ``python benchmarks/gate.py [rounds]``. Prints medians of interleaved rounds and their
spread (the 10th and the 90th percentile), in microseconds for one of them.
"""

import statistics
import sys
import time

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk._logs._internal import SynchronousMultiLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ReadableSpan,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.privacy.gate import gated_meter_provider, gated_tracer_provider
from sottovoce.privacy.logs import LogGate
from sottovoce.privacy.policy import Policy
from sottovoce.privacy.spans import SpanGate
from sottovoce.settings import Settings

OURS = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "h:0123456789ab",
    "gen_ai.response.model": "h:0123456789ab",
    "gen_ai.request.stream": True,
    "gen_ai.request.temperature": 0.7,
    "gen_ai.request.top_p": 0.9,
    "gen_ai.request.top_k": 40,
    "gen_ai.request.max_tokens": 512,
    "gen_ai.request.frequency_penalty": 0.1,
    "gen_ai.request.presence_penalty": 0.1,
    "gen_ai.request.choice.count": 2,
    "gen_ai.request.reasoning.level": "high",
    "gen_ai.request.encoding_formats": ["float"],
    "gen_ai.embeddings.dimension.count": 1536,
    "gen_ai.output.type": "text",
    "gen_ai.response.finish_reasons": ["stop", "stop"],
    "gen_ai.response.time_to_first_chunk": 0.21,
    "gen_ai.usage.input_tokens": 812,
    "gen_ai.usage.output_tokens": 91,
    "gen_ai.usage.cache_read.input_tokens": 512,
    "gen_ai.usage.cache_write.input_tokens": 0,
    "gen_ai.usage.reasoning.output_tokens": 12,
    "openai.request.service_tier": "auto",
    "openai.response.service_tier": "default",
    "server.address": "api.openai.com",
    "server.port": 443,
    "error.type": "429",
    "http.request.resend_count": 1,
    "http.request.method": "POST",
    "http.response.status_code": 429,
    "network.protocol.version": "1.1",
    "url.scheme": "https",
    "sottovoce.call.outcome": "failed",
    "sottovoce.response.chunks": 91,
    "sottovoce.request.tools.count": 3,
    "sottovoce.request.stop_sequences.count": 1,
    "sottovoce.response.tool_calls.count": 0,
    "sottovoce.request.user_turn": True,
    "sottovoce.engine.passes": 1,
}
FOREIGN = {
    **dict(list(OURS.items())[:15]),
    "gen_ai.request.model": "ft:gpt-4o:acme:proj",
    "server.address": "models.acme.example",
    "gen_ai.input.messages": '[{"role": "user", "content": "the quick brown fox"}]' * 20,
    "gen_ai.output.messages": '[{"role": "assistant", "content": "the quick brown fox"}]' * 20,
    **{f"acme.attribute.{n}": f"value {n}" for n in range(22)},
}

DIALECT = {
    "openinference.span.kind": "LLM",
    "llm.provider": "openai",
    "llm.system": "openai",
    "llm.model_name": "ft:gpt-4o:acme:proj",
    "llm.token_count.prompt": 812,
    "llm.token_count.completion": 91,
    "llm.token_count.total": 903,
    "llm.token_count.prompt_details.cache_read": 512,
    "llm.token_count.completion_details.reasoning": 12,
    "llm.finish_reason": "stop",
    "llm.invocation_parameters": '{"temperature": 0.7}',
    "input.value": '[{"role": "user", "content": "the quick brown fox"}]' * 20,
    "input.mime_type": "application/json",
    "output.value": '[{"role": "assistant", "content": "the quick brown fox"}]' * 20,
    "output.mime_type": "application/json",
    "session.id": "session",
    **{f"llm.input_messages.{n}.message.content": "the quick brown fox" for n in range(24)},
}


LOG = {
    "error.type": "429",
    "http.response.status_code": 429,
    "gen_ai.request.model": "ft:gpt-4o:acme:proj",
    "code.file.path": "/srv/app/main.py",
    **{f"acme.attribute.{n}": f"value {n}" for n in range(6)},
}
SERIES = 200


class Sink(SpanProcessor, LogRecordProcessor):
    def on_end(self, span):
        self.last = span

    def on_emit(self, log_record):
        self.last = log_record


def span_of(attributes):
    made = []

    class Catch(SpanProcessor):
        def on_end(self, span):
            made.append(span)

    provider = TracerProvider(
        resource=Resource({"service.name": "benchmark"}), shutdown_on_exit=False
    )
    provider.add_span_processor(Catch())
    provider.get_tracer("sottovoce", "1").start_span(
        "chat h:0123456789ab", attributes=attributes
    ).end()
    assert isinstance(made[0], ReadableSpan)
    return made[0]


def record_of(attributes):
    made = []

    class Catch(LogRecordProcessor):
        def on_emit(self, log_record):
            made.append(log_record)

        def shutdown(self):
            pass

        def force_flush(self, timeout_millis=30000):
            return True

    provider = LoggerProvider(
        resource=Resource({"service.name": "benchmark"}), shutdown_on_exit=False
    )
    provider.add_log_record_processor(Catch())
    provider.get_logger("sottovoce", "1").emit(
        LogRecord(
            severity_number=SeverityNumber.WARN,
            severity_text="WARN",
            body="the quick brown fox jumps",
            attributes=attributes,
        )
    )
    return made[0]


def reader_of(policy=None):
    """A reader of a histogram with `SERIES` points of 5 attributes, gated by `policy` or not."""
    reader = InMemoryMetricReader()
    options = {"metric_readers": [reader], "shutdown_on_exit": False}
    provider = gated_meter_provider(policy, **options) if policy else MeterProvider(**options)
    histogram = provider.get_meter("sottovoce", "1").create_histogram(
        "gen_ai.client.operation.duration", "s"
    )
    for port in range(SERIES):
        # Of a host that is not named, `strict` tells no port.
        place = {"server.address": "api.openai.com", "server.port": port}
        histogram.record(0.7, {**dict(list(OURS.items())[:3]), **place})
    return reader


def cost(method, argument, times=2000):
    begin = time.process_time_ns()
    for _ in range(times):
        method(argument)
    return (time.process_time_ns() - begin) / times / 1000


def collecting(reader, times=5):
    begin = time.process_time_ns()
    for _ in range(times):
        data = reader.get_metrics_data()
    spent = time.process_time_ns() - begin
    ((metric,),) = ((s.metrics) for s in data.resource_metrics[0].scope_metrics)
    assert len(metric.data.data_points) == SERIES
    return spent / times / SERIES / 1000


def whole(tracer, attributes, spans=500):
    begin = time.process_time_ns()
    for _ in range(spans):
        tracer.start_span("chat h:0123456789ab", attributes=attributes).end()
    return (time.process_time_ns() - begin) / spans / 1000


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    policy = Policy(Settings(key="a secret of the benchmark"))
    strict_policy = Policy(Settings(key="a secret of the benchmark", profile="strict"))
    # As `record` writes them: pseudonyms that this process made.
    for key in ("gen_ai.request.model", "gen_ai.response.model"):
        OURS[key] = policy.model("ft:gpt-4o:acme:proj", local=False)
    plain, gate = SynchronousMultiSpanProcessor(), SpanGate(policy)
    strict = SpanGate(strict_policy)
    for processor in (plain, gate, strict):
        processor.add_span_processor(Sink())
    own = span_of(OURS)
    cases = {
        "own span, 40 attributes, all kept": (gate, own),
        "foreign span, 40 attributes, 24 dropped": (gate, span_of(FOREIGN)),
        "span of another dialect, 40 attributes": (gate, span_of(DIALECT)),
        "span of 5 attributes": (gate, span_of(dict(list(OURS.items())[:5]))),
        "strict: own span, 40 attributes": (strict, own),
        "strict: foreign span, 40 attributes": (strict, span_of(FOREIGN)),
    }
    assert len(own.attributes) == 40
    gate.on_end(own)
    assert len(gate._span_processors[0].last.attributes) == 40, policy.dropped
    record = record_of(LOG)
    plain_logs, logs = SynchronousMultiLogRecordProcessor(), LogGate(policy)
    strict_logs = LogGate(strict_policy)
    for processor in (plain_logs, logs, strict_logs):
        processor.add_log_record_processor(Sink())
    strict_log = "strict: log record, which does not leave"
    plain_reader = reader_of()
    readers = {
        "metric point, 5 attributes": reader_of(policy),
        "strict: metric point, 5 attributes": reader_of(strict_policy),
    }
    seen = {name: ([], []) for name in [*cases, "log record, 10 attributes", strict_log, *readers]}
    resource = Resource({"service.name": "benchmark"})
    bare = TracerProvider(resource=resource, shutdown_on_exit=False)
    gated = gated_tracer_provider(policy, resource=resource, shutdown_on_exit=False)
    tracers = []
    for provider in (bare, gated):
        provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
        tracers.append(provider.get_tracer("sottovoce", "1"))
    start_to_end = "start to end with a batch processor, 40"
    seen[start_to_end] = ([], [])
    for _ in range(rounds):
        for tracer, costs in zip(tracers, seen[start_to_end], strict=True):
            costs.append(whole(tracer, OURS))
        for name, (processor, span) in cases.items():
            seen[name][0].append(cost(plain.on_end, span))
            seen[name][1].append(cost(processor.on_end, span))
        for name, judge in (("log record, 10 attributes", logs), (strict_log, strict_logs)):
            seen[name][0].append(cost(plain_logs.on_emit, record))
            seen[name][1].append(cost(judge.on_emit, record))
        for name, reader in readers.items():
            seen[name][0].append(collecting(plain_reader))
            seen[name][1].append(collecting(reader))
    print(f"{'µs for one':42}{'ungated':>9}{'gated':>9}{'added':>9}   10 % .. 90 %")
    for name, (without, within) in seen.items():
        added = sorted(b - a for a, b in zip(without, within, strict=True))
        low, high = added[len(added) // 10], added[-1 - len(added) // 10]
        print(
            f"{name:42}{statistics.median(without):9.2f}{statistics.median(within):9.2f}"
            f"{statistics.median(added):9.2f}   {low:.2f} .. {high:.2f}"
        )


if __name__ == "__main__":
    main()

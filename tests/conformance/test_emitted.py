"""What leaves agrees with the registry: our own calls, and whatever an app puts into the gate."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode

from conformance.conformance import violations
from sottovoce import guard, loaded
from sottovoce.call import Call
from sottovoce.privacy import gate, policy
from sottovoce.record import SpanRecorder
from sottovoce.registry import ATTRIBUTES, EVENTS, METRICS, PREFIXES, SCOPES
from sottovoce.settings import Settings

SETTINGS = {"key": "a key of the tests, of sixteen bytes or more"}


@pytest.fixture(autouse=True)
def _policy_of_the_process_made_anew():
    yield
    policy._active.clear()


class Gated:
    """Gated providers of the real SDK, and what came out of them."""

    def __init__(self, resource=None, **options):
        self.settings = Settings(**SETTINGS, **options)
        self.policy = policy.activate(self.settings)
        self.spans, self.logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self.reader = InMemoryMetricReader()
        named = Resource({"service.name": "app", **(resource or {})})
        self.tracers = gate.gated_tracer_provider(self.policy, resource=named)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meters = gate.gated_meter_provider(
            self.policy, metric_readers=[self.reader], resource=named
        )
        self.loggers = gate.gated_logger_provider(self.policy, resource=named)
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))

    def call(self, **arguments):
        recorder = SpanRecorder(self.tracers, self.meters, self.settings)
        return Call(recorder, **arguments)

    def violations(self, vocabulary="both"):
        spans, logs = self.spans.get_finished_spans(), self.logs.get_finished_logs()
        data = self.reader.get_metrics_data()
        items = [*spans, encode_spans(spans), encode_logs(logs)]
        items += [data, encode_metrics(data)] if data else []
        return violations(*items, vocabulary=vocabulary)


HTTP = {"provider": "openai", "model": "ft:gpt-4o:acme", "address": "api.openai.com", "port": 443}
LOCAL = {"provider": "ollama", "model": "llama3.2", "address": "127.0.0.1", "port": 11434}
ENGINE = {"provider": "mlx", "model": "/home/bob/model", "in_process": True, "local": True}
FACTS = {
    "request_temperature": 0.5,
    "request_top_p": 1.0,
    "request_top_k": 40,
    "request_max_tokens": 64,
    "request_frequency_penalty": 0.0,
    "request_presence_penalty": 0.0,
    "request_choice_count": 2,
    "request_stop_count": 1,
    "request_reasoning_level": "low",
    "request_service_tier": "auto",
    "request_tool_count": 3,
    "output_type": "json",
    "response_model": "gpt-4o-2024-08-06",
    "response_service_tier": "default",
    "finish_reasons": ["stop", "tool_calls"],
    "input_tokens": 12,
    "output_tokens": 7,
    "cache_read_tokens": 4,
    "cache_write_tokens": 0,
    "reasoning_tokens": 2,
    "tool_call_count": 1,
    "user_turn": True,
}
OF_ENGINES = {
    "time_to_first_token_s": 0.1,
    "time_per_output_token_s": 0.01,
    "engine_duration_s": 0.5,
    "passes": 1,
    "model_architecture": "llama",
    "model_quantization": "4bit",
    "model_parameters": "1B",
    "context_size": 4096,
    "context_fill": 0.5,
    "batch_size": 2,
    "prefill_rate": 512.5,
    "decode_rate": 40.25,
    "draft_accepted_share": 0.75,
    "model_adapter": True,
    "model_offload": "partial",
    "model_size": "4_8GiB",
    "load_s": 1.5,
    "peak_memory": "8_12GiB",
}


def completed(call):
    call.end()


def streamed(call):
    call.facts["request_stream"] = call.stream = True
    for _ in range(3):
        call.chunk()
    call.end()


def abandoned(call):
    call.facts["request_stream"] = call.stream = True
    call.chunk()
    call.abandon()


def failed(call):
    call.facts.clear()
    call.fail(TimeoutError("hello"))


def refused(call):
    call.fail("429")


@pytest.mark.parametrize("vocabulary", ["v1.41", "latest", "both"])
@pytest.mark.parametrize("end", [completed, streamed, abandoned, failed, refused])
@pytest.mark.parametrize("where", [HTTP, LOCAL, ENGINE], ids=["remote", "local", "in_process"])
@pytest.mark.parametrize(
    "operation", ["chat", "text_completion", "generate_content", "fetch_response"]
)
def test_a_generation(operation, where, end, vocabulary):
    gated = Gated(semconv=vocabulary)
    call = gated.call(operation=operation, **where)
    call.facts.update(FACTS | (OF_ENGINES if where is ENGINE else {}))
    end(call)
    assert len(gated.spans.get_finished_spans()) == 1
    assert gated.violations(vocabulary) == []


MODEL = {
    key: OF_ENGINES[key]
    for key in ("model_architecture", "model_quantization", "model_parameters", "model_adapter")
    + ("model_offload", "model_size", "context_size")
}


@pytest.mark.parametrize("vocabulary", ["v1.41", "latest"])
@pytest.mark.parametrize("profile", ["aggregate", "strict", "standard"])
@pytest.mark.parametrize("error", [None, "bad_model_file", MemoryError("hello")])
def test_a_load(profile, error, vocabulary):
    gated = Gated(semconv=vocabulary, profile=profile)
    recorder = SpanRecorder(gated.tracers, gated.meters, gated.settings)
    known = {"request_model": "/home/bob/model", **MODEL} if error is None else {}
    ticket = loaded.add((("provider", "mlx"), ("request_model", "/home/bob/model")))
    try:
        recorder.loaded("mlx", known, 1.5, error, recorder.loading("mlx"))
        assert len(gated.spans.get_finished_spans()) == (profile != "aggregate")
        assert gated.violations(vocabulary) == []
    finally:
        loaded.remove(ticket)
    names = {
        metric.name
        for resource in gated.reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {"sottovoce.model.load.duration", "sottovoce.model.count"} <= names


@pytest.mark.parametrize("vocabulary", ["v1.41", "latest", "both"])
@pytest.mark.parametrize("end", [completed, failed])
def test_embeddings(end, vocabulary):
    gated = Gated(semconv=vocabulary)
    call = gated.call(operation="embeddings", **HTTP)
    call.facts.update(request_dimensions=256, request_encoding_formats=["base64"], input_tokens=9)
    end(call)
    assert gated.violations(vocabulary) == []


@pytest.mark.parametrize("vocabulary", ["v1.41", "latest", "both"])
@pytest.mark.parametrize("operation", ["rerank", "moderation"])
@pytest.mark.parametrize("end", [completed, failed])
def test_ranks_and_judgements(operation, end, vocabulary):
    gated = Gated(semconv=vocabulary)
    call = gated.call(operation=operation, **HTTP)
    call.facts.update(input_tokens=9, output_tokens=1)
    end(call)
    assert len(gated.spans.get_finished_spans()) == 1
    assert gated.violations(vocabulary) == []


def test_every_operation_of_a_route_has_a_span():
    from sottovoce.protocols import routes
    from sottovoce.registry import SPANS

    asked = {route.operation for route in routes.ROUTES.values()}
    asked |= {each.route.operation for rows in routes.VERBS.values() for each in rows}
    assert asked <= set(SPANS)


def test_our_own_counters(monkeypatch):
    monkeypatch.setitem(guard.failures, "record.ended", 1)
    monkeypatch.setitem(guard.undecodable, "json", 1)
    gated = Gated()
    gated.call(operation="chat", **HTTP).end()
    gated.tracers.get_tracer("app").start_span("hello", attributes={"prompt": "hello"}).end()
    assert gated.violations() == []
    names = {
        metric.name
        for resource in gated.reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {"sottovoce.gate.dropped", "sottovoce.hook.errors", "sottovoce.decode.errors"} <= names


KEYS = st.sampled_from(sorted({*ATTRIBUTES, *(f"{key}.x" for key in PREFIXES), "prompt"}))
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(sorted(set().union(*(a.values or () for a in ATTRIBUTES.values())))),
    st.sampled_from(["hello, Bob", "x" * 200, "/home/bob/m", "a@b.c", "openai.Error", "429"]),
)
VALUES = st.one_of(
    WORDS,
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    st.lists(WORDS, max_size=3),
)
ANYTHING = st.dictionaries(KEYS, VALUES, max_size=12)
NAMES = st.sampled_from(["chat hello", "GET", "app", *sorted(EVENTS), *sorted(METRICS)])
WRITERS = st.sampled_from(["app", "com.anthropic.sdk.python", *sorted(SCOPES - {"sottovoce"})])


@given(resource=ANYTHING, attributes=ANYTHING, more=ANYTHING, name=NAMES, scope=WRITERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_an_app_writes_what_leaves_is_declared(resource, attributes, more, name, scope):
    # What says that a span is a call must have a call's kind, which this one has not.
    calls = ("operation.name", "mcp.method.name")
    attributes = {key: value for key, value in attributes.items() if not key.endswith(calls)}
    gated = Gated(resource)
    tracer = gated.tracers.get_tracer(scope, attributes={"who": "me"})
    with tracer.start_as_current_span(name, attributes=attributes) as span:
        span.add_event(name, more)
        span.set_status(Status(StatusCode.ERROR, "hello"))
        meter = gated.meters.get_meter(scope)
        declared = METRICS.get(name)
        if declared is None or declared.instrument != "histogram":
            meter.create_counter("app.hello", "1", "hello").add(1, more)
    gated.loggers.get_logger(scope).emit(body="hello", event_name=name, attributes=attributes)
    assert gated.violations() == []

"""Telemetry made to deceive: what only claims to be allowed, and what would break a batch."""

import contextlib
import os
import sys
from uuid import uuid4

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from sottovoce.privacy import gate
from sottovoce.privacy.origin import Origins

CANARY = "kanarienvogel"


class Claim(str):
    """Holds the canary, and says that it equals something allowed."""

    __slots__ = ("claimed",)

    def __new__(cls, claimed):
        self = super().__new__(cls, CANARY)
        self.claimed = claimed
        return self

    def __eq__(self, other):
        return other == self.claimed

    def __ne__(self, other):
        return other != self.claimed

    def __hash__(self):
        return hash(self.claimed)


SCHEMA = f"https://opentelemetry.io/schemas/{CANARY}"


@pytest.fixture
def tracing(policy):
    provider = gate.gated_tracer_provider(policy, shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def sent(spans):
    wire = encode_spans(spans).SerializeToString()
    assert CANARY.encode() not in wire
    assert CANARY not in "".join(span.to_json() for span in spans)
    return wire


SPANS = {
    "a key": {"attributes": {Claim("gen_ai.operation.name"): "chat"}},
    "values": {
        "attributes": {
            "gen_ai.operation.name": Claim("chat"),
            "gen_ai.provider.name": Claim("mlx"),
            "gen_ai.request.model": Claim("llama3.2:3b"),
            "gen_ai.response.finish_reasons": (Claim("stop"), CANARY),
            "error.type": Claim("timeout"),
            "http.route": Claim("/x"),
            "server.address": Claim("localhost"),
        }
    },
    "a name": {"name": Claim("chat"), "attributes": {"gen_ai.operation.name": "chat"}},
    "a kind": {"kind": CANARY},
    "a time": {"start_time": CANARY},
    "a time too large": {"start_time": 1 << 70},
}


@pytest.mark.parametrize("options", SPANS.values(), ids=SPANS)
def test_a_span_that_claims_to_be_harmless(tracing, options):
    provider, exporter = tracing
    provider.get_tracer(Claim("sottovoce"), CANARY, schema_url=SCHEMA).start_span(
        **{"name": "x", **options}
    ).end()
    (span,) = exporter.get_finished_spans()
    sent([span])
    assert isinstance(span.kind, SpanKind)
    assert span.instrumentation_scope.schema_url == ""


def test_events_and_links_that_claim_to_be_harmless(tracing, policy):
    provider, exporter = tracing
    bad = SpanContext(3, 4, False, TraceFlags(1))
    broken = tuple.__new__(SpanContext, (1.5, 4, False, TraceFlags(1), bad.trace_state, True))
    span = provider.get_tracer("x").start_span("x", links=[Link(broken), Link(bad)])
    span.add_event(Claim("exception"), {Claim("exception.type"): "ValueError"})
    span.add_event("exception", {Claim("exception.type"): "ValueError"}, timestamp=CANARY)
    span.end(end_time=CANARY)
    (span,) = exporter.get_finished_spans()
    sent([span])
    assert [link.context.span_id for link in span.links] == [4]
    assert [event.name for event in span.events] == ["exception"]
    assert policy.dropped["span", "type"] == 3
    assert policy.dropped["event", "unknown"] == 1


def test_a_span_without_usable_ids_does_not_take_its_batch_with_it(tracing, policy):
    provider, exporter = tracing
    for trace_id in (0, 1 << 128, CANARY, 1.5):
        context = tuple.__new__(
            SpanContext,
            (trace_id, 4, False, TraceFlags(1), SpanContext(1, 1, False).trace_state, 1),
        )
        provider._active_span_processor.on_end(ReadableSpan("x", context=context))
    assert exporter.get_finished_spans() == ()
    assert dict(policy.dropped) == {("span", "type"): 4}


def test_a_log_record_that_claims_to_be_harmless(policy):
    provider = gate.gated_logger_provider(policy, shutdown_on_exit=False)
    exporter = InMemoryLogRecordExporter()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("sottovoce", schema_url=SCHEMA).emit(
        LogRecord(
            timestamp=CANARY,
            observed_timestamp=1 << 70,
            trace_id=CANARY,
            span_id=1.5,
            trace_flags=CANARY,
            severity_text=Claim("INFO"),
            event_name=Claim("exception"),
            attributes={Claim("error.type"): "timeout"},
        )
    )
    logs = exporter.get_finished_logs()
    assert len(logs) == 1
    assert CANARY.encode() not in encode_logs(logs).SerializeToString()
    assert CANARY not in logs[0].to_json()
    assert policy.dropped["log", "type"] == 4


def test_a_metric_that_claims_to_be_harmless(make_policy):
    policy = make_policy(allow=("metric:mine",))
    reader = InMemoryMetricReader()
    provider = gate.gated_meter_provider(policy, metric_readers=[reader], shutdown_on_exit=False)
    meter = provider.get_meter("sottovoce", schema_url=SCHEMA)
    meter.create_counter("mine", f"{{{CANARY}}}").add(1)
    meter.create_counter("sottovoce.gate.dropped").add(
        1, {"sottovoce.gate.rule": CANARY, "sottovoce.gate.signal": CANARY}
    )
    meter.create_counter("sottovoce.hook.errors").add(1, {"sottovoce.hook.place": CANARY})
    meter.create_histogram("gen_ai.client.operation.duration", "s").record(
        1, {Claim("gen_ai.operation.name"): "chat", "gen_ai.provider.name": Claim("mlx")}
    )
    data = reader.get_metrics_data()
    assert len(data.resource_metrics[0].scope_metrics[0].metrics) == 4
    assert CANARY.encode() not in encode_metrics(data).SerializeToString()
    assert CANARY not in data.to_json()
    assert policy.dropped["metric", "unit"] == 1


def test_what_is_very_long_is_not_remembered(policy):
    long = CANARY * 1_000_000
    attributes = dict.fromkeys(
        ("gen_ai.operation.name", "gen_ai.request.model", "error.type", "server.address"), long
    )
    held = sys.getrefcount(long)
    kept = policy.attributes(attributes, "span")
    assert kept["gen_ai.operation.name"] == kept["error.type"] == "_OTHER"
    assert kept["gen_ai.request.model"] == policy.model(long, local=False)
    assert kept["server.address"] == policy.address(long, local=False)
    assert sys.getrefcount(long) == held


def test_an_instance_is_known_by_the_random_id_of_its_process_only(policy):
    """A UUID of another version is a machine's, and one of the same may be."""
    key = "service.instance.id"
    own = Resource.create().attributes[key]
    machine, kept = "f81d4fae-7dec-41d0-a765-00a0c91e6bf6", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
    for _ in range(2):
        assert policy.attributes({key: machine}, "resource") == {key: own}
        assert policy.attributes({key: own}, "resource") == {key: own}
        assert policy.attributes({key: kept}, "resource") == {}
    assert policy.dropped == {("resource", "shape"): 4}


def test_an_instance_of_the_environment_is_no_other(policy, monkeypatch):
    own = Resource.create().attributes["service.instance.id"]
    machine = "f81d4fae-7dec-41d0-a765-00a0c91e6bf6"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"service.instance.id={machine}")
    resource = Resource.create()
    assert resource.attributes["service.instance.id"] == machine
    left = Origins(policy, "span").resource(resource)
    assert left.attributes["service.instance.id"] == own


def test_a_forked_child_is_an_instance_of_its_own(policy):
    key = "service.instance.id"
    parent = Resource.create().attributes[key]
    assert policy.attributes({key: parent}, "resource") == {key: parent}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            mine = Resource.create().attributes[key]
            others = policy.attributes({key: str(uuid4())}, "resource")[key]
            begun = policy.attributes({key: parent}, "resource")[key]
            told = [mine != parent, others == mine, begun == parent]
            os.write(writing, repr(told).encode())
        os._exit(0)
    os.close(writing)
    told = os.read(reading, 100)
    os.close(reading)
    os.waitpid(child, 0)
    assert told == b"[True, True, True]"

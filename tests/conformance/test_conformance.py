"""The validator itself: silent about telemetry as declared, and loud about each way to break it."""

import pytest
from google.protobuf.json_format import MessageToJson
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceState

from conformance.conformance import violations, violations_in_json
from sottovoce.registry import METRICS, SCHEMA_URLS

URL = SCHEMA_URLS["v1.41"]
RESOURCE = {
    "service.name": "app",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": "1.45.2",
    "telemetry.distro.name": "sottovoce",
}
CHAT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "h:0123456789ab",
    "gen_ai.request.stream": True,
    "gen_ai.request.temperature": 0.5,
    "gen_ai.response.finish_reasons": ("stop", "length"),
    "gen_ai.response.time_to_first_chunk": 0.25,
    "gen_ai.usage.input_tokens": 12,
    "server.address": "api.openai.com",
    "server.port": 443,
    "sottovoce.call.outcome": "completed",
}


def emit_span(
    attributes=None,
    *,
    name="chat h:0123456789ab",
    kind=SpanKind.CLIENT,
    scope="sottovoce",
    url=URL,
    resource=None,
    scope_attributes=None,
    links=(),
    then=lambda _span: None,
):
    """One span made by the real SDK, with `attributes` over those of a clean chat call."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource(RESOURCE | (resource or {})))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer(scope, "0.1", schema_url=url, attributes=scope_attributes)
    merged = CHAT | (attributes or {})
    kept = {key: value for key, value in merged.items() if value is not None}
    with tracer.start_as_current_span(name, kind=kind, attributes=kept, links=links) as span:
        then(span)
    provider.shutdown()
    return exporter.get_finished_spans()


DURATION = "gen_ai.client.operation.duration"
POINT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "h:0123456789ab",
}


def emit_metric(
    attributes=None,
    *,
    name=DURATION,
    instrument=None,
    unit=None,
    description=None,
    boundaries=None,
    scope="sottovoce",
    url=URL,
    **provider_arguments,
):
    """One point made by the real SDK, on an instrument made as the registry says."""
    declared = METRICS.get(name, METRICS[DURATION])
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], Resource(RESOURCE), **provider_arguments)
    meter = provider.get_meter(scope, "0.1", schema_url=url)
    text = {
        "unit": declared.unit if unit is None else unit,
        "description": declared.description if description is None else description,
    }
    kind = instrument or declared.instrument
    if kind == "histogram":
        bounds = declared.boundaries if boundaries is None else boundaries
        record = meter.create_histogram(
            name, **text, explicit_bucket_boundaries_advisory=bounds
        ).record
    elif kind == "counter":
        record = meter.create_counter(name, **text).add
    elif kind == "gauge":
        record = meter.create_gauge(name, **text).set
    else:
        record = meter.create_up_down_counter(name, **text).add
    merged = POINT | (attributes or {})
    record(1, {key: value for key, value in merged.items() if value is not None})
    data = reader.get_metrics_data()
    provider.shutdown()
    return data


TOKENS = {"gen_ai.token.type": "input"}
IN_PROCESS = {"server.address": None, "server.port": None, "gen_ai.provider.name": "mlx"}
WHOLE = {"gen_ai.request.stream": None, "gen_ai.response.time_to_first_chunk": None}


def failed(span):
    span.set_attribute("error.type", "openai.RateLimitError")
    span.set_status(Status(StatusCode.ERROR))


class TestClean:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"then": failed},
            {"attributes": IN_PROCESS, "kind": SpanKind.INTERNAL},
            {"attributes": {"gen_ai.request.model": None}, "name": "chat"},
            {"attributes": {"gen_ai.provider.name": "custom"}},
            {"then": lambda span: span.add_event("exception", {"exception.type": "TimeoutError"})},
        ],
    )
    def test_spans(self, arguments):
        spans = emit_span(**arguments)
        assert violations(*spans) == []
        message = encode_spans(spans)
        assert violations(message) == []
        assert violations_in_json(MessageToJson(message, indent=None)) == []

    @pytest.mark.parametrize("name", sorted(METRICS))
    def test_metrics(self, name):
        declared = METRICS[name]
        needed = {
            "gen_ai.token.type": "input",
            "gen_ai.token.modality": "text",
            "db.system.name": "sqlite",
            "http.request.method": "GET",
            "mcp.method.name": "ping",
            "url.scheme": "https",
            "sottovoce.gate.rule": "drop",
            "sottovoce.gate.signal": "span",
            "sottovoce.hook.place": "record.ended",
            "sottovoce.decode.reason": "json",
            "sottovoce.memory.state": "active",
        }
        attributes = {key: needed[key] for key in declared.required if key in needed}
        attributes |= {key: None for key in POINT if key not in declared.attributes}
        foreign = "opentelemetry.instrumentation.httpx"
        data = emit_metric(
            attributes, name=name, scope="sottovoce" if declared.vocabulary else foreign
        )
        assert violations(data) == []
        message = encode_metrics(data)
        assert violations(message) == []
        assert violations_in_json(MessageToJson(message, indent=None)) == []

    def test_a_foreign_span_of_declared_attributes(self):
        attributes = dict.fromkeys(CHAT) | {"http.request.method": "GET", "url.scheme": "https"}
        scope = "opentelemetry.instrumentation.httpx"
        assert violations(*emit_span(attributes, name="GET", scope=scope, url="")) == []

    def test_the_point_that_collects_the_overflow(self):
        only = dict.fromkeys(POINT) | {"otel.metric.overflow": True}
        assert violations(emit_metric(only)) == []


SPANS = [
    ({"attributes": {"gen_ai.input.messages": "hello"}}, "messages should have been dropped"),
    ({"attributes": {"user.email": "a@b.c"}}, "user.email should have been dropped"),
    ({"attributes": {"prompt": "hello"}}, "attribute prompt is not declared"),
    ({"attributes": {"gen_ai.token.type": "input"}}, "is not declared for a span"),
    ({"attributes": {"gen_ai.usage.input_tokens": "12"}}, "is '12', not a int"),
    ({"attributes": {"gen_ai.usage.input_tokens": True}}, "is True, not a int"),
    ({"attributes": {"gen_ai.request.temperature": 1}}, "is 1, not a double"),
    ({"attributes": {"gen_ai.response.finish_reasons": "stop"}}, "is 'stop', not a string[]"),
    ({"attributes": {"gen_ai.response.finish_reasons": ("stop", "mine")}}, "value 'mine'"),
    ({"attributes": {"gen_ai.provider.name": "acme"}}, "the unknown value 'acme'"),
    ({"attributes": {"sottovoce.call.outcome": "lost"}}, "the unknown value 'lost'"),
    ({"attributes": {"gen_ai.request.model": "x" * 129}, "name": "chat " + "x" * 129}, "129 char"),
    ({"attributes": {"gen_ai.provider.name": None}}, "gen_ai.provider.name is missing"),
    ({"attributes": {"gen_ai.operation.name": None}}, "gen_ai.operation.name is missing"),
    ({"attributes": {"gen_ai.operation.name": "plan"}}, "no span is declared for the operation"),
    ({"attributes": {"gen_ai.embeddings.dimension.count": 3}}, "is not declared for chat"),
    ({"attributes": {"server.address": None}}, "server.port without a server.address"),
    ({"attributes": {"gen_ai.request.stream": False}}, "that is not streamed"),
    ({"attributes": {"gen_ai.request.stream": None}}, "first chunk without being streamed"),
    ({"attributes": WHOLE | {"gen_ai.request.choice.count": 1}}, "is set though it is 1"),
    ({"attributes": {"error.type": "TimeoutError"}}, "a status and an error.type, or neither"),
    ({"attributes": {"error.type": "no: hello"}}, "the unknown value 'no: hello'"),
    ({"kind": SpanKind.PRODUCER}, "has the kind PRODUCER"),
    ({"kind": SpanKind.INTERNAL}, "is in process and has a server.address"),
    ({"name": "chat"}, "is not named after its operation and model"),
    ({"name": "chat gpt"}, "is not named after its operation and model"),
    ({"url": "https://opentelemetry.io/schemas/1.37.0"}, "has the schema URL"),
    ({"url": None}, "has the schema URL ''"),
    ({"scope": "my.secret.app"}, "scope my.secret.app: is not known"),
    ({"scope_attributes": {"who": "me"}}, "scope sottovoce: has attributes"),
    ({"resource": {"user.name": "bob"}}, "resource: attribute user.name should"),
    ({"resource": {"host.name": "mac"}}, "resource: attribute host.name should have been"),
    (
        {"then": lambda span: span.set_status(Status(StatusCode.ERROR, "hello"))},
        "has a status description",
    ),
    ({"then": lambda span: span.add_event("said")}, "event 'said' is not declared"),
    (
        {"then": lambda span: span.add_event("exception", {"exception.message": "hello"})},
        "exception.message should have been dropped",
    ),
    (
        {"links": [Link(SpanContext(1, 1, False), {"who": "me"})]},
        "link: attribute who is not declared",
    ),
]


@pytest.mark.parametrize(("arguments", "told"), SPANS, ids=[told for _, told in SPANS])
def test_a_broken_span(arguments, told):
    spans = emit_span(**arguments)
    for found in (violations(*spans), violations(encode_spans(spans))):
        assert any(told in one for one in found), found


def test_a_link_to_a_trace_with_state():
    # The OTLP exporter leaves a link's state out, so only the SDK's span shows it.
    link = Link(SpanContext(1, 1, False, trace_state=TraceState([("who", "me")])))
    assert any("has a trace state" in one for one in violations(*emit_span(links=[link])))


BROKEN = [
    ({"name": "gen_ai.client.mine"}, "metric gen_ai.client.mine: is not declared"),
    ({"unit": "ms"}, "unit is 'ms', not 's'"),
    ({"description": "mine"}, "description is 'mine'"),
    ({"instrument": "counter"}, "instrument is 'counter', not 'histogram'"),
    ({"instrument": "updowncounter"}, "instrument is 'updowncounter'"),
    ({"boundaries": [1.0, 2.0]}, "boundaries are (1.0, 2.0), not (0.01"),
    ({"attributes": {"gen_ai.operation.name": None}}, "gen_ai.operation.name is missing"),
    ({"attributes": {"user.email": "bob"}}, "user.email should have been dropped"),
    ({"attributes": {"prompt": "hello"}}, "attribute prompt is not declared"),
    ({"attributes": {"http.route": "/a"}}, "http.route is not declared for it"),
    ({"attributes": {"gen_ai.provider.name": "acme"}}, "the unknown value 'acme'"),
    ({"name": "gen_ai.client.token.usage"}, "gen_ai.token.type is missing"),
    ({"name": "http.client.request.duration"}, "is not ours to record"),
    ({"url": ""}, "has the schema URL ''"),
]


@pytest.mark.parametrize(("arguments", "told"), BROKEN, ids=[told for _, told in BROKEN])
def test_a_broken_metric(arguments, told):
    data = emit_metric(**arguments)
    for found in (violations(data), violations(encode_metrics(data))):
        assert any(told in one for one in found), found


def test_a_metric_of_the_other_vocabulary():
    data = emit_metric(TOKENS, name="gen_ai.client.token.usage")
    assert violations(data, vocabulary="v1.41") == []
    assert "is not of the vocabulary latest" in violations(data, vocabulary="latest")[0]


def test_the_old_duration_of_a_generation_under_the_new_names():
    assert (
        "is not for chat in the vocabulary latest"
        in violations(emit_metric(), vocabulary="latest")[0]
    )
    embeddings = emit_metric({"gen_ai.operation.name": "embeddings"})
    assert violations(embeddings, vocabulary="latest") == []


def test_an_exemplar_that_carries_what_a_view_removed():
    keep = View(instrument_name=DURATION, attribute_keys=set(POINT))
    data = emit_metric({"user.id": "bob"}, views=[keep], exemplar_filter=AlwaysOnExemplarFilter())
    assert any("an exemplar carries user.id" in one for one in violations(data))
    assert any("an exemplar carries user.id" in one for one in violations(encode_metrics(data)))


def emit_log(**record):
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(Resource(RESOURCE), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("opentelemetry.instrumentation.logging").emit(**record)
    provider.shutdown()
    return encode_logs(exporter.get_finished_logs())


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"event_name": "gen_ai.client.operation.exception"}, None),
        ({"attributes": {"exception.type": "TimeoutError"}}, None),
        ({"body": "hello"}, "has a body"),
        ({"event_name": "said"}, "log record 'said': is not declared"),
        ({"attributes": {"exception.message": "hello"}}, "should have been dropped"),
    ],
)
def test_log_records(record, told):
    message = emit_log(**record)
    for found in (violations(message), violations_in_json(MessageToJson(message, indent=None))):
        assert (found == []) if told is None else any(told in one for one in found), found


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="neither the SDK's nor OTLP"):
        violations(trace.INVALID_SPAN)

"""Planted secrets, in every place that takes a string, must not be in the OTLP bytes."""

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.metrics import Observation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.privacy.gate import (
    gate_in_place,
    gated_logger_provider,
    gated_meter_provider,
    gated_tracer_provider,
)
from sottovoce.privacy.policy import Policy
from sottovoce.registry import ATTRIBUTES, EVENTS, METRICS, SCOPES
from sottovoce.settings import Settings

MARK = "kanarienvogel"
POLICY = Policy(Settings(key="a secret of the tests"))

# Never a value of its own vocabulary: every one holds the mark.
canaries = st.sampled_from(
    [
        MARK,
        f"gpt-4o:{MARK}",
        f"llama-3-{MARK}",
        f"api.{MARK}.com",
        f"{MARK}.openai.azure.com",
        f"openai.{MARK}",
        f"openai.RateLimitError: {MARK}",
        f"/{MARK}/42",
        f"{MARK}@example.org",
        f"chat {MARK}",
        f"h:{MARK}",
        f"https://opentelemetry.io/schemas/{MARK}?",
    ]
)
keys = st.sampled_from(sorted(ATTRIBUTES)) | canaries
scalars = canaries | st.integers(-5, 5) | st.booleans() | st.floats(allow_nan=False)
values = (
    scalars
    | st.lists(canaries, max_size=3)
    | st.dictionaries(canaries, canaries, max_size=2)
    | canaries.map(str.encode)
)
scopes = canaries | st.sampled_from(sorted(SCOPES))
mappings = st.dictionaries(keys, values, max_size=8)
OPERATORS_OWN = frozenset({"service.name", "service.namespace", "deployment.environment.name"})
resources = mappings.map(lambda given: {k: v for k, v in given.items() if k not in OPERATORS_OWN})
# What the operator says of his own service, and versions, are his to say.
resources = resources.map(lambda given: {k: v for k, v in given.items() if k != "service.version"})

examples = hypothesis_settings(max_examples=60, deadline=None)


def assert_clean(message):
    wire = message.SerializeToString()
    assert MARK.encode() not in wire, message
    assert MARK.upper().encode() not in wire.upper()


def resource_of(attributes):
    return Resource({"service.name": "app", **attributes}, f"https://{MARK}.example")


def in_one_way_or_the_other(data, builder, plain, in_place, **options):
    """A provider that is built behind the gate, or one that is gated afterwards."""
    if data.draw(st.booleans()):
        return builder(POLICY, shutdown_on_exit=False, **options)
    provider = plain(shutdown_on_exit=False, **options)
    gate_in_place(POLICY, **{in_place: provider})
    return provider


@given(st.data())
@examples
def test_no_canary_of_a_span_is_on_the_wire(data):
    draw = data.draw
    provider = in_one_way_or_the_other(
        data,
        gated_tracer_provider,
        TracerProvider,
        "tracer_provider",
        resource=resource_of(draw(resources)),
    )
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer(
        draw(scopes), draw(canaries), draw(canaries), {draw(canaries): draw(canaries)}
    )
    state = trace.TraceState([("vendor", MARK)])
    remote = trace.SpanContext(
        7, 8, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=state
    )
    parent = baggage.set_baggage(
        MARK, MARK, trace.set_span_in_context(trace.NonRecordingSpan(remote), context.Context())
    )
    links = [trace.Link(remote, draw(mappings))]
    span = tracer.start_span(draw(canaries), parent, attributes=draw(mappings), links=links)
    span.set_attributes(draw(mappings))
    span.add_event(draw(canaries | st.sampled_from(sorted(EVENTS))), draw(mappings))
    span.record_exception(type(MARK, (ValueError,), {})(MARK), draw(mappings))
    span.add_link(remote, draw(mappings))
    span.update_name(draw(canaries))
    span.set_status(trace.StatusCode.ERROR, draw(canaries))
    span.end()
    assert len(exporter.get_finished_spans()) == 1
    assert_clean(encode_spans(exporter.get_finished_spans()))


@given(st.data())
@examples
def test_no_canary_of_a_log_record_is_on_the_wire(data):
    draw = data.draw
    provider = in_one_way_or_the_other(
        data,
        gated_logger_provider,
        LoggerProvider,
        "logger_provider",
        resource=resource_of(draw(resources)),
    )
    exporter = InMemoryLogRecordExporter()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = provider.get_logger(
        draw(scopes), draw(canaries), draw(canaries), {draw(canaries): draw(canaries)}
    )
    logger.emit(
        LogRecord(
            severity_number=draw(st.sampled_from(SeverityNumber)),
            severity_text=draw(canaries),
            body=draw(values),
            attributes=draw(mappings),
            event_name=draw(canaries | st.sampled_from(sorted(EVENTS))),
            exception=ValueError(MARK),
        )
    )
    assert len(exporter.get_finished_logs()) == 1
    assert_clean(encode_logs(exporter.get_finished_logs()))


@given(st.data())
@examples
def test_no_canary_of_a_metric_is_on_the_wire(data):
    draw = data.draw
    reader = InMemoryMetricReader()
    known = sorted(
        name
        for name, metric in METRICS.items()
        if metric.instrument == "histogram" and not name.startswith("sottovoce.")
    )
    provider = in_one_way_or_the_other(
        data,
        gated_meter_provider,
        MeterProvider,
        "meter_provider",
        resource=resource_of(draw(resources)),
        metric_readers=[reader],
        exemplar_filter=AlwaysOnExemplarFilter(),
        views=[View(instrument_name="*", attribute_keys={"gen_ai.operation.name"})]
        if draw(st.booleans())
        else [],
    )
    meter = provider.get_meter(
        draw(scopes), draw(canaries), draw(canaries), {draw(canaries): draw(canaries)}
    )
    name = draw(st.sampled_from(known))
    histogram = meter.create_histogram(name, METRICS[name].unit, draw(canaries))
    for attributes in draw(st.lists(mappings, min_size=1, max_size=4)):
        histogram.record(1.0, attributes)
    meter.create_counter(MARK, MARK, MARK).add(1, draw(mappings))
    meter.create_observable_gauge(f"{MARK}.2", [lambda _: [Observation(1, {MARK: MARK})]])
    collected = reader.get_metrics_data()
    assert collected is not None
    assert_clean(encode_metrics(collected))

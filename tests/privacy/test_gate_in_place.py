import pytest
from opentelemetry import _logs as logs
from opentelemetry import metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs._internal import ConcurrentMultiLogRecordProcessor
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.privacy.gate import CannotGate, gate_in_place, is_gated

CANARY = "canary"
RESOURCE = Resource({"service.name": "app", "host.name": CANARY})


@pytest.mark.parametrize("multi", [SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor])
def test_spans_of_tracers_that_were_there_before_are_gated_live_ones_too(policy, multi):
    old = multi()
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False, active_span_processor=old)
    exporter, late = InMemorySpanExporter(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer(CANARY)
    live = tracer.start_span(CANARY, attributes={"a": CANARY})
    assert not is_gated(provider)
    gate_in_place(policy, tracer_provider=provider)
    assert is_gated(provider)
    # Whoever kept hold of the old processor adds to the gate as well.
    old.add_span_processor(SimpleSpanProcessor(late))
    live.end()
    tracer.start_span(CANARY, attributes={"a": CANARY}).end()
    provider.get_tracer("y").start_span(CANARY, attributes={"a": CANARY}).end()
    for spans in (exporter.get_finished_spans(), late.get_finished_spans()):
        assert [(span.name, dict(span.attributes)) for span in spans] == [("_OTHER", {})] * 3
        assert all(CANARY not in span.to_json() for span in spans)
    assert provider.force_flush()
    provider.shutdown()


def test_records_of_loggers_that_were_there_before_are_gated(policy):
    for options in ({}, {"multi_log_record_processor": ConcurrentMultiLogRecordProcessor()}):
        provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False, **options)
        exporter = InMemoryLogRecordExporter()
        provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
        cached, own = provider.get_logger(CANARY), provider.get_logger(CANARY, attributes={"a": 1})
        assert not is_gated(provider)
        gate_in_place(policy, logger_provider=provider)
        assert is_gated(provider)
        for logger in (cached, own, provider.get_logger("new")):
            logger.emit(body=CANARY, attributes={"a": CANARY})
        assert len(exporter.get_finished_logs()) == 3
        assert all(CANARY not in data.to_json() for data in exporter.get_finished_logs())
        provider.shutdown()


def test_readers_that_were_there_before_and_their_exemplars_are_gated(policy):
    first, late = InMemoryMetricReader(), InMemoryMetricReader()
    provider = MeterProvider([first], RESOURCE, AlwaysOnExemplarFilter(), shutdown_on_exit=False)
    meter = provider.get_meter(CANARY)
    histogram = meter.create_histogram("gen_ai.client.operation.duration", "s")
    histogram.record(1.0, {"a": CANARY})
    assert not is_gated(provider)
    gate_in_place(policy, meter_provider=provider)
    assert is_gated(provider)
    provider.add_metric_reader(late)
    meter.create_counter(CANARY).add(1)
    histogram.record(1.0, {"b": CANARY})
    assert is_gated(provider)
    for reader, count in ((first, 2), (late, 1)):
        data = reader.get_metrics_data()
        assert CANARY not in data.to_json()
        (point,) = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
        assert point.count == count
    provider.shutdown()


def test_gating_twice_changes_nothing(policy):
    providers = (
        TracerProvider(shutdown_on_exit=False),
        MeterProvider(shutdown_on_exit=False),
        LoggerProvider(shutdown_on_exit=False),
    )
    gate_in_place(policy, *providers)
    gates = [
        providers[0]._active_span_processor,
        providers[1]._measurement_consumer.collect,
        providers[2]._multi_log_record_processor,
    ]
    gate_in_place(policy, *providers)
    assert gates == [
        providers[0]._active_span_processor,
        providers[1]._measurement_consumer.collect,
        providers[2]._multi_log_record_processor,
    ]


def test_what_was_ungated_since_is_noticed_and_gated_again(policy):
    provider, meters = TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False)
    gate_in_place(policy, provider, meters)
    provider._active_span_processor = SynchronousMultiSpanProcessor()
    reader = InMemoryMetricReader()
    meters.add_metric_reader(reader)
    reader._set_collect_callback(print)
    assert not is_gated(provider) and not is_gated(meters)
    gate_in_place(policy, provider, meters)
    assert is_gated(provider) and is_gated(meters)


class Odd(SpanProcessor):
    pass


class GoesRound(TracerProvider):
    def get_tracer(self, *args, **kwargs):
        tracer = super().get_tracer(*args, **kwargs)
        tracer.span_processor = Odd()
        return tracer


class Private:
    def get_tracer(self, *_, **__):
        return trace.NoOpTracer()


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (TracerProvider(active_span_processor=Odd(), shutdown_on_exit=False), "Odd"),
        (GoesRound(shutdown_on_exit=False), "GoesRound"),
        (Private(), "Private"),
        (trace.ProxyTracerProvider(), "ProxyTracerProvider"),
    ],
)
def test_a_provider_without_the_seam_is_refused_with_the_reason(policy, provider, reason):
    with pytest.raises(CannotGate, match=reason):
        gate_in_place(policy, tracer_provider=provider)
    assert not is_gated(provider)


def test_meter_and_logger_providers_without_the_seam_are_refused_too(policy):
    meters, loggers = MeterProvider(shutdown_on_exit=False), LoggerProvider(shutdown_on_exit=False)
    del meters._measurement_consumer
    loggers._multi_log_record_processor = object()
    for given in ({"meter_provider": meters}, {"logger_provider": loggers}):
        with pytest.raises(CannotGate):
            gate_in_place(policy, **given)
        assert not is_gated(*given.values())
    for given in ({"meter_provider": object()}, {"logger_provider": object()}):
        with pytest.raises(CannotGate, match="object"):
            gate_in_place(policy, **given)


def test_providers_that_do_nothing_are_passed_over(policy):
    silent = (trace.NoOpTracerProvider(), metrics.NoOpMeterProvider(), logs.NoOpLoggerProvider())
    gate_in_place(policy, *silent)
    gate_in_place(policy)
    assert all(map(is_gated, silent))
    assert not is_gated(None)

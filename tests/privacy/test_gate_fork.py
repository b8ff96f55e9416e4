import os
import pickle

import pytest
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.privacy.gate import (
    gated_logger_provider,
    gated_meter_provider,
    gated_tracer_provider,
    is_gated,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def in_child(work):
    """What `work` returns in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = work()
        except BaseException as error:
            result = repr(error)
        with os.fdopen(write, "wb") as out:
            pickle.dump(result, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as source:
        result = pickle.loads(source.read())
    os.waitpid(child, 0)
    return result


def test_what_a_forked_child_exports_is_clean(policy, monkeypatch):
    # The SDK runs these detectors again in the child and merges them over the resource.
    monkeypatch.setenv("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "process,otel")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "user.email=canary")
    resource = Resource({"service.name": "app"})
    spans, records, reader = (
        InMemorySpanExporter(),
        InMemoryLogRecordExporter(),
        InMemoryMetricReader(),
    )
    tracers = gated_tracer_provider(policy, resource=resource, shutdown_on_exit=False)
    loggers = gated_logger_provider(policy, resource=resource, shutdown_on_exit=False)
    meters = gated_meter_provider(
        policy, resource=resource, shutdown_on_exit=False, metric_readers=[reader]
    )
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    loggers.add_log_record_processor(SimpleLogRecordProcessor(records))
    tracer, logger = tracers.get_tracer("x"), loggers.get_logger("x")
    histogram = meters.get_meter("x").create_histogram("gen_ai.client.operation.duration", "s")
    tracer.start_span("canary").end()
    assert policy.dropped

    def work():
        fresh = dict(policy.dropped)
        raw = dict(tracers.resource.attributes)
        tracer.start_span("canary", attributes={"a": "canary"}).end()
        logger.emit(body="canary")
        histogram.record(1.0, {"a": "canary"})
        data = reader.get_metrics_data()
        leaving = [
            spans.get_finished_spans()[-1].to_json(),
            records.get_finished_logs()[-1].to_json(),
        ]
        return fresh, raw, [*leaving, data.to_json()]

    fresh, raw, leaving = in_child(work)
    assert fresh == {}, "the parent exports its own drops"
    assert "process.pid" in raw, "the trap that this test is about"
    for text in leaving:
        assert '"service.name": "app"' in text
        for leak in (
            "process.pid",
            "process.command",
            "process.executable",
            "user.email",
            "canary",
        ):
            assert leak not in text


def test_a_gate_that_was_undone_is_put_back_in_the_child(policy):
    provider = gated_tracer_provider(policy, shutdown_on_exit=False)
    provider._active_span_processor = SynchronousMultiSpanProcessor()
    assert not is_gated(provider)
    assert in_child(lambda: is_gated(provider))

import logging

import pytest
from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LogRecordProcessor
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from sottovoce.privacy.gate import gated_logger_provider

CANARY = "canary"


@pytest.fixture
def gated(policy):
    provider = gated_logger_provider(
        policy,
        resource=Resource({"service.name": "app", "host.name": CANARY}),
        shutdown_on_exit=False,
    )
    exporter = InMemoryLogRecordExporter()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    return provider, exporter


def only(exporter):
    (data,) = exporter.get_finished_logs()
    return data


def test_a_copy_leaves_without_what_was_said(gated, policy):
    provider, exporter = gated
    span = trace.NonRecordingSpan(
        trace.SpanContext(7, 8, is_remote=False, trace_flags=trace.TraceFlags(1))
    )
    record = LogRecord(
        timestamp=1,
        observed_timestamp=2,
        context=trace.set_span_in_context(span),
        severity_text="WARN",
        severity_number=SeverityNumber.WARN,
        body=f"prompt: {CANARY}",
        attributes={"error.type": "500", "code.file.path": CANARY, CANARY: CANARY},
        event_name="gen_ai.client.operation.exception",
    )
    provider.get_logger(CANARY, CANARY, attributes={"a": CANARY}).emit(record)
    data = only(exporter)
    clean = data.log_record
    assert (clean.timestamp, clean.observed_timestamp) == (1, 2)
    assert (clean.trace_id, clean.span_id, int(clean.trace_flags)) == (7, 8, 1)
    assert (clean.severity_text, clean.severity_number) == ("WARN", SeverityNumber.WARN)
    assert clean.event_name == "gen_ai.client.operation.exception"
    assert clean.body is None and clean.context is None
    assert dict(clean.attributes) == {"error.type": "500"}
    assert CANARY not in data.to_json()
    assert record.body == f"prompt: {CANARY}" and len(record.attributes) == 3, (
        "the caller's record is his"
    )
    assert policy.dropped == {
        ("log", "body"): 1,
        ("log", "drop"): 1,
        ("log", "unknown"): 1,
        ("scope", "unknown"): 1,
        ("scope", "drop"): 1,
        ("resource", "drop"): 1,
    }


def test_of_an_exception_only_the_class_leaves(gated):
    provider, exporter = gated
    try:
        raise ValueError(CANARY)
    except ValueError as error:
        provider.get_logger("sottovoce").emit(body=CANARY, exception=error)
    assert dict(only(exporter).log_record.attributes) == {"exception.type": "ValueError"}


def test_an_event_name_and_a_severity_of_ones_own_do_not_leave(gated):
    provider, exporter = gated
    provider.get_logger("x").emit(LogRecord(event_name=CANARY, severity_text=CANARY))
    clean = only(exporter).log_record
    assert clean.event_name is None and clean.severity_text is None


def test_records_of_logging_leave_without_their_text(gated):
    provider, exporter = gated
    from opentelemetry.sdk._logs import LoggingHandler

    with pytest.warns(DeprecationWarning):
        handler = LoggingHandler(logger_provider=provider)
    log = logging.getLogger("acme.test")
    log.addHandler(handler)
    log.propagate = False
    try:
        log.error("said %s", CANARY, extra={"user": CANARY})
    finally:
        log.removeHandler(handler)
        log.propagate = True
    assert CANARY not in only(exporter).to_json()
    assert only(exporter).log_record.severity_text == "ERROR"


class Broken(LogRecordProcessor):
    def _fail(self, *_, **__):
        raise RuntimeError(CANARY)

    on_emit = enabled = shutdown = force_flush = _fail


def test_a_processors_error_reaches_neither_the_app_nor_the_next_processor(gated):
    provider, exporter = gated
    gate = provider._multi_log_record_processor
    gate._log_record_processors = (Broken(), *gate._log_record_processors)
    logger = provider.get_logger("x")
    assert logger.enabled(event_name=CANARY)
    logger.emit(body="x")
    assert len(exporter.get_finished_logs()) == 1
    assert provider.force_flush() is False
    provider.shutdown()


def test_a_processor_is_not_asked_about_a_name_of_ones_own(gated):
    provider, _ = gated
    asked = []

    class Asked(Broken):
        def enabled(self, **given):
            asked.append(given)
            return False

    gate = provider._multi_log_record_processor
    gate._log_record_processors = (Asked(),)
    assert not provider.get_logger(CANARY).enabled(event_name=CANARY)
    assert asked[0]["event_name"] is None and asked[0]["instrumentation_scope"].name == "_OTHER"


def test_a_record_that_cannot_be_cleaned_does_not_leave(gated, policy, monkeypatch):
    def broken(*_):
        raise RuntimeError(CANARY)

    monkeypatch.setattr(policy, "attributes", broken)
    provider, exporter = gated
    provider.get_logger("x").emit(body="x")
    assert exporter.get_finished_logs() == ()
    assert policy.dropped[("log", "gate_error")] == 1


def test_with_the_profile_off_no_record_leaves(make_policy):
    policy = make_policy(profile="off")
    provider = gated_logger_provider(policy, shutdown_on_exit=False)
    exporter = InMemoryLogRecordExporter()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("x").emit(body="x")
    assert exporter.get_finished_logs() == ()
    assert policy.dropped == {("log", "off"): 1}

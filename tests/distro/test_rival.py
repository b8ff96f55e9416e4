"""Another distribution beside ours: whoever configures the SDK, nothing raw leaves."""

import pytest

from delivery.launcher import run
from delivery.sink import Sink, dead_endpoint

pytestmark = pytest.mark.e2e

PROGRAM = """
import logging
from opentelemetry import _logs, metrics, trace
from opentelemetry._logs import LogRecord, SeverityNumber

with trace.get_tracer("sottovoce").start_as_current_span(
    "chat secret-name",
    attributes={"gen_ai.operation.name": "chat", "gen_ai.request.max_tokens": 7,
                "gen_ai.prompt": "planted in a span"},
) as span:
    span.add_event("planted event", {"body": "planted in an event"})
    span.set_status(trace.StatusCode.ERROR, "planted in a status")
metrics.get_meter("sottovoce").create_counter("planted.metric").add(1, {"user": "planted in a point"})
_logs.get_logger("sottovoce").emit(
    LogRecord(body="planted in a log", severity_number=SeverityNumber.INFO, attributes={"user": "planted"})
)
from sottovoce import OpenAIInstrumentor
print("instrumented", OpenAIInstrumentor().is_instrumented_by_opentelemetry)
"""


def go(rival, **variables):
    return run(PROGRAM, path=[rival.path], RIVAL_OUT=str(rival.out), **variables)


def test_a_rival_that_wins_both_choices_exports_only_what_passes_the_gate(rival):
    ran = go(rival)
    assert ran.code == 0
    assert "rival distro" in rival.exported
    assert "rival configurator" in rival.exported
    assert '"gen_ai.request.max_tokens": 7' in rival.exported
    assert "planted" not in rival.exported
    assert "secret-name" not in rival.exported
    assert "instrumented True" in ran.out


def test_ours_wins_the_configurator_whenever_it_is_the_distro(rival):
    with Sink() as sink:
        ran = go(rival, OTEL_PYTHON_DISTRO="sottovoce", OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert rival.exported == ""
    assert sink.span_names == ["chat"]
    assert b"planted" not in sink.bytes
    assert "instrumented True" in ran.out


def test_a_rival_configurator_that_the_operator_names_is_gated(rival):
    ran = go(
        rival,
        OTEL_PYTHON_DISTRO="sottovoce",
        OTEL_PYTHON_CONFIGURATOR="rival",
        OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint(),
    )
    assert "rival distro" not in rival.exported
    assert "rival configurator" in rival.exported
    assert '"gen_ai.request.max_tokens": 7' in rival.exported
    assert "planted" not in rival.exported
    assert "instrumented True" in ran.out


def test_our_configurator_under_a_rival_distro_is_gated(rival):
    with Sink() as sink:
        go(
            rival,
            OTEL_PYTHON_CONFIGURATOR="sottovoce",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert rival.exported == "rival distro\n"
    assert sink.span_names == ["chat"]
    assert b"planted" not in sink.bytes


def test_providers_that_cannot_be_gated_are_refused_loudly(rival):
    ran = go(rival, RIVAL_IS_ODD="1")
    assert ran.code == 0
    assert "sottovoce: refused: rival.Odd cannot be gated" in ran.err
    assert "Nothing is exported and nothing instrumented" in ran.err
    assert "rival shut down" in rival.exported
    assert "planted" not in rival.exported
    assert "gen_ai" not in rival.exported
    assert "instrumented False" in ran.out


@pytest.mark.parametrize("profile", ["off", "standrad"])
def test_a_profile_that_is_off_or_mistyped_leaves_no_rival_exporting(rival, profile):
    ran = go(rival, SOTTOVOCE_PROFILE=profile)
    assert "SOTTOVOCE_PROFILE is off" in ran.err
    assert "planted" not in rival.exported
    assert "gen_ai" not in rival.exported
    assert "instrumented False" in ran.out


def test_the_standard_switch_turns_a_rival_off_too(rival):
    ran = go(rival, OTEL_SDK_DISABLED="true")
    assert "refused" not in ran.err
    assert "instrumented" in ran.out
    assert "gen_ai" not in rival.exported
    assert "planted" not in rival.exported
    odd = go(rival, OTEL_SDK_DISABLED="true", RIVAL_IS_ODD="1")
    assert "OTEL_SDK_DISABLED is true, but rival.Odd would export" in odd.err
    assert "gen_ai" not in rival.exported


def test_a_provider_named_by_entry_point_is_gated(rival):
    program = """
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, ConsoleSpanExporter
provider = trace.get_tracer_provider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
provider.get_tracer("sottovoce").start_span("chat", attributes={"planted": "planted"}).end()
"""
    ran = run(program, OTEL_PYTHON_TRACER_PROVIDER="sdk_tracer_provider")
    assert '"name": "chat"' in ran.out or '"name": "_OTHER"' in ran.out
    assert "planted" not in ran.out

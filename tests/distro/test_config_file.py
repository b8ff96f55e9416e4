"""`OTEL_CONFIG_FILE`: what it sets up is gated, or refused in plain words; never let through."""

import pytest

from delivery.launcher import PROMPT, SPAN, WITHIN, run
from delivery.sink import Sink, dead_endpoint
from sottovoce import hardware

pytestmark = pytest.mark.e2e

FILE = """
file_format: "1.0"
resource:
  attributes:
    - name: service.name
      value: shop
    - name: host.arch
      value: s390x
    - name: secret.attribute
      value: planted in the resource
propagator:
  composite_list: tracecontext,baggage
tracer_provider:
  processors:
    - batch:
        exporter:
          otlp_http:
            endpoint: ENDPOINT/v1/traces
    - simple:
        exporter:
          console:
meter_provider:
  readers:
    - periodic:
        exporter:
          otlp_http:
            endpoint: ENDPOINT/v1/metrics
logger_provider:
  processors:
    - batch:
        exporter:
          otlp_http:
            endpoint: ENDPOINT/v1/logs
"""

PROGRAM = (
    SPAN
    + """
from opentelemetry import _logs, metrics, propagate
from opentelemetry._logs import LogRecord, SeverityNumber
metrics.get_meter("sottovoce").create_counter("planted.metric").add(1, {"planted": "planted"})
_logs.get_logger("sottovoce").emit(LogRecord(body="planted in a log", severity_number=SeverityNumber.INFO))
import sottovoce
print("instrumented", sottovoce.OpenAIInstrumentor().is_instrumented_by_opentelemetry)
print("propagator", type(propagate.get_global_textmap()).__name__)
"""
)


@pytest.fixture
def configuration(tmp_path):
    def write(endpoint, text=FILE):
        path = tmp_path / "otel.yaml"
        path.write_text(text.replace("ENDPOINT", endpoint))
        return str(path)

    return write


def test_what_the_file_sets_up_is_gated(configuration):
    with Sink() as sink:
        ran = run(PROGRAM, OTEL_CONFIG_FILE=configuration(sink.endpoint))
    assert ran.err == ""
    assert sink.span_names == ["chat"]
    [(resource, _, span)] = sink.spans
    assert resource["service.name"] == "shop"
    assert resource["telemetry.distro.name"] == "sottovoce"
    # What the file says of the machine stays.
    machine = hardware.profile().attributes() | {"host.arch": "s390x"}
    assert machine.items() <= resource.items()
    assert sorted(a.key for a in span.attributes) == [
        "gen_ai.operation.name",
        "gen_ai.request.max_tokens",
    ]
    assert len(sink.logs) == 1
    assert "sottovoce.gate.dropped" in sink.metric_names
    assert b"planted" not in sink.bytes
    assert '"name": "chat"' in ran.out
    assert "planted" not in ran.out
    assert "instrumented True" in ran.out
    assert "propagator GatedPropagator" in ran.out


def test_a_dead_collector_in_the_file_delays_the_end_by_the_deadline_at_most(configuration):
    ran = run(PROGRAM, OTEL_CONFIG_FILE=configuration(dead_endpoint()), **PROMPT)
    assert ran.err == ""
    assert ran.seconds < WITHIN


def test_without_the_package_it_is_refused(configuration, tmp_path):
    absent = tmp_path / "absent" / "opentelemetry" / "configuration"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ImportError('not installed')")
    with Sink() as sink:
        ran = run(
            PROGRAM,
            path=[tmp_path / "absent"],
            OTEL_CONFIG_FILE=configuration(sink.endpoint),
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.code == 0
    assert "opentelemetry-configuration is not installed" in ran.err
    assert "Traceback" not in ran.err
    assert "instrumented False" in ran.out
    assert sink.requests == []


def test_a_file_that_cannot_be_used_is_refused(configuration):
    with Sink() as sink:
        broken = configuration(sink.endpoint, FILE.replace("otlp_http:", "otlp_pigeon:", 1))
        ran = run(PROGRAM, OTEL_CONFIG_FILE=broken, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert ran.code == 0
    assert "OTEL_CONFIG_FILE" in ran.err
    assert "cannot be used" in ran.err
    assert "Traceback" not in ran.err
    assert "instrumented False" in ran.out
    assert sink.requests == []


@pytest.mark.parametrize(
    "headers",
    ["headers: api-key=hush", "headers: [{name: api-key, value: [hush]}]", "headers: {hush: hush}"],
)
def test_a_refusal_quotes_no_key(configuration, headers):
    """Headers as the variable has them, in the place of a list: the commonest mistake."""
    text = FILE.replace("endpoint: ENDPOINT/v1/traces", headers)
    ran = run(PROGRAM, OTEL_CONFIG_FILE=configuration("http://127.0.0.1:9", text))
    assert ran.code == 0
    assert "cannot be used" in ran.err
    assert "otlp_http -> headers" in ran.err
    assert "hush" not in ran.err + ran.out


def test_a_half_configured_sdk_is_shut_down_again(configuration):
    """The tracer provider is global before the meter provider turns out to be unusable."""
    half = FILE.replace(
        "  readers:\n    - periodic:\n        exporter:\n          otlp_http:",
        "  readers:\n    - periodic:\n        exporter:\n          otlp_pigeon:",
    )
    assert half != FILE
    with Sink() as sink:
        ran = run(PROGRAM, OTEL_CONFIG_FILE=configuration(sink.endpoint, half))
    assert "instrumented False" in ran.out
    assert "otlp_pigeon" in ran.err
    assert sink.requests == []
    assert "planted" not in ran.out


def test_a_file_that_is_absent_is_refused(tmp_path):
    ran = run(PROGRAM, OTEL_CONFIG_FILE=str(tmp_path / "none.yaml"))
    assert ran.code == 0
    assert "OTEL_CONFIG_FILE" in ran.err
    assert "Traceback" not in ran.err
    assert "instrumented False" in ran.out


def test_the_setting_that_turns_telemetry_off_wins_over_the_file(configuration):
    with Sink() as sink:
        ran = run(PROGRAM, OTEL_CONFIG_FILE=configuration(sink.endpoint), SOTTOVOCE_PROFILE="off")
    assert ran.err == ""
    assert "instrumented False" in ran.out
    assert sink.requests == []


def test_a_pipeline_from_a_file_that_was_shut_down_in_vain_is_silent_at_the_end(configuration):
    program = PROGRAM + "\nprint(sottovoce.start().shutdown(0.1))"
    with Sink("never") as sink:
        ran = run(program, OTEL_CONFIG_FILE=configuration(sink.endpoint))
    assert ran.out.endswith("False\n")
    assert ran.err == ""

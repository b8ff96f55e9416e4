"""What the launcher sets up: the defaults, the three providers, and nothing without a destination."""

import json

import pytest

from delivery.launcher import SPAN, run
from delivery.sink import Sink
from sottovoce import hardware

pytestmark = pytest.mark.e2e

LOOK = """
import json, os, sys, threading
from opentelemetry import _logs, metrics, propagate, trace
import sottovoce
print(json.dumps({
    "threads": sorted(t.name for t in threading.enumerate()),
    "providers": [type(p).__name__ for p in (
        trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider())],
    "modules": sorted(sys.modules),
    "environ": {k: v for k, v in os.environ.items() if k.startswith(("OTEL_", "ANTHROPIC_"))},
    "propagator": type(propagate.get_global_textmap()).__name__,
    "fields": sorted(propagate.get_global_textmap().fields),
    "instrumented": sottovoce.OpenAIInstrumentor().is_instrumented_by_opentelemetry,
}))
"""


def look(**variables):
    ran = run(LOOK, **variables)
    assert ran.code == 0
    return json.loads(ran.out), ran.err


NOTHING = {
    "nothing set": {},
    "disabled": {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    "off": {"SOTTOVOCE_PROFILE": "off", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    "no exporter": {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
    },
    "empty": {"OTEL_EXPORTER_OTLP_ENDPOINT": " ", "OTEL_TRACES_EXPORTER": ""},
}


@pytest.mark.parametrize("variables", NOTHING.values(), ids=NOTHING)
def test_without_a_destination_nothing_is_created(variables):
    seen, err = look(**variables)
    assert err == ""
    assert seen["threads"] == ["MainThread"]
    assert seen["providers"] == [
        "ProxyTracerProvider",
        "_ProxyMeterProvider",
        "ProxyLoggerProvider",
    ]
    assert not seen["instrumented"]
    assert seen["propagator"] == "CompositePropagator"
    loaded = [m for m in seen["modules"] if m.startswith("opentelemetry.exporter")]
    assert not loaded
    assert "requests" not in seen["modules"]
    assert not any(name.startswith("ANTHROPIC_") for name in seen["environ"])


def test_an_endpoint_is_all_it_takes():
    with Sink() as sink:
        seen, err = look(OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert err == ""
    assert seen["providers"] == ["TracerProvider", "MeterProvider", "LoggerProvider"]
    assert seen["instrumented"]
    assert seen["propagator"] == "GatedPropagator"
    assert seen["fields"] == ["traceparent", "tracestate"]
    environ = seen["environ"]
    assert environ["OTEL_PYTHON_CONFIGURATOR"] == "sottovoce"
    assert environ["OTEL_EXPORTER_OTLP_PROTOCOL"] == "http/protobuf"
    assert environ["OTEL_TRACES_EXPORTER"] == environ["OTEL_METRICS_EXPORTER"] == "otlp"
    assert "OTEL_LOGS_EXPORTER" not in environ
    assert environ["OTEL_PROPAGATORS"] == "tracecontext"
    assert environ["ANTHROPIC_OPEN_TELEMETRY"] == "false"
    assert environ["ANTHROPIC_OPEN_TELEMETRY_PROPAGATION"] == "false"
    for absent in ("openai", "anthropic", "mlx_lm", "mlx", "llama_cpp", "httpx", "httpx2", "grpc"):
        assert absent not in seen["modules"]


def test_what_the_operator_set_stays():
    theirs = {
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_PROPAGATORS": "tracecontext,baggage",
        "ANTHROPIC_OPEN_TELEMETRY": "true",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    seen, _ = look(**theirs)
    assert theirs.items() <= seen["environ"].items()
    assert "OTEL_METRICS_EXPORTER" not in seen["environ"]
    assert seen["fields"] == ["baggage", "traceparent", "tracestate"]


def test_a_signal_with_an_endpoint_of_its_own_is_the_only_one_exported():
    with Sink() as sink:
        run(SPAN, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=sink.endpoint + "/v1/traces")
        assert {path for path, _ in sink.requests} == {"/v1/traces"}


def test_the_local_receiver_is_a_destination():
    seen, _ = look(SOTTOVOCE_LOCAL="1")
    assert seen["environ"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4318"
    assert seen["providers"][0] == "TracerProvider"


def test_the_resource_names_the_distribution():
    with Sink() as sink:
        run(SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, OTEL_SERVICE_NAME="shop")
    [(resource, scope, _)] = sink.spans
    assert resource["telemetry.distro.name"] == "sottovoce"
    assert resource["telemetry.distro.version"]
    assert resource["telemetry.auto.version"]
    assert resource["service.name"] == "shop"
    assert hardware.profile().attributes().items() <= resource.items()
    assert scope.name == "sottovoce"
    assert sink.metrics[0][0] == resource


def test_what_the_operator_says_of_the_machine_stays():
    with Sink() as sink:
        run(
            SPAN,
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            OTEL_RESOURCE_ATTRIBUTES="host.arch=ppc64,sottovoce.total_memory_gb=my big machine",
        )
    [(resource, *_)] = sink.spans
    assert resource["host.arch"] == "ppc64"
    assert resource["sottovoce.total_memory_gb"] == "_OTHER"


def test_exporters_can_be_listed_and_printed():
    with Sink() as sink:
        ran = run(
            SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, OTEL_TRACES_EXPORTER="otlp, console"
        )
    assert sink.span_names == ["chat"]
    assert '"name": "chat"' in ran.out
    assert "planted" not in ran.out


def test_sampling_and_limits_are_the_operators():
    with Sink() as sink:
        run(SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, OTEL_TRACES_SAMPLER="always_off")
    assert sink.spans == []
    with Sink() as sink:
        run(
            SPAN,
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            OTEL_TRACES_SAMPLER="parentbased_traceidratio",
            OTEL_TRACES_SAMPLER_ARG="1.0",
        )
    assert sink.span_names == ["chat"]


def test_metrics_are_sent_at_the_interval_and_with_the_temporality_asked_for():
    program = (
        SPAN
        + """
import sys
sys.stdin.read()
"""
    )
    import subprocess
    import sys

    from delivery.launcher import BIN, environment

    with Sink() as sink:
        env = environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            OTEL_METRIC_EXPORT_INTERVAL="50",
            OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
            OTEL_BSP_SCHEDULE_DELAY="50",
        )
        process = subprocess.Popen(
            [BIN / "opentelemetry-instrument", sys.executable, "-c", program],
            env=env,
            stdin=subprocess.PIPE,
        )
        try:
            sink.wait(lambda s: s.metrics and s.spans)
        finally:
            process.communicate(b"")
    points = [m for _, _, m in sink.metrics if m.name == "sottovoce.gate.dropped"]
    assert points[0].sum.aggregation_temporality == 1


def test_logging_is_bridged_on_request_without_a_word():
    # As at the end of a process from Python 3.12 on.
    program = """
import logging, threading
logging.getLogger("shop").warning("planted in a log of %s", "planted user")
def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")
start, threading.Thread.start = threading.Thread.start, refuse
for handler in logging.getLogger().handlers:
    handler.flush()
threading.Thread.start = start
"""
    with Sink() as sink:
        ran = run(
            program,
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            OTEL_LOGS_EXPORTER="otlp",
            OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED="true",
        )
    assert ran.code == 0
    assert "Traceback" not in ran.err
    assert len(sink.logs) == 1
    assert sink.logs[0][2].severity_number == 13
    assert b"planted" not in sink.bytes


BAD = {
    "profile": (
        {"SOTTOVOCE_PROFILE": "strct"},
        ["SOTTOVOCE_PROFILE", "'strct'", "off", "standard"],
        0,
    ),
    "semconv": ({"SOTTOVOCE_SEMCONV": "2"}, ["SOTTOVOCE_SEMCONV", "'2'", "v1.41, latest, both"], 1),
    "unknown": ({"SOTTOVOCE_PROFIL": "off"}, ["SOTTOVOCE_PROFIL is not a setting"], 1),
    "exporter": (
        {"OTEL_METRICS_EXPORTER": "otpl"},
        ["OTEL_METRICS_EXPORTER", "'otpl'", "console", "none", "otlp"],
        1,
    ),
    "protocol": (
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        ["OTEL_EXPORTER_OTLP_PROTOCOL", "'http/json'", "http/protobuf, grpc"],
        1,
    ),
    "queue": (
        {"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "20"},
        ["OTEL_BSP_*", "Using the defaults"],
        1,
    ),
    "interval": (
        {"OTEL_METRIC_EXPORT_INTERVAL": "-1"},
        ["OTEL_METRIC_EXPORT_INTERVAL", "60000"],
        1,
    ),
    "ids": (
        {"OTEL_PYTHON_ID_GENERATOR": "dice"},
        ["OTEL_PYTHON_ID_GENERATOR", "'dice'", "random"],
        1,
    ),
    "sampler": ({"OTEL_TRACES_SAMPLER": "some"}, ["some"], 1),
    "hosts": ({"SOTTOVOCE_OWN_HOSTS": "http://x/"}, ["SOTTOVOCE_OWN_HOSTS", "*.example.org"], 1),
    "limit": (
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"},
        ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: '-1'", "from 0"],
        1,
    ),
    "length": ({"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "x"}, ["VALUE_LENGTH_LIMIT: 'x'"], 1),
    "batch": ({"OTEL_BSP_SCHEDULE_DELAY": "soon"}, ["OTEL_BSP_SCHEDULE_DELAY: 'soon'"], 1),
    "patience": ({"OTEL_EXPORTER_OTLP_TIMEOUT": "-1"}, ["OTLP_TIMEOUT: '-1'", "above 0"], 1),
    "exemplars": ({"OTEL_METRICS_EXEMPLAR_FILTER": "some"}, ["'some'", "trace_based"], 1),
    "tracer provider": (
        {"OTEL_PYTHON_TRACER_PROVIDER": "some"},
        ["OTEL_PYTHON_TRACER_PROVIDER: 'some'", "sdk_tracer_provider"],
        1,
    ),
    "meter provider": ({"OTEL_PYTHON_METER_PROVIDER": "some"}, ["'some'"], 1),
}


@pytest.mark.parametrize(("variables", "words", "spans"), BAD.values(), ids=BAD)
def test_an_unusable_value_is_named_and_the_safe_choice_made(variables, words, spans):
    with Sink() as sink:
        ran = run(SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **variables)
    assert ran.code == 0
    for word in words:
        assert ran.err.count(word) >= 1, (word, ran.err)
    assert "Traceback" not in ran.err
    assert len(sink.spans) == spans


def test_a_warning_is_shown_once():
    with Sink() as sink:
        ran = run(
            "import sottovoce; sottovoce.start()",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            SOTTOVOCE_SEMCONV="2",
        )
    assert ran.err.count("SOTTOVOCE_SEMCONV") == 1


def test_an_address_without_a_scheme_is_no_destination_and_is_said():
    seen, err = look(OTEL_EXPORTER_OTLP_ENDPOINT="collector:4318")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT: 'collector:4318' cannot be used" in err
    assert seen["providers"][0] == "ProxyTracerProvider"


def test_usable_values_of_the_sdks_variables_are_left_alone():
    theirs = {
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "0",
        "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "",
        "OTEL_BSP_SCHEDULE_DELAY": "5000",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5",
        "OTEL_METRICS_EXEMPLAR_FILTER": "always_off",
    }
    seen, err = look(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **theirs)
    assert err == ""
    assert theirs.items() <= seen["environ"].items()


def test_an_exporter_that_is_named_twice_sends_once():
    with Sink() as sink:
        run(SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, OTEL_TRACES_EXPORTER="otlp,otlp")
    assert sink.span_names == ["chat"]


LATE_WARNING = """
import logging, sys
SETUP
import sottovoce
sottovoce.start()
sottovoce.start(semconv="latest")
"""


@pytest.mark.parametrize(
    ("setup", "shown"),
    [
        ("", 1),
        ("logging.basicConfig(stream=sys.stderr)", 1),
        ("logging.basicConfig(stream=sys.stdout)", 0),
        ("logging.getLogger('sottovoce').addHandler(logging.StreamHandler())", 1),
        ("logging.getLogger('sottovoce').setLevel(logging.ERROR)", 0),
    ],
)
@pytest.mark.parametrize("bridged", ["true", "false"])
def test_our_warnings_are_shown_once_whoever_listens_to_logging(setup, shown, bridged):
    with Sink() as sink:
        ran = run(
            LATE_WARNING.replace("SETUP", setup),
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            OTEL_LOGS_EXPORTER="otlp",
            OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED=bridged,
        )
    assert ran.err.count("already started") == shown

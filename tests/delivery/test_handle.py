"""`sottovoce.start()`: the same as the launcher, from code."""

import pytest

from delivery.launcher import SPAN, run
from delivery.sink import Sink, dead_endpoint

pytestmark = pytest.mark.e2e

INSTRUMENTED = """
def instrumented():
    from sottovoce import instrumentors
    return [kind().is_instrumented_by_opentelemetry for kind in instrumentors.ALL]
"""


def go(program, **variables):
    return run(INSTRUMENTED + program, launcher=False, **variables)


def test_importing_the_package_loads_next_to_nothing():
    ran = go("""
import sys
before = set(sys.modules)
import sottovoce
print([m for m in sorted(set(sys.modules) - before) if "." in m or m != "sottovoce"])
print(sottovoce.__version__, sorted(n for n in dir(sottovoce) if n[0].isupper() or n == "start"))
""")
    modules, names = ran.out.splitlines()
    assert "opentelemetry" not in modules
    assert "wrapt" not in modules
    for name in ("start", "Handle", "OpenAIInstrumentor", "HTTPXInstrumentor", "MLXInstrumentor"):
        assert name in names


def test_a_name_that_does_not_exist_is_an_attribute_error():
    import sottovoce

    with pytest.raises(AttributeError, match="no attribute 'stop'"):
        sottovoce.stop  # noqa: B018


def test_start_does_what_the_launcher_does():
    with Sink() as sink:
        ran = go(
            "import sottovoce\nhandle = sottovoce.start()\n"
            + SPAN
            + """
from opentelemetry import propagate
print(handle, handle.active, handle.reason, instrumented())
print(type(propagate.get_global_textmap()).__name__)
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.err == ""
    assert "<sottovoce.Handle: active> True None [True" in ran.out
    assert "False" not in ran.out
    assert "GatedPropagator" in ran.out
    assert sink.span_names == ["chat"]
    [(resource, _, _)] = sink.spans
    assert resource["telemetry.distro.name"] == "sottovoce"
    assert "telemetry.auto.version" not in resource
    assert b"planted" not in sink.bytes


def test_the_destination_can_be_given_in_code_but_the_environments_wins():
    with Sink() as mine, Sink() as theirs:
        program = f"import sottovoce\nsottovoce.start(endpoint={mine.endpoint!r})\n" + SPAN
        assert go(program).err == ""
        assert mine.span_names == ["chat"]
        ran = go(program, OTEL_EXPORTER_OTLP_ENDPOINT=theirs.endpoint)
        assert "endpoint: code may only tighten" in ran.err
        assert theirs.span_names == ["chat"]
        assert mine.span_names == ["chat"]


LOCAL = """
import sottovoce
from sottovoce import settings
settings.LOCAL_ENDPOINT = ADDRESS
sottovoce.start(local=True)
sottovoce.start(local=True).shutdown()
"""


@pytest.mark.parametrize("launched", [False, True])
def test_who_sends_to_the_local_receiver_is_told_how_to_start_it(launched):
    address = dead_endpoint()
    ran = run(LOCAL.replace("ADDRESS", repr(address)), launcher=launched)
    told = f"nothing listens at {address} yet; start it with `sottovoce local`."
    assert ran.err.count("sottovoce local") == ran.err.count(told) == 1


def test_nothing_is_said_where_it_runs_or_is_not_asked_for():
    with Sink() as sink:
        for address, start in ((sink.endpoint, "local=True"), (dead_endpoint(), "")):
            program = LOCAL.replace("ADDRESS", repr(address)).replace("local=True", start)
            assert "sottovoce local" not in run(program, launcher=False).err


def test_code_may_tighten_and_never_loosen():
    ran = go("""
import sottovoce
handle = sottovoce.start(
    endpoint="http://127.0.0.1:9", remote_model_ids="catalogue", propagation="all",
    own_hosts=["api.openai.com"], exit_timeout=0.1, semconv="both",
)
s = handle.settings
print(s.remote_model_ids, s.propagation, s.own_hosts, s.exit_timeout, s.semconv)
""")
    assert ran.out == "hash own () 0.1 both\n"
    for name in ("remote_model_ids", "propagation", "own_hosts"):
        assert f"{name}: code may only tighten" in ran.err
    ran = go("""
import sottovoce
print(sottovoce.start(profile="off", endpoint="http://127.0.0.1:9"))
""")
    assert "SOTTOVOCE_PROFILE is off" in ran.out


def test_start_again_returns_the_same_handle_and_threads_agree():
    with Sink() as sink:
        ran = go(
            """
import threading
import sottovoce
handles = []
threads = [threading.Thread(target=lambda: handles.append(sottovoce.start())) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(set(map(id, handles))), sottovoce.start(semconv="both") is handles[0])
print(sum(t.name.startswith("OtelBatchSpan") for t in threading.enumerate()))
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.out == "1 True\n1\n"
    assert "already started" in ran.err


def test_under_the_launcher_start_finds_what_is_there():
    with Sink() as sink:
        ran = run(
            SPAN
            + """
import sottovoce
from opentelemetry import trace
before = trace.get_tracer_provider()
with sottovoce.start() as handle:
    assert trace.get_tracer_provider() is before
    print(handle)
print(handle)
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.err == ""
    assert ran.out == "<sottovoce.Handle: active>\n<sottovoce.Handle: shut down>\n"
    assert sink.span_names == ["chat"]


def test_without_a_destination_nothing_is_started():
    ran = go("""
import sys, threading
import sottovoce
handle = sottovoce.start()
print(handle, handle.active, instrumented())
print(handle.flush(), handle.shutdown(), threading.active_count())
print([m for m in sys.modules if m.startswith("opentelemetry.exporter")])
""")
    assert ran.err == ""
    first, second, third = ran.out.splitlines()
    assert "no destination" in first
    assert "True" not in first
    assert second == "True True 1"
    assert third == "[]"


def test_shutdown_delivers_uninstruments_and_leaves_no_thread():
    with Sink() as sink:
        ran = go(
            "import sottovoce\nhandle = sottovoce.start()\n"
            + SPAN
            + """
import threading
print(handle.shutdown(), handle.shutdown(), handle.active, instrumented())
print([t.name for t in threading.enumerate()])
call()
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    first, second = ran.out.splitlines()
    assert first.startswith("True True False [False")
    assert "[True" not in first
    assert second == "['MainThread']"
    assert sink.span_names == ["chat"]


def test_flush_sends_what_is_queued_now():
    with Sink() as sink:
        ran = go(
            "import sottovoce, os\nhandle = sottovoce.start()\n"
            + SPAN
            + """
print(handle.flush(20))
os._exit(0)
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.out == "True\n"
    assert sink.span_names == ["chat"]
    assert "sottovoce.gate.dropped" in sink.metric_names


def test_flush_and_shutdown_keep_to_their_time():
    with Sink("never") as sink:
        ran = go(
            "import sottovoce, time\nhandle = sottovoce.start()\n"
            + SPAN
            + """
began = time.monotonic()
print(handle.flush(0.2), handle.shutdown(0.2), time.monotonic() - began < 5)
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.out == "False False True\n"


def test_start_after_shutdown_records_again():
    with Sink() as sink:
        ran = go(
            """
import sottovoce
from sottovoce.call import Call
from sottovoce.record import SpanRecorder
from sottovoce.delivery import pipeline

def call():
    tracer = pipeline.current().providers.tracer
    tracer.get_tracer("sottovoce").start_span("chat", attributes={"gen_ai.operation.name": "chat"}).end()

for _ in range(3):
    handle = sottovoce.start()
    print(handle.active, all(instrumented()))
    call()
    print(handle.shutdown(10))
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.err == ""
    assert ran.out == "True True\nTrue\n" * 3
    assert sink.span_names == ["chat"] * 3


def test_providers_of_the_app_are_gated_and_left_running():
    ran = go(
        """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)
import sottovoce
handle = sottovoce.start()
assert handle.active and all(instrumented()), handle
"""
        + SPAN
        + """
print(handle.shutdown())
call("embeddings")
"""
    )
    assert ran.err == ""
    assert ran.out.count('"name": "chat"') == 1
    assert ran.out.count('"name": "embeddings"') == 1
    assert "planted" not in ran.out


def test_a_provider_that_cannot_be_gated_is_refused_without_an_exception():
    ran = go(
        """
from opentelemetry import trace
class Odd(trace.TracerProvider):
    def get_tracer(self, *args, **kwargs):
        return trace.NoOpTracer()
trace.set_tracer_provider(Odd())
import sottovoce
handle = sottovoce.start()
print(handle.active, instrumented(), handle.reason)
""",
        OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint(),
    )
    assert ran.code == 0
    assert ran.out.startswith("False [False")
    assert "cannot be gated" in ran.out
    assert "refused" in ran.err


def test_an_unknown_setting_is_a_type_error_that_names_the_settings():
    import sottovoce

    with pytest.raises(
        TypeError, match="no such setting: endpont. Settings are: .*endpoint.*OTEL_S"
    ):
        sottovoce.start(endpont="x")


def test_an_instrumentor_that_fails_leaves_the_others_working():
    with Sink() as sink:
        ran = go(
            """
import sottovoce
def broken(self, **_): raise OSError("mine")
sottovoce.OpenAIInstrumentor._instrument = broken
handle = sottovoce.start()
print(handle.active, instrumented())
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.out.startswith("True [False, True, True")


def test_what_the_environment_says_later_counts():
    """As in a notebook: the first try told what was missing."""
    with Sink() as one, Sink() as two:
        ran = go(f"""
import os
import sottovoce
print(sottovoce.start().active)
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = {one.endpoint!r}
handle = sottovoce.start()
print(handle.active, handle.shutdown())
del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
handle = sottovoce.start(endpoint="http://127.0.0.1:9")
print(handle.active, handle.shutdown())
handle = sottovoce.start(endpoint={two.endpoint!r})
print(handle.active, handle.shutdown())
""")
    assert ran.out.startswith("False\nTrue True\nTrue ")
    assert ran.out.endswith("True True\n")
    assert "code may only tighten" not in ran.err
    assert {path for path, _ in one.requests} == {path for path, _ in two.requests}


def test_a_tracer_provider_of_the_app_is_joined_by_our_metrics():
    with Sink() as sink:
        ran = go(
            """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)
import sottovoce
sottovoce.start()
"""
            + SPAN,
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.err == ""
    assert ran.out.count('"name": "chat"') == 1
    assert "planted" not in ran.out
    assert sink.spans == []
    assert "sottovoce.gate.dropped" in sink.metric_names


def test_what_was_given_up_is_not_sent_afterwards():
    with Sink("never") as sink:
        ran = go(
            "import sottovoce, time\nhandle = sottovoce.start()\n"
            + SPAN
            + """
for _ in range(1200):
    call()
print(handle.shutdown(0.2))
time.sleep(4.5)
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            OTEL_EXPORTER_OTLP_TIMEOUT="3",
            OTEL_BSP_SCHEDULE_DELAY="60000",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="100",
        )
        assert ran.out == "False\n"
        assert [path for path, _ in sink.requests].count("/v1/traces") == 1


LATE = """
from opentelemetry import _logs, metrics, trace
from opentelemetry._logs import LogRecord, set_logger_provider
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import set_tracer_provider

tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
meters = MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter())])
loggers = LoggerProvider()
loggers.add_log_record_processor(SimpleLogRecordProcessor(ConsoleLogRecordExporter()))
BEFORE
import sottovoce
sottovoce.start()
AFTER
tracers.get_tracer("sottovoce").start_span("planted", attributes={"planted": "planted"}).end()
meters.get_meter("sottovoce").create_counter("planted").add(1, {"planted": "planted"})
loggers.get_logger("sottovoce").emit(LogRecord(body="planted", attributes={"planted": "planted"}))
meters.force_flush()
"""
SET = ["set_tracer_provider(tracers)", "set_meter_provider(meters)", "set_logger_provider(loggers)"]


@pytest.mark.parametrize("first", SET)
def test_providers_that_the_app_makes_global_later_are_gated_too(first):
    later = "; ".join(each for each in SET if each is not first)
    ran = go(LATE.replace("BEFORE", first).replace("AFTER", later))
    assert ran.err == ""
    assert ran.out.count('"trace_id"') == 2
    assert "planted" not in ran.out


def test_providers_that_come_after_ours_are_gated_even_if_not_used():
    with Sink() as sink:
        ran = go(
            LATE.replace("BEFORE", "").replace("AFTER", "; ".join(SET)),
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        )
    assert ran.err.count("Overriding of current") == 3
    assert "planted" not in ran.out
    assert ran.out.count('"trace_id"') == 2


def test_a_late_provider_that_cannot_be_gated_is_not_made_global():
    odd = """
class Odd(metrics.MeterProvider):
    def get_meter(self, *args, **kwargs):
        raise AssertionError
    def shutdown(self):
        print("odd shut down")
set_meter_provider(Odd())
metrics.get_meter("app").create_counter("mine").add(1)
"""
    ran = go(LATE.replace("BEFORE", SET[0]).replace("AFTER", odd))
    assert ran.code == 0
    assert "odd shut down" in ran.out
    assert "refused: __main__.Odd cannot be gated" in ran.err

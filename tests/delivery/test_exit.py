"""The end of the process: prompt, silent, and with the last telemetry delivered if it can be."""

import pytest

from delivery.launcher import PROMPT, SPAN, WITHIN, run
from delivery.sink import Sink, dead_endpoint

pytestmark = pytest.mark.e2e


def assert_silent_end(ran):
    assert ran.err == ""
    assert ran.code == 0


def test_everything_that_is_queued_is_delivered():
    with Sink() as sink:
        ran = run(SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert_silent_end(ran)
    assert sink.span_names == ["chat"]
    assert "sottovoce.gate.dropped" in sink.metric_names
    assert b"planted sentence" not in sink.bytes


@pytest.mark.parametrize("manner", ["never", "drip", 503, 400])
def test_a_collector_that_misbehaves_delays_the_end_by_the_deadline_at_most(manner):
    with Sink(manner) as sink:
        ran = run(SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, **PROMPT)
        assert sink.span_names[:1] == ["chat"]
    assert_silent_end(ran)
    assert ran.seconds < WITHIN


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_dead_collector_delays_the_end_by_the_deadline_at_most(protocol):
    ran = run(
        SPAN,
        OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint(),
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        **PROMPT,
    )
    assert_silent_end(ran)
    assert ran.seconds < WITHIN


def test_a_full_queue_does_not_delay_the_end():
    many = SPAN + "for _ in range(3000): call()"
    with Sink("never") as sink:
        ran = run(
            many,
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            OTEL_BSP_SCHEDULE_DELAY="60000",
            **PROMPT,
        )
    assert ran.code == 0
    assert ran.seconds < WITHIN


def test_the_deadline_is_a_setting():
    with Sink("never") as sink:
        ran = run(SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, SOTTOVOCE_EXIT_TIMEOUT="4")
    assert_silent_end(ran)
    assert ran.seconds > 4


# A shell starts what it puts in the background with the signal ignored.
SIGINT = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("raise ValueError('mine')", 1),
        ("raise KeyboardInterrupt", -2),
        (SIGINT, -2),
    ],
)
def test_the_last_telemetry_leaves_however_the_program_ends(ending, code):
    with Sink() as sink:
        ran = run(SPAN + ending, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert ran.code == code
    assert sink.span_names == ["chat"]
    assert "sottovoce" not in ran.err


def test_telemetry_of_the_programs_own_exit_functions_and_threads_is_delivered():
    program = (
        SPAN
        + """
import atexit, threading, time
atexit.register(call)
threading.Thread(target=lambda: (time.sleep(0.3), call())).start()
"""
    )
    with Sink() as sink:
        ran = run(program, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert_silent_end(ran)
    assert sink.span_names == ["chat", "chat", "chat"]


def test_an_interrupt_ends_the_wait():
    program = (
        SPAN
        + """
import os, signal, threading, time
# Long after the program is over, and while the pipeline waits for the Collector.
threading.Thread(
    target=lambda: (time.sleep(2), os.kill(os.getpid(), signal.SIGINT)), daemon=True
).start()
"""
    )
    with Sink("never") as sink:
        ran = run(program, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, SOTTOVOCE_EXIT_TIMEOUT="30")
    assert ran.seconds < 20
    assert "Traceback" not in ran.err


def test_a_program_that_logs_does_not_hear_of_a_dead_collector_at_its_end():
    program = "import logging\nlogging.basicConfig(level=logging.WARNING)\n" + SPAN
    assert_silent_end(run(program, OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint()))


def test_at_the_end_a_collector_is_asked_once_and_no_retry_is_waited_for():
    with Sink(503) as sink:
        run(SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint, SOTTOVOCE_EXIT_TIMEOUT="5")
    assert sorted(path for path, _ in sink.requests) == ["/v1/metrics", "/v1/traces"]

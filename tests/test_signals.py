"""What a handler of a signal's raises reaches the app, wherever in our code the signal strikes.

A time limit is often made so: lost, the app would wait for ever.
"""

import linecache
import signal
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

import sottovoce
from sottovoce import pages
from sottovoce.call import Call
from sottovoce.exchange import HTTPCall
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.routes import Route
from sottovoce.record import SpanRecorder
from sottovoce.settings import Settings
from sottovoce.transports import wire

OURS = str(Path(sottovoce.__file__).parent)
MOST = 5_000


class TimeLimitError(Exception):
    """The app's own."""


def stop(*_):
    raise TimeLimitError


@pytest.fixture
def limited():
    before = signal.signal(signal.SIGUSR1, stop)
    yield
    signal.signal(signal.SIGUSR1, before)


def struck(work, number):
    """Do `work`, and let the signal strike before line `number` of ours; whether it came so far."""
    left = number

    def line(frame, event, _):
        nonlocal left
        if event == "line":
            # Python handles none between the last line of a `with` and its end.
            code = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            left -= not code.lstrip().startswith("with ")
            if not left:
                sys.settrace(None)
                signal.raise_signal(signal.SIGUSR1)
        return line

    def entered(frame, *_):
        return line if frame.f_code.co_filename.startswith(OURS) else None

    tracing = sys.gettrace()
    sys.settrace(entered)
    try:
        work()
    finally:
        sys.settrace(tracing)
    return left <= 0


ROUTE = Route("chat", OPENAI_CHAT)


def whole(recorder):
    call = HTTPCall(recorder, operation="chat", provider="openai", model="gpt-4o", address="h")
    wire.read_whole(
        call, ROUTE, "application/json", b'{"model":"gpt-4o","usage":{"prompt_tokens":3}}'
    )
    call.end()


def streamed(recorder):
    call = HTTPCall(recorder, operation="chat", provider="openai", model="gpt-4o", address="h")
    watch = wire.watch(call, ROUTE, "text/event-stream", None)
    feed = watch.feeder()
    for _ in range(4):
        feed(b'data: {"model":"gpt-4o","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
    watch.exhausted()
    watch.closed()


def local(recorder):
    call = Call(recorder, operation="chat", provider="llama_cpp", model="m", in_process=True)
    call.facts.update(prefill_rate=2.0, finish_reasons=["stop"], model_architecture="llama")
    call.end()
    pages.add_all()


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("work", [whole, streamed, local])
def test_a_time_limit_is_never_lost(work, monkeypatch):
    # Of what a finaliser raises nobody hears, whoever wrote it.
    monkeypatch.delattr(wire.Watch, "__del__")
    reader = InMemoryMetricReader()
    recorder = SpanRecorder(TracerProvider(), MeterProvider([reader]), Settings(semconv="both"))
    # The first times the way of a first call, then that of all others.
    for number in range(1, MOST):
        try:
            reached = struck(lambda: work(recorder), number)
        except TimeLimitError:
            continue
        assert not reached, f"lost at line {number}"
        return
    pytest.fail("more lines than are looked at")

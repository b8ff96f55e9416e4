"""Where an exception was raised leaves for listed packages, and nothing that merely says so."""

import gc
import importlib
import itertools
import logging
import os
import subprocess
import sys
import textwrap
import threading
import types
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggingHandler
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.call import Call
from sottovoce.privacy import policy as policies
from sottovoce.privacy.frames import ATTRIBUTE, MOST, Frames
from sottovoce.privacy.gate import gated_logger_provider, gated_tracer_provider
from sottovoce.record import SpanRecorder
from sottovoce.settings import Settings, read

SECRET = "a secret of the tests"
CANARY = "AnnaSmithHasCancer"

SHOP = """\
import threading

def buy(what, pay):
    return pay(what)

def pay(what):
    raise ValueError(what)

class Cart:
    def total(self):
        return [self.price(item) for item in "x"]

    def price(self, item):
        return (lambda: pay(item))()

def deep(times, what):
    if times:
        return deep(times - 1, what)
    return pay(what)

def climb(names, what):
    for name in names:
        pass
    return one(names, what)

def one(names, what):
    return two(names, what) if names else pay(what)

def two(names, what):
    return one(names[1:], what)
"""
PAY = 7
numbers = itertools.count()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package of the operator's, of a name of its own in every test: (name, module)."""
    name = f"shop{next(numbers)}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "orders.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(f"{name}.orders")
    yield name, module
    for loaded in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[loaded]


def raised(call, *args):
    try:
        call(*args)
    except BaseException as error:
        return error
    raise AssertionError


def frames_of(name, error):
    return Frames((name,)).of(error)


def test_frames_of_listed_packages_are_told_the_innermost_last(shop):
    name, orders = shop
    error = raised(orders.buy, CANARY, orders.pay)
    assert frames_of(name, error) == (f"{name}.orders:buy:4", f"{name}.orders:pay:{PAY}")
    assert frames_of(f"{name}.orders", error) == frames_of(name, error)


@pytest.mark.parametrize("listed", ["other", "shop", "orders", "s", "tests", "threading"])
def test_frames_of_others_are_not(shop, listed):
    _, orders = shop
    assert frames_of(listed, raised(orders.buy, CANARY, orders.pay)) == ()


def test_methods_lambdas_and_comprehensions_are_told_by_their_own_names(shop):
    name, orders = shop
    told = [each.split(":")[1] for each in frames_of(name, raised(orders.Cart().total))]
    assert [each for each in told if each != "<listcomp>"] == ["total", "price", "<lambda>", "pay"]


def test_a_function_that_calls_itself_is_told_once(shop):
    name, orders = shop
    told = frames_of(name, raised(orders.deep, 200, CANARY))
    assert told == tuple(f"{name}.orders:{place}" for place in ("deep:18", "deep:19", f"pay:{PAY}"))


def test_the_innermost_are_told_of_many(shop):
    name, orders = shop
    told = frames_of(name, raised(orders.climb, "x" * 100, CANARY))
    assert len(told) == MOST
    assert told[-1] == f"{name}.orders:pay:{PAY}"
    assert told[0].split(":")[1] in {"one", "two"}


def test_without_an_end_there_is_one(shop):
    name, orders = shop
    error = raised(orders.deep, 10**6, CANARY)
    assert isinstance(error, RecursionError)
    assert frames_of(name, error) == (f"{name}.orders:deep:18",)
    tail = raised(orders.pay, CANARY).__traceback__
    for _ in range(100_000):
        tail = types.TracebackType(tail, tail.tb_frame, tail.tb_lasti, tail.tb_lineno)
    assert len(frames_of(name, ValueError().with_traceback(tail))) <= MOST
    # Its destruction would need as many frames of C.
    while tail is not None:
        following, tail.tb_next = tail.tb_next, None
        tail = following


def test_callers_are_told_of_an_exception_that_was_caught_below_them(shop):
    name, orders = shop

    def caught(what):
        return frames_of(name, raised(orders.pay, what))

    assert orders.buy(CANARY, caught) == (f"{name}.orders:buy:4", f"{name}.orders:pay:{PAY}")


def compiled(orders, filename):
    """An error of code that was made of a text, in the name of the module."""
    text = f"def {CANARY}(what):\n    return pay(what)\n"
    space = vars(orders)
    exec(compile(text, filename, "exec"), space)
    return raised(space[CANARY], "x")


def test_code_that_was_made_of_a_text_tells_nothing(shop):
    name, orders = shop
    only = (f"{name}.orders:pay:{PAY}",)
    for filename in ("<string>", orders.__file__, f"/home/{CANARY}"):
        assert frames_of(name, compiled(orders, filename)) == only
    space = {"__name__": f"{name}.orders", "pay": orders.pay}
    exec(f"def {CANARY}(what): return pay(what)", space)
    assert frames_of(name, raised(space[CANARY], "x")) == only
    space = {"__name__": f"{name}.{CANARY}", "pay": orders.pay}
    exec("def pay2(what): return pay(what)", space)
    assert frames_of(name, raised(space["pay2"], "x")) == only


def test_code_that_was_put_together_by_hand_tells_nothing(shop):
    name, orders = shop
    code = orders.buy.__code__.replace(co_name=CANARY)
    assert frames_of(name, raised(types.FunctionType(code, vars(orders)), "x", orders.pay)) == (
        f"{name}.orders:pay:{PAY}",
    )
    frame = raised(orders.pay, "x").__traceback__.tb_next
    for line in (491_511, 49, 0, -7):
        handmade = types.TracebackType(None, frame.tb_frame, frame.tb_lasti, line)
        assert frames_of(name, ValueError().with_traceback(handmade)) == ()


def test_a_module_that_calls_itself_otherwise_tells_nothing(shop, monkeypatch):
    name, orders = shop
    monkeypatch.setattr(orders, "__name__", f"{name}.{CANARY}")
    error = raised(orders.pay, "x")
    assert frames_of(name, error) == ()
    monkeypatch.setitem(sys.modules, f"{name}.{CANARY}", orders)
    assert frames_of(name, error) == ()
    monkeypatch.setattr(orders, "__name__", type("Text", (str,), {})(f"{name}.orders"))
    assert frames_of(name, error) == ()


def test_a_module_that_was_made_at_run_time_tells_nothing(shop, monkeypatch):
    name, _ = shop
    made = types.ModuleType(f"{name}.{CANARY}")
    exec(SHOP, vars(made))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    assert frames_of(name, raised(made.pay, "x")) == ()
    spec = importlib.machinery.ModuleSpec(made.__name__, Loader())
    made.__spec__ = spec
    assert frames_of(name, raised(made.pay, "x")) == ()


class Loader:
    def get_code(self, name):
        return compile(SHOP, "x", "exec")


def test_a_module_that_is_loaded_later_is_found_then(tmp_path, monkeypatch):
    name = f"late{next(numbers)}"
    text = f"{name}:pay:{PAY}"
    assert text not in Frames((name,))
    (tmp_path / f"{name}.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(name)
    try:
        assert text in Frames((name,))
    finally:
        del sys.modules[name]


def test_a_module_that_is_run_has_its_own_name(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("")
    (tmp_path / "app" / "run.py").write_text(
        textwrap.dedent(
            """\
            from sottovoce.privacy.frames import Frames
            def fail():
                raise ValueError
            try:
                fail()
            except ValueError as error:
                print(Frames(("app",)).of(error))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "app.run"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    )
    assert done.stdout.strip() == "('app.run:<module>:5', 'app.run:fail:3')"


@given(st.one_of(st.text(), st.integers(), st.none(), st.binary()))
def test_any_value_is_no_frame(value):
    assert value not in Frames(("json", "shop"))


@given(st.text(), st.text(), st.integers())
def test_any_function_and_line_is_no_frame(module, function, line):
    assert f"json.{module}:{function}:{line}" not in Frames(("json",))


class Odd(BaseException):
    @property
    def __traceback__(self):
        raise RuntimeError

    @property
    def __class__(self):
        raise RuntimeError


def test_nothing_is_asked_of_the_exception(shop):
    name, orders = shop
    error = raised(orders.pay, "x")
    assert Frames((name,)).of(Odd().with_traceback(error.__traceback__)) == (
        f"{name}.orders:pay:{PAY}",
    )
    for no_error in (None, "x", ValueError, Odd()):
        assert Frames((name,)).of(no_error) == ()


# On the wire -----------------------------------------------------------------------------------


@pytest.fixture
def gated(make_policy):
    def make(**settings):
        policy = make_policy(**settings)
        provider = gated_tracer_provider(policy, shutdown_on_exit=False)
        exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        return provider.get_tracer("x"), exporter

    return make


def told(exporter):
    (span,) = exporter.get_finished_spans()
    assert CANARY.encode() not in encode_spans([span]).SerializeToString()
    return [event.attributes.get(ATTRIBUTE) for event in span.events], span


def test_exceptions_that_others_record_tell_their_frames(gated, shop):
    name, orders = shop
    tracer, exporter = gated(stack_frames=(name,))
    with pytest.raises(ValueError, match=CANARY), tracer.start_as_current_span("x") as span:
        span.record_exception(raised(orders.pay, CANARY), {"exception.escaped": False}, 5)
        span.record_exception(exception=raised(orders.pay, CANARY), attributes=None)
        span.record_exception(KeyError(CANARY), escaped=True)
        orders.buy(CANARY, orders.pay)
    events, left = told(exporter)
    pay = f"{name}.orders:pay:{PAY}"
    assert events == [(pay,), (pay,), None, (f"{name}.orders:buy:4", pay)]
    assert [event.attributes["exception.type"] for event in left.events] == [
        "ValueError",
        "ValueError",
        "KeyError",
        "ValueError",
    ]
    assert left.events[0].timestamp == 5


@pytest.mark.parametrize(
    "settings", [{"stack_frames": ()}, {"profile": "strict"}, {"stack_frames": ("other",)}]
)
def test_unless_asked_for_there_are_none(gated, shop, settings):
    name, orders = shop
    tracer, exporter = gated(**{"stack_frames": (name,), **settings})
    with tracer.start_as_current_span("x") as span:
        span.record_exception(raised(orders.pay, CANARY))
        span.set_attribute(ATTRIBUTE, [f"{name}.orders:pay:{PAY}"])
    events, left = told(exporter)
    assert events == [None]
    assert ATTRIBUTE not in left.attributes


def test_what_somebody_else_says_is_looked_up(gated, shop):
    name, _ = shop
    tracer, exporter = gated(stack_frames=(name,))
    good = f"{name}.orders:pay:{PAY}"
    given_values = [
        [CANARY],
        [good, CANARY],
        [f"{name}.{CANARY}:pay:{PAY}"],
        [f"{name}.orders:{CANARY}:{PAY}"],
        [f"{name}.orders:pay:4711"],
        [f"{good}\n"],
        [f"{name}.orders:pay:00{PAY}"],
        good,
    ]
    with tracer.start_as_current_span("x") as span:
        span.set_attribute(ATTRIBUTE, [good])
        for value in given_values:
            span.add_event("exception", {ATTRIBUTE: value})
    events, left = told(exporter)
    assert left.attributes[ATTRIBUTE] == (good,)
    assert events == [None] * len(given_values)


def test_a_span_of_the_sdk_is_otherwise_as_it_was(gated, shop):
    name, _ = shop
    tracer, exporter = gated(stack_frames=(name,))
    plain = TracerProvider().get_tracer("x").start_span("x")
    span = tracer.start_span("x")
    for each in (span, plain):
        with pytest.raises((TypeError, AttributeError)):
            each.record_exception()
        each.record_exception(ValueError(), {"a": 1})
    assert [dict(e.attributes) for e in span.events] == [dict(e.attributes) for e in plain.events]
    record = span.record_exception
    span.end()
    assert len(exporter.get_finished_spans()) == 1
    exporter.clear()
    del span
    gc.collect()
    assert record(ValueError(CANARY)) is None


def test_a_span_that_tells_frames_is_freed_as_soon_as_any_other(gated, shop):
    tracer, _ = gated(stack_frames=(shop[0],))
    span = tracer.start_span("x")
    gone = weakref.ref(span)
    gc.disable()
    try:
        span.end()
        del span
        assert gone() is None
    finally:
        gc.enable()


def test_log_records_with_an_exception_tell_its_frames(make_policy, shop, monkeypatch):
    name, orders = shop
    provider = gated_logger_provider(make_policy(stack_frames=(name,)), shutdown_on_exit=False)
    exporter = InMemoryLogRecordExporter()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "propagate", False)
    with pytest.warns(DeprecationWarning):
        monkeypatch.setattr(logger, "handlers", [LoggingHandler(logger_provider=provider)])
    try:
        orders.pay(CANARY)
    except ValueError as caught:
        error = caught
        logger.exception(CANARY)
        try:
            raise KeyError(CANARY)
        except KeyError:
            # Not the one that is being handled.
            logger.error(CANARY, exc_info=error)
    logger.error(CANARY, exc_info=error)
    provider.get_logger("x").emit(body=CANARY, exception=error)
    left = [dict(each.log_record.attributes) for each in exporter.get_finished_logs()]
    assert CANARY not in str(left)
    assert [each["exception.type"] for each in left] == ["ValueError"] * 4
    pay = (f"{name}.orders:pay:{PAY}",)
    assert [each.get(ATTRIBUTE) for each in left] == [pay, None, None, pay]


@pytest.fixture
def own(monkeypatch, shop):
    """A recorder of ours on a gated provider: (recorder, exporter)."""
    monkeypatch.setattr(policies, "_active", [])
    settings = Settings(key=SECRET, stack_frames=(shop[0],))
    policy = policies.activate(settings)
    tracers = gated_tracer_provider(policy, shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    return SpanRecorder(tracers, MeterProvider(shutdown_on_exit=False), settings), exporter


def test_a_call_of_ours_says_where_it_failed(own, shop):
    recorder, exporter = own
    name, orders = shop

    def failing(what):
        call = Call(recorder, operation="chat", provider="openai", model="gpt-4o")
        try:
            raise TimeoutError(what)
        except TimeoutError as error:
            call.fail(error)

    orders.buy(CANARY, failing)
    events, left = told(exporter)
    assert events == []
    assert left.attributes["error.type"] == "TimeoutError"
    assert left.attributes[ATTRIBUTE] == (f"{name}.orders:buy:4",)


def test_a_call_that_a_code_failed_says_nothing_of_another_exception(own, shop):
    recorder, exporter = own
    call = Call(recorder, operation="chat", provider="openai", model="gpt-4o")
    try:
        shop[1].pay(CANARY)
    except ValueError:
        call.fail("429")
    _, left = told(exporter)
    assert left.attributes["error.type"] == "429"
    assert ATTRIBUTE not in left.attributes


def test_many_threads_at_once_are_told_apart(shop):
    name, orders = shop
    results = []

    def work(call, *args):
        for _ in range(50):
            results.append((call.__name__, frames_of(name, raised(call, *args))))

    threads = [
        threading.Thread(target=work, args=(orders.pay, "x")),
        threading.Thread(target=work, args=(orders.buy, "x", orders.pay)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pay = f"{name}.orders:pay:{PAY}"
    assert {told for kind, told in results if kind == "pay"} == {(pay,)}
    assert {told for kind, told in results if kind == "buy"} == {(f"{name}.orders:buy:4", pay)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_tells_the_same(shop):
    name, orders = shop
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, repr(frames_of(name, raised(orders.pay, "x"))).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told_there:
        assert told_there.read() == repr((f"{name}.orders:pay:{PAY}",))


@pytest.mark.parametrize("text", ["a b", "shop-x", "ш", "shop.", ".", "*", "shop.*", "1x"])
def test_what_is_no_package_is_refused(text):
    settings, warnings = read({"SOTTOVOCE_STACK_FRAMES": text})
    assert settings.stack_frames == ()
    assert "SOTTOVOCE_STACK_FRAMES" in warnings[0]
    assert read({"SOTTOVOCE_STACK_FRAMES": "shop, shop.orders"})[0].stack_frames == (
        "shop",
        "shop.orders",
    )

"""`sottovoce.tool`, `agent` and `conversation`: what they record, and that the app sees nothing."""

import asyncio
import contextvars
import functools
import gc
import inspect
import os
import pickle
import re
import subprocess
import sys
import threading
import uuid
import weakref

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import sottovoce
from conformance.conformance import violations
from sottovoce import dropped, guard, steps
from sottovoce.call import Call
from sottovoce.instrumentors import HTTPXInstrumentor
from sottovoce.privacy import policy
from sottovoce.privacy.gate import gated_tracer_provider
from sottovoce.record import SpanRecorder
from sottovoce.record_steps import StepRecorder
from sottovoce.settings import Settings

CANARY = "xq-canary-ring-a-bell"


class Bench:
    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.steps = StepRecorder(self.tracers, self.meters, Settings())
        self.calls = SpanRecorder(self.tracers, self.meters, Settings())

    def make(self):
        return self.steps

    def call(self):
        Call(self.calls, operation="chat", provider="openai", model="gpt-4o").end()

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    @property
    def span(self):
        (span,) = self.spans
        return span

    def points(self):
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric.data.data_points
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def bench():
    policy.activate(Settings())
    bench = Bench()
    steps.source.add(bench.make)
    yield bench
    steps.source.remove(bench.make)
    policy.activate(Settings())  # what this test dropped counts in no other
    assert steps.current_step.get() is None
    assert not trace.get_current_span().get_span_context().is_valid
    assert not guard.failures
    data = bench.reader.get_metrics_data()
    assert violations(*bench.spans, *([data] if data else [])) == []
    assert CANARY not in "".join(span.to_json() for span in bench.spans)


def outcome(span):
    return span.attributes["sottovoce.call.outcome"]


@sottovoce.tool("bash")
def plain(a: int, /, b: str = "x", *rest: int, c: bool = False, **more: str) -> tuple:
    """Do it."""
    return a, b, rest, c, more


@sottovoce.tool("bash")
async def coroutine(a, b=2):
    """Do it later."""
    await asyncio.sleep(0)
    return a, b


@sottovoce.tool("bash")
def generator(n):
    """Do it bit by bit."""
    total = 0
    for i in range(n):
        total += (yield i) or 0
    return total


@sottovoce.tool("bash")
async def async_generator(n):
    """Do it bit by bit, later."""
    for i in range(n):
        await asyncio.sleep(0)
        yield i


async def drain(stream):
    return [item async for item in stream]


RUNS = {
    "with": lambda: with_tool(),
    "function": lambda: plain(1),
    "coroutine": lambda: asyncio.run(coroutine(1)),
    "generator": lambda: list(generator(3)),
    "async generator": lambda: asyncio.run(drain(async_generator(3))),
}


def with_tool():
    with sottovoce.tool("bash"):
        pass


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_tool_is_one_span_and_one_point(bench, run):
    run()
    span = bench.span
    assert (span.name, span.kind) == ("execute_tool bash", SpanKind.INTERNAL)
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "bash",
        "sottovoce.call.outcome": "completed",
    }
    assert span.status.status_code is StatusCode.UNSET
    (point,) = bench.points()["gen_ai.execute_tool.duration"]
    assert dict(point.attributes) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "bash",
    }
    assert point.sum == pytest.approx((span.end_time - span.start_time) / 1e9)


def test_an_agent_is_another_and_model_calls_and_tools_inside_are_its_children(bench):
    @sottovoce.agent("clerk")
    def work():
        bench.call()
        with sottovoce.tool("web_search"):
            bench.call()

    work()
    first, inner, tool, agent = bench.spans
    assert re.fullmatch("invoke_agent [0-9a-f]{12}", agent.name)
    assert agent.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert agent.parent is None
    assert first.parent.span_id == tool.parent.span_id == agent.context.span_id
    assert inner.parent.span_id == tool.context.span_id
    (point,) = bench.points()["gen_ai.invoke_agent.duration"]
    assert point.attributes["gen_ai.agent.name"] == agent.attributes["gen_ai.agent.name"]


@pytest.mark.parametrize(
    ("error", "how", "kind"),
    [
        (ValueError(CANARY), "failed", "ValueError"),
        (type(CANARY.replace("-", ""), (Exception,), {})(), "failed", "_OTHER"),
        (asyncio.CancelledError(), "cancelled", "asyncio.exceptions.CancelledError"),
        (KeyboardInterrupt(), "abandoned", None),
        (SystemExit(3), "abandoned", None),
    ],
)
def test_what_goes_wrong_reaches_the_app_as_it_is_and_the_span_by_its_class(
    bench, error, how, kind
):
    @sottovoce.tool("bash")
    def function():
        raise error

    @sottovoce.tool("bash")
    def steps_of_it():
        yield 1
        raise error

    def inside():
        with sottovoce.tool("bash"):
            raise error

    for run in (function, inside, lambda: list(steps_of_it())):
        with pytest.raises(type(error)) as raised:
            run()
        assert raised.value is error
    assert [outcome(span) for span in bench.spans] == [how] * 3
    for span in bench.spans:
        assert span.attributes.get("error.type") == kind
        assert (span.status.status_code is StatusCode.ERROR) == (kind is not None)
        assert span.status.description is None
        assert not span.events


def test_the_decorator_changes_nothing_that_can_be_asked_of_a_function():
    assert inspect.iscoroutinefunction(coroutine) and asyncio.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator)
    assert not inspect.iscoroutinefunction(plain)
    assert (plain.__name__, plain.__doc__, plain.__module__) == ("plain", "Do it.", __name__)
    assert str(inspect.signature(plain)) == (
        "(a: int, /, b: str = 'x', *rest: int, c: bool = False, **more: str) -> tuple"
    )
    assert pickle.loads(pickle.dumps(plain)) is plain
    made = generator(1)
    assert inspect.isgenerator(made) and made.__name__ == "generator"
    assert list(made) == [0]


@pytest.mark.parametrize("instrumented", [True, False])
def test_results_are_the_function_s_own(instrumented, request):
    if instrumented:
        request.getfixturevalue("bench")
    assert plain(1, "y", 2, 3, c=True, d="z") == (1, "y", (2, 3), True, {"d": "z"})
    assert asyncio.run(coroutine(1)) == (1, 2)
    made = generator(2)
    assert [next(made), made.send(5)] == [0, 1]
    with pytest.raises(StopIteration) as stopped:
        made.send(7)
    assert stopped.value.value == 12
    assert asyncio.run(drain(async_generator(2))) == [0, 1]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        plain()


def test_methods_of_every_kind_can_be_decorated(bench):
    class Tools:
        @sottovoce.tool("bash")
        def method(self, x):
            return self, x

        @sottovoce.tool("bash")
        @staticmethod
        def static(x):
            return x

        @staticmethod
        @sottovoce.tool("bash")
        def inner_static(x):
            return x

        @sottovoce.tool("bash")
        @classmethod
        def of_class(cls, x):
            return cls, x

        @property
        @sottovoce.tool("bash")
        def value(self):
            return 7

    tools = Tools()
    assert tools.method(1) == (tools, 1)
    assert (tools.static(1), Tools.inner_static(1)) == (1, 1)
    assert (tools.of_class(1), Tools.of_class(1)) == ((Tools, 1), (Tools, 1))
    assert tools.value == 7
    assert len(bench.spans) == 6


def test_without_a_name_the_function_gives_it_and_what_is_no_function_is_left_alone(bench):
    @sottovoce.tool
    def web_search():
        return 1

    class Thing:
        def __call__(self):
            return 2

    thing, cached, value = Thing(), functools.cache(len), property(len)
    for left in (Thing, thing, cached, value):
        assert sottovoce.tool("bash")(left) is left
        assert sottovoce.tool(left) is left
    assert web_search() == 1
    assert functools.partial(sottovoce.tool(functools.partial(plain, 1)))() == (
        1, "x", (), False, {}
    )  # fmt: skip
    assert [span.name for span in bench.spans][0] == "execute_tool web_search"


class Gone(KeyError):
    """One that can be referred to weakly."""


class Hostile(str):
    __slots__ = ()

    def __str__(self):
        raise AssertionError("asked")

    __len__ = __eq__ = __hash__ = __format__ = __repr__ = __str__


class Unspeakable:
    def __str__(self):
        raise AssertionError("asked")

    __repr__ = __eq__ = __hash__ = __str__


NAMES = [
    CANARY, f"a {CANARY}\n" * 99, "\ud800", "\x00", "ü" * 128, "", Hostile("bash"),
    Unspeakable(), None, 7, b"bash", ["bash"],
]  # fmt: skip


@pytest.mark.parametrize("which", range(len(NAMES)))
def test_any_name_does_no_harm_and_says_nothing(bench, which):
    name = NAMES[which]
    with sottovoce.tool(name), sottovoce.agent(name), sottovoce.conversation(name):
        bench.call()
    sottovoce.tool(name)(len)("abc")
    for span in bench.spans:
        shown = span.attributes.get("gen_ai.tool.name", span.attributes.get("gen_ai.agent.name"))
        assert shown is None or shown == "bash" or re.fullmatch("[0-9a-f]{12}", shown)
    assert len(bench.spans) == 4


def test_a_generator_s_span_lasts_as_long_as_it_runs_and_is_current_only_inside(bench):
    @sottovoce.tool("bash")
    def work():
        bench.call()
        yield 1
        bench.call()
        yield 2

    made = work()
    assert bench.spans == ()
    assert next(made) == 1
    assert steps.current_step.get() is None
    bench.call()
    assert list(made) == [2]
    first, outside, second, tool = bench.spans
    assert tool.name == "execute_tool bash"
    assert first.parent.span_id == second.parent.span_id == tool.context.span_id
    assert outside.parent is None


def test_an_async_generator_s_span_is_current_only_inside(bench):
    @sottovoce.tool("bash")
    async def work():
        bench.call()
        yield 1
        await asyncio.sleep(0)
        bench.call()
        yield 2

    async def main():
        async for _ in work():
            assert steps.current_step.get() is None
            bench.call()

    asyncio.run(main())
    tool = bench.spans[-1]
    parents = [span.parent and span.parent.span_id for span in bench.spans]
    inside = tool.context.span_id
    assert parents == [inside, None, inside, None, None]


def test_generators_that_interleave_do_not_mix(bench):
    @sottovoce.tool("bash")
    def work():
        for _ in range(3):
            bench.call()
            yield

    one, other = work(), work()
    for _ in range(3):
        next(one)
        next(other)
    assert list(one) == list(other) == []
    *calls, first, second = bench.spans
    parents = [span.parent.span_id for span in calls]
    assert parents == [first.context.span_id, second.context.span_id] * 3


def test_a_generator_that_never_starts_is_nothing(bench):
    made = generator(3)
    made.close()
    del made
    asyncio.run(unstarted())
    gc.collect()
    assert bench.spans == ()


async def unstarted():
    await async_generator(3).aclose()
    coroutine(1).close()


def test_a_generator_that_is_dropped_is_abandoned_and_cleans_up_within_its_span(bench):
    cleaned = []

    @sottovoce.tool("bash")
    def work():
        try:
            yield 1
            yield 2
        finally:
            bench.call()
            cleaned.append(steps.current_step.get() is not None)

    made = work()
    next(made)
    made.close()
    for _ in work():
        break
    gc.collect()
    dropped.stop_all()
    assert cleaned == [True, True]
    tools = [span for span in bench.spans if span.name == "execute_tool bash"]
    assert [outcome(span) for span in tools] == ["abandoned"] * 2
    assert {span.status.status_code for span in tools} == {StatusCode.UNSET}


def test_a_generator_in_a_cycle_is_found_by_the_collector_and_ends(bench):
    made = generator(3)
    next(made)
    cycle = [made]
    cycle.append(cycle)
    del made, cycle
    gc.collect()
    dropped.stop_all()
    assert outcome(bench.span) == "abandoned"


def test_what_is_thrown_into_a_generator_reaches_it(bench):
    @sottovoce.tool("bash")
    def work():
        try:
            yield 1
        except KeyError as error:
            yield error

    made = work()
    next(made)
    thrown = KeyError(CANARY)
    assert made.throw(thrown) is thrown
    other = ValueError(CANARY)
    with pytest.raises(ValueError, match=CANARY) as raised:
        made.throw(other)
    assert raised.value is other
    assert outcome(bench.span) == "failed"


def test_an_async_generator_is_thrown_into_sent_to_and_closed(bench):
    @sottovoce.tool("bash")
    async def work():
        try:
            got = yield 1
            assert got == "sent"
            yield 2
        except KeyError:
            yield 3

    async def main():
        made = work()
        assert await made.asend(None) == 1
        assert await made.asend("sent") == 2
        assert await made.athrow(KeyError(CANARY)) == 3
        await made.aclose()
        async for _ in work():
            break
        for _ in range(9):
            await asyncio.sleep(0)  # the loop closes it

    asyncio.run(main())
    assert [outcome(span) for span in bench.spans] == ["abandoned"] * 2


def test_nothing_that_passes_a_generator_is_kept(bench):
    class Thing:
        pass

    @sottovoce.tool("bash")
    def work():
        while True:
            try:
                thing = yield Thing()
                del thing
            except KeyError:
                pass

    gc.disable()
    try:
        made = work()
        yielded = weakref.ref(next(made))
        sent = Thing()
        was_sent = weakref.ref(sent)
        made.send(sent)
        del sent
        assert yielded() is None
        assert was_sent() is None
        failing = generator(1)
        next(failing)
        error = Gone()
        dead = weakref.ref(error)
        with pytest.raises(KeyError):
            failing.throw(error)
        del error, failing
        assert dead() is None
    finally:
        gc.enable()
    made.close()


def test_recursion_and_reuse_of_one_scope(bench):
    @sottovoce.tool("bash")
    def down(n):
        return n if n == 0 else down(n - 1)

    down(3)
    scope = sottovoce.agent("x")
    with scope, scope:
        bench.call()
    with scope:
        pass
    tools, (call, inner, outer, again) = bench.spans[:4], bench.spans[4:]
    for child, parent in zip(tools, tools[1:], strict=False):
        assert child.parent.span_id == parent.context.span_id
    assert call.parent.span_id == inner.context.span_id
    assert inner.parent.span_id == outer.context.span_id
    assert outer.parent is again.parent is None


def test_one_scope_in_many_threads_and_tasks(bench):
    scope = sottovoce.tool("bash")
    barrier = threading.Barrier(4, timeout=60)

    def work():
        with scope:
            barrier.wait()
            bench.call()
            barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    async def task():
        async with scope:
            await asyncio.sleep(0)
            bench.call()
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*(task() for _ in range(4)))

    asyncio.run(main())
    calls = [span for span in bench.spans if span.name.startswith("chat")]
    tools = [span for span in bench.spans if not span.name.startswith("chat")]
    assert {s.parent.span_id for s in calls} == {s.context.span_id for s in tools}
    assert len(tools) == 8
    assert {s.parent for s in tools} == {None}


def test_a_cancelled_task_is_cancelled(bench):
    @sottovoce.agent("bash")
    async def work():
        await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert outcome(bench.span) == "cancelled"


def test_scopes_that_are_left_in_another_order_leave_nothing_behind(bench):
    one, other = sottovoce.tool("bash"), sottovoce.agent("x")
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    other.__exit__(None, None, None)
    other.__exit__(None, None, None)
    assert len(bench.spans) == 2


def test_a_coroutine_that_is_closed_elsewhere_ends_and_disturbs_nobody(bench):
    @sottovoce.tool("bash")
    async def work():
        await asyncio.sleep(60)

    made = work()

    def start():
        made.send(None)

    async def main():
        contextvars.copy_context().run(start)
        with sottovoce.agent("x"):
            made.close()
            bench.call()

    asyncio.run(main())
    tool, call, agent = bench.spans
    assert outcome(tool) == "abandoned"
    assert call.parent.span_id == agent.context.span_id


def test_a_conversation_reaches_model_calls_and_agents_inside(bench):
    with sottovoce.conversation(f"c-{CANARY}"):
        bench.call()
        with sottovoce.agent("x"), sottovoce.tool("bash"):
            bench.call()
        with sottovoce.conversation("another"):
            bench.call()
        thread = threading.Thread(target=bench.call)
        thread.start()
        thread.join(60)
        thread = threading.Thread(target=contextvars.copy_context().run, args=(bench.call,))
        thread.start()
        thread.join(60)
        asyncio.run(in_a_task(bench.call))
    bench.call()
    ids = [span.attributes.get("gen_ai.conversation.id") for span in bench.spans]
    first = ids[0]
    assert re.fullmatch("[0-9a-f]{16}", first)
    # call, call, tool, agent, nested, thread, thread with the context, task, after
    assert [shown == first for shown in ids] == [
        True, True, False, True, False, False, True, True, False
    ]  # fmt: skip
    assert ids[2] is ids[5] is ids[8] is None
    assert ids[4] not in {None, first}


async def in_a_task(work):
    async def task():
        work()

    await asyncio.create_task(task())


def test_a_conversation_may_be_named_by_a_number_or_a_uuid(bench):
    key = uuid.UUID(int=17)

    class Unhashed(type):
        def __hash__(cls):
            raise RuntimeError

    strange = Unhashed("strange", (), {})()
    odd = (strange, True, None, 1.5, b"17", 10**5000, object(), uuid.UUID.__new__(uuid.UUID))
    for name in ("17", 17, str(key), key, *odd):
        with sottovoce.conversation(name):
            bench.call()
    told = [span.attributes.get("gen_ai.conversation.id") for span in bench.spans]
    assert told[0] == told[1] != told[2] == told[3] is not None
    assert told[4:] == [None] * len(odd)


def test_a_conversation_is_not_offered_to_metrics(bench):
    before = dict(bench.steps._policy.dropped)
    with sottovoce.conversation("c-1"), sottovoce.agent("clerk"):
        pass
    new = {key for key, count in bench.steps._policy.dropped.items() if before.get(key) != count}
    assert ("metric", "unknown") not in new


def test_one_conversation_object_in_many_tasks(bench):
    conversation = sottovoce.conversation("c-1")

    async def task():
        with conversation:
            await asyncio.sleep(0)
            bench.call()
        bench.call()

    async def other_task():
        async with conversation, sottovoce.agent("clerk"):
            await asyncio.sleep(0)
            bench.call()
        bench.call()

    async def main():
        await asyncio.gather(task(), task())

    asyncio.run(main())
    assert [span.attributes.get("gen_ai.conversation.id") is None for span in bench.spans] == [
        False, True, False, True
    ]  # fmt: skip
    asyncio.run(other_task())
    assert [span.attributes.get("gen_ai.conversation.id") is None for span in bench.spans[4:]] == [
        False, False, True
    ]  # fmt: skip
    with conversation, pytest.raises(ValueError, match="boom"):
        raise ValueError("boom")
    assert steps.current_conversation.get() is None


def test_instrumentation_that_is_suppressed_records_nothing(bench):
    with suppress_instrumentation(), sottovoce.tool("bash"):
        assert plain(1)
    assert bench.spans == ()


def test_with_nothing_instrumented_nothing_happens():
    with sottovoce.tool("bash"), sottovoce.agent("x"), sottovoce.conversation("c"):
        assert plain(1)[0] == 1
        assert list(generator(2)) == [0, 1]
    assert steps.current_step.get() is None


def test_with_nothing_instrumented_nothing_is_imported_for_it():
    code = """
import sottovoce, sys
@sottovoce.tool("bash")
def run(): pass
with sottovoce.agent("x"), sottovoce.conversation("c"): run()
assert not {"wrapt", "opentelemetry", "asyncio", "logging.config"} & set(sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_forked_child_ends_none_of_its_parent_s(bench):
    with sottovoce.tool("bash"):
        child = os.fork()
    if not child:
        os._exit(len(bench.spans))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bench.span.name == "execute_tool bash"


def test_through_the_gate_it_is_the_same():
    chosen = Settings(allow=("tool:find_books",))
    gate, exporter = policy.activate(chosen), InMemorySpanExporter()
    tracers = gated_tracer_provider(gate, shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    recorder = StepRecorder(tracers, MeterProvider(), chosen)
    steps.source.add(make := lambda: recorder)
    try:
        with sottovoce.conversation(CANARY), sottovoce.agent(CANARY), sottovoce.tool("find_books"):
            pass
    finally:
        steps.source.remove(make)
        policy.activate(Settings())
    tool, agent = exporter.get_finished_spans()
    assert tool.name == "execute_tool find_books"
    assert re.fullmatch("invoke_agent [0-9a-f]{12}", agent.name)
    assert re.fullmatch("[0-9a-f]{16}", agent.attributes["gen_ai.conversation.id"])
    assert agent.attributes["sottovoce.call.outcome"] == "completed"


def test_a_recorder_that_breaks_is_not_noticed():
    class Broken:
        def __getattr__(self, name):
            raise RuntimeError(name)

    def broken():
        raise RuntimeError("no")

    for make in (broken, Broken):
        steps.source.add(make)
        try:
            assert plain(1)[0] == 1
            assert list(generator(2)) == [0, 1]
            assert asyncio.run(drain(async_generator(2))) == [0, 1]
            with sottovoce.tool("bash"):
                pass
        finally:
            steps.source.remove(make)
    assert guard.failures


def test_any_instrumentor_makes_them_record_until_it_is_undone():
    bench = Bench()
    instrumentor = HTTPXInstrumentor()
    instrumentor.instrument(
        tracer_provider=bench.tracers, meter_provider=bench.meters, settings=Settings()
    )
    try:
        plain(1)
    finally:
        instrumentor.uninstrument()
    plain(1)
    assert bench.span.name == "execute_tool bash"


def test_many_runs_leave_no_memory_behind(bench):
    bench.exporter.shutdown()
    for _ in range(50):
        plain(1)
        list(generator(2))
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(500):
        plain(1)
        list(generator(2))
        asyncio.run(drain(async_generator(1))) if _ % 100 == 0 else None
    gc.collect()
    assert len(gc.get_objects()) - before < 200

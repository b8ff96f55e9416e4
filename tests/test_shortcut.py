"""A span that is started and ended the short way is as the SDK would have started and ended it."""

import copy
import functools
import itertools

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    Decision,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    SamplingResult,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from sottovoce import guard, spans
from sottovoce.privacy import gate
from sottovoce.privacy.policy import Policy
from sottovoce.settings import Settings
from sottovoce.shortcut import Shortcut, shortcut_of

SAID = {"gen_ai.operation.name": "chat", "server.port": 443}


class Counting(RandomIdGenerator):
    """Ids that two providers make alike."""

    def __init__(self, *, random=True):
        self.numbers = itertools.count(1)
        self.random = random

    def generate_trace_id(self):
        return next(self.numbers)

    def generate_span_id(self):
        return next(self.numbers)

    def is_trace_id_random(self):
        return self.random


def under(flags, *, remote, state=None):
    context = SpanContext(7, 8, is_remote=remote, trace_flags=TraceFlags(flags), trace_state=state)
    return set_span_in_context(NonRecordingSpan(context), Context())


PARENTS = {
    "root": Context(),
    "invalid": set_span_in_context(INVALID_SPAN, Context()),
    **{
        f"{'remote' if remote else 'local'} {flags}": under(flags, remote=remote)
        for remote in (True, False)
        for flags in (0, 1, 2, 3)
    },
    "with state": under(1, remote=True, state=TraceState([("a", "b")])),
}


class Named(Sampler):
    """An app's own."""

    def should_sample(self, parent_context, trace_id, name, *_, **__):
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {"seen": name})

    def get_description(self):
        return "Named"


SAMPLERS = {
    "on": (ALWAYS_ON, True),
    "off": (ALWAYS_OFF, False),
    "recorded alone": (StaticSampler(Decision.RECORD_ONLY), False),
    "parent": (DEFAULT_ON, True),
    "ratio": (TraceIdRatioBased(0.5), False),
    "parent ratio": (ParentBasedTraceIdRatio(0.5), True),
    "parent, children off": (ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF), False),
    "the app's": (Named(), False),
}
TOLD = {"_name", "_context", "_kind", "_parent", "_start_time", "_end_time", "_limits"}
LIMITS = [SpanLimits(), SpanLimits(max_span_attributes=1, max_events=1, max_links=1)]


def bench(sampler, limits=LIMITS[0], *, random=True):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(
        sampler, Resource({"service.name": "a"}), span_limits=limits,
        id_generator=Counting(random=random),
    )  # fmt: skip
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def lived(span):
    """Do to a span what can be done to one."""
    span.set_attribute("a", 1)
    span.set_attributes({"b": ["x", "y"], "c": 2.5, "d": 1 + 2j})
    for name in ("first", "second"):
        span.add_event(name, {"k": "v"}, timestamp=5)
    span.add_link(SpanContext(1, 2, is_remote=True), {"k": "v"})
    span.update_name("renamed")
    span.record_exception(ValueError("x"), timestamp=6)
    span.set_status(Status(StatusCode.ERROR, "why"))
    during = {key: repr(value) for key, value in vars(span).items() if key in TOLD}
    span.end(9)
    span.end(10)
    span.set_attribute("late", 1)
    return during, span.is_recording()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("random", [True, False])
def test_a_span_is_as_its_tracer_would_have_started_it(sampler, parent, limits, random):
    made, told = [], []
    for short in (True, False):
        provider, exporter = bench(SAMPLERS[sampler][0], limits, random=random)
        tracer = provider.get_tracer("app", "1")
        if short:
            ours = spans.Spans(tracer, Policy(Settings()))
            ours.begin("before", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
            provider.id_generator.numbers = itertools.count(1)
            span, _ = ours.begin("n", SAID, PARENTS[parent], kind=SpanKind.CLIENT, start_ns=3)
        else:
            span = tracer.start_span(
                "n", PARENTS[parent], kind=SpanKind.CLIENT, attributes=SAID, start_time=3
            )
        made.append(vars(span).keys())
        told.append((lived(span), [each.to_json() for each in exporter.get_finished_spans()]))
    assert made[0] == made[1]
    assert told[0] == told[1]


def test_a_span_without_events_holds_no_room_for_them():
    provider, exporter = bench(ALWAYS_ON)
    ours = spans.Spans(provider.get_tracer("app"), Policy(Settings()))
    span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    copied = copy.deepcopy(span._links)
    assert (len(span._events), list(span._links), list(copied)) == (0, [], [])
    span.end()
    [ended] = exporter.get_finished_spans()
    assert "_dq" not in vars(ended._events)
    assert (ended.events, ended.dropped_events) == ((), 0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_which_samplers_need_not_be_asked(sampler):
    chosen, known = SAMPLERS[sampler]
    assert (shortcut_of(bench(chosen)[0].get_tracer("app")) is not None) is known


@pytest.mark.parametrize("gated", [True, False])
def test_who_looks_at_a_span_when_it_starts_sees_it_started(gated):
    class Looking(SpanProcessor):
        seen = ()

        def on_start(self, span, parent_context=None):
            self.seen += (dict(span.attributes),)

    policy, looking = Policy(Settings()), Looking()
    provider = gate.gated_tracer_provider(policy) if gated else TracerProvider()
    ours = spans.Spans(provider.get_tracer("app"), policy)
    ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    provider.add_span_processor(looking)
    ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    assert looking.seen == (SAID,)


def test_a_tracer_that_is_switched_off_starts_none():
    provider, _ = bench(ALWAYS_ON)
    tracer = provider.get_tracer("app")
    ours = spans.Spans(tracer, Policy(Settings()))
    for enabled in (True, False):
        tracer._tracer_config.is_enabled = enabled
        span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
        assert span.is_recording() is enabled


def test_a_resource_that_changes_is_that_of_the_next_span():
    # As after a fork.
    provider, exporter = bench(ALWAYS_ON)
    ours = spans.Spans(provider.get_tracer("app"), Policy(Settings()))
    for number in (1, 2):
        span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
        span.end()
        provider._update_resource(Resource({"process.pid": number}))
    assert [
        span.resource.attributes.get("process.pid") for span in exporter.get_finished_spans()
    ] == [
        None,
        1,
    ]


def test_a_span_of_another_make_is_left_to_its_tracer():
    class Odd:
        sampler = ALWAYS_ON

        class _tracer_metrics:  # noqa: N801 - as the SDK calls it
            pass

    assert shortcut_of(Odd()) is None
    assert shortcut_of(object()) is None


@pytest.mark.parametrize(("owner", "method"), [("Tracer", "start_span"), ("Span", "start")])
def test_what_others_put_around_a_spans_start_is_run(owner, method, monkeypatch):
    started, kind = [], getattr(sdk, owner)
    original = getattr(kind, method)

    @functools.wraps(original)
    def around(self, *args, **kwargs):
        started.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(kind, method, around)
    ours = spans.Spans(bench(ALWAYS_ON)[0].get_tracer("app"), Policy(Settings()))
    span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    assert started
    assert dict(span.attributes) == SAID


@pytest.mark.parametrize("of_all", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_what_others_put_around_a_tracer_is_run_for_each_span(of_all, late, monkeypatch):
    names, original = [], sdk.Tracer.start_span
    tracer = bench(ALWAYS_ON)[0].get_tracer("app")
    ours = spans.Spans(tracer, Policy(Settings()))

    def around(*args, **kwargs):
        names.append(args[-1])
        return original(*(args if of_all else (tracer, *args)), **kwargs)

    if late:
        ours.begin("before", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    monkeypatch.setattr(sdk.Tracer if of_all else tracer, "start_span", around)
    for name in ("one", "two"):
        ours.begin(name, SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    assert names == ["one", "two"]


LAST = {"gen_ai.usage.input_tokens": 7, "gen_ai.response.finish_reasons": ("stop",), "what": "no"}


def gated_bench(limits=LIMITS[0]):
    """A gated provider with the policy's drops, and what it exports."""
    policy, exporter = Policy(Settings(key="k" * 32)), InMemorySpanExporter()
    provider = gate.gated_tracer_provider(
        policy, span_limits=limits, id_generator=Counting(), resource=Resource({})
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return policy, provider, exporter


def nothing(span):
    pass


def looked_after(span):
    span.set_attributes({"server.port": 1, "mine": "secret"})
    span.add_event("exception", {"exception.type": "ValueError"}, timestamp=5)
    span.add_event("mine", timestamp=6)
    span.add_link(SpanContext(1, 2, is_remote=True), {"k": "v"})
    span.update_name("renamed")
    span.set_status(Status(StatusCode.ERROR, "why"))


def ended_by_the_app(span):
    span.end(4)


def wrapped_itself(span):
    end = span.end
    span.end = lambda end_time=None: end(end_time + 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limits", [*LIMITS, SpanLimits(max_span_attributes=3)])
@pytest.mark.parametrize("live", [nothing, looked_after, ended_by_the_app, wrapped_itself])
def test_a_span_leaves_as_if_the_sdk_had_ended_it(live, limits, monkeypatch):
    told = []
    for short in (True, False):
        policy, provider, exporter = gated_bench(limits)
        ours = spans.Spans(provider.get_tracer("sottovoce", "1"), policy)
        with monkeypatch.context() as patch:
            if not short:
                patch.setattr(Shortcut, "end", lambda *_: False)
            span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
            live(span)
            ours.end(span, LAST, SAID, 3, 6)
        late = dict(span.attributes)
        span.set_attribute("late", 1)
        span.add_event("late")
        with pytest.raises(TypeError):
            span._attributes["later"] = 1
        told.append(
            (
                [each.to_json() for each in exporter.get_finished_spans()],
                policy.dropped,
                (late, dict(span.attributes), span.end_time, span.is_recording()),
                span.to_json(),
                (span.dropped_events, span.dropped_links),
            )
        )
    assert told[0] == told[1]
    assert len(told[0][0]) == 1


def test_a_span_of_ours_is_ended_without_the_sdks_copy(monkeypatch):
    policy, provider, exporter = gated_bench()
    ours = spans.Spans(provider.get_tracer("sottovoce"), policy)
    span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    monkeypatch.setattr(type(span), "_readable_span", None)
    ours.end(span, LAST, SAID, 3, 6)
    assert len(exporter.get_finished_spans()) == 1


def test_who_looks_at_a_span_that_ends_sees_it():
    class Looking(SpanProcessor):
        seen = None

        def _on_ending(self, span):
            self.seen = dict(span.attributes)

    policy, provider, exporter = gated_bench()
    looking = Looking()
    ours = spans.Spans(provider.get_tracer("sottovoce"), policy)
    span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    # Also who comes while it lasts.
    provider.add_span_processor(looking)
    ours.end(span, LAST, SAID, 3, 6)
    [ended] = exporter.get_finished_spans()
    assert looking.seen == dict(ended.attributes)


@pytest.mark.parametrize("late", [True, False])
def test_what_others_put_around_a_spans_end_is_run(late, monkeypatch):
    ended, original = [], sdk.Span.end

    def around(self, *args, **kwargs):
        ended.append(self)
        return original(self, *args, **kwargs)

    policy, provider, exporter = gated_bench()
    ours = spans.Spans(provider.get_tracer("sottovoce"), policy)
    if not late:
        monkeypatch.setattr(sdk.Span, "end", around)
    span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    if late:
        monkeypatch.setattr(sdk.Span, "end", around)
    ours.end(span, LAST, SAID, 3, 6)
    assert ended == [span]
    assert len(exporter.get_finished_spans()) == 1


def test_a_span_that_began_before_the_gate_came_passes_it():
    policy, exporter = Policy(Settings(key="k" * 32)), InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    ours = spans.Spans(provider.get_tracer("sottovoce"), policy)
    span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    gate.gate_in_place(policy, provider)
    ours.begin("another", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    ours.end(span, LAST, SAID, 3, 6)
    [ended] = exporter.get_finished_spans()
    assert ended.attributes.keys() == SAID.keys() | LAST.keys() - {"what"}


def test_who_took_a_spans_processors_place_is_told():
    class Instead(SpanProcessor):
        ended = ()

        def on_end(self, span):
            self.ended += (span.name,)

    policy, provider, exporter = gated_bench()
    ours = spans.Spans(provider.get_tracer("sottovoce"), policy)
    span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    span._span_processor = instead = Instead()
    ours.end(span, LAST, SAID, 3, 6)
    assert instead.ended == ("n",)
    assert not exporter.get_finished_spans()


def test_a_span_whose_attributes_somebody_replaced_ends_all_the_same():
    class Theirs(dict):
        def _set_items(self, attributes):
            self.update(attributes)

    policy, provider, exporter = gated_bench()
    ours = spans.Spans(provider.get_tracer("sottovoce"), policy)
    span, _ = ours.begin("n", SAID, Context(), kind=SpanKind.CLIENT, start_ns=3)
    span._attributes = Theirs(span.attributes)
    before = guard.failures["spans.end"]
    ours.end(span, LAST, SAID, 3, 6)
    assert not span.is_recording()
    [ended] = exporter.get_finished_spans()
    assert ended.attributes["gen_ai.usage.input_tokens"] == 7
    assert guard.failures["spans.end"] == before + 1

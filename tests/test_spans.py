"""What we say where nobody gates the providers: no more than the profile lets leave."""

from __future__ import annotations

import weakref
from functools import partial
from time import time_ns

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)

from sottovoce import guard
from sottovoce.privacy import policy
from sottovoce.privacy.gate import gated_tracer_provider
from sottovoce.privacy.gated import is_gated
from sottovoce.record import SpanRecorder
from sottovoce.record_requests import RequestRecorder
from sottovoce.record_steps import StepRecorder
from sottovoce.runtimes.asgi import ServedRequest
from sottovoce.settings import Settings
from sottovoce.steps import Step
from test_record import Bench

pytestmark = pytest.mark.usefixtures("no_policy")

# What an app may give where a number is expected.
PHONE = 491701234567


def asked(bench, **facts):
    call = bench.call(model="acme/secret", address="gpu.acme.internal", port=8123, local=True)
    call.facts.update(input_tokens=1234, output_tokens=7, **facts)
    call.end()


def test_numbers_that_nothing_can_have_meant_stay():
    bench = Bench()
    asked(
        bench,
        request_max_tokens=PHONE**3,
        request_temperature=float(PHONE),
        request_top_k=-PHONE,
        request_top_p=0.5,
    )
    told = bench.span.attributes
    assert told["gen_ai.usage.input_tokens"] == 1234
    assert told["gen_ai.request.top_p"] == 0.5
    assert not any(str(PHONE) in str(value) for value in told.values())


def test_strict_has_buckets_and_names_no_host():
    bench = Bench(profile="strict")
    asked(bench)
    told = bench.span.attributes
    assert told["gen_ai.usage.input_tokens"] == 4096
    assert (told["server.address"], "server.port" in told) == ("private", False)
    assert {point.attributes.get("server.address") for point in of_calls(bench)} == {"private"}


def test_aggregate_has_metrics_without_models_and_no_spans():
    bench = Bench(profile="aggregate")
    with bench.tracers.get_tracer("app").start_as_current_span("own") as own:
        call = bench.call(model="acme/secret")
        token = bench.recorder.enter(call)
        # What the app says of its own span meanwhile is still said of it.
        assert trace.get_current_span() is own
        bench.recorder.leave(token)
        call.end()
    assert [span.name for span in bench.spans.get_finished_spans()] == ["own"]
    points = of_calls(bench)
    assert points
    assert not any("gen_ai.request.model" in point.attributes for point in points)


def of_calls(bench):
    return bench.points()["gen_ai.client.operation.duration"]


def test_off_has_nothing_at_all():
    bench = Bench(profile="off")
    assert not bench.recorder.enabled()
    asked(bench)
    assert not bench.spans.get_finished_spans()
    assert "sottovoce.gate.dropped" not in bench.points()


@pytest.mark.parametrize("profile", ["aggregate", "strict", "standard"])
def test_the_others_are_recorded(profile):
    assert Bench(profile=profile).recorder.enabled()


@pytest.mark.parametrize("profile", ["off", "aggregate"])
def test_steps_have_no_spans_either(profile):
    bench = Bench()
    policy._active.clear()
    recorder = StepRecorder(bench.tracers, bench.meters, Settings(profile=profile))
    Step(recorder, kind="tool", name="secret").end()
    assert not bench.spans.get_finished_spans()


def test_the_gate_is_known_by_its_spans():
    gated = gated_tracer_provider(policy.activate(Settings()))
    assert is_gated(gated.get_tracer("x").start_span("x"))
    assert is_gated(trace.INVALID_SPAN)
    assert not is_gated(TracerProvider().get_tracer("x").start_span("x"))


class Looking(Sampler):
    """Asks the SDK's sampler, and remembers what it was told."""

    def __init__(self):
        self.told = []

    def should_sample(
        self, parent_context, trace_id, name, kind=None, attributes=None, links=None, **of
    ):
        self.told.append(dict(attributes or {}))
        return ALWAYS_ON.should_sample(
            parent_context, trace_id, name, kind, attributes, links, **of
        )

    def get_description(self):
        return "looking"


class AtStart(SpanProcessor):
    """Remembers what a span says when it starts."""

    def __init__(self):
        self.told = []

    def on_start(self, span, parent_context=None):
        self.told.append(dict(span.attributes))


@pytest.mark.parametrize("below", [False, True], ids=["itself", "in a ParentBased"])
def test_a_sampler_is_told_what_a_span_starts_with(below):
    looking = Looking()
    bench = Bench(sampler=ParentBased(looking) if below else looking)
    bench.call(model="acme/secret").end()
    (told,) = looking.told
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"].startswith("h:")


@pytest.mark.parametrize(
    "make", [lambda _: TracerProvider(), gated_tracer_provider], ids=["bare", "gated"]
)
def test_a_processor_is_told_what_a_span_starts_with(make):
    bench = Bench()
    bench.tracers = make(bench.recorder._policy)
    at_start = AtStart()
    bench.tracers.add_span_processor(SimpleSpanProcessor(bench.spans))
    bench.recorder = type(bench.recorder)(bench.tracers, bench.meters, Settings())
    bench.call().end()
    # One that comes later is told as well.
    bench.tracers.add_span_processor(at_start)
    bench.call().end()
    (told,) = at_start.told
    assert told["gen_ai.operation.name"] == "chat"
    assert told["server.address"] == "api.openai.com"


def test_a_method_put_on_a_processor_is_a_processor_that_looks():
    bench = Bench()
    told = []
    processor = SimpleSpanProcessor(bench.spans)
    processor.on_start = lambda span, parent_context=None: told.append(dict(span.attributes))
    bench.tracers.add_span_processor(processor)
    bench.call().end()
    assert told[0]["gen_ai.operation.name"] == "chat"


@pytest.mark.parametrize(
    ("sampler", "kept"),
    [(ALWAYS_ON, 1), (ALWAYS_OFF, 0), (TraceIdRatioBased(1.0), 1), (ParentBased(ALWAYS_OFF), 0)],
    ids=["on", "off", "ratio", "parent"],
)
def test_the_sdks_samplers_decide_as_ever(sampler, kept):
    bench = Bench(sampler=sampler)
    bench.call().end()
    spans = bench.spans.get_finished_spans()
    assert len(spans) == kept
    assert all(span.attributes["gen_ai.operation.name"] == "chat" for span in spans)
    assert not guard.failures


def test_an_open_span_says_what_it_started_with():
    bench = Bench()
    call = bench.call()
    assert call.handle.span.attributes["gen_ai.provider.name"] == "openai"
    call.end()


@pytest.fixture
def untightened(monkeypatch):
    """What a test tightens is loose again after it."""
    monkeypatch.setattr(policy, "_tightest", policy._tightest)
    monkeypatch.setattr(policy, "_policies", weakref.WeakSet())


def begun(bench, kind):
    """Give what ends something that has begun, and was told exactly."""
    host = {"address": "gpu.acme.internal", "port": 8123, "local": True}
    if kind == "call":
        return bench.call(model="acme/secret", **host).end
    if kind == "step":
        recorder = StepRecorder(bench.tracers, bench.meters)
        return Step(recorder, kind="mcp_client", method="tools/call", name="secret", **host).end
    if kind == "request":
        recorder = RequestRecorder(bench.tracers, bench.meters)
        return ServedRequest(recorder, "POST", "/v1/chat/completions", "http", {}).end
    loading = bench.recorder.loading("mlx")
    return partial(bench.recorder.loaded, "mlx", {}, 1.25, None, loading)


@pytest.mark.parametrize("kind", ["call", "step", "request", "load"])
@pytest.mark.parametrize("profile", ["strict", "aggregate", "off"])
@pytest.mark.usefixtures("untightened")
def test_what_began_before_the_policy_was_tightened_does_not_leave(profile, kind):
    bench = Bench()
    end = begun(bench, kind)
    policy.tighten(profile)
    end()
    assert not bench.spans.get_finished_spans()
    assert bench.recorder._policy.dropped["span", "off"] == 1
    points = [each for name in bench.points() for each in bench.points()[name]]
    assert not any("server.port" in point.attributes for point in points)
    assert not points if profile == "off" else not any(point.exemplars for point in points)
    while time_ns() <= bench.recorder._policy.choice.now.since_ns:
        pass  # a clock may tick slowly
    begun(bench, kind)()
    assert len(bench.spans.get_finished_spans()) == (profile == "strict")


@pytest.mark.usefixtures("untightened")
def test_behind_a_gate_what_began_before_leaves_as_it_may_now():
    judge = policy.activate(Settings())
    exporter = InMemorySpanExporter()
    bench = Bench()
    bench.tracers = gated_tracer_provider(judge, shutdown_on_exit=False)
    bench.tracers.add_span_processor(SimpleSpanProcessor(exporter))
    bench.recorder = SpanRecorder(bench.tracers, bench.meters)
    end = begun(bench, "call")
    policy.tighten("strict")
    end()
    (span,) = exporter.get_finished_spans()
    assert (span.attributes["server.address"], "server.port" in span.attributes) == (
        "private",
        False,
    )


@pytest.mark.parametrize("kind", ["call", "step", "load"])
@pytest.mark.parametrize("profile", ["strict", "aggregate"])
def test_where_numbers_are_coarse_no_exemplar_tells_whose_they_are(profile, kind):
    bench = Bench(profile=profile)
    with bench.tracers.get_tracer("app").start_as_current_span("own"):
        begun(bench, kind)()
    points = [each for found in bench.points().values() for each in found]
    durations = [point for point in points if hasattr(point, "bucket_counts")]
    assert durations
    for point in durations:
        assert not point.exemplars
        assert point.attributes.get("server.address", "private") == "private"
        assert "server.port" not in point.attributes


@pytest.mark.parametrize("kind", ["call", "step", "request", "load"])
@pytest.mark.parametrize("coarse", [True, False])
def test_times_are_as_coarse_as_the_operator_asks_for(coarse, kind):
    bench = Bench(profile="strict", coarse_span_times=coarse)
    begun(bench, kind)()
    times = bench.span.start_time, bench.span.end_time
    assert [time % 10**8 == 0 for time in times] == [coarse, coarse]

"""What we say where nobody gates the providers: no more than the profile lets leave."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from sottovoce.privacy import policy
from sottovoce.privacy.gate import gated_tracer_provider
from sottovoce.privacy.gated import is_gated
from sottovoce.record_steps import StepRecorder
from sottovoce.settings import Settings
from sottovoce.steps import Step
from test_record import Bench

# What an app may give where a number is expected.
PHONE = 491701234567


@pytest.fixture(autouse=True)
def no_policy_of_others():
    before = list(policy._active)
    policy._active.clear()
    yield
    policy._active[:] = before


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

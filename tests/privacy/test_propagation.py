import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sottovoce.privacy.propagation import WITHHOLD, GatedPropagator


@pytest.fixture
def gated(policy):
    inner = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
    return GatedPropagator(inner, policy)


@pytest.fixture
def carried():
    span = trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=False))
    return baggage.set_baggage("user.email", "bob", trace.set_span_in_context(span))


def test_nothing_is_injected_while_context_is_withheld(gated, carried, policy):
    headers = {}
    gated.inject(headers, context.set_value(WITHHOLD, True, carried))
    assert headers == {}
    assert policy.dropped == {("propagation", "withheld"): 1}
    token = context.attach(context.set_value(WITHHOLD, True, carried))
    try:
        gated.inject(headers)
    finally:
        context.detach(token)
    assert headers == {}


def test_otherwise_the_inner_propagator_injects(gated, carried):
    headers = {}
    gated.inject(headers, context.set_value(WITHHOLD, False, carried))
    assert set(headers) == {"traceparent", "baggage"} == gated.fields - {"tracestate"}


def test_extraction_is_the_inner_propagators(gated, carried):
    headers = {}
    gated.inject(headers, carried)
    found = gated.extract(headers)
    assert trace.get_current_span(found).get_span_context().trace_id == 7
    assert baggage.get_baggage("user.email", found) == "bob"


class Broken(TextMapPropagator):
    fields = frozenset()

    def extract(self, *_, **__):
        raise RuntimeError("canary")

    inject = extract


def test_an_error_of_the_inner_propagator_does_not_reach_the_app(policy, carried):
    broken = GatedPropagator(Broken(), policy)
    broken.inject({}, carried)
    assert broken.extract({}, carried) is carried
    assert broken.extract({}) == context.get_current()

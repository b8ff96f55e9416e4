import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sottovoce.privacy.propagation import WITHHOLD, GatedPropagator, caller


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


HEX = st.text("0123456789abcdef", max_size=32)
PARENTS = st.one_of(
    st.text(),
    st.from_regex(
        r"[ \t]?(00|01|ff|0g)-(0{32}|[0-9a-f]{31,33})-(0{16}|[0-9a-f]{15,17})-0?[0-3](-[0-9]*)?[ \t\n]?",
        fullmatch=True,
    ),
    st.builds(lambda trace, span: f"00-{trace:>032}-{span:>016}-01", HEX, HEX),
    st.just(f"00-{'a' * 32}-{'b' * 16}-01-{'c' * 500}"),
    st.just(f"01-{'a' * 32}-{'b' * 16}-01-{'c' * 400}"),
)


class Anyones(TextMapPropagator):
    """The app's own, which reads what OpenTelemetry's does."""

    fields = frozenset()

    def extract(self, carrier, context=None, getter=None):
        return TraceContextTextMapPropagator().extract(carrier, context, getter)

    def inject(self, carrier, context=None, setter=None):
        pass


@given(PARENTS, st.booleans())
def test_a_caller_is_the_same_read_at_once_or_by_a_propagator(parent, baggage_first):
    parts = [TraceContextTextMapPropagator(), W3CBaggagePropagator()]
    both = CompositePropagator(parts[::-1] if baggage_first else parts)
    headers = {"traceparent": parent, "tracestate": "a=secret", "baggage": "a=secret"}
    for quick in (both, GatedPropagator(both, None), parts[0]):
        found = caller(headers, quick).get_span_context()
        slowly = caller(headers, Anyones()).get_span_context()
        assert (found, found.is_valid) == (slowly, slowly.is_valid)
        assert not found.trace_state


def test_other_propagators_read_callers_themselves():
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "own": "c" * 16}

    class Own(Anyones):
        def extract(self, carrier, context=None, getter=None):
            ids = trace.SpanContext(int("d" * 32, 16), int(getter.get(carrier, "own")[0], 16), True)
            return trace.set_span_in_context(trace.NonRecordingSpan(ids), context)

    class Distrustful(Own, CompositePropagator):
        """What an app makes of OpenTelemetry's own, to be the first to look."""

    for by in (
        Own(),
        CompositePropagator([TraceContextTextMapPropagator(), Own()]),
        Distrustful([TraceContextTextMapPropagator()]),
    ):
        assert caller(headers, by).get_span_context().span_id == int("c" * 16, 16)
    alone = CompositePropagator([W3CBaggagePropagator()])
    assert not caller(headers, alone).get_span_context().is_valid
    assert not caller({}, TraceContextTextMapPropagator()).get_span_context().is_valid

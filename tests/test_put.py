"""Attributes that are set by the short way are what the SDK makes of them by its own."""

import pytest
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

from sottovoce import guard
from sottovoce.spans import put

CLEAN = {"a": "a long word", "b": 1, "c": 2.5, "d": True, "e": ("one", "another long word")}
ODD = {**CLEAN, "f": ["x"], "g": b"\xff", "h": None, "i": (1, 2), "j": ("x", None), "k": object()}


def started(**limits):
    tracers = TracerProvider(span_limits=SpanLimits(**limits))
    return tracers.get_tracer("app").start_span("call", attributes={"a": "before", "z": 0})


@pytest.mark.parametrize("attributes", [CLEAN, ODD], ids=["clean", "odd"])
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(
    "limits", [{}, {"max_span_attributes": 4}, {"max_span_attribute_length": 5}]
)
def test_a_span_gets_the_attributes_that_it_would_take(limits, ended, attributes):
    short, public = started(**limits), started(**limits)
    if ended:
        short.end()
        public.end()
    put(short, dict(attributes))
    public.set_attributes(dict(attributes))
    assert dict(short.attributes) == dict(public.attributes)
    assert short.dropped_attributes == public.dropped_attributes
    assert not guard.failures["spans.put"]


def test_a_span_of_somebody_elses_is_asked_itself():
    class Around:
        """As apps and tracers put around the SDK's."""

        def __init__(self, span):
            self.span, self.asked = span, []

        def __getattr__(self, name):
            return getattr(self.span, name)

        def set_attributes(self, attributes):
            self.asked.append(attributes)

    around = Around(started())
    put(around, CLEAN)
    assert around.asked == [CLEAN]
    assert dict(around.span.attributes) == {"a": "before", "z": 0}

"""What is set and recorded by the short way is what the SDK makes of it by its own."""

import math

import pytest
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics._internal import _MeterConfig
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

from sottovoce import guard
from sottovoce.call import CHUNK_BOUNDS_S, Gaps
from sottovoce.measure import Measured
from sottovoce.points import Point
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


@pytest.mark.parametrize("wanted", [True, False])
def test_extremes_are_recorded_for_an_operator_who_wants_them(wanted):
    reader = InMemoryMetricReader()
    aggregation = ExplicitBucketHistogramAggregation((1, 5), record_min_max=wanted)
    meters = MeterProvider(
        [reader], views=[View(instrument_type=Histogram, aggregation=aggregation)]
    )
    measured = Measured(meters.get_meter("app").create_histogram("h"))
    for value in (2.0, 7.0):
        measured.record(value, Point({}, Context()))
    [metric] = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    [point] = metric.data.data_points
    assert (point.min, point.max) == ((2.0, 7.0) if wanted else (math.inf, -math.inf))
    assert (point.sum, tuple(point.bucket_counts)) == (9.0, (0, 1, 1))


def test_a_reader_that_comes_while_a_measurement_looks_for_the_readers_gets_the_next():
    class Kept(set):
        """Names of attributes, by which a View meets a reader's coming."""

        meanwhile = None

        def __contains__(self, name):
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            return super().__contains__(name)

    kept = Kept({"k"})
    late = InMemoryMetricReader()
    meters = MeterProvider(
        [InMemoryMetricReader()], views=[View(instrument_name="h", attribute_keys=kept)]
    )
    measured = Measured(meters.get_meter("app").create_histogram("h"))

    def come():
        meters.add_metric_reader(late)
        measured.record(1.0, Point({"k": "another thread's"}, Context()))

    kept.meanwhile = come
    for _ in range(2):
        measured.record(1.0, Point({"k": "first"}, Context()))
    [metric] = late.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    assert {point.attributes["k"]: point.count for point in metric.data.data_points} == {
        "another thread's": 1,
        "first": 1,
    }


def many_gaps():
    gaps = Gaps()
    gaps.buckets[0], gaps.minimum, gaps.maximum = (10_000, 10**10), 10**6, 10**6
    return gaps


def switched_off(meters):
    meters.get_meter("app")._meter_config._config = _MeterConfig(is_enabled=False)
    return meters


@pytest.mark.parametrize(
    "make",
    [MeterProvider, lambda: switched_off(MeterProvider([InMemoryMetricReader()]))],
    ids=["no readers", "switched off"],
)
def test_what_goes_nowhere_is_not_recorded_gap_by_gap(make, monkeypatch):
    histogram = (
        make()
        .get_meter("app")
        .create_histogram("h", explicit_bucket_boundaries_advisory=CHUNK_BOUNDS_S)
    )
    recorded = []
    monkeypatch.setattr(histogram, "record", lambda *given: recorded.append(given))
    measured = Measured(histogram)
    measured.record_gaps(many_gaps(), Point({}, Context()))
    measured.record(1.0, Point({}, Context()))
    assert recorded == []


def test_another_providers_histogram_gets_every_gap_and_is_no_error_of_ours():
    before = guard.failures.copy()
    histogram = NoOpMeterProvider().get_meter("app").create_histogram("h")
    Measured(histogram).record_gaps(many_gaps(), Point({}, Context()))
    assert guard.failures == before

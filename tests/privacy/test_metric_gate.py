import pytest
from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, Histogram
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from opentelemetry.sdk.metrics.view import (
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource

from sottovoce.privacy.gate import gated_meter_provider, is_gated
from sottovoce.registry import METRICS

CANARY = "canary"
DURATION = "gen_ai.client.operation.duration"


@pytest.fixture
def gated(make_policy):
    def make(policy=None, **options):
        reader = InMemoryMetricReader()
        options.setdefault("resource", Resource({"service.name": "app", "host.name": CANARY}))
        provider = gated_meter_provider(
            policy or make_policy(), metric_readers=[reader], shutdown_on_exit=False, **options
        )
        return provider, reader

    return make


def metrics_of(reader):
    data = reader.get_metrics_data()
    if data is None:
        return {}
    assert CANARY not in data.to_json()
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_a_known_metric_leaves_as_the_registry_describes_it(gated):
    provider, reader = gated()
    histogram = provider.get_meter(CANARY, CANARY).create_histogram(DURATION, "s", CANARY)
    histogram.record(
        1.5, {"gen_ai.operation.name": "chat", "gen_ai.request.model": CANARY, CANARY: 1}
    )
    metric = metrics_of(reader)[DURATION]
    assert (metric.unit, metric.description) == ("s", METRICS[DURATION].description)
    (point,) = metric.data.data_points
    assert set(point.attributes) == {"gen_ai.operation.name", "gen_ai.request.model"}
    assert point.attributes["gen_ai.request.model"].startswith("h:")


def test_scope_and_resource_of_metrics_are_cleaned(gated):
    provider, reader = gated()
    provider.get_meter("sottovoce", "1").create_histogram(DURATION, "s").record(1)
    provider.get_meter(CANARY, CANARY, None, {"a": CANARY}).create_histogram(DURATION, "s").record(
        1
    )
    (resource,) = reader.get_metrics_data().resource_metrics
    assert set(resource.resource.attributes) == {"service.name", "sottovoce.key.id"}
    assert [(s.scope.name, s.scope.version) for s in resource.scope_metrics] == [
        ("sottovoce", "1"),
        ("_OTHER", None),
    ]


def test_a_metric_of_ones_own_leaves_only_when_allowed(gated, make_policy):
    policy = make_policy(allow=("metric:mine.*",))
    provider, reader = gated(policy)
    meter = provider.get_meter("x")
    meter.create_counter("mine.count", "{request}", CANARY).add(
        2, {"error.type": "500", "a": CANARY}
    )
    meter.create_counter("mine.odd", "{bob}").add(2)
    meter.create_counter(CANARY).add(1)
    found = metrics_of(reader)
    assert set(found) == {"mine.count", "mine.odd"}
    assert (found["mine.count"].unit, found["mine.odd"].unit) == ("{request}", "")
    assert found["mine.count"].description == ""
    (point,) = found["mine.count"].data.data_points
    assert (dict(point.attributes), point.value) == ({"error.type": "500"}, 2)
    assert policy.dropped[("metric", "unknown")] == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda meter: meter.create_counter(DURATION, "s").add(1),
        lambda meter: meter.create_gauge(DURATION, "s").set(1),
        lambda meter: meter.create_histogram(DURATION, "ms").record(1),
        lambda meter: meter.create_counter("http.server.active_requests", "{request}").add(1),
    ],
)
def test_a_known_name_with_another_instrument_or_unit_does_not_leave(gated, policy, make):
    provider, reader = gated(policy)
    make(provider.get_meter("x"))
    assert metrics_of(reader) == {}
    assert policy.dropped[("metric", "type")] == 1


def test_our_own_metrics_are_ours_to_make(gated, policy, failures):
    failures["import hook of sottovoce"] += 1
    provider, reader = gated(policy)
    for scope in ("sottovoce", "x"):
        counter = provider.get_meter(scope).create_counter("sottovoce.hook.errors", "{error}")
        counter.add(1, {"sottovoce.hook.place": f"import hook of {scope}"})
    (metric,) = metrics_of(reader).values()
    assert dict(metric.data.data_points[0].attributes) == {
        "sottovoce.hook.place": "import hook of sottovoce"
    }
    assert policy.dropped[("metric", "scope")] == 1


def points(reader, name):
    return list(metrics_of(reader)[name].data.data_points)


def test_sums_that_become_one_series_are_added(gated, make_policy):
    provider, reader = gated(make_policy(allow=("metric:mine",)))
    counter = provider.get_meter("x").create_counter("mine")
    counter.add(1, {"user": "a", "error.type": "500"})
    counter.add(2, {"user": "b", "error.type": "500"})
    counter.add(4, {"user": "b"})
    assert {(tuple(p.attributes), p.value) for p in points(reader, "mine")} == {
        (("error.type",), 3),
        ((), 4),
    }


def test_scopes_that_may_not_be_named_become_one_series_too(gated, make_policy):
    provider, reader = gated(make_policy(allow=("metric:mine",)))
    for scope in ("a", "b"):
        provider.get_meter(scope).create_counter("mine").add(3)
    (point,) = points(reader, "mine")
    assert point.value == 6


def test_histograms_are_merged_bucket_by_bucket(gated):
    view = View(
        instrument_name=DURATION, aggregation=ExplicitBucketHistogramAggregation((1.0, 2.0))
    )
    provider, reader = gated(views=[view])
    histogram = provider.get_meter("x").create_histogram(DURATION, "s")
    for user, seconds in (("a", 0.5), ("a", 1.5), ("b", 1.6), ("b", 9.0)):
        histogram.record(seconds, {"user": user})
    (point,) = points(reader, DURATION)
    assert list(point.bucket_counts) == [1, 2, 1]
    assert (point.count, point.sum, point.min, point.max) == (4, 12.6, 0.5, 9.0)


def test_exponential_histograms_are_merged_at_the_coarser_scale(gated, policy):
    view = View(
        instrument_name=DURATION,
        aggregation=ExponentialBucketHistogramAggregation(max_size=4, max_scale=1),
    )
    provider, reader = gated(policy, views=[view])
    histogram = provider.get_meter("x").create_histogram(DURATION, "s")
    for user, seconds in (("a", 3.0), ("a", 0.0), ("b", 3.0), ("b", 3.5), ("c", 3.0), ("c", 9.0)):
        histogram.record(seconds, {"user": user})
    (point,) = points(reader, DURATION)
    assert (point.count, point.sum, point.zero_count) == (6, 21.5, 1)
    assert (point.min, point.max) == (0.0, 9.0)
    # Scale 1 needs the buckets of 3.0 (index 3) to 9.0 (index 6): four, so no scale is changed.
    assert (point.scale, point.positive.offset) == (1, 3)
    assert list(point.positive.bucket_counts) == [4, 0, 0, 1]
    histogram.record(40.0, {"user": "d"})
    histogram.record(3.0, {"user": "d"})
    (point,) = points(reader, DURATION)
    # ... and 40.0 beside 3.0 makes "d" coarser by two steps: 1 to 4, to 16, to 64.
    assert (point.scale, point.positive.offset) == (-1, 0)
    assert list(point.positive.bucket_counts) == [5, 1, 1]
    assert point.count == 8


def test_histograms_of_other_bounds_are_not_merged(gated, policy):
    views = [
        View(
            instrument_name=DURATION,
            meter_name="a",
            aggregation=ExplicitBucketHistogramAggregation((1.0,)),
        ),
        View(
            instrument_name=DURATION,
            meter_name="b",
            aggregation=ExplicitBucketHistogramAggregation((2.0,)),
        ),
    ]
    provider, reader = gated(policy, views=views)
    for scope in ("a", "b"):
        provider.get_meter(scope).create_histogram(DURATION, "s").record(1.5)
    (point,) = points(reader, DURATION)
    assert point.count == 1 and policy.dropped[("metric", "merge")] == 1


def test_of_gauges_the_last_value_stays(gated, make_policy):
    provider, reader = gated(make_policy(allow=("metric:mine",)))
    gauge = provider.get_meter("x").create_gauge("mine")
    gauge.set(1, {"user": "a"})
    gauge.set(2, {"user": "b"})
    (point,) = points(reader, "mine")
    assert point.value == 2


def test_an_exemplar_keeps_the_ids_alone(gated):
    provider, reader = gated(
        exemplar_filter=AlwaysOnExemplarFilter(),
        views=[View(instrument_name=DURATION, attribute_keys={"gen_ai.operation.name"})],
    )
    span = trace.NonRecordingSpan(
        trace.SpanContext(7, 8, is_remote=False, trace_flags=trace.TraceFlags(1))
    )
    provider.get_meter("x").create_histogram(DURATION, "s").record(
        1.0, {"gen_ai.operation.name": "chat", "user": CANARY}, trace.set_span_in_context(span)
    )
    (point,) = points(reader, DURATION)
    (exemplar,) = point.exemplars
    assert (exemplar.trace_id, exemplar.span_id, exemplar.value) == (7, 8, 1.0)
    assert exemplar.filtered_attributes == {}


def test_the_overflow_series_stays_apart(gated):
    provider, _ = gated()
    reader = InMemoryMetricReader(cardinality_limits={Histogram: 2})
    provider.add_metric_reader(reader)
    histogram = provider.get_meter("x").create_histogram(DURATION, "s")
    for operation in ("chat", "embeddings", "execute_tool", "retrieval"):
        histogram.record(1.0, {"gen_ai.operation.name": operation})
    assert {"otel.metric.overflow": True} in [dict(p.attributes) for p in points(reader, DURATION)]


class Pulling(MetricReader):
    """Collects when it is asked, as a Prometheus endpoint does."""

    def __init__(self):
        super().__init__()
        self.received = []

    def _receive_metrics(self, metrics_data, timeout_millis=10_000, **kwargs):
        self.received.append(metrics_data)

    def shutdown(self, timeout_millis=30_000, **kwargs):
        pass


def test_a_reader_that_is_added_later_reads_behind_the_gate(gated):
    provider, _ = gated()
    late = Pulling()
    provider.add_metric_reader(late)
    assert is_gated(provider)
    meter = provider.get_meter("x")
    meter.create_counter(CANARY).add(1)
    meter.create_observable_gauge(f"{CANARY}.2", [lambda _: [Observation(1, {"a": CANARY})]])
    late.collect()
    assert late.received == [], "nothing may leave, so nothing is received"
    meter.create_histogram(DURATION, "s").record(1.0, {"a": CANARY})
    late.collect()
    assert CANARY not in late.received[0].to_json()
    provider.remove_metric_reader(late)


def test_metrics_that_cannot_be_cleaned_do_not_leave(gated, policy, monkeypatch):
    def broken(*_):
        raise RuntimeError(CANARY)

    provider, reader = gated(policy)
    provider.get_meter("x").create_histogram(DURATION, "s").record(1.0)
    monkeypatch.setattr(policy, "attributes", broken)
    assert metrics_of(reader) == {}
    assert policy.dropped[("metric", "rule_error")] == 1
    monkeypatch.setattr(policy, "scope", broken)
    provider.get_meter("y").create_histogram(DURATION, "s").record(1.0)
    assert metrics_of(reader) == {}
    assert policy.dropped[("metric", "gate_error")] == 1


def test_with_the_profile_off_no_metric_leaves(gated, make_policy):
    provider, reader = gated(make_policy(profile="off"))
    provider.get_meter("x").create_histogram(DURATION, "s").record(1.0)
    assert reader.get_metrics_data() is None

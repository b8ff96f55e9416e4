"""Every drop is told, also those of the collection that is the last one."""

import pytest
from opentelemetry.sdk.metrics import ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from sottovoce.privacy import gate
from sottovoce.record import SpanRecorder
from sottovoce.settings import Settings

NAME = "sottovoce.gate.dropped"


@pytest.fixture(params=[AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA])
def collecting(request, make_policy, monkeypatch):
    judge = make_policy()
    monkeypatch.setattr("sottovoce.privacy.policy._active", [judge])
    reader = InMemoryMetricReader(preferred_temporality={ObservableCounter: request.param})
    provider = gate.gated_meter_provider(judge, metric_readers=[reader], shutdown_on_exit=False)
    SpanRecorder(meter_provider=provider, settings_=Settings())
    return provider, reader, request.param, judge


def told(reader):
    data = reader.get_metrics_data()
    if data is None:
        return {}, None
    found = [
        (scope.scope, metric)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == NAME
    ]
    ((scope, metric),) = found
    points = {
        (p.attributes["sottovoce.gate.signal"], p.attributes["sottovoce.gate.rule"]): p.value
        for p in metric.data.data_points
    }
    return points, (scope, metric)


def test_a_collection_tells_what_it_removes_itself(collecting):
    provider, reader, temporality, _ = collecting
    provider.get_meter("mine").create_counter("mine").add(1)
    points, (scope, metric) = told(reader)
    assert points == {("scope", "unknown"): 1, ("metric", "unknown"): 1}
    assert scope.name == "sottovoce" and scope.version
    assert metric.data.aggregation_temporality == temporality
    assert metric.data.is_monotonic


def test_nothing_is_told_twice(collecting):
    provider, reader, temporality, judge = collecting
    counter = provider.get_meter("mine").create_counter("mine")
    seen = 0
    for round_ in range(1, 4):
        counter.add(1)
        judge.count("span", "name", 5)
        points, (scope, _) = told(reader)
        assert scope.version
        delta = temporality == AggregationTemporality.DELTA
        assert points["span", "name"] == (5 if delta else 5 * round_)
        seen = points["metric", "unknown"] + (seen if delta else 0)
        assert seen == judge.dropped["metric", "unknown"]


def test_without_a_drop_there_is_nothing_to_tell(collecting):
    provider, reader, _, _ = collecting
    assert told(reader) == ({}, None)

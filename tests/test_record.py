"""The recorder, through the real SDK: what one call becomes."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
)
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from sottovoce import guard
from sottovoce.buckets import record_gaps
from sottovoce.call import Call, Gaps
from sottovoce.record import SpanRecorder
from sottovoce.settings import Settings


class Bench:
    """A recorder with its own providers, and what came out of them."""

    def __init__(self, *, sampler=None, views=(), temporality=None, **settings):
        self.spans = InMemorySpanExporter()
        self.reader = InMemoryMetricReader(preferred_temporality=temporality)
        self.tracers = TracerProvider(sampler=sampler)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meters = MeterProvider([self.reader], views=views)
        self.recorder = SpanRecorder(self.tracers, self.meters, Settings(**settings))

    def call(self, **kwargs):
        arguments = {
            "operation": "chat",
            "provider": "openai",
            "model": "gpt-4o",
            "address": "api.openai.com",
            "port": 443,
        }
        return Call(self.recorder, **{**arguments, **kwargs})

    @property
    def span(self):
        (span,) = self.spans.get_finished_spans()
        return span

    def points(self):
        data = self.reader.get_metrics_data()
        found = {}
        if data is None:
            return found
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    found.setdefault(metric.name, []).extend(metric.data.data_points)
        return {name: points for name, points in found.items() if points}


def finished(bench, **facts):
    call = bench.call()
    call.facts.update({"input_tokens": 12, "output_tokens": 5, "finish_reasons": ["stop"], **facts})
    call.end()
    return call


def test_a_call_becomes_one_client_span_without_its_model_id():
    bench = Bench()
    finished(bench, response_model="gpt-4o-2024-08-06", request_temperature=0.5)
    span = bench.span
    model = span.attributes["gen_ai.request.model"]
    assert model.startswith("h:") and len(model) == 14
    assert span.name == f"chat {model}"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["gen_ai.response.model"].startswith("h:")
    assert span.attributes["gen_ai.usage.input_tokens"] == 12
    assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert span.attributes["gen_ai.request.temperature"] == 0.5
    assert span.attributes["server.address"] == "api.openai.com"
    assert span.attributes["server.port"] == 443
    assert span.attributes["sottovoce.call.outcome"] == "completed"
    assert "gpt" not in span.to_json()


def test_the_duration_metric_equals_the_span():
    bench = Bench()
    finished(bench)
    (point,) = bench.points()["gen_ai.client.operation.duration"]
    assert point.sum == pytest.approx((bench.span.end_time - bench.span.start_time) / 1e9, abs=0)


def test_the_metrics_of_the_default_vocabulary():
    bench = Bench()
    finished(bench)
    points = bench.points()
    assert set(points) == {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}
    by_type = {p.attributes["gen_ai.token.type"]: p for p in points["gen_ai.client.token.usage"]}
    assert (by_type["input"].sum, by_type["output"].sum) == (12, 5)
    assert "error.type" not in points["gen_ai.client.operation.duration"][0].attributes


def test_the_latest_vocabulary_and_both():
    latest, both = Bench(semconv="latest"), Bench(semconv="both")
    for bench in (latest, both):
        finished(bench, cache_read_tokens=3, reasoning_tokens=2)
    names = set(latest.points())
    assert names == {
        "gen_ai.client.inference.duration",
        "gen_ai.client.inference.operation.input_tokens",
        "gen_ai.client.inference.operation.output_tokens",
        "gen_ai.client.inference.usage.input_tokens",
        "gen_ai.client.inference.usage.output_tokens",
        "gen_ai.client.inference.usage.cache_read.input_tokens",
        "gen_ai.client.inference.usage.reasoning.output_tokens",
    }
    assert set(both.points()) == names | {
        "gen_ai.client.operation.duration",
        "gen_ai.client.token.usage",
    }


def test_in_the_latest_vocabulary_embeddings_keep_the_duration_of_operations():
    for semconv in ("latest", "both"):
        bench = Bench(semconv=semconv)
        call = bench.call(operation="embeddings")
        call.end()
        points = bench.points()
        assert [p.count for p in points["gen_ai.client.operation.duration"]] == [1]
        assert "gen_ai.client.inference.duration" not in points


def test_a_failed_call_of_the_latest_vocabulary_still_reports_zero_tokens():
    bench = Bench(semconv="latest")
    bench.call().fail("429")
    points = bench.points()
    (usage,) = points["gen_ai.client.inference.usage.input_tokens"]
    assert (usage.value, usage.attributes["gen_ai.token.modality"]) == (0, "unknown")
    assert points["gen_ai.client.inference.operation.input_tokens"][0].sum == 0


def test_a_failure_says_its_class_and_nothing_else():
    bench = Bench()
    bench.call().fail(ValueError("my secret prompt"))
    assert bench.span.status.status_code is StatusCode.ERROR
    assert bench.span.status.description is None
    assert bench.span.attributes["error.type"] == "ValueError"
    assert not bench.span.events
    assert "secret" not in bench.span.to_json()
    (point,) = bench.points()["gen_ai.client.operation.duration"]
    assert point.attributes["error.type"] == "ValueError"


def test_an_abandoned_stream_is_no_error():
    bench = Bench()
    call = bench.call()
    call.stream = True
    call.chunk()
    call.abandon()
    assert bench.span.status.status_code is StatusCode.UNSET
    assert bench.span.attributes["sottovoce.call.outcome"] == "abandoned"
    assert "error.type" not in bench.span.attributes


@pytest.mark.parametrize("temporality", list(AggregationTemporality)[1:])
def test_a_stream_records_its_first_chunk_and_every_gap(temporality):
    bench = Bench(temporality=dict.fromkeys([Histogram], temporality))
    for _ in range(2):
        call = bench.call()
        call.stream = True
        for _ in range(200):
            call.chunk()
        call.end()
    span = bench.spans.get_finished_spans()[0]
    assert span.attributes["sottovoce.response.chunks"] == 200
    assert span.attributes["gen_ai.request.stream"] is True
    assert span.attributes["gen_ai.response.time_to_first_chunk"] >= 0
    points = bench.points()
    (first,) = points["gen_ai.client.operation.time_to_first_chunk"]
    (gaps,) = points["gen_ai.client.operation.time_per_output_chunk"]
    assert (first.count, gaps.count) == (2, 398)


def gaps_of(*values_ns):
    gaps = Gaps()
    for value in values_ns:
        gaps.add(value)
    return gaps


def test_gaps_added_at_once_are_the_point_that_single_records_make():
    values = [3_000_000, 10_000_000, 11_000_000, 700_000_000, 99_000_000_000]
    one, other = Bench(), Bench()
    histogram = one.recorder._vocabularies[0]._gaps
    record_gaps(histogram, gaps_of(*values), {"a": "b"}, None)
    for value in values:
        other.recorder._vocabularies[0]._gaps.record(value * 1e-9, {"a": "b"})
    (bulk,) = one.points()["gen_ai.client.operation.time_per_output_chunk"]
    (single,) = other.points()["gen_ai.client.operation.time_per_output_chunk"]
    assert bulk.bucket_counts == single.bucket_counts
    assert bulk.explicit_bounds == single.explicit_bounds
    assert (bulk.count, bulk.attributes) == (single.count, single.attributes)
    assert bulk.sum == pytest.approx(single.sum)
    assert (bulk.min, bulk.max) == (pytest.approx(single.min), pytest.approx(single.max))


def test_gaps_reach_an_aggregation_that_the_operator_chose():
    view = View(
        instrument_name="gen_ai.client.operation.time_per_output_chunk",
        aggregation=ExponentialBucketHistogramAggregation(),
    )
    bench = Bench(views=[view])
    record_gaps(bench.recorder._vocabularies[0]._gaps, gaps_of(5_000_000, 20_000_000), {}, None)
    (point,) = bench.points()["gen_ai.client.operation.time_per_output_chunk"]
    assert point.count == 2
    assert point.sum == pytest.approx(0.025)


def test_an_in_process_call_is_internal_and_has_the_servers_metrics():
    bench = Bench()
    call = bench.call(
        provider="mlx", in_process=True, local=True, address=None, port=None, model=None
    )
    call.facts.update(
        {
            "output_tokens": 4,
            "engine_duration_s": 0.5,
            "time_to_first_token_s": 0.2,
            "time_per_output_token_s": 0.1,
        }
    )
    call.end()
    assert bench.span.kind is SpanKind.INTERNAL
    assert bench.span.name == "chat"
    points = bench.points()
    assert points["gen_ai.server.request.duration"][0].sum == 0.5
    assert points["gen_ai.server.time_to_first_token"][0].sum == 0.2
    assert points["gen_ai.server.time_per_output_token"][0].sum == 0.1


def test_time_per_token_is_recorded_for_successes_only():
    bench = Bench()
    call = bench.call(provider="mlx", in_process=True, local=True)
    call.facts["time_per_output_token_s"] = 0.1
    call.fail(RuntimeError())
    assert "gen_ai.server.time_per_output_token" not in bench.points()


def test_the_span_is_current_only_between_enter_and_leave_and_parents_are_kept():
    bench = Bench()
    tracer = bench.tracers.get_tracer("app")
    with tracer.start_as_current_span("app") as parent:
        call = bench.call()
        token = bench.recorder.enter(call)
        inside = trace.get_current_span().get_span_context().span_id
        bench.recorder.leave(token)
        assert trace.get_current_span() is parent
        call.end()
    ours = bench.spans.get_finished_spans()[0]
    assert ours.context.span_id == inside
    assert ours.parent.span_id == parent.get_span_context().span_id


def test_resends_are_counted():
    bench = Bench()
    call = bench.call()
    call.attempts = 3
    call.end()
    assert bench.span.attributes["http.request.resend_count"] == 2


def test_a_sampled_out_call_still_has_its_histograms():
    bench = Bench(sampler=ALWAYS_OFF)
    finished(bench)
    assert not bench.spans.get_finished_spans()
    assert bench.points()["gen_ai.client.operation.duration"][0].count == 1


def test_exemplars_link_a_histogram_to_the_span():
    bench = Bench()
    finished(bench)
    (point,) = bench.points()["gen_ai.client.operation.duration"]
    assert [e.span_id for e in point.exemplars] == [bench.span.context.span_id]


def test_a_model_load_is_a_histogram_without_a_path():
    bench = Bench()
    bench.recorder.loaded(
        "mlx", {"request_model": "/home/alice/m", "model_quantization": "4bit"}, 1.5
    )
    bench.recorder.loaded("mlx", {}, 0.5, error=FileNotFoundError("/home/alice/m"))
    points = bench.points()["sottovoce.model.load.duration"]
    assert sorted(p.sum for p in points) == [0.5, 1.5]
    assert "alice" not in str(points)
    assert {p.attributes.get("error.type") for p in points} == {None, "FileNotFoundError"}


def test_our_own_errors_and_what_we_could_not_read_are_metrics():
    bench = Bench()
    guard.failures["record test"] += 2
    guard.undecodable["json"] += 1
    try:
        points = bench.points()
        places = {
            p.attributes["sottovoce.hook.place"]: p.value for p in points["sottovoce.hook.errors"]
        }
        assert places["record test"] == 2
        assert points["sottovoce.decode.errors"][0].attributes["sottovoce.decode.reason"]
    finally:
        guard.failures.pop("record test")
        guard.undecodable.clear()


def test_a_recorder_whose_provider_breaks_leaves_the_app_alone():
    class Broken(TracerProvider):
        def get_tracer(self, *args, **kwargs):
            class Tracer:
                def start_span(self, *args, **kwargs):
                    raise RuntimeError

            return Tracer()

    recorder = SpanRecorder(Broken(), MeterProvider(), Settings())
    call = Call(recorder, operation="chat", provider="openai")
    assert recorder.enter(call) is None
    recorder.leave(None)
    assert call.end()
    assert guard.failures.pop("record.opened") == 1

"""The recorder, through the real SDK: what one call becomes."""

import bisect
import re

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    AlwaysOnExemplarFilter,
    Histogram,
    MeterProvider,
    SimpleFixedSizeExemplarReservoir,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
)
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

from sottovoce import guard
from sottovoce.call import Call, Gaps
from sottovoce.measure import Measured
from sottovoce.pages import Book
from sottovoce.points import REMEMBERED, Point
from sottovoce.record import SpanRecorder
from sottovoce.settings import Settings

pytestmark = pytest.mark.usefixtures("no_policy")


class Bench:
    """A recorder with its own providers, and what came out of them."""

    def __init__(self, *, sampler=None, views=(), temporality=None, exemplars=None, **settings):
        self.spans = InMemorySpanExporter()
        self.reader = InMemoryMetricReader(preferred_temporality=temporality)
        self.tracers = TracerProvider(sampler=sampler)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meters = MeterProvider([self.reader], views=views, exemplar_filter=exemplars)
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


SAMPLED = trace.NonRecordingSpan(
    trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(1))
)


def gaps_of(*values_ns):
    gaps = Gaps()
    for value in values_ns:
        bucket = bisect.bisect_left(BOUNDS, value * 1e-9)
        count, total = gaps.buckets.get(bucket, (0, 0))
        gaps.buckets[bucket] = count + 1, total + value
    gaps.minimum, gaps.maximum = min(values_ns), max(values_ns)
    return gaps


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
    assert point.sum == pytest.approx((bench.span.end_time - bench.span.start_time) / 1e9, rel=1e-9)


def test_the_metrics_of_the_default_vocabulary():
    bench = Bench()
    finished(bench)
    points = bench.points()
    assert set(points) == {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}
    by_type = {p.attributes["gen_ai.token.type"]: p for p in points["gen_ai.client.token.usage"]}
    assert (by_type["input"].sum, by_type["output"].sum) == (12, 5)
    assert "error.type" not in points["gen_ai.client.operation.duration"][0].attributes


def test_what_is_fetched_was_counted_when_it_was_made():
    bench = Bench(semconv="both")
    call = bench.call(operation="fetch_response")
    call.facts.update({"input_tokens": 12, "output_tokens": 5})
    call.end()
    assert set(bench.points()) == {"gen_ai.client.operation.duration"}
    assert bench.span.attributes["gen_ai.usage.input_tokens"] == 12


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


def test_counts_by_modality_are_on_the_span():
    bench = Bench()
    split = {
        f"{prefix}_{modality}_tokens": number
        for number, (prefix, modality) in enumerate(
            (p, m) for p in ("input", "output", "cache_read") for m in ("text", "image", "audio")
        )
    }
    finished(bench, **split, input_video_tokens=9)
    kinds = {
        "input": "input_tokens",
        "output": "output_tokens",
        "cache_read": "cache_read.input_tokens",
    }
    for fact, number in split.items():
        prefix, modality, _ = fact.rsplit("_", 2)
        assert bench.span.attributes[f"gen_ai.usage.{modality}.{kinds[prefix]}"] == number
    assert bench.span.attributes["sottovoce.usage.video.input_tokens"] == 9


@pytest.mark.parametrize(
    ("parts", "counted"),
    [
        ({"input_text_tokens": 10, "input_audio_tokens": 2}, {"text": 10, "audio": 2}),
        ({"input_image_tokens": 8}, {"image": 8, "unknown": 4}),
        ({"input_text_tokens": 13}, {"unknown": 12}),
        ({"input_text_tokens": 0}, {"unknown": 12}),
        ({}, {"unknown": 12}),
    ],
)
def test_a_total_is_counted_by_modality_as_far_as_the_provider_splits_it(parts, counted):
    bench = Bench(semconv="latest")
    finished(bench, **parts)
    points = bench.points()["gen_ai.client.inference.usage.input_tokens"]
    assert {p.attributes["gen_ai.token.modality"]: p.value for p in points} == counted


def test_names_of_tools_and_ids_of_conversations_leave_by_the_policy_alone():
    bench = Bench()
    finished(bench, tool_names=["web_search", "find_anna"], conversation="anna-42")
    built_in, own = bench.span.attributes["sottovoce.response.tool_calls.names"]
    assert built_in == "web_search"
    assert re.fullmatch("[0-9a-f]{12}", own)
    assert re.fullmatch("[0-9a-f]{16}", bench.span.attributes["gen_ai.conversation.id"])
    assert "anna" not in bench.span.to_json()


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


BOUNDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]


class Short:
    """A histogram by the short way."""

    def __init__(self, histogram, extra):
        self.book = Book(Measured(histogram, extra), gaps=Measured(histogram, extra))

    def record(self, value, point):
        self.book.write((value,), point, point)

    def record_gaps(self, gaps, point):
        self.book.write((None,), point, point, gaps=gaps)


def measured(bench, name="h", **extra):
    meter = bench.meters.get_meter("test")
    histogram = meter.create_histogram(name, explicit_bucket_boundaries_advisory=BOUNDS)
    return histogram, Short(histogram, extra)


def comparable(points):
    return sorted(
        (
            str(sorted(p.attributes.items())), p.count, round(p.sum, 9), list(p.bucket_counts),
            round(p.min, 9), round(p.max, 9),
            [(e.value, e.span_id, e.trace_id, e.filtered_attributes or {}) for e in p.exemplars],
        )
        for p in points
    )  # fmt: skip


@pytest.mark.parametrize("temporality", list(AggregationTemporality)[1:])
@pytest.mark.parametrize(
    "exemplars", [AlwaysOnExemplarFilter, AlwaysOffExemplarFilter, TraceBasedExemplarFilter]
)
def test_the_short_way_records_what_the_public_way_records(temporality, exemplars):
    one = Bench(temporality={Histogram: temporality}, exemplars=exemplars())
    other = Bench(temporality={Histogram: temporality}, exemplars=exemplars())
    (_, short), (public, _) = measured(one, extra="x"), measured(other)
    for _ in range(2):  # across a collection, after which delta starts anew
        for value in (0.003, 0.004, 0.01, 0.5, 99.0):
            for attributes in ({"a": 1}, {"a": "1"}, {}):
                point = Point(attributes, set_span_in_context(SAMPLED))
                short.record(value, point)
                public.record(value, {**attributes, "extra": "x"}, point.context)
        assert comparable(one.points()["h"]) == comparable(other.points()["h"])


@pytest.mark.parametrize("temporality", list(AggregationTemporality)[1:])
def test_gaps_added_at_once_are_the_point_that_single_records_make(temporality):
    values = [3_000_000, 10_000_000, 11_000_000, 700_000_000, 99_000_000_000]
    one, other = (
        Bench(temporality={Histogram: temporality}),
        Bench(temporality={Histogram: temporality}),
    )
    (_, short), (public, _) = measured(one), measured(other)
    for _ in range(2):
        short.record_gaps(gaps_of(*values), Point({"a": "b"}, Context()))
        for value in values:
            public.record(value * 1e-9, {"a": "b"})
        assert comparable(one.points()["h"]) == comparable(other.points()["h"])


def test_measurements_reach_an_aggregation_and_attributes_that_the_operator_chose():
    views = [
        View(instrument_name="h", aggregation=ExponentialBucketHistogramAggregation()),
        View(instrument_name="h", name="few", attribute_keys={"a"}),
        View(instrument_name="gone", aggregation=DropAggregation()),
    ]
    bench = Bench(views=views)
    _, short = measured(bench)
    _, gone = measured(bench, "gone")
    point = Point({"a": "1", "b": "2"}, Context())
    for histogram in (short, gone):
        histogram.record(0.5, point)
        histogram.record_gaps(gaps_of(5_000_000, 20_000_000), point)
    points = bench.points()
    assert [(p.count, p.sum) for p in points["h"]] == [(3, pytest.approx(0.525))]
    assert [(p.count, dict(p.attributes)) for p in points["few"]] == [(3, {"a": "1"})]
    assert "gone" not in points


def test_a_reader_that_comes_later_gets_what_comes_later():
    bench = Bench()
    _, short = measured(bench)
    point = Point({"a": "1"}, Context())
    short.record(0.5, point)
    late = InMemoryMetricReader()
    bench.meters.add_metric_reader(late)
    short.record(0.25, point)
    (metric,) = [
        m
        for r in late.get_metrics_data().resource_metrics
        for s in r.scope_metrics
        for m in s.metrics
        if m.name == "h"
    ]
    assert [p.sum for p in metric.data.data_points] == [0.25]
    assert [p.sum for p in bench.points()["h"]] == [0.75]


def test_attribute_sets_beyond_the_sdks_limit_overflow_as_they_would():
    bench = Bench()
    _, short = measured(bench)
    for number in range(2100):
        short.record(1.0, Point({"n": number}, Context()))
    points = bench.points()["h"]
    (overflow,) = [p for p in points if "otel.metric.overflow" in p.attributes]
    assert overflow.count == 100
    assert sum(p.count for p in points) == 2100
    assert len(short.book._plain.pages) <= REMEMBERED


def test_an_exemplar_reservoir_of_the_operators_own_gets_what_the_sdk_would_give_it():
    view = View(
        instrument_name="h",
        exemplar_reservoir_factory=lambda _: lambda **_: SimpleFixedSizeExemplarReservoir(size=1),
    )
    bench = Bench(views=[view])
    _, short = measured(bench)
    short.record(0.5, Point({}, set_span_in_context(SAMPLED)))
    (point,) = bench.points()["h"]
    assert [(e.value, e.span_id) for e in point.exemplars] == [(0.5, 2)]


def test_a_foreign_meter_is_used_through_the_public_api():
    seen = []

    class Foreign:
        def record(self, value, attributes=None, context=None):
            seen.append((value, attributes))

    short = Measured(Foreign(), {"x": 1})
    short.record(0.5, Point({"a": 1}, Context()))
    short.record_gaps(gaps_of(5_000_000, 6_000_000), Point({}, Context()))
    seen = [(round(value, 9), attributes) for value, attributes in seen]
    assert seen == [(0.5, {"a": 1, "x": 1}), (0.0055, {"x": 1}), (0.0055, {"x": 1})]


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


ENGINE = {
    "prefill_rate": 512.5,
    "decode_rate": 40.25,
    "context_fill": 0.5,
    "batch_size": 3,
    "draft_accepted_share": 0.25,
    "model_adapter": True,
    "model_offload": "partial",
    "model_size": "4_8GiB",
    "peak_memory": "8_12GiB",
    "load_s": 1.5,
}
PACE = {
    "sottovoce.engine.prefill.throughput": 512.5,
    "sottovoce.engine.decode.throughput": 40.25,
    "sottovoce.engine.context.utilization": 0.5,
}


def test_what_an_engine_tells_is_on_the_span():
    bench = Bench()
    finished(bench, **ENGINE)
    said = bench.span.attributes.items()
    assert (
        said
        >= {
            "sottovoce.prefill.throughput": 512.5,
            "sottovoce.decode.throughput": 40.25,
            "sottovoce.context.utilization": 0.5,
            "sottovoce.request.batch.size": 3,
            "sottovoce.draft.acceptance_rate": 0.25,
            "sottovoce.model.adapted": True,
            "sottovoce.model.offload": "partial",
            "sottovoce.model.size": "4_8GiB",
            "sottovoce.memory.peak": "8_12GiB",
            "sottovoce.model.load.wait": 1.5,
        }.items()
    )


def test_words_of_an_engine_that_are_no_words_of_ours_stay():
    bench = Bench()
    finished(bench, model_offload="alice", model_size="alice", peak_memory="alice")
    assert "alice" not in bench.span.to_json()


@pytest.mark.parametrize("in_process", [True, False])
def test_the_pace_of_an_engine_is_recorded_wherever_it_runs(in_process):
    bench = Bench()
    call = bench.call(provider="ollama", in_process=in_process, local=True)
    call.facts.update(ENGINE, model_quantization="4bit", model_parameters="8B")
    call.end()
    points = bench.points()
    for name, value in PACE.items():
        (point,) = points[name]
        assert (point.count, point.sum) == (1, value)
        assert point.attributes["sottovoce.model.quantization"] == "4bit"
        assert point.attributes["sottovoce.model.parameters"] == "8B"
    assert ("gen_ai.server.request.duration" in points) == in_process
    (point,) = points["gen_ai.client.operation.duration"]
    assert "sottovoce.model.quantization" not in point.attributes


def test_the_pace_of_a_call_that_failed_is_not_recorded():
    bench = Bench()
    call = bench.call(provider="mlx", in_process=True, local=True)
    call.facts.update(ENGINE)
    call.fail("out_of_memory")
    assert not PACE.keys() & bench.points().keys()


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


def test_a_load_whose_facts_are_odd_leaves_nothing_open():
    bench = Bench()
    before = trace.get_current_span()
    loading = bench.recorder.loading("mlx")
    assert trace.get_current_span() is loading.span
    bench.recorder.loaded("mlx", {"model_architecture": []}, 1.5, None, loading)
    assert trace.get_current_span() is before
    assert bench.span.end_time - bench.span.start_time == 1_500_000_000
    assert guard.failures.pop("record.loaded") == 1


def test_an_exemplar_links_the_time_of_a_load_to_its_span():
    bench = Bench()
    loading = bench.recorder.loading("mlx")
    bench.recorder.loaded("mlx", {}, 1.5, None, loading)
    (point,) = bench.points()["sottovoce.model.load.duration"]
    assert [e.span_id for e in point.exemplars] == [bench.span.context.span_id]


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

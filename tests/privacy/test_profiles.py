"""The profiles, from real providers to the bytes that would be sent.

Exact numbers are planted as token counts and durations, and looked for by a walk over every
number of the protobuf messages; what each profile promises to keep has to be there.
"""

import math
import multiprocessing
import re
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    InMemoryLogRecordExporter,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce import privacy
from sottovoce.call import Call
from sottovoce.privacy import buckets, policy
from sottovoce.privacy.gate import (
    gate_in_place,
    gated_logger_provider,
    gated_meter_provider,
    gated_tracer_provider,
)
from sottovoce.privacy.policy import Policy
from sottovoce.privacy.rules import UNNAMED
from sottovoce.record import SpanRecorder
from sottovoce.registry import ATTRIBUTES, METRICS, rules
from sottovoce.settings import Settings

SECRET = "a secret of the tests"
PROFILES = ["off", "aggregate", "strict", "standard", "content"]

INPUT, OUTPUT, CACHED, CHUNKS = 1523, 347, 1291, 23
SECONDS = (0.735118734, 2.291346571, 0.051728394)
PACE = (1234.567891, 43.211778)
SHARES = (0.618033, 0.271828)
EXACT = {INPUT, OUTPUT, CACHED, INPUT + OUTPUT, *SECONDS, *PACE, *SHARES}

DURATION = "gen_ai.client.operation.duration"
USAGE = "gen_ai.client.token.usage"
FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"
LASTED = "sottovoce.duration.bucket"
GAPS = "gen_ai.client.operation.time_per_output_chunk"


@pytest.fixture(autouse=True)
def _process_of_its_own(monkeypatch):
    """What `tighten` does holds for a process; each test is one."""
    monkeypatch.setattr(policy, "_active", [])
    monkeypatch.setattr(policy, "_tightest", "content")
    monkeypatch.setattr(policy, "_policies", weakref.WeakSet())
    monkeypatch.delenv("SOTTOVOCE_PROFILE", raising=False)
    monkeypatch.setenv("SOTTOVOCE_KEY", SECRET)


class Bench:
    """Gated providers, our recorder on them, and the bytes that leave."""

    def __init__(self, profile="standard", *, views=(), semconv="both"):
        settings = Settings(profile=profile, key=SECRET, semconv=semconv)
        self.policy = policy.activate(settings)
        resource = Resource(
            {
                "service.name": "app",
                "service.instance.id": "f81d4fae-7dec-41d0-a765-00a0c91e6bf6",
                "os.type": "linux",
                "os.version": "6.1",
            }
        )
        self.spans, self.logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = gated_tracer_provider(self.policy, resource=resource, shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.meters = gated_meter_provider(
            self.policy,
            metric_readers=[self.reader],
            resource=resource,
            shutdown_on_exit=False,
            views=views,
            exemplar_filter=AlwaysOnExemplarFilter(),
        )
        self.loggers = gated_logger_provider(self.policy, resource=resource, shutdown_on_exit=False)
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.recorder = SpanRecorder(self.tracers, self.meters, settings)

    def call(self, **changes):
        """One streamed call with everything exact about it, through our own recorder."""
        arguments = {"operation": "chat", "provider": "openai", "model": "gpt-4o"}
        call = Call(
            self.recorder, **{**arguments, "address": "api.openai.com", "port": 443, **changes}
        )
        call.facts.update(
            input_tokens=INPUT,
            output_tokens=OUTPUT,
            cache_read_tokens=CACHED,
            reasoning_tokens=0,
            finish_reasons=["stop"],
            time_to_first_token_s=SECONDS[0],
            time_per_output_token_s=SECONDS[2],
            engine_duration_s=SECONDS[1],
            prefill_rate=PACE[0],
            decode_rate=PACE[1],
            context_fill=SHARES[0],
            draft_accepted_share=SHARES[1],
            load_s=SECONDS[1],
        )
        call.stream = True
        call.first_chunk_ns = call.last_chunk_ns = call.start_ns + round(SECONDS[0] * 1e9)
        call.chunks = 1
        for _ in range(CHUNKS - 1):
            call.chunk()
        # As if the chunks had come as slowly as they would.
        call.gaps.buckets.update(
            (bucket, (count, count * round(SECONDS[2] * 1e9)))
            for bucket, (count, _) in call.gaps.buckets.items()
        )
        call.end(at_ns=call.start_ns + round(SECONDS[1] * 1e9))

    def foreign(self):
        """The same by another instrumentation, which knows nothing of profiles."""
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.usage.input_tokens": INPUT,
            "gen_ai.usage.output_tokens": OUTPUT,
            "llm.token_count.prompt_details.cache_read": CACHED,
            "gen_ai.response.time_to_first_chunk": SECONDS[0],
            "llm.usage.total_tokens": INPUT + OUTPUT,
        }
        tracer = self.tracers.get_tracer("opentelemetry.instrumentation.openai_v2")
        with tracer.start_as_current_span("chat gpt-4o", attributes=attributes) as span:
            span.add_event("exception", {"exception.type": "ValueError"})
        meter = self.meters.get_meter("opentelemetry.instrumentation.openai_v2")
        few = {key: attributes[key] for key in list(attributes)[:3]}
        meter.create_histogram(DURATION, "s").record(SECONDS[1], few)
        meter.create_histogram(USAGE, "{token}").record(
            INPUT, {**few, "gen_ai.token.type": "input"}
        )
        counter = meter.create_counter("gen_ai.client.inference.usage.input_tokens", "{token}")
        counter.add(INPUT, {**few, "gen_ai.token.modality": "text"})
        logger = self.loggers.get_logger("opentelemetry.instrumentation.openai_v2")
        for event in ("gen_ai.client.inference.operation.details", None):
            logger.emit(
                body="said", event_name=event, attributes={"gen_ai.usage.input_tokens": INPUT}
            )

    def sent(self):
        """Everything that left, as protobuf messages."""
        self.tracers.force_flush()
        data = self.reader.get_metrics_data()
        messages = []
        if self.spans.get_finished_spans():
            messages.append(encode_spans(self.spans.get_finished_spans()))
        if self.logs.get_finished_logs():
            messages.append(encode_logs(self.logs.get_finished_logs()))
        if data is not None:
            messages.append(encode_metrics(data))
        return messages


def leaves(message):
    """Every scalar of a protobuf message, with the name of its field."""
    for field, value in message.ListFields():
        many = value if field.is_repeated else [value]
        for each in many:
            if field.message_type is not None:
                yield from leaves(each)
            else:
                yield field.name, each


def numbers(messages):
    return [
        (name, value)
        for message in messages
        for name, value in leaves(message)
        if isinstance(value, (int, float)) and "time" not in name
    ]


def exact(messages):
    return [
        (name, value)
        for name, value in numbers(messages)
        if any(math.isclose(value, planted, rel_tol=1e-4) for planted in EXACT)
    ]


def metrics_of(messages):
    return {
        metric.name: metric
        for message in messages
        for resource in getattr(message, "resource_metrics", ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def points_of(metric):
    return list(getattr(metric, metric.WhichOneof("data")).data_points)


def attributes_of(item):
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in item.attributes
    }


def spans_of(messages):
    return [
        span
        for message in messages
        for resource in getattr(message, "resource_spans", ())
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def resources_of(messages):
    return [
        attributes_of(resource.resource)
        for message in messages
        for kind in ("resource_spans", "resource_metrics", "resource_logs")
        for resource in getattr(message, kind, ())
    ]


class TestStrict:
    @pytest.mark.parametrize("origin", ["call", "foreign"])
    def test_no_exact_number_is_on_the_wire(self, origin):
        bench = Bench("strict")
        getattr(bench, origin)()
        sent = bench.sent()
        assert len(numbers(sent)) > 20
        assert exact(sent) == []

    def test_the_same_walk_finds_them_under_standard(self):
        for origin in ("call", "foreign"):
            bench = Bench("standard")
            getattr(bench, origin)()
            found = {name for name, _ in exact(bench.sent())}
            assert {"int_value", "double_value", "sum", "as_int"} <= found

    def test_an_engines_numbers_are_no_more_exact(self):
        bench = Bench("strict")
        bench.call(provider="mlx", in_process=True, local=True, address=None, port=None)
        bench.recorder.loaded("mlx", {}, SECONDS[1])
        sent = bench.sent()
        assert exact(sent) == []
        assert {
            "gen_ai.server.request.duration",
            "sottovoce.engine.context.utilization",
            "sottovoce.engine.decode.throughput",
            "sottovoce.engine.prefill.throughput",
            "sottovoce.model.load.duration",
        } <= set(metrics_of(sent))

    @pytest.mark.parametrize("origin", ["call", "foreign"])
    def test_counts_are_the_upper_bounds_of_their_buckets(self, origin):
        bench = Bench("strict")
        getattr(bench, origin)()
        (span,) = spans_of(bench.sent())
        said = attributes_of(span)
        assert said["gen_ai.usage.input_tokens"] == 4096
        assert said["gen_ai.usage.output_tokens"] == 1024
        assert said["gen_ai.usage.cache_read.input_tokens"] == 4096
        assert said["gen_ai.response.time_to_first_chunk"] == 1.0
        if origin == "call":
            assert said["gen_ai.usage.reasoning.output_tokens"] == 0
            assert said["sottovoce.response.chunks"] == 64
            assert said["sottovoce.prefill.throughput"] == 2048.0
            assert said["sottovoce.decode.throughput"] == 64.0
            assert said["sottovoce.context.utilization"] == 0.7
            assert said["sottovoce.draft.acceptance_rate"] == 0.3
            assert said["sottovoce.model.load.wait"] == 5.0

    def test_what_must_be_kept(self):
        bench = Bench("strict")
        bench.call()
        sent = bench.sent()
        (span,) = spans_of(sent)
        said = attributes_of(span)
        assert span.name == f"chat {said['gen_ai.request.model']}"
        assert said["gen_ai.request.model"].startswith("h:")
        assert said["gen_ai.operation.name"] == "chat"
        assert said["gen_ai.provider.name"] == "openai"
        assert said["server.address"] == "api.openai.com"
        assert said["server.port"] == 443
        assert said["sottovoce.call.outcome"] == "completed"
        assert said["sottovoce.duration.bucket"] == "1_5s"
        assert said["gen_ai.response.finish_reasons"].values[0].string_value == "stop"
        assert span.end_time_unix_nano - span.start_time_unix_nano == round(SECONDS[1] * 1e9)
        assert {DURATION, USAGE, FIRST_CHUNK, GAPS} <= set(metrics_of(sent))
        for resource in resources_of(sent):
            assert resource["service.name"] == "unknown_service"
            assert resource["os.version"] == "6.1"
            assert "service.instance.id" not in resource

    @pytest.mark.parametrize("origin", ["call", "foreign"])
    def test_a_histogram_has_the_sum_of_what_stands_for_its_buckets(self, origin):
        bench = Bench("strict")
        getattr(bench, origin)()
        seen = 0
        for metric in metrics_of(bench.sent()).values():
            if metric.WhichOneof("data") != "histogram":
                continue
            for point in points_of(metric):
                seen += 1
                bounds = list(point.explicit_bounds)
                assert tuple(bounds) == METRICS[metric.name].boundaries
                stand_ins = [*bounds, 2 * bounds[-1]]
                assert point.sum == pytest.approx(
                    sum(c * v for c, v in zip(point.bucket_counts, stand_ins, strict=True))
                )
                assert point.count == sum(point.bucket_counts) > 0
                assert not point.HasField("min")
                assert not point.HasField("max")
                assert not point.exemplars
        assert seen > 1

    def test_values_are_in_the_buckets_that_they_would_be_in(self):
        exactly, coarsely = Bench("standard"), Bench("strict")
        for bench in (exactly, coarsely):
            bench.call()
        ours, theirs = (metrics_of(bench.sent()) for bench in (coarsely, exactly))
        for name in (DURATION, USAGE, FIRST_CHUNK):
            assert [list(p.bucket_counts) for p in points_of(ours[name])] == [
                list(p.bucket_counts) for p in points_of(theirs[name])
            ]
        assert [p.count for p in points_of(ours[GAPS])] == [CHUNKS - 1]

    def test_our_recorder_records_nothing_exact_in_the_first_place(self):
        bench = Bench("strict")
        # Behind the gate's back: what an aggregation holds.
        bench.call()
        data = bench.meters._measurement_consumer.collect._collect(bench.reader)
        assert exact([encode_metrics(data)]) == []

    @pytest.mark.parametrize(
        "aggregation",
        [
            ExplicitBucketHistogramAggregation([1522, 1523, 1524]),
            ExplicitBucketHistogramAggregation([0.7351, 0.7352, 2.2913, 2.2914]),
            ExplicitBucketHistogramAggregation([]),
            ExponentialBucketHistogramAggregation(),
        ],
    )
    def test_buckets_of_others_are_no_narrower(self, aggregation):
        bench = Bench("strict", views=[View(instrument_name="*", aggregation=aggregation)])
        bench.foreign()
        sent = bench.sent()
        assert exact(sent) == []
        for name, value in ((DURATION, SECONDS[1]), (USAGE, INPUT)):
            (point,) = points_of(metrics_of(sent)[name])
            assert point.count == 1
            if hasattr(point, "scale"):
                assert point.scale <= -1
                low = 4.0**point.positive.offset
                assert low < value <= low * 4
                assert point.sum == low * 4
                assert not point.HasField("min")
                assert not point.HasField("max")
            else:
                assert tuple(point.explicit_bounds) == METRICS[name].boundaries

    def test_only_events_of_the_conventions_are_logs_that_leave(self):
        bench = Bench("strict")
        bench.foreign()
        (record,) = bench.logs.get_finished_logs()
        assert record.log_record.event_name == "gen_ai.client.inference.operation.details"
        assert record.log_record.attributes == {"gen_ai.usage.input_tokens": 4096}
        assert bench.policy.dropped["log", "off"] == 1

    def test_names_of_ones_own_do_not_leave(self):
        allow = ("span:mine", "metric:mine", "resource:mine", "scope:mine")
        loose = Policy(Settings(key=SECRET, allow=allow))
        tight = Policy(Settings(key=SECRET, allow=allow, profile="strict"))
        for kind in ("span", "metric", "resource", "scope"):
            assert loose.allows(kind, "mine")
            assert not tight.allows(kind, "mine")


class TestAggregate:
    def test_spans_and_logs_do_not_reach_a_processor(self):
        touched = []

        class Spy(SpanProcessor):
            def on_start(self, span, parent_context=None):
                touched.append(span)

            def _on_ending(self, span):
                touched.append(span)

            def on_end(self, span):
                touched.append(span)

        bench = Bench("aggregate")
        bench.tracers.add_span_processor(Spy())
        bench.call()
        bench.foreign()
        assert touched == []
        assert bench.spans.get_finished_spans() == ()
        assert bench.logs.get_finished_logs() == ()
        assert bench.policy.dropped["span", "off"] == 1
        assert bench.policy.dropped["log", "off"] == 2

    @pytest.mark.parametrize("origin", ["call", "foreign"])
    def test_no_exact_number_and_no_model(self, origin):
        bench = Bench("aggregate")
        getattr(bench, origin)()
        sent = bench.sent()
        assert exact(sent) == []
        for metric in metrics_of(sent).values():
            for point in points_of(metric):
                assert not {
                    "gen_ai.request.model", "gen_ai.response.model", "server.address", "server.port",
                } & set(attributes_of(point))  # fmt: skip

    def test_what_must_be_kept(self):
        bench = Bench("aggregate")
        bench.call()
        bench.call(model="gpt-4o-mini")
        sent = bench.sent()
        (point,) = points_of(metrics_of(sent)[DURATION])
        # Calls of two models are one series.
        assert point.count == 2
        assert attributes_of(point) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
        }
        assert {DURATION, USAGE, FIRST_CHUNK, GAPS, "sottovoce.gate.dropped"} <= set(
            metrics_of(sent)
        )
        (resource,) = resources_of(sent)
        assert resource["service.name"] == "unknown_service"
        assert not {"service.instance.id", "os.version"} & set(resource)

    def test_engines_here_and_behind_http_are_told_apart_by_their_metrics_alone(self):
        bench = Bench("aggregate")
        for place in ({"address": "localhost", "port": 8080}, {"in_process": True}) * 2:
            bench.call(**{"provider": "llama_cpp", "address": None, "port": None, **place})
        metrics = metrics_of(bench.sent())
        counted = {
            name: [(point.count, point.sum) for point in points_of(metrics[name])]
            for name in (
                "sottovoce.engine.prefill.throughput",
                "gen_ai.server.request.duration",
                "gen_ai.server.time_to_first_token",
            )
        }
        assert counted == {
            "sottovoce.engine.prefill.throughput": [(4, 4 * 2048.0)],
            "gen_ai.server.request.duration": [(2, 2 * 2.56)],
            "gen_ai.server.time_to_first_token": [(2, 2 * 0.75)],
        }

    def test_points_say_the_hour_alone(self):
        bench = Bench("aggregate")
        bench.call()
        bench.foreign()
        hour = 3600 * 10**9
        points = [p for metric in metrics_of(bench.sent()).values() for p in points_of(metric)]
        assert points
        for point in points:
            assert point.time_unix_nano % hour == point.start_time_unix_nano % hour == 0
            assert point.time_unix_nano >= point.start_time_unix_nano > 0


class TestContent:
    def test_over_otlp_it_is_standard(self):
        told = []
        for profile in ("standard", "content"):
            bench = Bench(profile)
            bench.foreign()
            sent = bench.sent()
            told.append(
                [(name, value) for message in sent for name, value in leaves(message)
                 if "time" not in name and name not in {"trace_id", "span_id"}]
            )  # fmt: skip
        assert told[0] == told[1]

    def test_content_itself_is_dropped(self):
        loose = Policy(Settings(key=SECRET, profile="content"))
        said = {name: "what was said" for name, rule in rules("content").items() if rule == "seal"}
        assert said
        assert loose.attributes(said, "span") == {}


class TestTighten:
    @pytest.mark.parametrize("to", PROFILES[:-1])
    def test_it_takes_effect_at_once_for_what_was_handed_out(self, to):
        bench = Bench("content")
        bench.call()
        assert exact(bench.sent())
        bench.spans.clear()
        privacy.tighten(to)
        assert (bench.policy.profile, policy.active().profile) == (to, to)
        bench.call()
        bench.foreign()
        sent = bench.sent()
        assert bool(sent) == (to != "off")
        assert bool(exact(sent)) == (to == "standard")
        assert bool(spans_of(sent)) == (to in {"standard", "strict"})
        for resource in resources_of(sent):
            assert ("service.instance.id" in resource) == (to == "standard")

    @pytest.mark.parametrize(
        ("held", "wanted"),
        [(a, b) for n, a in enumerate(PROFILES) for b in PROFILES[n + 1 :]],
    )
    def test_loosening_is_an_error_and_changes_nothing(self, held, wanted):
        bench = Bench(held)
        before = bench.policy.choice.now
        with pytest.raises(ValueError, match="may only tighten"):
            privacy.tighten(wanted)
        assert bench.policy.choice.now is before
        assert policy.activate(Settings(key=SECRET, profile=held)).profile == held

    def test_what_was_tightened_cannot_be_loosened_again(self):
        Bench("standard")
        privacy.tighten("strict")
        with pytest.raises(ValueError, match="'strict'"):
            privacy.tighten("standard")
        privacy.tighten("strict")
        assert policy.active().profile == "strict"

    def test_a_profile_that_is_none_is_told_the_choices(self):
        bench = Bench("standard")
        for wrong in ("", "STRICT", "tight", None, 1):
            with pytest.raises(ValueError, match="off, aggregate, strict, standard, content"):
                privacy.tighten(wrong)
        assert bench.policy.profile == "standard"

    def test_it_holds_for_what_is_started_later(self):
        privacy.tighten("strict")
        assert Bench("standard").policy.profile == "strict"
        assert Bench("aggregate").policy.profile == "aggregate"

    def test_before_anything_is_started_the_environment_is_what_holds(self, monkeypatch):
        monkeypatch.setenv("SOTTOVOCE_PROFILE", "aggregate")
        with pytest.raises(ValueError, match="'aggregate'"):
            privacy.tighten("strict")
        privacy.tighten("off")
        assert policy.active().off

    def test_a_counter_that_was_exact_before_is_not_shown(self):
        bench = Bench("standard", semconv="latest")
        bench.call()
        bench.spans.clear()
        privacy.tighten("strict")
        assert exact(bench.sent()) == []

    @pytest.mark.parametrize("to", ["strict", "aggregate"])
    def test_what_was_instrumented_before_a_stricter_start_tells_nothing_exact_to_its_gate(
        self, to
    ):
        bench = Bench("standard")
        bench.reader = InMemoryMetricReader()
        bench.meters = MeterProvider([bench.reader], shutdown_on_exit=False)
        bench.recorder = SpanRecorder(TracerProvider(), bench.meters, Settings(semconv="both"))
        bench.call()
        judge = policy.activate(Settings(profile=to, key=SECRET))
        gate_in_place(judge, meter_provider=bench.meters)
        assert exact(bench.sent()) == []
        bench.call(model="gpt-4o-mini")
        sent = bench.sent()
        assert "gen_ai.client.inference.usage.input_tokens" in metrics_of(sent)
        assert exact(sent) == []
        assert bench.policy.profile == to
        # Nor after the next, whose profile is the same.
        following = policy.activate(Settings(profile=to, key=SECRET))
        assert following.choice.now.late

    @pytest.mark.parametrize("to", ["strict", "off"])
    def test_what_waits_to_be_sent_is_discarded(self, to):
        bench = Bench("standard")
        spans, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        bench.tracers.add_span_processor(BatchSpanProcessor(spans, schedule_delay_millis=60_000))
        bench.loggers.add_log_record_processor(
            BatchLogRecordProcessor(logs, schedule_delay_millis=60_000)
        )
        bench.foreign()
        privacy.tighten(to)
        bench.foreign()
        bench.tracers.force_flush()
        bench.loggers.force_flush()
        assert len(spans.get_finished_spans()) == len(logs.get_finished_logs()) == (to == "strict")
        assert exact([encode_spans(spans.get_finished_spans())]) == []
        assert exact([encode_logs(logs.get_finished_logs())]) == []
        assert bench.policy.dropped["span", "off"] == (1 if to == "strict" else 2)
        assert bench.policy.dropped["log", "off"] == (3 if to == "strict" else 4)
        bench.tracers.shutdown()
        bench.loggers.shutdown()

    def test_a_live_span_is_seen_tightly(self):
        bench = Bench("standard")
        seen = []

        class Reads(SpanProcessor):
            def on_start(self, span, parent_context=None):
                self.span = span

            def on_end(self, span):
                seen.append(dict(self.span.attributes))

        reads = Reads()
        bench.tracers.add_span_processor(reads)
        span = bench.tracers.get_tracer("sottovoce").start_span(
            "x", attributes={"gen_ai.usage.input_tokens": INPUT}
        )
        assert reads.span.attributes["gen_ai.usage.input_tokens"] == INPUT
        privacy.tighten("strict")
        assert reads.span.attributes["gen_ai.usage.input_tokens"] == 4096
        span.end()
        assert seen == [{"gen_ai.usage.input_tokens": 4096, LASTED: "lt_1s"}]

    def test_many_threads_at_once_end_at_the_tightest(self):
        bench = Bench("content")
        errors = []

        def work(profile):
            for _ in range(3):
                try:
                    privacy.tighten(profile)
                except ValueError:
                    pass
                except Exception as error:  # noqa: BLE001 - what the test looks for
                    errors.append(error)
                bench.foreign()

        threads = [threading.Thread(target=work, args=(p,)) for p in PROFILES[1:] * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert bench.policy.profile == "aggregate"
        bench.spans.clear()
        bench.foreign()
        assert bench.spans.get_finished_spans() == ()

    def test_a_forked_child_keeps_it_and_may_tighten_more(self):
        bench = Bench("standard")
        privacy.tighten("strict")
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()

        def child():
            told = [bench.policy.profile]
            try:
                privacy.tighten("standard")
            except ValueError:
                told.append("refused")
            privacy.tighten("aggregate")
            told.append(bench.policy.profile)
            theirs.send(told)

        process = context.Process(target=child)
        process.start()
        assert ours.poll(30)
        assert ours.recv() == ["strict", "refused", "aggregate"]
        process.join(30)
        assert bench.policy.profile == "strict"


VALUES = (
    st.text(max_size=20)
    | st.integers(-5, 10**10)
    # With the six decimals that `standard` keeps: a seventh may be on the other side of a bound.
    | st.floats(-(10**10), 10**10).map(lambda number: round(number, 6))
    | st.sampled_from([math.inf, -math.inf, math.nan, 1e300])
    | st.booleans()
    | st.lists(st.text(max_size=8), max_size=3)
    | st.sampled_from(["chat", "openai", "gpt-4o", "stop", "POST", "api.openai.com", 443, 0.7])
)
POLICIES = {name: Policy(Settings(profile=name, key=SECRET)) for name in PROFILES}


@given(st.sampled_from(sorted(ATTRIBUTES)), VALUES, st.sampled_from(["span", "metric", "resource"]))
@limits(max_examples=600, deadline=None)
def test_what_leaves_is_never_more_than_under_a_looser_profile(key, value, signal):
    said = {key: value}
    left = {name: each.attributes(said, signal) for name, each in POLICIES.items()}
    if left["strict"].get("service.name") == UNNAMED:
        # What every service is called there, also one whose name leaves nowhere, tells nothing.
        del left["strict"]["service.name"], left["aggregate"]["service.name"]
    assert left["off"] == {}
    assert left["content"] == left["standard"]
    for tighter, looser in zip(PROFILES, PROFILES[1:], strict=False):
        assert set(left[tighter]) <= set(left[looser])
        # What leaves tightly can be told from what leaves loosely: it adds nothing.
        again = POLICIES[tighter].attributes(left[looser], signal)
        # (A list that was counted is gone, and a hash of sessions is hashed anew.)
        if (rules(looser) if looser != "off" else {}).get(key) not in {
            "count",
            "hash_rot",
            "hash_user",
        }:
            assert left[tighter] == {k: v for k, v in again.items() if k in left[tighter]}


NAMES = [
    key
    for key, rule in rules("strict").items()
    if rule == "curated" and ATTRIBUTES[key].type == "string"
]


@pytest.mark.parametrize("key", NAMES)
def test_names_that_somebody_gave_do_not_leave(key):
    left = {
        name: each.attributes({key: "look_up_bob"}, "span").get(key)
        for name, each in POLICIES.items()
    }
    hashed = left.pop("standard")
    assert re.fullmatch("(?:h:)?[0-9a-f]{12}", hashed)
    assert left == {"off": None, "aggregate": None, "strict": "_OTHER", "content": hashed}
    # What passes two gates is the same after the second, and no model's pseudonym.
    assert POLICIES["standard"].attributes({key: hashed}, "span") == {key: hashed}
    assert POLICIES["standard"].model("look_up_bob", local=False) != hashed


def test_names_that_come_with_a_provider_leave():
    said = {"gen_ai.tool.name": "web_search", "graph.node.name": "__start__"}
    for profile in PROFILES[1:]:
        assert POLICIES[profile].attributes(said, "span") == said


@pytest.mark.parametrize(
    ("seconds", "word"),
    [(0, "lt_1s"), (0.9999, "lt_1s"), (1, "1_5s"), (5, "5_15s"), (15, "15_60s"), (60, "1_5m"),
     (299.9, "1_5m"), (300, "gte_5m"), (10**6, "gte_5m")],
)  # fmt: skip
def test_how_long_a_span_lasted_is_one_of_six_words(seconds, word):
    for profile in ("strict", "standard"):
        bench = Bench(profile)
        tracer = bench.tracers.get_tracer("sottovoce")
        tracer.start_span("x", start_time=10**18).end(10**18 + round(seconds * 10**9))
        (span,) = bench.spans.get_finished_spans()
        assert span.attributes == ({LASTED: word} if profile == "strict" else {})
        assert word in ATTRIBUTES[LASTED].values


@given(st.integers(0, 10**9))
def test_a_bucket_of_a_count_bounds_it_and_is_its_own(value):
    bucket = buckets.count(value)
    if bucket is not None:
        assert value <= bucket
        assert bucket in {0, *(4**n for n in range(15))}
        assert bucket == 0 or bucket < 4 * max(value, 1) + 1
        assert buckets.count(bucket) == bucket


@given(st.floats())
def test_a_bucket_of_a_time_a_score_or_a_throughput_is_its_own(value):
    for bucketed in (buckets.seconds, buckets.score, buckets.share, buckets.throughput):
        bucket = bucketed(value)
        assert bucket is None or bucketed(bucket) == bucket


@pytest.mark.parametrize(
    ("given_", "leaves_"),
    [(0.7351, 0.7), (-0.96, -1.0), (0.04, 0.0), (3.49, 3.0), (87.2, 90.0), (math.nan, None)],
)
def test_scores_have_one_digit(given_, leaves_):
    said = {"gen_ai.evaluation.score.value": given_}
    kept = POLICIES["strict"].attributes(said, "event")
    assert kept.get("gen_ai.evaluation.score.value") == leaves_


@given(st.floats(0, 1, exclude_min=True))
def test_a_share_is_the_same_on_a_span_and_in_its_histogram(value):
    kept = POLICIES["strict"].attributes({"sottovoce.context.utilization": value}, "span")
    bounds = METRICS["sottovoce.engine.context.utilization"].boundaries
    assert kept == {"sottovoce.context.utilization": buckets.representative(value, bounds)}


@pytest.mark.parametrize("value", [4**8, 4**8 + 1, 10**5])
def test_a_number_that_is_too_large_in_standard_has_no_bucket_in_strict(value):
    key = "sottovoce.request.batch.size"
    shown = {
        profile: policy.Policy(Settings(profile=profile)).attributes({key: value}, "span")
        for profile in ("strict", "standard")
    }
    assert bool(shown["strict"]) == bool(shown["standard"]) == (value <= 4**8)

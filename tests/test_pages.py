"""What calls measure reaches whoever collects, as if each measurement had been recorded at once."""

import contextlib
import gc
import math
import os
import signal
import threading
import time
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.context import Context, attach, detach, set_value
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    AlwaysOnExemplarFilter,
    Counter,
    Histogram,
    MeterProvider,
    SimpleFixedSizeExemplarReservoir,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics._internal import _MeterConfig
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    View,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from sottovoce import guard, own_counters, pages, points
from sottovoce.call import CHUNK_BOUNDS_S, Call, Gaps
from sottovoce.measure import Measured
from sottovoce.pages import MOST_ROWS, Book, Words
from sottovoce.points import REMEMBERED, Point
from sottovoce.privacy import policy
from sottovoce.record import SpanRecorder
from sottovoce.record_steps import StepRecorder
from sottovoce.settings import Settings
from sottovoce.steps import Step

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
TEMPORALITIES = list(AggregationTemporality)[1:]
FILTERS = [AlwaysOnExemplarFilter, AlwaysOffExemplarFilter, TraceBasedExemplarFilter]
NAMES = ("first", "second", "paced")


class Bench:
    """A book of three histograms, the last with words, in a provider of its own."""

    def __init__(self, temporality=AggregationTemporality.CUMULATIVE, exemplars=None, views=()):
        self.temporality = temporality
        self.reader = self.new_reader()
        self.meters = MeterProvider([self.reader], exemplar_filter=exemplars, views=views)
        meter = self.meters.get_meter("app")
        own_counters.observe(self.meters, meter, policy.Policy(Settings()))
        self.histograms = [meter.create_histogram(name) for name in NAMES]
        first, second, paced = self.histograms
        self.book = Book(
            Measured(first), Measured(second, {"kind": "in"}), Measured(paced), worded_from=2
        )

    def new_reader(self):
        return InMemoryMetricReader(preferred_temporality={Histogram: self.temporality})

    def points(self, reader=None):
        """Name → the points that a reader finds when it collects."""
        data = (reader or self.reader).get_metrics_data()
        return {
            metric.name: [
                (
                    dict(sorted(p.attributes.items())), p.count, p.sum, list(p.bucket_counts), p.min, p.max,
                    [(e.value, e.span_id, e.trace_id) for e in p.exemplars],
                )
                for p in sorted(metric.data.data_points, key=lambda p: str(p.attributes))
            ]
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name in NAMES
        }  # fmt: skip


def point(number=1, *, sampled=True, **attributes):
    span = SpanContext(7, number, is_remote=False, trace_flags=TraceFlags(int(sampled)))
    return Point(attributes, set_span_in_context(NonRecordingSpan(span)))


WORDS = {"model": "a"}
rows = st.lists(
    st.tuples(
        st.tuples(*[st.none() | st.integers(0, 20_000) for _ in NAMES]),
        st.sampled_from([{}, {"a": 1}, {"a": "1", "b": 2}]),
        st.booleans(),  # sampled
        st.booleans(),  # failed
        st.booleans(),  # collected afterwards
    ),
    max_size=20,
)


@pytest.fixture(autouse=True)
def nothing_waits():
    pages.add_all()


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(pages, "MOST_ROWS", 4)


@pytest.mark.parametrize("temporality", TEMPORALITIES)
@pytest.mark.parametrize("exemplars", FILTERS)
@pytest.mark.usefixtures("few_rows")
@settings(max_examples=25, deadline=None)
@given(rows)
def test_a_row_is_what_recording_each_of_its_values_is(temporality, exemplars, written):
    ours, public = Bench(temporality, exemplars()), Bench(temporality, exemplars())
    words = Words(WORDS)
    for number, (values, said, sampled, fails, collected) in enumerate(written, 1):
        mine = point(number, sampled=sampled, **said)
        failing = point(number, sampled=sampled, **said, error="x") if fails else mine
        ours.book.write(values, mine, failing, words)
        for value, histogram, attributes in zip(
            values,
            public.histograms,
            (failing.attributes, {**said, "kind": "in"}, {**said, **WORDS}),
            strict=True,
        ):
            if value is not None:
                histogram.record(value, attributes, mine.context)
        if collected:
            assert ours.points() == public.points()
    assert ours.points() == public.points()


@pytest.mark.parametrize("temporality", TEMPORALITIES)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_gaps_of_a_stream_are_counted_one_and_all(temporality, known, fails):
    exponential = View(instrument_name="gaps", aggregation=ExponentialBucketHistogramAggregation())
    bench = Bench(temporality, views=() if known else [exponential])
    histogram = bench.meters.get_meter("app").create_histogram(
        "gaps", explicit_bucket_boundaries_advisory=CHUNK_BOUNDS_S
    )
    book = Book(Measured(bench.histograms[0]), gaps=Measured(histogram))
    gaps = Gaps()
    gaps.buckets[1] = 2, 25_000_000
    gaps.minimum, gaps.maximum = 12_000_000, 13_000_000
    mine = point(a=1)
    book.write((1.0,), mine, point(a=1, error="x") if fails else mine, gaps=gaps)
    data = bench.reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    [found] = [
        (dict(p.attributes), p.count, round(p.sum, 9))
        for metric in data
        if metric.name == "gaps"
        for p in metric.data.data_points
    ]
    assert found == ({"a": 1}, 2, 0.025)


def test_what_was_not_measured_makes_no_series():
    bench = Bench()
    bench.book.write((1.0, None, None), point(), mine := point())
    bench.book.write((1.0, None, None), mine, mine)
    assert set(bench.points()) == {"first"}


def test_rows_do_not_wait_in_numbers():
    bench = Bench()
    for number in range(10 * MOST_ROWS):
        mine = point(a=number)
        bench.book.write((1.0, 2, None), mine, mine)
        assert len(pages._rows) < MOST_ROWS


def test_what_was_measured_outlives_who_measured_it():
    bench = Bench()
    mine = point()
    bench.book.write((1.0, 2, None), mine, mine)
    del bench.book
    gc.collect()
    assert [count for _, count, *_ in bench.points()["first"]] == [1]


def test_a_reader_that_comes_later_gets_what_comes_later():
    bench, late = Bench(), InMemoryMetricReader()
    mine = point()
    bench.book.write((1.0, None, None), mine, mine)
    bench.meters.add_metric_reader(late)
    bench.book.write((2.0, None, None), mine, mine)
    assert [total for _, _, total, *_ in bench.points(late)["first"]] == [2.0]
    assert [total for _, _, total, *_ in bench.points()["first"]] == [3.0]


@pytest.mark.parametrize(
    "view",
    [
        View(instrument_name="second", aggregation=ExponentialBucketHistogramAggregation()),
        View(instrument_name="second", aggregation=DropAggregation()),
        View(instrument_name="second", attribute_keys={"a"}),
    ],
    ids=["another aggregation", "dropped", "fewer attributes"],
)
def test_a_view_of_the_operators_holds(view):
    ours, public = Bench(views=[view]), Bench(views=[view])
    for number in (1, 2):
        mine = point(number, a=1, b=2)
        ours.book.write((1.0, number, None), mine, mine)
        public.histograms[0].record(1.0, {"a": 1, "b": 2}, mine.context)
        public.histograms[1].record(number, {"a": 1, "b": 2, "kind": "in"}, mine.context)

    def told(bench):
        data = bench.reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        return {
            metric.name: [(dict(p.attributes), p.count, p.sum) for p in metric.data.data_points]
            for metric in data
            if metric.name in NAMES
        }

    assert told(ours) == told(public)


def test_another_provider_gets_each_value_at_once():
    seen = []

    class Foreign:
        def record(self, value, attributes=None, context=None):
            seen.append((value, attributes))

    book = Book(Measured(Foreign()), Measured(Foreign(), {"kind": "in"}), worded_from=1)
    book.write((1.0, 2), point(a=1), point(a=1, error="x"), Words(WORDS))
    assert seen == [(1.0, {"a": 1, "error": "x"}), (2, {"a": 1, "model": "a", "kind": "in"})]
    silent = NoOpMeterProvider().get_meter("app").create_histogram("h")
    mine = point()
    Book(Measured(silent)).write((1.0,), mine, mine)


def test_a_meter_that_is_switched_off_keeps_nothing():
    bench = Bench()
    bench.meters.get_meter("app")._meter_config._config = _MeterConfig(is_enabled=False)
    mine = point()
    bench.book.write((1.0, 2, None), mine, mine)
    assert not pages._rows


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf])
def test_what_no_histogram_takes_is_counted_and_spoils_nothing(value):
    bench, before = Bench(), guard.failures["pages.value"]
    mine = point()
    bench.book.write((value, 2, None), mine, mine)
    bench.book.write((1.0, 2, None), mine, mine)
    found = bench.points()
    assert [(count, total) for _, count, total, *_ in found["first"]] == [(1, 1.0)]
    assert [(count, total) for _, count, total, *_ in found["second"]] == [(2, 4)]
    assert guard.failures["pages.value"] == before + 1


def test_nothing_is_lost_between_threads_that_write_and_one_that_collects():
    bench = Bench(AggregationTemporality.DELTA)
    each, threads, found = 2_000, 4, []

    def write():
        mine = Point({"a": 1}, Context())
        for _ in range(each):
            bench.book.write((1, 2, None), mine, mine)

    writing = [threading.Thread(target=write) for _ in range(threads)]
    for thread in writing:
        thread.start()
    while any(thread.is_alive() for thread in writing):
        found += bench.points().get("first", ())
    for thread in writing:
        thread.join()
    found += bench.points().get("first", ())
    assert sum(count for _, count, *_ in found) == each * threads


@forking
def test_a_forked_child_leaves_what_waits_to_its_parent():
    bench = Bench()
    mine = point()
    bench.book.write((1.0, None, None), mine, mine)
    child = os.fork()
    if not child:
        os._exit(len(pages._rows))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [count for _, count, *_ in bench.points()["first"]] == [1]


@forking
@pytest.mark.parametrize("temporality", TEMPORALITIES)
def test_a_forked_child_counts_from_zero_and_waits_for_no_thread_of_its_parent(temporality):
    kinds = (Counter, Histogram)
    reader = InMemoryMetricReader(preferred_temporality=dict.fromkeys(kinds, temporality))
    meters = MeterProvider([reader])
    meters.get_meter("app").create_counter("theirs").add(1)
    recorder = SpanRecorder(TracerProvider(), meters, Settings(semconv="both"))

    def call(times):
        for number in range(times):
            call = Call(recorder, operation="chat", provider="llama_cpp", in_process=number % 2 > 0)
            call.facts.update(input_tokens=1, decode_rate=1.0)
            call.stream = True
            call.chunk()
            call.chunk()
            call.end()

    def counted():
        data = reader.get_metrics_data()
        return {
            metric.name: sum(getattr(p, "count", 0) or p.value for p in metric.data.data_points)
            for scope in data.resource_metrics[0].scope_metrics
            for metric in scope.metrics
        }

    call(2 * MOST_ROWS)
    pages.add_all()
    storages = meters._measurement_consumer._reader_storages.values()
    matches = [
        match
        for storage in storages
        for instrument, found in storage._instrument_view_instrument_matches.items()
        for match in found
        if instrument.instrumentation_scope.name == "sottovoce"
    ]
    counting = [each for match in matches for each in match._attributes_aggregation.values()]
    with contextlib.ExitStack() as held:
        for holder in (*matches, *counting):
            held.enter_context(holder._lock)
        child = os.fork()
        if not child:
            code = 2
            try:
                signal.alarm(20)
                call(4)
                found = counted()
                ours = {number for name, number in found.items() if name.startswith("gen_ai.")}
                # Each call has two chunks and a token; engines had two of the four.
                code = 0 if (found["theirs"], ours) == (1, {0, 2, 4}) else 1
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert counted()["gen_ai.client.operation.duration"] == 2 * MOST_ROWS


def test_a_changed_sdk_is_counted_and_harms_nobody(monkeypatch):
    bench, before = Bench(), guard.failures["pages.add"]
    mine = point()
    bench.book.write((1.0, None, None), mine, mine)

    def changed(*_):
        raise AttributeError

    monkeypatch.setattr(pages.Series, "add", changed)
    bench.points()
    assert guard.failures["pages.add"] == before + 1


@pytest.mark.parametrize("wanted", [True, False])
def test_extremes_are_recorded_for_an_operator_who_wants_them(wanted):
    aggregation = ExplicitBucketHistogramAggregation((1, 5), record_min_max=wanted)
    bench = Bench(views=[View(instrument_type=Histogram, aggregation=aggregation)])
    mine = point()
    for value in (2.0, 7.0):
        bench.book.write((value, None, None), mine, mine)
    [(_, _, total, counts, least, most, _)] = bench.points()["first"]
    assert (least, most) == ((2.0, 7.0) if wanted else (math.inf, -math.inf))
    assert (total, counts) == (9.0, [0, 1, 1])


def test_a_reader_that_comes_while_a_page_looks_for_the_readers_gets_the_next():
    class Kept(set):
        """Names of attributes, by which a View meets a reader's coming."""

        meanwhile = None

        def __contains__(self, name):
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            return super().__contains__(name)

    kept, late = Kept({"k"}), InMemoryMetricReader()
    bench = Bench(views=[View(instrument_name="first", attribute_keys=kept)])

    def write(**attributes):
        mine = point(**attributes)
        bench.book.write((1.0, None, None), mine, mine)

    def come():
        bench.meters.add_metric_reader(late)
        write(k="another thread's")

    kept.meanwhile = come
    for _ in range(2):
        write(k="first")
    assert {said["k"]: count for said, count, *_ in bench.points(late)["first"]} == {
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
    mine = point()
    Book(Measured(histogram), gaps=Measured(histogram)).write((1.0,), mine, mine, gaps=many_gaps())
    assert recorded == []


def test_another_providers_histogram_gets_every_gap_and_is_no_error_of_ours():
    before = guard.failures.copy()
    histogram = NoOpMeterProvider().get_meter("app").create_histogram("h")
    mine = point()
    Book(Measured(histogram), gaps=Measured(histogram)).write((1.0,), mine, mine, gaps=many_gaps())
    assert guard.failures == before


def test_numbers_that_are_exact_are_not_kept_where_they_must_not_be():
    judge = policy.Policy(Settings(profile="strict"))
    bench = Bench()
    meter = bench.meters.get_meter("app")
    gaps = meter.create_histogram("gaps", explicit_bucket_boundaries_advisory=CHUNK_BOUNDS_S)
    first = Measured(bench.histograms[0], bounds=(0, 5, 10), choice=judge.choice)
    book = Book(first, gaps=Measured(gaps, bounds=CHUNK_BOUNDS_S, choice=judge.choice))
    mine = point()
    for failing in (mine, point(error="x")):
        book.write((7.0,), mine, failing, gaps=many_gaps())
    data = bench.reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    told = {m.name: [(p.count, p.sum) for p in m.data.data_points] for m in data}
    assert all(total != 7.0 * count for count, total in told["first"])
    [(count, total)] = told["gaps"]
    assert (count, total) != (20_000, pytest.approx(20.0))


def starts(bench, name="first"):
    """Attributes → when a point began, in nanoseconds since the epoch."""
    data = bench.reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    return {
        tuple(p.attributes.items()): p.start_time_unix_nano
        for metric in data
        if metric.name == name
        for p in metric.data.data_points
    }


@pytest.mark.parametrize("temporality", TEMPORALITIES)
def test_a_point_begins_when_its_first_value_is_written(temporality):
    bench = Bench(temporality)
    mine = point(a=1)
    for _ in range(2):  # again after a collection
        bench.book.write((1.0, None, None), mine, point(a=1, error="x"))
        bench.book.write((1.0, None, None), mine, mine)
        written = time.time_ns()
        time.sleep(0.01)
        assert starts(bench)[(("a", 1),)] <= written


def test_one_of_too_many_sets_of_attributes_costs_no_more_than_another(monkeypatch):
    bench = Bench()
    gaps = bench.meters.get_meter("app").create_histogram("gaps")
    book = Book(Measured(bench.histograms[0]), gaps=Measured(gaps))
    for number in range(REMEMBERED + 1):
        Point({"filler": number}, Context())
    made, original = [], pages.Page.__init__
    for histogram in (gaps, bench.histograms[0]):
        monkeypatch.setattr(histogram, "record", None)
    monkeypatch.setattr(
        pages.Page, "__init__", lambda page, *given: made.append(page) or original(page, *given)
    )
    for _ in range(3):
        mine = point(a="one of too many")
        book.write((1.0,), mine, mine, gaps=many_gaps())
    assert [count for _, count, *_ in bench.points()["first"]] == [3]
    assert len(made) == 1


def test_no_more_sets_of_attributes_are_remembered_than_the_sdk_tells_apart():
    bench = Bench()
    for number in range(2 * REMEMBERED + 3):
        mine = point(a=number)
        bench.book.write((1.0, None, None), mine, mine)
        assert len(bench.book._plain.pages) <= REMEMBERED
    assert len(points._keys) <= REMEMBERED
    assert sum(count for _, count, *_ in bench.points()["first"]) == 2 * REMEMBERED + 3


@pytest.mark.usefixtures("no_policy")
@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize(
    "view", [(), (View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation()),)]
)
def test_no_exemplar_of_a_coarse_number_names_a_call(fails, view):
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], exemplar_filter=AlwaysOnExemplarFilter(), views=view)
    tracers = TracerProvider()
    recorder = SpanRecorder(tracers, meters, Settings(profile="strict", semconv="both"))
    with tracers.get_tracer("app").start_as_current_span("around"):
        call = Call(recorder, operation="chat", provider="openai", model="m")
        call.facts.update(input_tokens=7, output_tokens=2)
        if fails:
            call.fail("429")
        call.end()
    data = reader.get_metrics_data()
    ids = [
        exemplar.trace_id
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        for p in metric.data.data_points
        for exemplar in p.exemplars
    ]
    assert not any(ids)


class Reservoir(SimpleFixedSizeExemplarReservoir):
    """Of an app's own: knows what it was offered, and does not like everything."""

    offered: ClassVar[list] = []
    disliked = None

    def offer(self, value, time_unix_nano, attributes, context):
        if value == self.disliked:
            raise ValueError(value)
        self.offered.append(dict(context))
        super().offer(value, time_unix_nano, attributes, context)


@pytest.fixture
def reserved(monkeypatch):
    """A bench whose exemplars an app keeps itself."""
    monkeypatch.setattr(Reservoir, "offered", [])
    view = View(
        instrument_name="first", exemplar_reservoir_factory=lambda _: lambda **_: Reservoir(size=1)
    )
    return Bench(views=[view])


def test_an_exemplar_is_offered_with_its_span_and_nothing_of_who_collects(reserved):
    mine = point(a=1)
    reserved.book.write((1.0, None, None), mine, mine)
    token = attach(set_value("app", "bob"))
    try:
        pages.add_all()
    finally:
        detach(token)
    [context] = Reservoir.offered
    assert [span.get_span_context().span_id for span in context.values()] == [mine.span.span_id]


def test_an_exemplar_that_is_refused_costs_no_other_measurement(reserved, monkeypatch):
    monkeypatch.setattr(Reservoir, "disliked", 3.0)
    mine = point(a=1)
    for number in range(6):
        reserved.book.write((float(number), number, None), mine, mine)
    found = reserved.points()
    assert [count for _, count, *_ in found["second"]] == [6]
    assert [count for _, count, *_ in found["first"]][0] >= 5


def test_what_keeps_the_last_value_keeps_the_last():
    view = View(instrument_name="first", aggregation=LastValueAggregation(), attribute_keys=set())
    bench = Bench(views=[view])
    for value, name in ((1.0, "a"), (2.0, "b"), (3.0, "a")):
        mine = point(k=name)
        bench.book.write((value, None, None), mine, mine)
    data = bench.reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    assert [p.value for m in data if m.name == "first" for p in m.data.data_points] == [3.0]


def test_the_newest_of_folded_sets_is_the_exemplar():
    bench = Bench(views=[View(instrument_name="first", attribute_keys=set())])
    for number, name in enumerate("aba", 1):
        mine = point(number, k=name)
        bench.book.write((1.0, None, None), mine, mine)
    [(*_, exemplars)] = bench.points()["first"]
    assert [span for _, span, _ in exemplars] == [3]


def test_what_a_signal_keeps_from_being_added_waits_on(monkeypatch):
    bench = Bench()
    for name in "abc":
        mine = point(k=name)
        bench.book.write((1.0, None, None), mine, mine)
    with monkeypatch.context() as patch:
        patch.setattr(pages.Series, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pages.add_all()
    assert [said["k"] for said, count, *_ in bench.points()["first"] if count] == ["b", "c"]


@forking
def test_a_forked_child_waits_for_no_thread_that_collected():
    bench, held, go_on = Bench(), threading.Event(), threading.Event()
    recorder = SpanRecorder(TracerProvider(), bench.meters, Settings())
    [storage] = bench.meters._measurement_consumer._reader_storages.values()

    def collect():
        with storage._lock:
            held.set()
            go_on.wait()

    thread = threading.Thread(target=collect)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)
        Call(recorder, operation="chat", provider="openai").end()
        os._exit(0)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_tools_alone_are_counted():
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    recorder = StepRecorder(TracerProvider(), meters, Settings())
    Step(recorder, "tool", "search").end()
    data = reader.get_metrics_data()
    assert "gen_ai.execute_tool.duration" in {
        metric.name for scope in data.resource_metrics[0].scope_metrics for metric in scope.metrics
    }

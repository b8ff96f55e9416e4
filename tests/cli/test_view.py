"""What a person sees: through the real SDK, the receiver and the store."""

import io
import json
import re
import xml.dom.minidom

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from rich.console import Console

from sottovoce.cli import charts, shown, view
from sottovoce.cli.otlp import Rows
from sottovoce.cli.store import Store

from .test_store import request

RESOURCE = Resource({"service.name": "shop"})
MODEL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "mlx",
    "gen_ai.request.model": "h:0123456789ab",
}


def seen(store, width=None, **arguments):
    file = io.StringIO()
    out = view.console(file)
    if width:
        out.width = width
    view.render(store, out, **arguments)
    return file.getvalue()


def flat(text):
    return re.sub(r"\s+", " ", text)


@pytest.fixture
def filled(receiver, store):
    provider = TracerProvider(resource=RESOURCE)
    provider.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter(f"{receiver.endpoint}/v1/traces"))
    )
    tracer = provider.get_tracer("sottovoce")
    with tracer.start_as_current_span("the app"):
        stream = tracer.start_span("chat h:0123456789ab", start_time=10**18, attributes=MODEL)
        stream.set_attributes(
            {
                "gen_ai.usage.input_tokens": 12,
                "gen_ai.usage.output_tokens": 3456,
                "gen_ai.response.time_to_first_chunk": 0.0321,
                "gen_ai.response.finish_reasons": ["stop"],
                "sottovoce.response.chunks": 99,
                "sottovoce.call.outcome": "abandoned",
                "sottovoce.model.quantization": "4bit",
            }
        )
        stream.end(10**18 + 1_500_000_000)
        failed = tracer.start_span("embeddings h:ba9876543210", kind=SpanKind.CLIENT)
        failed.set_attributes(
            {
                "gen_ai.provider.name": "openai",
                "server.address": "127.0.0.1",
                "server.port": 8080,
                "sottovoce.call.outcome": "failed",
                "error.type": "404",
            }
        )
        failed.set_status(Status(StatusCode.ERROR))
        failed.end()
    provider.shutdown()

    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics"), export_interval_millis=3_600_000
    )
    meters = MeterProvider(resource=RESOURCE, metric_readers=[reader])
    meter = meters.get_meter("sottovoce")
    duration = meter.create_histogram(
        "gen_ai.client.operation.duration",
        unit="s",
        explicit_bucket_boundaries_advisory=[0.01, 0.02, 0.04, 0.64, 1.28, 81.92],
    )
    for value in (0.005, 0.03, 0.03, 0.03, 0.03, 0.7, 100.0):
        duration.record(value, MODEL)
    tokens = meter.create_histogram(
        "gen_ai.client.token.usage",
        unit="{token}",
        explicit_bucket_boundaries_advisory=[1, 4, 16, 1024],
    )
    for value in (1, 3, 10, 20):
        tokens.record(value, {**MODEL, "gen_ai.token.type": "output"})
    dropped = meter.create_counter("sottovoce.gate.dropped")
    dropped.add(1234, {"sottovoce.gate.signal": "span", "sottovoce.gate.rule": "unknown"})
    dropped.add(1, {"sottovoce.gate.signal": "log", "sottovoce.gate.rule": "body"})
    meters.shutdown()
    return store


def test_the_tree_shows_what_is_worth_knowing_of_every_call(filled):
    text = seen(filled)
    lines = text.splitlines()
    line = next(line for line in lines if "├─ chat h:0123456789ab" in line)
    assert flat(line).split("h:0123456789ab")[1].split() == [
        "internal", "1.5", "s", "12→3,456", "32.1", "ms", "99", "abandoned",
    ]  # fmt: skip
    assert "mlx · 4bit · finish stop" in lines[lines.index(line) + 1]
    line = next(line for line in lines if "└─ embeddings h:ba9876543210" in line)
    assert "client" in line and line.rstrip().endswith("failed")
    assert "openai · 127.0.0.1:8080 · 404" in lines[lines.index(line) + 1]
    assert any(line.startswith("the app") for line in lines)
    assert "shop" in text and "3 spans" in text


def test_a_detail_longer_than_the_line_goes_on_below_its_span(store):
    answered = "gpt-4o-mini-2024-07-18"
    call = {
        "gen_ai.provider.name": "openai_compatible", "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": answered, "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.response.finish_reasons": ["stop"],
        "server.address": "127.0.0.1", "server.port": 35851,
    }  # fmt: skip
    spans = [
        (trace, key, parent, "n", 3, start, 10**18 + 9, 0, "", "", json.dumps(facts), "{}", "[]")
        for start, (trace, key, parent, facts) in enumerate(
            (("t", "a", "", {}), ("t", "b", "a", call), ("t", "c", "a", {}), ("u", "d", "", {})),
            10**18,
        )
    ]
    store.add(request(), Rows(spans=spans))
    text = seen(store)
    lines = text.splitlines()
    first = next(at for at, line in enumerate(lines) if f"answered by {answered}" in line)
    assert lines[first].startswith("│     openai_compatible")
    assert lines[first + 1].startswith("│     127.0.0.1:35851")
    assert all(len(line) <= view.WIDTH for line in lines)
    assert re.search(r"  3 spans$", text, re.MULTILINE) and re.search(
        r"  1 span$", text, re.MULTILINE
    )


def test_levels_are_told_by_service(store):
    points = [
        (name, "sum", "By", 2, 0, 1, 1, 0, total, None, None, "[]", "[]", "", "{}", resource)
        for name in ("process.memory.usage", "system.memory.usage")
        for total, resource in ((1e6, '{"service.name": "a"}'), (2e6, '{"service.name": "b"}'))
    ]
    store.add(request(), Rows(points=points))
    text = seen(store)
    assert "process.memory.usage  a  1 MB" in text and "process.memory.usage  b  2 MB" in text
    assert "system.memory.usage  2 MB" in text


def test_calls_without_a_response_are_told_from_those_with_one(store):
    def told(attributes):
        return (
            "gen_ai.client.operation.duration", "histogram", "s", 1, 0, 1, 2, 1, 0.5, 0.5, 0.5,
            "[1]", "[1, 0]", "", json.dumps(attributes), "{}",
        )  # fmt: skip

    answered = {**MODEL, "gen_ai.response.model": MODEL["gen_ai.request.model"]}
    elsewhere = {**answered, "gen_ai.operation.name": "embeddings"}
    store.add(request(), Rows(points=[told(MODEL), told(answered), told(elsewhere)]))
    titles = re.findall(r"(?:chat|embeddings) mlx h:0123456789ab(?: \(no response\))?", seen(store))
    assert sorted(titles) == [
        "chat mlx h:0123456789ab",
        "chat mlx h:0123456789ab (no response)",
        "embeddings mlx h:0123456789ab",
    ]


def test_histograms_are_drawn_with_their_real_buckets(filled):
    text = seen(filled)
    assert "gen_ai.client.operation.duration  s" in text
    assert "7 ×  mean" in text
    for label, count in (
        ("≤ 10 ms", 1), ("20–40 ms", 4), ("640 ms–1.28 s", 1), ("> 81.9 s", 1),
    ):  # fmt: skip
        assert re.search(rf"{re.escape(label)} [█▏▎▍▌▋▊▉]+ {count}\b", text), label
    assert "10–20 ms ·" in text
    bars = {m[0]: len(m[1]) for m in re.findall(r"(20–40 ms|≤ 10 ms) (█+)", text)}
    assert bars["20–40 ms"] in range(4 * bars["≤ 10 ms"], 4 * bars["≤ 10 ms"] + 4)
    assert re.search(r"chat mlx h:0123456789ab output", text)
    for label in ("≤ 1", "2–4", "5–16", "17–1,024"):
        assert re.search(rf" {label} █+[^ ]* 1\b", text), label


def test_the_ledger_names_what_was_removed_by_rule(filled):
    text = flat(seen(filled))
    assert "span unknown 1,234 not declared for this kind of item: an attribute, a metric" in text
    assert "log body 1 the body of a log record" in text
    assert "errors of our own: none" in text


def test_errors_of_our_own_are_shown(receiver, store):
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{receiver.endpoint}/v1/metrics"), export_interval_millis=3_600_000
    )
    meters = MeterProvider(metric_readers=[reader])
    meters.get_meter("m").create_counter("sottovoce.hook.errors").add(
        2, {"sottovoce.hook.place": "record.ended"}
    )
    meters.shutdown()
    assert "hook record.ended 2" in flat(seen(store))


def test_piped_output_has_no_colour_and_at_most_a_hundred_columns(filled):
    text = seen(filled)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_narrow_and_wide_terminals_are_filled_and_not_overrun(filled, width):
    lines = seen(filled, width).splitlines()
    assert max(len(line) for line in lines) <= max(width, 76)
    assert any("abandoned" in line or width < 76 for line in lines)


def test_a_terminal_without_unicode_gets_plain_bars(filled):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="replace")
    view.render(filled, view.console(file))
    file.flush()
    text = raw.getvalue().decode("ascii")
    assert re.search(r"20.40 ms #+ 4", text)
    assert "|- chat" in text


def test_an_empty_store_says_so(store):
    text = seen(store)
    assert "no spans arrived" in text and "no metrics arrived" in text
    assert "0 requests" in text


def test_refused_and_purged_requests_are_named(store):
    store.add(request(b"bad", status=400), Rows())
    assert "refused: 1 with 400" in seen(store)


def test_the_picture_is_well_formed_and_needs_no_network(filled, tmp_path):
    path = tmp_path / "demo.svg"
    view.save_svg(filled, path)
    svg = path.read_text(encoding="utf-8")
    xml.dom.minidom.parseString(svg)
    assert "h:0123456789ab" in svg
    assert set(re.findall(r"https?://[^\"' )]+", svg)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",
    }
    assert "@font-face" not in svg


HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "line\r\nbreak\ttab\0null",
    "\u202egnp.exe\u2066",
    "[bold red]markup[/] [link=file:///]x[/link] :warning:",
    "\u200bzero\ufeffwidth\U000e0041tag",
    "\u2028\u2029",
    "x" * 10_000,
    "漢字" * 200,
    "e" + "\u0301" * 300,
]


def spans_with(text, value):
    attributes = json.dumps(
        {
            text: text,
            "gen_ai.provider.name": text,
            "gen_ai.usage.input_tokens": value,
            "gen_ai.response.finish_reasons": [text, value],
            "gen_ai.response.time_to_first_chunk": value,
            "sottovoce.response.chunks": value,
            "sottovoce.call.outcome": value,
            "gen_ai.response.model": value,
            "error.type": text,
            "server.address": text,
            "server.port": value,
        }
    )
    return [
        ("t", "1", "", text, 77, 5, 1, 2, text, text, attributes, attributes, "[]"),
        ("t", "2", "1", text, -1, 2**63 - 1, 2**63 - 1, 0, text, text, attributes, "{}", "[]"),
    ]


def fill(store, text, value):
    attributes = json.dumps(
        {text: value, "sottovoce.gate.rule": text, "sottovoce.gate.signal": value}
    )
    points = [
        (
            name, kind, text, 2, 1, 0, 1, 3, 1e300, -1.0, 1e300, "[0.0, 1.0]", "[1, 1, 1]", text, attributes, "{}",
        )
        for name, kind in (
            (text, "histogram"), (text, "sum"), ("sottovoce.gate.dropped", "sum"), ("sottovoce.hook.errors", "sum"),
        )
    ]  # fmt: skip
    logs = [(1, text, text, text, "", "", text, attributes, "{}")]
    store.add(request(service=text), Rows(spans=spans_with(text, value), points=points, logs=logs))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_received_text_cannot_command_the_terminal(store, text):
    fill(store, text, text)
    printed = seen(store)
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069\ufeff]", printed
    )
    assert all(len(line) < 1000 for line in printed.splitlines())
    coloured = io.StringIO()
    view.render(store, Console(file=coloured, force_terminal=True, width=100, markup=False))
    assert not re.search("\x1b(?!\\[[0-9;]*m)", coloured.getvalue())


@given(
    text=st.text(max_size=30),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.lists(st.integers(), max_size=3) | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_attributes_of_any_type_are_shown(text, value, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("s") / "x.db", create=True)
    try:
        fill(store, text.encode(errors="replace").decode(), value)
        assert seen(store)
    finally:
        store.close()


def test_a_histogram_of_very_many_buckets_is_drawn_in_part(store):
    many = 20_000
    bounds, buckets = json.dumps(list(range(many))), json.dumps([1] * (many + 1))
    wide = ("h", "histogram", "s", 2, 0, 0, 1, many + 1, 1.0, None, None, bounds, buckets)
    store.add(request(), Rows(points=[(*wide, "", "{}", "{}")]))
    text = seen(store)
    assert "more buckets" in text
    assert len(text) < 10_000


def test_parents_in_a_circle_and_deep_trees_end(store):
    circle = [
        ("circle", key, parent, f"span {key}", 1, 1, 2, 0, "", "", "{}", "{}", "[]")
        for key, parent in (("a", "b"), ("b", "a"), ("c", "c"), ("d", "absent"))
    ]
    deep = [
        ("deep", str(level), str(level - 1), f"level {level}", 1, level, 9, 0, "", "", "{}", "{}", "[]")
        for level in range(1, 3000)
    ]  # fmt: skip
    store.add(request(), Rows(spans=circle + deep))
    text = seen(store)
    for key in "abcd":
        assert text.count(f"span {key}") == 1
    assert "level 150" in text and "more spans" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"), (1e-9, "1 ns"), (4.2e-5, "42 µs"), (0.0123, "12.3 ms"), (0.99999, "1 s"),
        (1.28, "1.28 s"), (81.92, "81.9 s"), (1234.5, "1,234 s"),
    ],
)  # fmt: skip
def test_times_have_the_unit_that_fits(value, text):
    assert shown.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (512, "512 B"), (163_270_656, "163 MB"), (-5_000, "-5 kB"), (19 << 30, "20.4 GB")],
)
def test_memory_has_the_unit_that_fits(value, text):
    assert shown.amount(value, "By") == text


@given(
    st.floats(min_value=-1e18, max_value=1e18),
    st.sampled_from(["s", "ms", "{token}", "By", "1", ""]),
)
@settings(max_examples=200, deadline=None)
def test_any_number_is_shown(value, unit):
    assert shown.amount(value, unit)
    assert shown.bucket(value, value + 1, unit) and shown.bucket(None, value, unit)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_cleaned_text_is_one_harmless_line(text):
    cleaned = shown.clean(text)
    assert len(cleaned.splitlines()) <= 1
    assert cleaned.isprintable() or all(
        ord(char) > 127 for char in cleaned if not char.isprintable()
    )


def test_an_attribute_set_names_its_server_only_where_it_matters():
    attributes = {**MODEL, "server.address": "127.0.0.1", "server.port": 80, "error.type": "404"}
    assert charts.attribute_set(attributes) == "chat mlx h:0123456789ab 127.0.0.1:80 error.type=404"
    assert (
        charts.attribute_set(attributes, server=False) == "chat mlx h:0123456789ab error.type=404"
    )
    assert charts.attribute_set({}) == "(no attributes)"
    tool = {"gen_ai.tool.name": "bash", "mcp.method.name": "tools/call"}
    assert charts.attribute_set(tool) == "tools/call bash"
    memory = {"gen_ai.provider.name": "mlx", "sottovoce.memory.state": "active"}
    assert charts.attribute_set(memory) == "mlx active"

"""`sottovoce policy`: what may leave and why; what the gate would do to a file of telemetry."""

import gzip
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce import registry
from sottovoce import settings as settings_
from sottovoce.cli import otlp, otlp_file
from sottovoce.cli.commands import commands
from sottovoce.privacy.gate import gated_tracer_provider
from sottovoce.privacy.policy import Policy

SECRET = "xyzzy-4711"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("SOTTOVOCE_PROFILE", "SOTTOVOCE_ALLOW", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SOTTOVOCE_KEY", "a key of the tests, long enough")


def run(*arguments, stdin=None, code=0):
    done = CliRunner().invoke(commands, ["policy", *map(str, arguments)], input=stdin)
    assert done.exit_code == code, done.output
    if done.exception is not None:
        assert isinstance(done.exception, SystemExit), done.exception
    return done.output


class TestShow:
    def test_of_an_attribute_it_tells_rule_contract_sensitivity_reason_and_review(self):
        told = run("show", "service.instance.id")
        rows = dict(line.strip().split(maxsplit=1) for line in told.splitlines()[1:])
        assert rows["rule"].startswith("keep (standard): kept when its type is right")
        assert rows["contract"].startswith("uuid: a random UUID")
        assert rows["sensitivity"].startswith("identifying: can name")
        assert rows["why"].startswith("Tells processes of one service apart")
        assert rows["review"].startswith("first-registry: 2026-11-21, ")
        assert rows["elsewhere"] == "aggregate: drop, strict: drop, content: keep"

    def test_of_a_metric_it_tells_what_is_measured(self):
        told = run("show", "gen_ai.client.token.usage")
        rows = dict(line.strip().split(maxsplit=1) for line in told.splitlines()[1:])
        assert rows["metric"] == "histogram, in {token}"
        assert rows["buckets"].endswith(", 67108864")
        assert "gen_ai.token.type" in rows["attributes"].split(", ")
        assert "not declared" not in told

    def test_a_metric_of_others_is_told_from_ours(self):
        assert "sottovoce does not record it" in run("show", "http.server.request.duration")

    def test_a_name_that_is_a_metric_and_a_dialects_word_is_both(self):
        told = run("show", "gen_ai.server.time_to_first_token")
        assert "histogram, in s" in told and "dialect's word" in told

    @pytest.mark.parametrize("name", ["sottovoce.model", "sottovoce.model."])
    def test_what_is_below_a_name_is_listed(self, name):
        told = run("show", name)
        assert "sottovoce.model.size" in told and "sottovoce.model.load.duration" in told

    @pytest.mark.parametrize("profile", registry.PROFILES)
    def test_each_profile_has_its_rule(self, profile):
        rule = registry.rules(profile)["gen_ai.request.model"]
        told = run("show", "--profile", profile, "gen_ai.request.model")
        assert f"{rule} ({profile}): " in told

    @pytest.mark.parametrize("profile", registry.PROFILES)
    def test_without_an_attribute_all_are_a_table(self, profile):
        head, *rows = run("show", "--profile", profile).splitlines()
        assert head.split() == "attribute rule contract sensitivity review reason".split()
        cells = {row.split()[0]: row.split(maxsplit=5)[1:] for row in rows}
        assert set(cells) == {*registry.ATTRIBUTES, *(f"{p}.<key>" for p in registry.PREFIXES)}
        assert all(len(row) == 5 for row in cells.values())
        for name in registry.ATTRIBUTES:
            assert cells[name][0] == registry.rules(profile)[name]

    def test_the_profile_of_the_environment_is_the_default(self, monkeypatch):
        monkeypatch.setenv("SOTTOVOCE_PROFILE", "off")
        told = run("show", "gen_ai.request.model")
        assert "the profile is off: nothing leaves" in told
        assert "cat12 (standard)" in told

    def test_a_vocabulary_is_told(self):
        told = run("show", "gen_ai.token.type")
        assert "input, output" in told
        assert " and " in run("show", "sottovoce.model.architecture").partition("values")[2]

    def test_a_key_with_a_variable_end_is_found(self):
        told = run("show", "http.request.header.cookie")
        assert told.startswith("http.request.header.<key>\n")
        assert "drop (standard)" in told

    def test_what_is_not_declared_would_be_dropped_and_near_names_are_told(self):
        told = run("show", "gen_ai.requst.model")
        assert "would be dropped, and counted as `unknown`" in told
        assert "gen_ai.request.model" in told
        assert "Near" not in run("show", "qqqq")

    @pytest.mark.parametrize("key", ["llm.token_count.prompt", "llm.request.model_name"])
    def test_a_word_of_a_dialect_is_told_what_it_says(self, key):
        told = run("show", key)
        said = registry.DIALECTS[key][0]
        assert told.startswith(f"{key} is a dialect's word: it leaves as {said}")
        assert "  rule " in told

    def test_a_terminal_is_not_led_astray_by_a_name(self):
        assert "\x1b" not in run("show", "\x1b[31mred")

    @pytest.mark.parametrize("command", [["show"], ["check", "-"]])
    def test_a_profile_that_is_none_is_told_the_choices(self, command):
        told = run(*command, "--profile", "secret", code=2)
        assert "'aggregate', 'strict', 'standard', 'content'" in told

    def test_the_texts_are_read_by_this_command_alone(self):
        program = (
            "import sys; seen = []\n"
            "sys.addaudithook(lambda event, args: event == 'open' and seen.append(str(args[0])))\n"
            "import sottovoce, sottovoce.privacy.policy, sottovoce.record, sottovoce.cli.commands\n"
            "assert not any('texts.json' in name for name in seen)\n"
            "try: sottovoce.cli.commands.commands(['policy', 'show', 'service.name'])\n"
            "finally: assert any('texts.json' in name for name in seen)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def attribute(key, value):
    return {"key": key, "value": {"stringValue": value}}


def traces(*attributes, **fields):
    span = {"traceId": "5b" * 16, "spanId": "ee" * 8, "name": "n", "attributes": attributes}
    return {"resourceSpans": [{"scopeSpans": [{"spans": [{**span, **fields}]}]}]}


def logs(*attributes, **fields):
    record = {"timeUnixNano": "7", "attributes": attributes, **fields}
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}


def metrics(name="http.server.request.duration", *attributes, **fields):
    kind = fields or {"histogram": {"dataPoints": [{"count": "1", "attributes": attributes}]}}
    return {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": name, **kind}]}]}]}


TRACES = traces(
    attribute("gen_ai.operation.name", "chat"),
    attribute("gen_ai.request.model", f"acme-{SECRET}"),
    attribute("gen_ai.input.messages", SECRET),
    attribute("gen_ai.usage.input_tokens", SECRET),
    attribute("my.own", SECRET),
    name=SECRET,
    traceState=f"v={SECRET}",
    status={"code": 2, "message": SECRET},
    events=[
        {"name": "exception", "attributes": [attribute("exception.message", SECRET)]},
        {"name": f"said {SECRET}"},
    ],
    links=[{"traceId": "5b" * 16, "spanId": "ee" * 8, "attributes": [attribute("why", SECRET)]}],
)


def check(document, *options, code=0):
    text = document if isinstance(document, (str, bytes)) else json.dumps(document)
    return run("check", *options, "-", stdin=text, code=code)


class TestCheck:
    def test_each_item_of_a_span_is_told_with_its_rule(self):
        lines = [line.split("(")[0].split() for line in check(TRACES).splitlines()]
        told = [" ".join(line) for line in lines]
        assert "span eeeeeeeeeeeeeeee" in told
        assert any(line.startswith("changed name to chat h:") for line in told)
        assert any(line.startswith("changed gen_ai.request.model to h:") for line in told)
        assert "kept gen_ai.operation.name = chat" in told
        assert "dropped status description by status_description" in told
        assert "dropped trace state by trace_state" in told
        assert "dropped gen_ai.input.messages by drop" in told
        assert "dropped gen_ai.usage.input_tokens by type" in told
        assert "dropped my.own by unknown" in told
        assert "kept event = exception" in told
        assert "dropped event exception.message by drop" in told
        assert "dropped event by unknown" in told
        assert "dropped link why by unknown" in told

    def test_of_what_would_not_leave_only_type_and_length_are_told(self):
        told = check(TRACES)
        assert SECRET not in told
        assert "gen_ai.input.messages by drop (string of 10 characters)" in told

    def test_values_are_shown_when_asked_for(self):
        told = check(TRACES, "--show-values")
        assert f"gen_ai.input.messages by drop ({SECRET})" in told

    def test_a_summary_counts_by_rule(self):
        told = check(TRACES, "--summary")
        assert "span eeee" not in told
        rows = [line.split() for line in told.splitlines()[1:]]
        assert ["changed", "1", "by", "cat12"] in rows
        assert ["dropped", "3", "by", "unknown"] in rows
        assert ["dropped", "2", "by", "drop"] in rows
        assert told.startswith("under standard")

    def test_a_log_record_loses_its_body(self):
        told = check(
            logs(
                attribute("http.request.method", "GET"),
                attribute("code.function.name", SECRET),
                body={"stringValue": SECRET},
                eventName=SECRET,
                severityText=SECRET,
                severityNumber=9,
            )
        )
        assert SECRET not in told
        assert "dropped body by body (string of 10 characters)" in told
        assert "dropped event name by name" in told
        assert "dropped severity text by enum" in told
        assert "kept    http.request.method = GET" in told
        assert "dropped code.function.name by drop" in told

    def test_a_log_record_may_have_more_attributes_than_the_sdk_would_take(self):
        told = check(logs(*(attribute(f"a{n}", "b") for n in range(300))), "--summary")
        assert "dropped    300 by unknown" in told

    def test_points_of_a_metric_are_told_by_number(self):
        told = check(
            metrics(
                "http.server.request.duration",
                attribute("http.request.method", "GET"),
                attribute("user.id", SECRET),
                attribute("service.tier", SECRET),
            )
        )
        assert "kept    name = http.server.request.duration" in told
        assert "kept    point 1 http.request.method = GET" in told
        assert "dropped point 1 user.id by" in told
        assert "dropped point 1 service.tier by unknown" in told
        assert SECRET not in told

    @pytest.mark.parametrize(
        ("document", "rule"),
        [
            (metrics(SECRET), "unknown"),
            (metrics("http.server.request.duration", gauge={"dataPoints": [{"asInt": "1"}]}), "type"),
            (metrics("http.server.request.duration", summary={"dataPoints": [{}]}), "type"),
            (metrics("sottovoce.gate.dropped", sum={"dataPoints": [{}], "isMonotonic": True}), "scope"),
        ],
    )  # fmt: skip
    def test_a_metric_that_would_not_leave_is_told_with_its_rule(self, document, rule):
        told = check(document)
        assert f"dropped name by {rule}" in told
        assert SECRET not in told

    @pytest.mark.parametrize(
        "kind",
        [
            {"gauge": {"dataPoints": [{"asDouble": 1.5}]}},
            {"sum": {"dataPoints": [{"asInt": "1"}], "aggregationTemporality": 1}},
            {"exponentialHistogram": {"dataPoints": [{"count": "2", "positive": {"bucketCounts": ["2"]}}]}},
        ],
    )  # fmt: skip
    def test_every_kind_of_metric_is_read(self, kind, monkeypatch):
        monkeypatch.setenv("SOTTOVOCE_ALLOW", "metric:queue.size")
        assert "kept    name = queue.size" in check(metrics("queue.size", **kind))

    def test_a_fact_in_another_dialect_is_told_under_its_new_name(self):
        told = check(
            traces({"key": "llm.token_count.prompt", "value": {"intValue": "12"}}), "--show-values"
        )
        assert "dropped llm.token_count.prompt by dialect (12)" in told
        assert "added   gen_ai.usage.input_tokens = 12" in told

    def test_resource_and_scope_are_told_once(self):
        document = traces()
        document["resourceSpans"][0]["resource"] = {
            "attributes": [attribute("service.name", "shop"), attribute("host.name", SECRET)]
        }
        document["resourceSpans"][0]["scopeSpans"][0]["scope"] = {
            "name": SECRET,
            "version": SECRET,
            "attributes": [attribute("short", SECRET)],
        }
        told = check(document)
        assert "kept    service.name = shop" in told
        assert "dropped host.name by drop" in told
        assert "changed name to _OTHER by unknown" in told
        assert "dropped version by unknown" in told
        assert "dropped short by drop" in told
        assert SECRET not in told

    def test_exemplars_lose_their_attributes(self):
        point = {"count": "1", "exemplars": [{"filteredAttributes": [attribute("who", SECRET)]}]}
        told = check(metrics(histogram={"dataPoints": [point]}))
        assert "dropped exemplar who by drop" in told
        assert SECRET not in told

    def test_in_strict_exemplars_and_ports_of_other_hosts_are_dropped(self):
        point = {"count": "1", "exemplars": [{"filteredAttributes": [attribute("who", SECRET)]}]}
        told = check(metrics(histogram={"dataPoints": [point]}), "--profile", "strict")
        assert "dropped exemplar by exemplar" in told
        port = {"key": "server.port", "value": {"intValue": "4711"}}
        told = check(traces(attribute("server.address", SECRET), port), "--profile", "strict")
        assert "changed server.address to private by host_class" in told
        assert "dropped server.port by drop" in told

    def test_rounded_times_do_not_hide_an_event(self, monkeypatch):
        monkeypatch.setenv("SOTTOVOCE_COARSE_SPAN_TIMES", "true")
        document = traces()
        [span] = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
        span["events"] = [
            {"name": SECRET, "timeUnixNano": "1795000000123456789"},
            {"name": "exception", "timeUnixNano": "1795000000123456789"},
        ]
        told = check(document, "--profile", "strict")
        assert "kept    event = exception" in told

    def test_the_profile_decides(self):
        seen = traces(attribute("gen_ai.request.model", "gpt-4o"))
        assert "changed gen_ai.request.model" in check(seen)
        told = check(seen, "--profile", "aggregate")
        assert "gen_ai.request.model to" not in told
        assert "under aggregate" in told

    def test_strict_exit(self):
        harmless = traces(attribute("gen_ai.operation.name", "chat"), name="chat")
        assert "kept         2" in check(harmless, "--strict-exit")
        check(TRACES)
        check(TRACES, "--strict-exit", code=1)

    def test_values_of_every_type_are_described_only(self):
        values = {
            "a": {"intValue": "4711"},
            "b": {"doubleValue": 47.11},
            "c": {"boolValue": True},
            "d": {"bytesValue": "eHl6enk="},
            "e": {"arrayValue": {"values": [{"stringValue": SECRET}]}},
            "f": {"kvlistValue": {"values": [attribute(SECRET, SECRET)]}},
            "g": {},
        }
        told = check(traces(*({"key": key, "value": value} for key, value in values.items())))
        for text in ("int", "double", "boolean", "5 bytes", "list of 1", "mapping of 1", "nothing"):
            assert f"({text})" in told
        assert SECRET not in told
        assert "4711" not in told

    def test_a_terminal_is_not_led_astray(self):
        evil = "\x1b]0;title\x07\u202e"
        told = check(traces(attribute(evil, evil), name=evil), "--show-values")
        assert not {"\x1b", "\x07", "\u202e"} & set(told)

    def test_it_tells_what_the_gate_does(self):
        """The same span, through the command and through a provider behind the gate."""
        facts = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "nobody",
            "gen_ai.request.model": "acme-7b",
            "gen_ai.response.finish_reasons": ("stop", "because"),
            "gen_ai.request.stop_sequences": ("a", "b"),
            "gen_ai.usage.input_tokens": 12,
            "gen_ai.request.temperature": 0.5,
            "server.address": "db.corp.example",
            "error.type": "Nonsense",
            "user.id": SECRET,
        }
        plain, gated = InMemorySpanExporter(), InMemorySpanExporter()
        for provider, exporter in (
            (TracerProvider(shutdown_on_exit=False), plain),
            (gated_tracer_provider(Policy(settings_.read()[0]), shutdown_on_exit=False), gated),
        ):
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            provider.get_tracer("t").start_span(SECRET, attributes=facts).end()
            provider.shutdown()
        body = encode_spans(plain.get_finished_spans()).SerializeToString()
        told = run("check", "-", stdin=body).partition("\nspan ")[2]
        (left,) = gated.get_finished_spans()
        for key, value in left.attributes.items():
            shown = ", ".join(value) if isinstance(value, tuple) else value
            assert any(
                f" {key} {word} {shown}" in told for word in ("=", "to")
            ), (key, value, told)  # fmt: skip
        for key in facts.keys() - left.attributes.keys():
            assert f"dropped {key} by " in told
        assert f"name to {left.name} by" in told


REQUESTS = {
    "traces": (TRACES, ExportTraceServiceRequest),
    "metrics": (metrics("m", sum={"dataPoints": [{"asInt": "1"}]}), ExportMetricsServiceRequest),
    "logs": (logs(body={"stringValue": "b"}), ExportLogsServiceRequest),
}


def message_of(signal):
    document, _ = REQUESTS[signal]
    return otlp.parse(signal, json.dumps(document).encode(), as_json=True)


class TestReader:
    @pytest.mark.parametrize("signal", REQUESTS)
    def test_protobuf_is_told_apart(self, signal):
        message = message_of(signal)
        assert otlp_file.read(message.SerializeToString()) == [(signal, message)]

    @pytest.mark.parametrize("signal", REQUESTS)
    @pytest.mark.parametrize(
        "dress",
        [
            json.dumps,
            lambda document: json.dumps(document, indent=2) + "\n\n",
            lambda document: "\ufeff" + json.dumps(document),
        ],
    )
    def test_json_is_read_in_each_form(self, signal, dress):
        content = dress(REQUESTS[signal][0]).encode()
        assert otlp_file.read(content) == [(signal, message_of(signal))]
        assert otlp_file.read(gzip.compress(content)) == [(signal, message_of(signal))]

    def test_lines_are_read_one_after_another(self):
        lines = "\r\n".join(json.dumps(document) for document, _ in REQUESTS.values())
        assert [signal for signal, _ in otlp_file.read(lines.encode())] == list(REQUESTS)

    def test_the_names_of_protobuf_are_read_in_json_too(self):
        message = message_of("logs")
        text = json_format.MessageToJson(message, preserving_proto_field_name=True)
        assert '"resource_logs"' in text
        assert otlp_file.read(text.encode()) == [("logs", message)]

    def test_a_newer_protobuf_is_read_when_its_signal_is_told(self):
        newer = message_of("logs").SerializeToString() + b"\xf8\x07\x01"
        with pytest.raises(otlp.Malformed, match="say of which signal"):
            otlp_file.read(newer)
        assert otlp_file.read(newer, "logs")[0][0] == "logs"

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "the file is empty"),
            (b" \n", "the file is empty"),
            (b"{", "line 1: is not JSON"),
            (b'{"resourceSpans": []}\n\n{"resourceSp', "line 3: is not JSON"),
            (b"[" * 100_000, "line 1: is not JSON"),
            (b"[]", "line 1: is no OTLP request"),
            (b'{"a": 1}', "line 1: is no OTLP request"),
            (b'{"resourceSpans": 7}', "line 1: resourceSpans is not OTLP in JSON"),
            (b'{"resourceLogs": [{"scopeLogs": "x"}]}', "line 1: resourceLogs is not OTLP"),
            (b'{"resourceSpans": []} xyzzy', "line 1: is not JSON"),
            (b'{"a": "\xff"}', "the file is not UTF-8"),
            (b"\x1f\x8bno", "is not gzip"),
            (b"xyzzy", "neither JSON nor an export request"),
        ],
    )
    def test_what_is_none_is_told_in_one_line_without_its_words(self, content, told, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(content)
        said = run("check", path, code=1)
        assert said.startswith("Error: ")
        assert told in said
        assert "xyzzy" not in said
        assert said.count("\n") == 1

    def test_a_file_that_is_not_there(self, tmp_path):
        assert "No such file" in run("check", tmp_path / "none", code=2)

    @given(st.binary(max_size=200))
    def test_no_bytes_do_anything_but_be_read_or_refused(self, content):
        try:
            found = otlp_file.read(content)
        except otlp.Malformed:
            return
        assert {signal for signal, _ in found} <= set(otlp.SIGNALS)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(
                        "resourceSpans scopeSpans spans resource attributes key value stringValue "
                        "traceId name resourceLogs resourceMetrics body x".split()
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        )
    )
    @settings(max_examples=200)
    def test_no_json_does_anything_but_be_read_or_refused(self, document):
        try:
            otlp_file.read(json.dumps(document).encode())
        except otlp.Malformed:
            pass

    @given(st.data(), st.sampled_from(sorted(REQUESTS)))
    def test_a_damaged_request_is_read_or_refused_and_judged(self, data, signal):
        body = bytearray(message_of(signal).SerializeToString())
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
        done = CliRunner().invoke(commands, ["policy", "check", "-"], input=bytes(body))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception

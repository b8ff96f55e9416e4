"""Spans of other instrumentations: what they say arrives under our names, and nothing else does.

`dialects/*.json` are spans as the packages named in them emit them, content captured: each says
how the span is called and exactly what of it leaves. ``kanarienvogel`` stands wherever content,
a name or an id was.
"""

import json
from pathlib import Path

import openai  # noqa: F401 - its exceptions are named in some spans
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sottovoce.privacy.gate import (
    gated_logger_provider,
    gated_meter_provider,
    gated_tracer_provider,
)
from sottovoce.privacy.policy import Policy
from sottovoce.registry import ATTRIBUTES, DIALECTS, FOREIGN_WORDS, USAGE
from sottovoce.settings import Settings

MARK = "kanarienvogel"
CORPUS = {
    path.stem: json.loads(path.read_text())
    for path in Path(__file__).parent.glob("dialects/*.json")
}
SPANS = [
    pytest.param(span, id=f"{name}-{number}")
    for name, file in sorted(CORPUS.items())
    for number, span in enumerate(file["spans"])
]
POLICY = Policy(Settings(key="a secret of the tests"))

# Judged by rules of their own, whose tests are elsewhere: names that somebody gave, sessions.
OF_SOMEBODY = {
    key for key, row in ATTRIBUTES.items() if row.rule in {"allow12", "hash_rot", "hash_user"}
}


def leaves(policy, given):
    """`given`, made by a real tracer, as it leaves."""
    provider = gated_tracer_provider(
        policy, resource=Resource({"service.name": "app"}), shutdown_on_exit=False
    )
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    span = provider.get_tracer(given["scope"]).start_span(
        given["name"], kind=SpanKind[given["kind"]], attributes=given["attributes"]
    )
    for event in given.get("events", ()):
        span.add_event(event["name"], event["attributes"])
    if "status_description" in given:
        span.set_status(StatusCode.ERROR, given["status_description"])
    span.end()
    return exporter.get_finished_spans()


def expected(policy, value):
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and value.startswith("pseudonym of host "):
        return policy.address(value.removeprefix("pseudonym of host "), local=False)
    if isinstance(value, str) and value.startswith("pseudonym of "):
        return policy.model(value.removeprefix("pseudonym of "), local=False)
    return value


@pytest.mark.parametrize("given_span", SPANS)
def test_what_is_understood_arrives_and_nothing_else(policy, given_span):
    (span,) = leaves(policy, given_span)
    words = given_span["called"].split(" ", 1)
    called = " ".join(expected(policy, word) for word in words)
    assert span.name == called or span.name.startswith(f"{called} ")
    kept = {key: value for key, value in span.attributes.items() if key not in OF_SOMEBODY}
    assert kept == {key: expected(policy, value) for key, value in given_span["keeps"].items()}


@pytest.mark.parametrize("profile", ["aggregate", "strict", "standard", "content"])
def test_no_canary_of_any_dialect_is_on_the_wire(make_policy, profile):
    policy = make_policy(profile=profile)
    said = 0
    for parameters in SPANS:
        (given_span,) = parameters.values
        said += json.dumps(given_span).count(MARK)
        for span in leaves(policy, given_span):
            wire = encode_spans([span]).SerializeToString().lower()
            assert MARK.encode() not in wire, span.to_json()
    assert said > 300


def test_every_dialect_has_spans():
    assert {span["called"].split(" ")[0] for file in CORPUS.values() for span in file["spans"]} >= {
        "chat", "text_completion", "embeddings", "execute_tool", "invoke_agent", "retrieval",
        "invoke_workflow", "GET", "POST", "INSERT", "find", "postgresql", "grpc", "publish",
        "tools/call",
    }  # fmt: skip
    keys = {key for file in CORPUS.values() for span in file["spans"] for key in span["attributes"]}
    assert len(keys & set(DIALECTS)) > 90


OF_TYPE = {"int": 7, "double": 0.25, "boolean": True}


def example(key):
    """A value that `key` may have, and what comes of it."""
    ours, how = DIALECTS[key]
    row = ATTRIBUTES[ours]
    if how == "word":
        return next(iter(FOREIGN_WORDS[key].items()))
    if how == "one":
        return "stop", ("stop",)
    if how == "ms":
        return 250, 0.25
    if how == "url":
        return "https://api.openai.com:8443/v1", "api.openai.com"
    if how == "flag":
        return True, "_OTHER"
    if how == "usage":
        return '{"prompt_tokens": 7}', 7
    if row.rule == "cat12":
        model = POLICY.model("gpt-4o", local=False)
        return ('"gpt-4o"' if how == "quoted" else "gpt-4o"), model
    if row.rule == "host":
        return "api.openai.com", "api.openai.com"
    if row.values:
        word = "openai" if "openai" in row.values else min(row.values)
        return (f'"{word}"' if how == "quoted" else word), word
    return OF_TYPE[row.type], OF_TYPE[row.type]


@pytest.mark.parametrize(
    "key", [key for key, (ours, _) in DIALECTS.items() if ours not in OF_SOMEBODY]
)
def test_every_foreign_key_is_read_and_none_leaves(key):
    value, said = example(key)
    attributes = POLICY.attributes({key: value}, "span")
    assert attributes[DIALECTS[key][0]] == said
    assert key not in attributes


values = (
    st.text(max_size=200)
    | st.integers()
    | st.sampled_from([2**63, -(2**63), 10**300])
    | st.floats()
    | st.booleans()
    | st.lists(st.text(max_size=5) | st.integers(), max_size=3)
    | st.binary(max_size=8)
    | st.dictionaries(st.text(max_size=5), st.integers(), max_size=2)
    | st.sampled_from(["LLM", "CHAT_MODEL", "7", "-1", MARK, f"gpt-4o:{MARK}", f'"{MARK}"', "stop"])
    | st.none()
)


@given(st.dictionaries(st.sampled_from(sorted(DIALECTS)), values, max_size=8))
@hypothesis_settings(max_examples=300, deadline=None)
def test_whatever_a_foreign_key_holds_the_contract_of_ours_holds(given_attributes):
    for signal in ("span", "event", "log", "metric"):
        kept = POLICY.attributes(given_attributes, signal)
        assert not set(kept) & set(DIALECTS)
        # What left once leaves again as it is: nothing in it is against its own rule.
        assert POLICY.attributes(kept, signal) == kept
        assert MARK not in repr(kept)
    assert ("span", "rule_error") not in POLICY.dropped


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(sorted({step for path in USAGE for step in path}))
                | st.text(max_size=5),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@hypothesis_settings(max_examples=200, deadline=None)
def test_only_counts_come_out_of_a_json_object(parsed):
    kept = POLICY.attributes({"langfuse.observation.usage_details": json.dumps(parsed)}, "span")
    assert set(kept) <= set(USAGE.values())
    assert all(type(count) is int and 0 <= count < 10**9 for count in kept.values())


@pytest.mark.parametrize(
    "value",
    ["", "{", "[" * 4000, "7", '"7"', '{"prompt_tokens": "7"}', '{"prompt_tokens": -7}', 7,
     '{"prompt_tokens": true}', '{"prompt_tokens": 7, "x": "%s"}' % ("x" * 5000)],
)  # fmt: skip
def test_what_is_no_object_of_counts_says_nothing(value):
    assert POLICY.attributes({"mlflow.chat.tokenUsage": value}, "span") == {}


@pytest.mark.parametrize("value", ["11", "0x0b", 11.0, -11, True, [11], 10**12])
@pytest.mark.parametrize(
    "key", ["llm.token_count.prompt", "llm.usage.prompt_tokens", "ai.usage.promptTokens"]
)
def test_what_is_no_count_is_none(key, value):
    assert POLICY.attributes({key: value}, "span") == {}


@pytest.mark.parametrize("value", [10**400, -1, True, "250", float("nan"), float("inf")])
def test_what_is_no_time_is_none_and_takes_nothing_with_it(policy, value):
    said = {"ai.response.msToFirstChunk": value, "ai.usage.inputTokens": 7}
    assert policy.attributes(said, "span") == {"gen_ai.usage.input_tokens": 7}


@pytest.mark.parametrize("value", [False, "true", "", 1, MARK])
def test_only_true_is_an_error(policy, value):
    assert policy.attributes({"error": True}, "span") == {"error.type": "_OTHER"}
    assert policy.attributes({"error": value}, "span") == {}


LOOK_ALIKES = (
    str.upper,
    str.title,
    lambda key: f"{key} ",
    lambda key: f" {key}",
    lambda key: key.replace(".", "\u2024"),
    lambda key: key.replace(".", "\uff0e"),
    lambda key: key.replace("e", "e\u200b"),
    lambda key: f"{key}\0",
    lambda key: f"{key}.",
)


@pytest.mark.parametrize("alike", LOOK_ALIKES)
@pytest.mark.parametrize("key", ["llm.model_name", "ai.model.id", "gen_ai.usage.prompt_tokens"])
def test_a_key_that_looks_like_another_is_unknown(policy, key, alike):
    assert policy.attributes({alike(key): "gpt-4o" if "model" in key else 7}, "span") == {}
    assert policy.dropped == {("span", "unknown"): 1}


def test_the_conventions_own_key_wins_and_the_first_that_is_understood(policy):
    said = {
        "llm.usage.prompt_tokens": 1,
        "llm.token_count.prompt": 2,
        "gen_ai.usage.input_tokens": 3,
        "llm.system": "openai",
        "llm.provider": "azure",
        "llm.request.model": "gpt-4o-mini",
        "llm.model_name": 7,
    }
    kept = policy.attributes(said, "span")
    assert kept["gen_ai.usage.input_tokens"] == 3
    assert kept["gen_ai.provider.name"] == "azure.ai.openai"
    assert kept["gen_ai.request.model"] == policy.model("gpt-4o-mini", local=False)
    assert policy.dropped["span", "drop"] == 4
    # Also where the convention's own is against its rule: what a span says of itself is one thing.
    assert (
        policy.attributes({"gen_ai.usage.input_tokens": "3", "llm.token_count.prompt": 2}, "span")
        == {}
    )


def test_a_model_in_a_dialect_is_local_where_its_server_is(policy):
    model = {"llm.model_name": "llama3.2:3b"}
    assert (
        policy.attributes({**model, "server.address": "localhost"}, "span")["gen_ai.request.model"]
        == "llama3.2:3b"
    )
    assert policy.attributes(model, "span")["gen_ai.request.model"].startswith("h:")


@pytest.mark.parametrize(
    ("provider", "shown"),
    [("OpenAI", "openai"), ("AZURE", "azure.ai.openai"), ("Langchain", "custom"), (MARK, "custom")],
)
def test_a_provider_by_any_of_its_names(policy, provider, shown):
    for key in ("gen_ai.system", "llm.provider", "gen_ai.provider.name"):
        assert policy.attributes({key: provider}, "span") == {"gen_ai.provider.name": shown}


def test_a_step_that_is_no_operation_says_none(policy):
    for kind in ("CHAIN", "RERANKER", "UNKNOWN", "", MARK, "LLM" * 40):
        assert policy.attributes({"openinference.span.kind": kind}, "span") == {}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('["stop"]', ("stop",)),
        ('["stop", "tool-calls"]', ("stop", "tool_calls")),
        (f'["{MARK}"]', ("_OTHER",)),
        ('["a sentence"]', None),
        ("stop", None),
        ('[["stop"]]', None),
        ("[" + '"stop", ' * 2000 + '"stop"]', None),
    ],
)
def test_a_list_that_was_written_as_json(policy, value, shown):
    kept = policy.attributes({"gen_ai.response.finish_reasons": value}, "span")
    assert kept.get("gen_ai.response.finish_reasons") == shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://api.openai.com/v1/", "api.openai.com"),
        ("http://127.0.0.1:8000/v1/", "127.0.0.1"),
        ("127.0.0.1:8000", "127.0.0.1"),
        ("https://user:word@api.openai.com:8443/x?y#z", "api.openai.com"),
    ],
)
def test_a_host_that_was_written_as_a_url(policy, address, shown):
    assert policy.attributes({"server.address": address}, "span") == {"server.address": shown}


def test_a_url_that_only_begins_like_a_known_host_is_not_that_host(policy):
    kept = policy.attributes({"gen_ai.openai.api_base": "http://localhost:80@example.org/"}, "span")
    assert kept == {"server.address": policy.address("example.org", local=False)}


def test_a_tighter_profile_holds_for_dialects_too(make_policy):
    said = {"llm.model_name": "gpt-4o", "llm.token_count.prompt": 11, "llm.system": "openai"}
    aggregate = make_policy(profile="aggregate").attributes(said, "span")
    assert aggregate == {"gen_ai.provider.name": "openai"}
    strict = make_policy(profile="strict").attributes(said, "span")
    assert strict.get("gen_ai.usage.input_tokens") != 11
    assert make_policy(profile="off").attributes(said, "span") == {}


def test_metrics_of_other_instrumentations(policy):
    """Their token histogram passes whatever its unit is called; their own metrics do not."""
    reader = InMemoryMetricReader()
    provider = gated_meter_provider(
        policy,
        resource=Resource({"service.name": "app"}),
        metric_readers=[reader],
        shutdown_on_exit=False,
    )
    meter = provider.get_meter("opentelemetry.instrumentation.openai.v1")
    tokens = meter.create_histogram("gen_ai.client.token.usage", "token", MARK)
    for stream in (False, True):
        tokens.record(
            11,
            {
                "gen_ai.system": "openai",
                "gen_ai.response.model": "gpt-4o",
                "gen_ai.token.type": "input",
                "server.address": "https://api.openai.com/v1/",
                "stream": stream,
            },
        )
    meter.create_histogram("llm.openai.embeddings.vector_size", "element").record(3)
    meter.create_counter("gen_ai.client.generation.choices", "choice").add(1, {MARK: MARK})
    (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
    assert scope.scope.name == "opentelemetry.instrumentation.openai.v1"
    (metric,) = scope.metrics
    assert (metric.name, metric.unit) == ("gen_ai.client.token.usage", "{token}")
    (point,) = metric.data.data_points
    assert point.count == 2
    assert dict(point.attributes) == {
        "gen_ai.provider.name": "openai",
        "gen_ai.response.model": policy.model("gpt-4o", local=False),
        "gen_ai.token.type": "input",
        "server.address": "api.openai.com",
    }


def test_log_records_and_events_speak_dialects_too(policy):
    provider = gated_logger_provider(policy, shutdown_on_exit=False)
    exporter = InMemoryLogRecordExporter()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("openlit.instrumentation.openai").emit(
        LogRecord(
            body=MARK,
            severity_text="INFO",
            event_name="gen_ai.client.inference.operation.details",
            attributes={
                "gen_ai.system": "openai",
                "llm.request.type": "chat",
                "gen_ai.usage.prompt_tokens": 11,
                "gen_ai.prompt": MARK,
                "code.filepath": MARK,
            },
        )
    )
    (record,) = exporter.get_finished_logs()
    assert record.log_record.body is None
    assert record.log_record.severity_text == "INFO"
    assert dict(record.log_record.attributes) == {
        "gen_ai.provider.name": "openai",
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 11,
    }

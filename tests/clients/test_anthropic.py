"""What is particular to the anthropic SDK: its helpers, its other hosts, and its own spans."""

import json

import anthropic
import httpx2
import pydantic
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from servers import anthropic as claude
from servers import bedrock
from servers.calls import Calls
from servers.fixtures import fresh, hooked
from servers.provider import ANSWER
from sottovoce import guard
from sottovoce.clients import anthropic as door
from sottovoce.instrumentors import AnthropicInstrumentor, HTTPXInstrumentor
from sottovoce.settings import Settings
from sottovoce.transports import httpx as wire

MESSAGES = [{"role": "user", "content": "a secret question"}]
ASKED = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16}
TOLD = {**claude.COUNTED, "finish_reasons": ["end_turn"], "response_model": claude.MODEL}
WEATHER = {"name": "weather", "description": "secret", "input_schema": {"type": "object"}}
SCOPE = "com.anthropic.sdk.python"


class Answer(pydantic.BaseModel):
    answer: int


@pytest.fixture(scope="module")
def running():
    with claude.serve() as server:
        yield server


@pytest.fixture
def server(running):
    return fresh(running)


@pytest.fixture
def calls():
    guard.failures.clear()
    with hooked(door.install) as calls:
        yield calls
    assert not guard.failures


def make(driver, url, name="Anthropic", **options):
    if driver.name == "async":
        name = "Async" + name
        http = anthropic.DefaultAsyncHttpxClient(verify=False)
    else:
        http = anthropic.DefaultHttpxClient(verify=False)
    given = {"api_key": "key", "base_url": url, "max_retries": 0, "http_client": http, **options}
    return getattr(anthropic, name)(**{k: v for k, v in given.items() if v is not None})


@pytest.fixture
def client(driver, server, calls):
    client = make(driver, server.url)
    yield client
    driver.close(client)


def answered(call, facts=TOLD):
    assert (call.outcome, call.error) == ("completed", None)
    assert {**call.facts, **facts} == call.facts
    assert "secret" not in repr(call.facts)
    return True


def test_a_call_tells_what_was_asked_and_answered(driver, client, calls, server):
    made = driver.do(
        client.messages.create,
        **ASKED,
        extra_body={"temperature": 0.5, "top_k": 40},
        stop_sequences=["a secret stop"],
        tools=[WEATHER],
        thinking={"type": "adaptive"},
        output_config={"effort": "low"},
        system="a secret instruction",
        metadata={"user_id": "a secret user"},
    )
    assert made.content[-1].name == "weather"
    call = calls.only
    facts = {
        "request_model": "tiny",
        "request_max_tokens": 16,
        "request_temperature": 0.5,
        "request_top_k": 40,
        "request_stop_count": 1,
        "request_tool_count": 1,
        "request_reasoning_level": "low",
        "user_turn": True,
        "finish_reasons": ["tool_use"],
        "tool_call_count": 1,
    }
    assert answered(call, {**claude.COUNTED, **facts})
    assert (call.operation, call.provider, call.model) == ("chat", "anthropic", "tiny")
    assert (call.address, call.port, call.attempts) == ("127.0.0.1", server.port, 1)


def test_a_stream_is_timed_and_counted(driver, client, calls):
    made = driver.do(client.messages.create, **ASKED, stream=True, tools=[WEATHER])
    events = driver.items(made)
    assert {**calls.only.facts, "tool_call_count": 1, "finish_reasons": ["tool_use"]} == (
        calls.only.facts
    )
    assert answered(calls.only, claude.COUNTED)
    # The SDK keeps pings to itself; `message_stop` is no chunk.
    assert calls.only.chunks == len(events)


@pytest.mark.parametrize("beta", [False, True])
def test_the_stream_helper(driver, client, calls, beta):
    messages = client.beta.messages if beta else client.messages
    manager = messages.stream(**ASKED)
    stream = driver.enter(manager)
    assert driver.items(stream)
    assert driver.do(stream.get_final_text if not beta else lambda: ANSWER)
    driver.leave(manager)
    assert answered(calls.only)
    assert calls.only.chunks == claude.EVENTS - 1


def test_parse(driver, client, calls):
    parsed = driver.do(client.messages.parse, **ASKED, output_format=Answer)
    assert parsed.parsed_output == Answer(answer=1)
    assert answered(calls.only, {**TOLD, "output_type": "json"})


def test_beta(driver, client, calls, server):
    driver.do(
        client.beta.messages.create, **ASKED, betas=["some-beta"], extra_query={"beta": "true"}
    )
    assert server.requests[0][0] == "/v1/messages?beta=true"
    assert answered(calls.only)


def test_counting_tokens_and_batches_are_no_calls(driver, client, calls):
    driver.do(client.messages.count_tokens, model="tiny", messages=MESSAGES)
    request = {"custom_id": "a secret", "params": ASKED}
    assert driver.do(client.messages.batches.create, requests=[request]).id == "msgbatch_1"
    assert not calls.opened_calls


@pytest.mark.parametrize("stream", [False, True])
def test_vertex(driver, server, calls, stream):
    client = make(
        driver,
        server.url + "/v1",
        "AnthropicVertex",
        api_key=None,
        region="us-central1",
        project_id="project",
        access_token="token",
    )
    made = driver.do(client.messages.create, **ASKED, stream=stream)
    if stream:
        driver.items(made)
    driver.do(client.messages.count_tokens, model="tiny", messages=MESSAGES)
    verb = "streamRawPredict" if stream else "rawPredict"
    path = f"/v1/projects/project/locations/us-central1/publishers/anthropic/models/tiny:{verb}"
    assert server.requests[0][0] == path
    assert answered(calls.only)
    call = calls.only
    assert (call.provider, call.model, call.stream) == ("gcp.vertex_ai", "tiny", stream)
    assert call.attempts == 1
    driver.close(client)


@pytest.mark.parametrize("stream", [False, True])
def test_bedrock(driver, calls, stream):
    model = "anthropic.claude-3-5-sonnet-20240620-v1:0"
    _, _, _, whole, _, streamed = bedrock.FAMILIES[model]
    with bedrock.serve() as server:
        client = make(
            driver,
            server.url,
            "AnthropicBedrock",
            api_key=None,
            aws_region="us-east-1",
            aws_access_key="key",
            aws_secret_key="secret",
        )
        made = driver.do(client.messages.create, **{**ASKED, "model": model}, stream=stream)
        if stream:
            driver.items(made)
        driver.close(client)
    assert answered(calls.only, streamed if stream else whole)
    call = calls.only
    assert (call.provider, call.model, call.stream) == ("aws.bedrock", model, stream)


def test_azure(driver, server, calls):
    client = make(driver, server.url + "/anthropic/", "AnthropicFoundry")
    driver.do(client.messages.create, **ASKED)
    assert server.requests[0][0] == "/anthropic/v1/messages"
    assert answered(calls.only)
    assert calls.only.provider == "azure.ai.inference"
    driver.close(client)


@pytest.fixture
def raw_calls():
    calls = Calls()
    wire.install_wire()
    wire.set_raw_recorder(calls)
    yield calls
    wire.set_raw_recorder(None)
    wire.remove_wire()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "provider"),
    [
        ("/v1/messages", "anthropic"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/tiny:rawPredict", "gcp.vertex_ai"),
    ],
)
def test_without_the_sdk(server, raw_calls, path, provider, stream):
    body = {**ASKED, "stream": stream}
    if provider != "anthropic":
        del body["model"]
    with httpx2.Client(verify=False) as http:
        http.post(server.url + path, json=body).raise_for_status()
        http.post(server.url + "/v1/messages", json={"text": "somebody else's message"})
        http.post(server.url + "/v1/messages/count_tokens", json=ASKED)
    assert answered(raw_calls.only)
    assert (raw_calls.only.provider, raw_calls.only.model) == (provider, "tiny")
    assert raw_calls.only.stream is stream


def test_an_error_has_its_code(server, raw_calls):
    server.play("error")
    with httpx2.Client(verify=False) as http:
        http.post(server.url + "/v1/messages", json={**ASKED, "stream": True})
    assert (raw_calls.only.outcome, raw_calls.only.error) == ("failed", "overloaded_error")


@pytest.fixture
def spans(monkeypatch):
    """The spans of a process that has a global tracer provider, with our instrumentor's."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.delenv("ANTHROPIC_OPEN_TELEMETRY", raising=False)
    applied = []

    def instrument(kind=AnthropicInstrumentor):
        applied.append(kind())
        applied[-1].instrument(
            tracer_provider=provider, meter_provider=MeterProvider(), settings=Settings(key="k" * 9)
        )

    exporter.instrument = instrument
    exporter.provider = provider
    yield exporter
    for each in applied:
        each.uninstrument()


def scopes(spans):
    return sorted(span.instrumentation_scope.name for span in spans.get_finished_spans())


def test_the_spans_that_the_sdk_makes_of_its_own_accord_are_left_out(driver, server, spans):
    before = make(driver, server.url)
    driver.do(before.messages.create, **ASKED)
    assert scopes(spans) == [SCOPE]
    spans.clear()
    spans.instrument()
    spans.instrument(HTTPXInstrumentor)
    after = make(driver, server.url)
    for client in (before, before.with_options(timeout=5), after):
        driver.do(client.messages.create, **ASKED)
        driver.items(driver.do(client.messages.create, **ASKED, stream=True))
    assert scopes(spans) == ["sottovoce"] * 6
    # What is none of our calls is the SDK's to tell of.
    driver.do(after.messages.count_tokens, model="tiny", messages=MESSAGES)
    assert scopes(spans).count(SCOPE) == 1
    driver.close(before)
    driver.close(after)


def test_under_the_launcher_which_switches_them_off_they_stay_off(
    driver, server, spans, monkeypatch
):
    monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY", "false")
    spans.instrument()
    for options in ({}, {"open_telemetry": {}}):
        client = make(driver, server.url, **options)
        driver.do(client.messages.create, **ASKED)
        driver.close(client)
    assert scopes(spans) == ["sottovoce"] * 2


@pytest.mark.parametrize("how", ["variable", "content", "provider", "conversation"])
def test_the_spans_that_somebody_asked_for_stay(driver, server, spans, monkeypatch, how):
    options = {}
    if how == "variable":
        monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY", "true")
    elif how == "content":
        options = {"open_telemetry": {"traces": {"content_mode": "content"}}}
    elif how == "provider":
        options = {"open_telemetry": {"tracer_provider": spans.provider}}
    else:
        options = {"open_telemetry": {"conversation_id": "conversation"}}
    spans.instrument()
    client = make(driver, server.url, **options)
    driver.do(client.messages.create, **ASKED)
    assert scopes(spans) == [SCOPE, "sottovoce"]
    driver.close(client)


def test_its_spans_are_back_when_ours_are_gone(driver, server, spans):
    before = vars(anthropic._base_client.BaseClient)["_tracer"]
    spans.instrument()
    client = make(driver, server.url)
    driver.do(client.messages.create, **ASKED)
    AnthropicInstrumentor().uninstrument()
    driver.do(client.messages.create, **ASKED)
    assert scopes(spans) == [SCOPE, "sottovoce"]
    assert vars(anthropic._base_client.BaseClient)["_tracer"] is before
    driver.close(client)


def test_a_span_of_ours_carries_what_the_conventions_name(driver, server, spans):
    spans.instrument()
    client = make(driver, server.url)
    driver.do(client.messages.create, **ASKED)
    (span,) = spans.get_finished_spans()
    told = dict(span.attributes)
    assert told["gen_ai.usage.input_tokens"] == 16
    assert told["gen_ai.usage.cache_read.input_tokens"] == 3
    assert told["gen_ai.usage.cache_write.input_tokens"] == 2
    assert told["gen_ai.response.finish_reasons"] == ("end_turn",)
    assert "secret" not in json.dumps(told)
    driver.close(client)

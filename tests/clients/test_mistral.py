"""mistralai in every way a call can go, with and without us, on its own API and on Vertex AI."""

import inspect
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from servers import fixtures
from servers.calls import Calls
from servers.fixtures import cancelled_while_reading, fresh, impatient
from servers.mistral import serve as mistral_server
from servers.provider import MODEL, WORDS
from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.clients import mistral
from sottovoce.instrumentors import MistralInstrumentor
from sottovoce.privacy import gate
from sottovoce.privacy.policy import activate
from sottovoce.settings import Settings

try:
    from mistralai.azure.client import MistralAzure
    from mistralai.client import Mistral, basesdk, errors, models
    from mistralai.client.utils import BackoffStrategy, RetryConfig
    from mistralai.gcp.client import MistralGCP
except ImportError:  # 1.x
    from mistralai import Mistral, basesdk, models
    from mistralai import models as errors
    from mistralai.utils import BackoffStrategy, RetryConfig
    from mistralai_azure import MistralAzure
    from mistralai_gcp import MistralGoogleCloud as MistralGCP

http = basesdk.httpx  # httpx2 since 3.0
# In 1.x the SDKs of the clouds know their address themselves.
ADDRESSED = "server_url" in inspect.signature(MistralGCP.__init__).parameters
TRACING = sys.modules.get("mistralai.client._hooks.tracing")
OPTIONAL = hasattr(TRACING, "configure_telemetry_for_hook")
"""Its own spans, which 1.10 to 2.4 made whenever there was a tracer provider."""
QUESTION = "a secret question"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}]}
FACTS = {
    "response_model": MODEL,
    "input_tokens": 11,
    "output_tokens": 7,
    "cache_read_tokens": 3,
    "reasoning_tokens": 2,
    "finish_reasons": ["stop"],
}


@pytest.fixture(scope="module")
def running():
    with mistral_server() as server:
        yield server


@pytest.fixture
def server(running):
    return fresh(running)


def hooked(calls):
    return fixtures.hooked(mistral.install, MistralInstrumentor.modules, calls=calls)


@pytest.fixture
def calls():
    guard.failures.clear()
    calls = Calls()
    with hooked(calls):
        yield calls
    assert not guard.failures


def make(server, cls=Mistral, url=None, **options):
    return cls(
        server_url=url or server.url,
        client=http.Client(verify=False),
        async_client=http.AsyncClient(verify=False),
        **({} if cls is MistralGCP else {"api_key": "key"}),
        **options,
    )


def close(driver, client):
    client.sdk_configuration.client.close()
    if driver.name == "async":
        driver.do(client.sdk_configuration.async_client.aclose)


def do(driver, resource, method, **params):
    return driver.do(
        getattr(resource, method + ("_async" if driver.name == "async" else "")), **params
    )


def shown(thing):
    dump = getattr(thing, "model_dump", None)
    return type(thing), dump() if dump else thing


def whole(driver, client, _):
    return [shown(do(driver, client.chat, "complete", **ASKED))]


def stream(driver, client, _):
    opened = do(driver, client.chat, "stream", **ASKED)
    assert current_call.get() is None
    return [type(opened), *map(shown, driver.items(opened))]


def managed_stream(driver, client, _):
    opened = do(driver, client.chat, "stream", **ASKED)
    driver.enter(opened)
    found = [*map(shown, driver.items(opened))]
    driver.leave(opened)
    return found


def agent(driver, client, _):
    asked = {"agent_id": "a-secret-agent", "messages": ASKED["messages"]}
    return [shown(do(driver, client.agents, "complete", **asked))]


def parse(driver, client, _):
    return [
        shown(do(driver, client.chat, "complete", **ASKED, response_format={"type": "json_object"}))
    ]


def left_early(driver, client, _):
    opened = do(driver, client.chat, "stream", **ASKED)
    driver.enter(opened)
    found = [*map(shown, driver.items(opened, 2))]
    driver.leave(opened)
    return found


def dropped(driver, client, server):
    opened = do(driver, client.chat, "stream", **ASKED)
    found = [*map(shown, driver.items(opened, 2))]
    del opened
    driver.collect()
    return found


def timeout(driver, client, server):
    server.gate.clear()
    opened = do(driver, client.chat, "stream", **ASKED)
    impatient(opened.response)
    return [*map(shown, driver.items(opened))]


def cancelled(driver, client, server):
    server.gate.clear()
    return cancelled_while_reading(driver, lambda: client.chat.stream_async(**ASKED))


OK = ("completed", None)
ABANDONED = ("abandoned", None)
RETRY = {"retry_config": RetryConfig("backoff", BackoffStrategy(1, 5, 1.1, 300), True)}
# What is done, what the server plays, how the call ends, how often is asked, options.
SCENARIOS = {
    "whole": (whole, [], OK, 1, {}),
    "gzip": (whole, ["gzip"], OK, 1, {}),
    "json": (parse, [], OK, 1, {}),
    "agent": (agent, [], OK, 1, {}),
    "stream": (stream, [], OK, 1, {}),
    "managed stream": (managed_stream, [], OK, 1, {}),
    "compressed stream": (stream, ["gzip"], OK, 1, {}),
    "break": (left_early, [], ABANDONED, 1, {}),
    "dropped": (dropped, [], ABANDONED, 1, {}),
    "refused": (whole, ["401"], ("failed", "401"), 1, {}),
    "refused stream": (stream, ["400"], ("failed", "400"), 1, {}),
    "retried": (whole, ["429", "503"], OK, 3, RETRY),
    "retried stream": (stream, ["429"], OK, 2, RETRY),
    "no connection": (whole, [], ("failed", "ConnectError"), 1, {"url": "http://127.0.0.1:1"}),
    "hung up": (whole, ["disconnect"], ("failed", "RemoteProtocolError"), 1, {}),
    "cut": (whole, ["cut"], ("failed", "RemoteProtocolError"), 1, {}),
    "cut stream": (stream, ["cut"], ("failed", "RemoteProtocolError"), 1, {}),
    "error in a stream": (stream, ["error"], ("failed", "overloaded"), 1, {}),
    "timeout": (timeout, ["slow"], ("failed", "ReadTimeout"), 1, {"timeout_ms": 20_000}),
    "cancelled": (cancelled, ["slow"], ("cancelled", "CancelledError"), 1, {}),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_one_call_and_no_difference(driver, server, scenario):
    act, plays, (outcome, error), attempts, options = SCENARIOS[scenario]
    if act is cancelled and driver.name == "sync":
        return

    def run():
        return fixtures.played(
            server,
            plays,
            lambda: make(server, **options),
            lambda client: act(driver, client, server),
            lambda client: close(driver, client),
        )

    call = fixtures.one_call(server, run, hooked)
    found = call.error.__name__ if isinstance(call.error, type) else call.error
    assert (call.outcome, found) == (outcome, error)
    assert (call.operation, call.provider) == ("chat", "mistral_ai")
    assert call.model == (None if act is agent else "tiny")
    assert (call.local, call.attempts) == (True, attempts)
    assert call.facts["user_turn"] is True
    if outcome == "completed":
        assert {**call.facts, **FACTS} == call.facts
        assert call.stream is ("stream" in scenario.split())
        assert call.chunks == (WORDS + 3 if call.stream else 0)


CONVERSED = {
    "response_model": MODEL,
    "input_tokens": 11,
    "output_tokens": 7,
    "finish_reasons": ["stop"],
    "user_turn": True,
}
SAID = [{"role": "user", "content": QUESTION}]
CONVERSATIONS = {
    "start": {"model": "tiny", "inputs": QUESTION},
    "append": {"conversation_id": "conv_1", "inputs": SAID},
    "restart": {"conversation_id": "conv_1", "inputs": SAID, "from_entry_id": "msg_1"},
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_conversations(driver, server, kind, streamed):
    def run():
        client = make(server)
        method = kind + ("_stream" if streamed else "")
        try:
            given = do(driver, client.beta.conversations, method, **CONVERSATIONS[kind])
            return [*map(shown, driver.items(given))] if streamed else shown(given)
        finally:
            close(driver, client)

    calls, before = Calls(), run()
    with hooked(calls):
        after = run()
    assert after == before
    call = calls.only
    assert (call.operation, call.provider, call.outcome) == ("chat", "mistral_ai", "completed")
    assert call.model == ("tiny" if kind == "start" else None)
    assert (call.stream, call.chunks) == (streamed, WORDS + 1 if streamed else 0)
    assert {**call.facts, **CONVERSED} == call.facts
    assert "secret" not in repr(call.facts)


def test_a_conversation_that_fails_in_its_stream(driver, server, calls):
    server.play("error")
    client = make(server)
    opened = do(driver, client.beta.conversations, "start_stream", **CONVERSATIONS["start"])
    driver.items(opened)
    close(driver, client)
    assert (calls.only.outcome, calls.only.error) == ("failed", "503")


def test_code_is_completed(driver, server, calls):
    client = make(server)
    do(driver, client.fim, "complete", model="codestral-latest", prompt=QUESTION, suffix="secret")
    driver.items(do(driver, client.fim, "stream", model="codestral-latest", prompt=QUESTION))
    close(driver, client)
    assert [path for path, *_ in server.requests] == ["/v1/chat/completions"] * 2
    for call in calls.ended_calls:
        assert (call.operation, call.model) == ("text_completion", "codestral-latest")
        assert {**call.facts, **FACTS} == call.facts
        assert "secret" not in repr(call.facts)


def test_embeddings(driver, server, calls):
    client = make(server)
    do(
        driver,
        client.embeddings,
        "create",
        model="mistral-embed",
        inputs=[QUESTION],
        output_dimension=3,
    )
    close(driver, client)
    call = calls.only
    assert (call.operation, call.model) == ("embeddings", "mistral-embed")
    assert (call.facts["input_tokens"], call.facts["request_dimensions"]) == (11, 3)


def test_documents_are_only_named(driver, server, calls):
    client = make(server)
    document = {"type": "document_url", "document_url": "https://secret.example.org/x.pdf"}
    do(driver, client.ocr, "process", model="mistral-ocr-latest", document=document)
    close(driver, client)
    call = calls.only
    assert (call.operation, call.model) == ("generate_content", "mistral-ocr-latest")
    assert call.facts == {
        "request_model": "mistral-ocr-latest",
        "response_model": "mistral-ocr-2512-completion",
    }


def test_what_was_asked(driver, server, calls):
    client = make(server)
    tool = {"type": "function", "function": {"name": "secret", "parameters": {}}}
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 64,
        "stop": ["a secret stop"],
        "presence_penalty": 0.5,
        "n": 2,
        "tools": [tool],
        "response_format": {"type": "json_object"},
    }
    do(driver, client.chat, "complete", **ASKED, **options)
    close(driver, client)
    expected = {
        "request_temperature": 0.5,
        "request_top_p": 0.9,
        "request_max_tokens": 64,
        "request_stop_count": 1,
        "request_presence_penalty": 0.5,
        "request_choice_count": 2,
        "request_tool_count": 1,
        "output_type": "json",
    }
    facts = calls.only.facts
    assert {**facts, **expected} == facts
    assert "secret" not in repr(facts)


@pytest.mark.parametrize("streamed", [False, True])
def test_on_vertex(driver, server, calls, streamed):
    if not ADDRESSED:
        return
    options = {"project_id": "a-secret-project", "region": "r", "access_token": "token"}
    client = make(server, cls=MistralGCP, **options)
    if streamed:
        driver.items(do(driver, client.chat, "stream", **ASKED))
    else:
        do(driver, client.chat, "complete", **ASKED)
        do(driver, client.fim, "complete", model="codestral", prompt=QUESTION)
    close(driver, client)
    first, *rest = calls.ended_calls
    assert (first.operation, first.model, first.stream) == ("chat", "tiny", streamed)
    assert {**first.facts, **FACTS} == first.facts
    assert [call.operation for call in rest] == ([] if streamed else ["text_completion"])
    assert "secret" not in repr(first.facts)


def test_on_azure(driver, server, calls):
    if not ADDRESSED:
        return
    client = make(server, cls=MistralAzure)
    do(driver, client.chat, "complete", **ASKED)
    driver.items(do(driver, client.chat, "stream", **ASKED))
    close(driver, client)
    assert [call.stream for call in calls.ended_calls] == [False, True]
    assert all({**call.facts, **FACTS} == call.facts for call in calls.ended_calls)


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.mistral.ai", "mistral_ai"),
        ("https://codestral.mistral.ai", "mistral_ai"),
        ("https://gateway.example.org", "mistral_ai"),
        ("https://europe-west4-aiplatform.googleapis.com", "gcp.vertex_ai"),
        ("http://localhost:11434", "ollama"),
    ],
)
def test_the_provider_is_known_by_address_or_client(server, calls, url, provider):
    def forward(request):
        answer = http.post(server.url + request.url.path, content=request.content, verify=False)
        return http.Response(200, json=answer.json())

    given = http.Client(transport=http.MockTransport(forward))
    client = Mistral(api_key="key", server_url=url, client=given)
    client.chat.complete(**ASKED)
    given.close()
    assert (calls.only.provider, calls.only.local) == (provider, "localhost" in url)


def test_other_requests_are_left_alone(driver, server, calls):
    client = make(server)
    assert do(driver, client.models, "list").data == []
    with pytest.raises(errors.SDKError):
        do(driver, client.files, "upload", file=models.File(file_name="x", content=b"x"))
    close(driver, client)
    assert not calls.opened_calls


@pytest.fixture
def spans(monkeypatch):
    """The spans of a process that has a global tracer provider, with our instrumentor's."""
    exporter = InMemorySpanExporter()
    provider = gate.gated_tracer_provider(activate(Settings(key="a key of these tests")))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.delenv("MISTRAL_SDK_TELEMETRY", raising=False)
    instrumentor = MistralInstrumentor()
    instrumentor.instrument(
        tracer_provider=provider, meter_provider=MeterProvider(), settings=Settings(key="k" * 9)
    )
    yield exporter
    instrumentor.uninstrument()


@pytest.mark.parametrize("asked", [None, "global"])
def test_its_own_spans_are_made_when_somebody_asked_for_them(
    driver, server, spans, monkeypatch, asked
):
    if asked and OPTIONAL:
        monkeypatch.setenv("MISTRAL_SDK_TELEMETRY", asked)
    client = make(server)
    do(driver, client.chat, "complete", **ASKED)
    driver.items(do(driver, client.chat, "stream", **ASKED))
    close(driver, client)
    found = sorted(span.instrumentation_scope.name for span in spans.get_finished_spans())
    assert "secret" not in "".join(span.to_json() for span in spans.get_finished_spans())
    theirs = ["mistralai_sdk_tracer"] * 2 if asked and OPTIONAL else []
    assert found == [*theirs, "sottovoce", "sottovoce"]


def test_nothing_is_left_behind():
    BaseSDK = basesdk.BaseSDK
    before = BaseSDK.do_request, BaseSDK.do_request_async
    with hooked(Calls()):
        assert BaseSDK.do_request is not before[0]
        assert BaseSDK.do_request_async is not before[1]
    assert (BaseSDK.do_request, BaseSDK.do_request_async) == before

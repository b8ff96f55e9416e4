"""Every way to ask a model with azure-ai-inference becomes one call, and the app sees no difference."""

import contextlib

import pytest
from azure.ai.inference import ChatCompletionsClient, EmbeddingsClient, ImageEmbeddingsClient
from azure.ai.inference.aio import ChatCompletionsClient as AsyncChatCompletionsClient
from azure.ai.inference.aio import EmbeddingsClient as AsyncEmbeddingsClient
from azure.ai.inference.models import (
    ImageEmbeddingInput,
    StreamingChatCompletions,
    SystemMessage,
    UserMessage,
)
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline import AsyncPipeline, Pipeline
from azure.core.rest import HttpRequest

from servers import fixtures
from servers.provider import ANSWER, MODEL, WORDS
from sottovoce.call import current_call
from sottovoce.clients import azure_inference as room

CREDENTIAL = AzureKeyCredential("a key")
MESSAGES = [SystemMessage("a secret instruction"), UserMessage("a secret question")]
USAGE = {
    "input_tokens": 11,
    "output_tokens": 7,
    "cache_read_tokens": 3,
    "reasoning_tokens": 2,
}
CLIENTS = {
    "sync": (ChatCompletionsClient, EmbeddingsClient),
    "async": (AsyncChatCompletionsClient, AsyncEmbeddingsClient),
}


def hooked():
    return fixtures.hooked(room.install)


@pytest.fixture
def calls(no_failures):
    with hooked() as calls:
        yield calls


@pytest.fixture
def make(driver, server):
    made = []

    def make(kind=0, endpoint=None, **given):
        given = {"retry_total": 0, "retry_backoff_factor": 0.001, "read_timeout": 5, **given}
        cls = CLIENTS[driver.name][kind]
        made.append(cls(endpoint or server.url, CREDENTIAL, **given))
        return made[-1]

    yield make
    for client in made:
        driver.close(client)


@pytest.fixture
def client(make):
    return make()


def chat(driver, client, **more):
    return driver.do(client.complete, messages=MESSAGES, model="tiny", **more)


def read(driver, client, **more):
    stream = chat(
        driver, client, stream=True, model_extras={"stream_options": {"include_usage": True}}
    )
    return driver.items(stream)


EVERY = {"whole": chat, "stream": read}


@pytest.fixture(params=EVERY)
def ask(request):
    return EVERY[request.param]


def test_whole(driver, client, calls, server):
    answer = chat(driver, client, temperature=0.5, stop=["a secret stop"])
    assert answer.choices[0].message.content == ANSWER
    call = calls.only
    assert (call.operation, call.provider, call.model) == ("chat", "azure.ai.inference", "tiny")
    assert (call.outcome, call.error, call.attempts) == ("completed", None, 1)
    assert (call.address, call.port, call.local) == ("127.0.0.1", server.port, True)
    assert call.facts == {
        "request_model": "tiny",
        "request_temperature": 0.5,
        "request_stop_count": 1,
        "user_turn": True,
        "response_model": MODEL,
        "finish_reasons": ["stop"],
        **USAGE,
    }


def test_stream(driver, client, calls):
    stream = chat(driver, client, stream=True)
    assert isinstance(stream, StreamingChatCompletions) or driver.name == "async"
    assert not calls.ended_calls
    assert current_call.get() is None
    assert len(driver.items(stream)) == WORDS + 2
    call = calls.only
    assert (call.outcome, call.stream, call.chunks) == ("completed", True, WORDS + 2)
    assert call.facts["finish_reasons"] == ["stop"]
    assert call.start_ns < call.first_chunk_ns <= call.last_chunk_ns <= call.end_ns


def test_stream_with_counts(driver, client, calls):
    read(driver, client)
    assert {**calls.only.facts, **USAGE} == calls.only.facts


def test_a_body_given_as_it_is(driver, client, calls):
    body = {"messages": [{"role": "user", "content": "a secret"}], "model": "tiny", "top_p": 0.5}
    driver.do(client.complete, body)
    assert calls.only.facts["request_top_p"] == 0.5


def test_embeddings(driver, make, calls):
    client = make(1)
    driver.do(client.embed, input=["a secret question"], dimensions=3, model="tiny")
    call = calls.only
    assert (call.operation, call.provider) == ("embeddings", "azure.ai.inference")
    assert call.facts == {
        "request_model": "tiny",
        "request_dimensions": 3,
        "response_model": MODEL,
        "input_tokens": 11,
    }


def test_embeddings_of_images(server, calls):
    picture = ImageEmbeddingInput(image="data:image/png;base64,c2VjcmV0")
    with ImageEmbeddingsClient(server.url, CREDENTIAL) as client:
        client.embed(input=[picture])
    # A deployment of one model need not be told which.
    assert (calls.only.operation, calls.only.model) == ("embeddings", None)
    assert calls.only.facts["input_tokens"] == 11


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_refused(driver, client, calls, server, ask, status):
    server.play(str(status))
    with pytest.raises(HttpResponseError):
        ask(driver, client)
    call = calls.only
    assert (call.outcome, call.error, call.attempts) == ("failed", str(status), 1)
    assert "secret" not in repr(call.facts)


def test_retries_are_attempts_of_one_call(driver, make, calls, server, ask):
    server.play("503", "500")
    ask(driver, make(retry_total=3))
    call = calls.only
    assert (call.outcome, call.attempts) == ("completed", 3)
    assert {**call.facts, **USAGE} == call.facts


def test_retries_that_all_fail(driver, make, calls, server, ask):
    server.play("503", "503", "503")
    with pytest.raises(HttpResponseError):
        ask(driver, make(retry_total=2))
    assert (calls.only.error, calls.only.attempts) == ("503", 3)


def test_no_connection(driver, make, calls):
    with pytest.raises(ServiceRequestError):
        chat(driver, make(endpoint="http://127.0.0.1:1"))
    assert calls.only.error is ServiceRequestError
    assert calls.only.attempts == 1


def test_timeout(driver, make, calls, server):
    server.gate.clear()
    server.play("slow")
    client = make(read_timeout=0.2)
    with pytest.raises((AzureError, TimeoutError)):
        read(driver, client)
    assert calls.only.outcome == "failed"


def test_a_connection_cut_in_a_stream(driver, client, calls, server):
    server.play("cut")
    with pytest.raises(AzureError):
        read(driver, client)
    # aiohttp may take back what had arrived by then.
    assert calls.only.outcome == "failed"
    assert calls.only.chunks == 3 or driver.name == "async"


@pytest.mark.parametrize("scenario", ["cut", "disconnect"])
def test_whole_answers_that_break_off(driver, client, calls, server, scenario):
    server.play(scenario)
    with pytest.raises(AzureError) as raised:
        chat(driver, client)
    assert (calls.only.outcome, calls.only.error) == ("failed", type(raised.value))
    assert issubclass(
        calls.only.error, (ServiceRequestError, ServiceResponseError, HttpResponseError)
    )


@pytest.mark.parametrize("how", ["break", "close"])
def test_a_stream_that_is_left_was_abandoned(driver, client, calls, server, how):
    server.play("slow")
    stream = chat(driver, client, stream=True)
    driver.items(stream, 2)
    if how == "close":
        driver.close(stream)
    del stream
    driver.collect()
    # Of a stream that is dropped, the asynchronous SDK itself keeps the connection.
    driver.close(client)
    driver.collect()
    assert calls.wait().outcome == "abandoned"


def test_an_error_in_a_stream(driver, client, calls, server):
    server.play("error")
    with contextlib.suppress(Exception):
        read(driver, client)
    assert (calls.only.outcome, calls.only.error) == ("failed", "overloaded")


def test_what_is_no_model_request_is_left_alone(driver, client, calls, server):
    with contextlib.suppress(HttpResponseError):
        driver.do(client.get_model_info)
    request = HttpRequest("POST", server.url + "/completions", json={"prompt": "a secret"})
    driver.do(client.send_request, request)
    assert not calls.opened_calls


@pytest.mark.parametrize(
    ("endpoint", "provider"),
    [
        ("https://models.inference.ai.azure.com", "azure.ai.inference"),
        ("https://mine.services.ai.azure.com/models", "azure.ai.inference"),
        ("https://mine.eastus2.inference.ml.azure.com", "azure.ai.inference"),
        ("https://mine.openai.azure.com/openai/deployments/gpt", "azure.ai.openai"),
    ],
)
def test_the_provider_is_known_by_its_address(no_failures, endpoint, provider):
    class Nowhere:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def close(self):
            pass

        def send(self, request, **_):
            raise ServiceRequestError("nobody is there")

    with hooked() as calls:
        client = ChatCompletionsClient(endpoint, CREDENTIAL, transport=Nowhere(), retry_total=0)
        with pytest.raises(ServiceRequestError):
            client.complete(messages=MESSAGES)
    assert (calls.only.provider, calls.only.local) == (provider, False)
    assert calls.only.model == ("gpt" if "deployments" in endpoint else None)


def test_undoing(driver, client, no_failures):
    before = Pipeline.run, AsyncPipeline.run
    with hooked() as calls:
        assert Pipeline.run is not before[0]
        stream = chat(driver, client, stream=True)
    assert (Pipeline.run, AsyncPipeline.run) == before
    chat(driver, client)
    assert len(driver.items(stream)) == WORDS + 2
    assert calls.only.outcome == "completed"


def said(function, *args):
    """What an app sees of a call: types and values, or what was raised."""
    try:
        found = function(*args)
    except Exception as error:
        return type(error), str(error)
    return type(found), found if isinstance(found, list) else found.as_dict()


@pytest.mark.parametrize(
    "scenario", ["ok", "400", "503", "cut", "disconnect", "error", "bytewise", "gzip", "malformed"]
)
def test_the_app_sees_the_same_with_and_without_us(driver, client, server, ask, scenario):
    server.play(scenario)
    without = said(ask, driver, client)
    server.play(scenario)
    with hooked():
        assert said(ask, driver, client) == without
    sent = [(path, body, headers.keys()) for path, headers, body in server.requests]
    assert sent[0] == sent[1]

"""The cohere SDK: each of its ways to ask a model is one call, and the app sees no difference."""

import cohere
import httpx
import pytest

from servers import bedrock
from servers import cohere as wire
from servers.provider import WORDS
from servers.scenarios import MESSAGES, Asked, Scenarios, Sdk, hooked
from sottovoce import guard
from sottovoce.clients import cohere as room

TOLD = {**wire.COUNTED, "finish_reasons": ["COMPLETE"]}
TOOL = {
    "type": "function",
    "function": {"name": "secret", "description": "a secret", "parameters": {"type": "object"}},
}


def make(driver, url, timeout):
    return wire.connect((cohere.ClientV2, cohere.AsyncClientV2), driver, url, timeout)


def chat(client, **more):
    return client.chat(model="tiny", messages=MESSAGES, **more)


def chat_stream(client, **more):
    return client.chat_stream(model="tiny", messages=MESSAGES, **more)


def embed(client):
    return client.embed(
        model="tiny", texts=["a secret"], input_type="search_query", embedding_types=["float"]
    )


def rerank(client):
    return client.rerank(model="tiny", query="a secret question", documents=["a secret", "b"])


COHERE = Sdk(
    room=room,
    serve=wire.serve,
    make=make,
    close=wire.disconnect,
    asked={
        "chat": Asked(chat, "chat", {**TOLD, "user_turn": True}),
        "embed": Asked(
            embed, "embeddings", {"input_tokens": 2, "request_encoding_formats": ["float"]}
        ),
        "rerank": Asked(rerank, "rerank", {}),
        "chat stream": Asked(
            chat_stream, "chat", {**TOLD, "user_turn": True}, WORDS + 4, WORDS + 3
        ),
    },
    provider="cohere",
    refused=(cohere.BadRequestError,),
    unreachable=(httpx.ConnectError,),
    slow=(httpx.ReadTimeout,),
    cut=(httpx.RemoteProtocolError,),
    failing=((), ("_OTHER",)),
    attempts=3,
)


class TestCohere(Scenarios):
    sdk = COHERE

    def test_facts_of_the_request(self, driver, server):
        asked = Asked(
            lambda c: chat(
                c,
                temperature=0.5,
                k=40,
                p=0.75,
                max_tokens=9,
                stop_sequences=["a secret"],
                frequency_penalty=0.25,
                presence_penalty=0.5,
                thinking=cohere.Thinking(type="enabled", token_budget=100),
                response_format=cohere.JsonObjectResponseFormatV2(),
                tools=[TOOL],
            ),
            "chat",
            {},
        )
        _, calls = self.both(driver, server, asked)
        assert calls.only.facts == {
            **wire.COUNTED,
            "finish_reasons": ["TOOL_CALL"],
            "tool_call_count": 2,
            "tool_names": ["weather", "weather"],
            "request_model": "tiny",
            "request_stream": False,
            "request_temperature": 0.5,
            "request_top_k": 40,
            "request_top_p": 0.75,
            "request_max_tokens": 9,
            "request_stop_count": 1,
            "request_frequency_penalty": 0.25,
            "request_presence_penalty": 0.5,
            "request_reasoning_level": "enabled",
            "request_tool_count": 1,
            "output_type": "json",
            "user_turn": True,
        }

    @pytest.mark.parametrize(
        ("messages", "person"),
        [
            ([cohere.UserChatMessageV2(content="a secret")], True),
            ([*MESSAGES, cohere.AssistantChatMessageV2(content="a secret")], False),
            ([{"role": "tool", "tool_call_id": "t", "content": "a secret"}], False),
            ([{"role": "user", "content": [{"type": "text", "text": "a secret"}]}], True),
        ],
    )
    def test_who_speaks_last(self, driver, server, messages, person):
        asked = Asked(lambda c: c.chat(model="tiny", messages=messages), "chat", {})
        _, calls = self.both(driver, server, asked)
        assert calls.only.facts["user_turn"] is person

    def test_tool_calls_in_a_stream(self, driver, server):
        asked = Asked(lambda c: chat_stream(c, tools=[TOOL]), "chat", {}, 9)
        _, calls = self.both(driver, server, asked)
        assert calls.only.facts["tool_call_count"] == 2
        assert calls.only.facts["tool_names"] == ["weather", "weather"]
        assert calls.only.facts["finish_reasons"] == ["TOOL_CALL"]

    def test_what_the_app_adds_to_a_body(self, driver, server):
        more = {"additional_body_parameters": {"k": 7}}
        asked = Asked(lambda c: chat(c, request_options=more), "chat", {})
        _, calls = self.both(driver, server, asked)
        assert calls.only.facts["request_top_k"] == 7

    def test_raw_responses(self, driver, server):
        asked = Asked(
            lambda c: c.with_raw_response.chat(model="tiny", messages=MESSAGES), "chat", {}
        )
        with hooked(self.sdk) as calls:
            client = make(driver, server.url, 30)
            response = driver.do(asked.ask, client)
            assert response.data.finish_reason == "COMPLETE"
            wire.disconnect(driver, client)
        assert {**calls.only.facts, **TOLD} == calls.only.facts

    def test_a_server_that_stays_busy(self, driver, server):
        asked = Asked(chat, "chat", {})
        seen, calls = self.both(driver, server, asked, "429", "429", "429")
        assert seen[0] is cohere.TooManyRequestsError
        call = calls.only
        assert (call.outcome, call.error, call.attempts) == ("failed", "429", 3)


@pytest.mark.parametrize(
    ("cls", "provider"),
    [(cohere.BedrockClientV2, "aws.bedrock"), (cohere.SagemakerClientV2, "custom")],
)
def test_on_a_cloud_the_address_is_not_coheres(cls, provider):
    sent = []

    def answer(request):
        sent.append(request.url.host)
        return httpx.Response(
            200, json={"embeddings": [[0.5]], "response_type": "embeddings_floats"}
        )

    with hooked(COHERE) as calls:
        client = cls(aws_access_key="a", aws_secret_key="b", aws_region="us-east-1")
        http = client._client_wrapper.httpx_client.httpx_client
        http._transport = httpx.MockTransport(answer)
        client.rerank(model="tiny", query="a secret question", documents=["a secret"])
        http.close()
    assert sent[0].endswith(".amazonaws.com")
    call = calls.only
    assert (call.provider, call.address, call.local) == (provider, None, False)
    assert (call.outcome, call.model) == ("completed", "tiny")


CLOUD_EVENTS = [
    {"event_type": "stream-start", "generation_id": "g", "is_finished": False},
    {"event_type": "text-generation", "text": "a secret", "is_finished": False},
    {"event_type": "text-generation", "text": " word", "is_finished": False},
    {
        "event_type": "stream-end",
        "finish_reason": "COMPLETE",
        "is_finished": True,
        "response": {"text": "a secret word", "generation_id": "g", "response_id": "r"},
        "amazon-bedrock-invocationMetrics": {"inputTokenCount": 20, "outputTokenCount": 8},
    },
]
CLOUD_COUNTS = {
    "x-amzn-bedrock-input-token-count": "20",
    "x-amzn-bedrock-output-token-count": "8",
}


def from_cloud(request):
    if "stream" not in request.url.path:
        answer = {"text": "a secret", "generation_id": "g", "finish_reason": "COMPLETE"}
        return httpx.Response(200, json=answer, headers=CLOUD_COUNTS)
    frames = b"".join(map(bedrock.wrapped, CLOUD_EVENTS))
    kind = {"content-type": bedrock.STREAM_TYPE}
    return httpx.Response(200, headers=kind, stream=httpx.ByteStream(frames))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("cls", "provider"), [(cohere.BedrockClient, "aws.bedrock"), (cohere.SagemakerClient, "custom")]
)
def test_chat_on_a_cloud(cls, provider, streamed):
    with hooked(COHERE) as calls:
        client = cls(aws_access_key="a", aws_secret_key="b", aws_region="us-east-1")
        http = client._client_wrapper.httpx_client.httpx_client
        http._transport = httpx.MockTransport(from_cloud)
        asked = {"model": "cohere.command-r-v1:0", "message": "a secret question"}
        if streamed:
            told = [each.event_type for each in client.chat_stream(**asked)]
            assert told == [each["event_type"] for each in CLOUD_EVENTS]
        else:
            assert client.chat(**asked).text == "a secret"
        http.close()
    call = calls.only
    assert (call.provider, call.model) == (provider, "cohere.command-r-v1:0")
    assert (call.outcome, call.stream, call.chunks) == ("completed", streamed, 3 * streamed)
    told = {"finish_reasons": ["COMPLETE"], "input_tokens": 20, "output_tokens": 8}
    assert {**call.facts, **told} == call.facts
    assert "secret" not in repr(call.facts)
    assert not guard.undecodable

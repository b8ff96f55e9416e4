"""The ollama SDK: each of its ways to ask a model is one call, and the app sees no difference."""

import inspect

import httpx
import ollama
import pytest

from servers import ollama as wire
from servers.provider import WORDS
from servers.scenarios import MESSAGES, Asked, Scenarios, Sdk, hooked
from sottovoce.clients import ollama as room

THINKS = "think" in inspect.signature(ollama.Client.chat).parameters
TIMED = {fact: pytest.approx(value) for fact, value in wire.TIMED.items()}
TOLD = {**wire.COUNTED, **TIMED, "finish_reasons": ["stop"]}


def make(driver, url, timeout):
    cls = ollama.AsyncClient if driver.name == "async" else ollama.Client
    return cls(host=url, timeout=timeout, verify=False)


def close(driver, client):
    closing = client._client.aclose if hasattr(client._client, "aclose") else client._client.close
    return closing() if driver is None else driver.do(closing)


def chat(client, **more):
    return client.chat("tiny", MESSAGES, **more)


def generate(client, **more):
    return client.generate("tiny", "a secret question", **more)


def embed(client):
    return client.embed("tiny", "a secret question")


def embeddings(client):
    return client.embeddings("tiny", "a secret question")


OLLAMA = Sdk(
    room=room,
    serve=wire.serve,
    make=make,
    close=close,
    asked={
        "chat": Asked(chat, "chat", {**TOLD, "user_turn": True}),
        "generate": Asked(generate, "text_completion", {**TOLD, "user_turn": True}),
        "embed": Asked(embed, "embeddings", {"input_tokens": 8, "response_model": wire.MODEL}),
        "embeddings": Asked(embeddings, "embeddings", {}),
        "chat stream": Asked(lambda c: chat(c, stream=True), "chat", TOLD, WORDS + 1, WORDS),
        "generate stream": Asked(
            lambda c: generate(c, stream=True), "text_completion", TOLD, WORDS + 1, WORDS
        ),
    },
    provider="ollama",
    refused=(ollama.ResponseError,),
    odd=() if THINKS else (RuntimeError,),  # 0.3 read errors of asynchronous streams wrongly
    unreachable=(ConnectionError, httpx.ConnectError),
    slow=(httpx.ReadTimeout,),
    cut=(httpx.RemoteProtocolError,),
    failing=((ollama.ResponseError,), ("_OTHER",)),
)


class TestOllama(Scenarios):
    sdk = OLLAMA

    def test_what_is_no_question_is_left_alone(self, driver, server):
        with hooked(self.sdk) as calls:
            client = make(driver, server.url, 30)
            driver.do(client.pull, "tiny")
            driver.items(driver.do(client.pull, "tiny", stream=True))
            driver.do(client.show, "tiny")
            close(driver, client)
        assert len(server.requests) == 3
        assert not calls.opened_calls

    def test_facts_of_the_request(self, driver, server):
        options = {"temperature": 0.5, "top_k": 40, "num_predict": 9, "stop": ["a secret"]}
        think = {"think": True} if THINKS else {}
        asked = Asked(
            lambda c: chat(c, options=options, format="json", tools=[TOOL], **think), "chat", {}
        )
        _, calls = self.both(driver, server, asked)
        assert calls.only.facts == {
            **TOLD,
            "request_model": "tiny",
            "request_stream": False,
            "request_temperature": 0.5,
            "request_top_k": 40,
            "request_max_tokens": 9,
            "request_stop_count": 1,
            **({"request_reasoning_level": "true"} if THINKS else {}),
            "request_tool_count": 1,
            "output_type": "json",
            "tool_call_count": 2,
            "tool_names": ["weather", "weather"],
            "user_turn": True,
        }

    def test_tool_calls_in_a_stream(self, driver, server):
        asked = Asked(lambda c: chat(c, tools=[TOOL], stream=True), "chat", {}, WORDS + 3)
        _, calls = self.both(driver, server, asked)
        assert calls.only.facts["tool_call_count"] == 2
        assert calls.only.facts["tool_names"] == ["weather", "weather"]

    def test_the_result_of_a_tool_is_no_person(self, driver, server):
        messages = [*MESSAGES, {"role": "tool", "content": "a secret", "tool_name": "secret"}]
        asked = Asked(lambda c: c.chat("tiny", messages), "chat", {})
        _, calls = self.both(driver, server, asked)
        assert calls.only.facts["user_turn"] is False

    @pytest.mark.parametrize("how", ["close", "throw"])
    def test_a_generator_behaves_as_the_sdks(self, server, how):
        class Mine(Exception):
            pass

        def end(client):
            stream = chat(client, stream=True)
            name = stream.__name__, stream.__qualname__
            next(stream)
            if how == "close":
                return name, stream.close(), next(stream, None)
            with pytest.raises(Mine):
                stream.throw(Mine)
            return name, next(stream, None)

        driver = type("driver", (), {"name": "sync"})
        client = make(driver, server.url, 30)
        without = end(client)
        with hooked(self.sdk) as calls:
            assert end(client) == without
        assert calls.only.outcome == "abandoned"
        client._client.close()


TOOL = {
    "type": "function",
    "function": {"name": "secret", "description": "a secret", "parameters": {"type": "object"}},
}

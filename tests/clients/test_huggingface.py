"""huggingface_hub's inference clients: each way to ask is one call, and the app sees no difference."""

import subprocess
import sys

import aiohttp
import httpx
import httpx2
import huggingface_hub
import pytest
import requests
from huggingface_hub import errors
from huggingface_hub.inference._providers import PROVIDERS

from servers import huggingface as wire
from servers.provider import MODEL, USAGE, WORDS
from servers.scenarios import MESSAGES, Asked, Scenarios, Sdk, hooked
from sottovoce.clients import huggingface as room

# Before 0.30 the client put a word in place of the model that it was told.
NAMED = "tiny" if huggingface_hub.__version__ >= "0.30" else None
CHAT = {"response_model": MODEL, "finish_reasons": ["stop"]}
TOLD = {"input_tokens": 11, "output_tokens": 7, **CHAT}


def make(driver, url, timeout):
    asynchronous = driver.name == "async"
    cls = huggingface_hub.AsyncInferenceClient if asynchronous else huggingface_hub.InferenceClient
    return cls(base_url=url, token="key", timeout=timeout)


def close(driver, client):
    if not hasattr(client, "close"):  # before 1.0
        return None
    return client.close() if driver is None else driver.do(client.close)


def chat(client, **more):
    return client.chat_completion(MESSAGES, model="tiny", **more)


def generate(client, **more):
    return client.text_generation("a secret question", **more)


def features(client):
    return client.feature_extraction("a secret question")


HUGGING_FACE = Sdk(
    room=room,
    serve=wire.serve,
    make=make,
    close=close,
    asked={
        "chat": Asked(
            chat,
            "chat",
            {**TOLD, "user_turn": True},
            model=NAMED,
            provider="openai_compatible",
        ),
        "generate": Asked(
            lambda c: generate(c, details=True, max_new_tokens=18),
            "text_completion",
            {**wire.COUNTED, "input_tokens": 3, "request_max_tokens": 18},
            model=None,
        ),
        "features": Asked(features, "embeddings", {}, model=None),
        "chat stream": Asked(
            lambda c: chat(c, stream=True, stream_options={"include_usage": True}),
            "chat",
            TOLD,
            WORDS + 3,
            WORDS + 3,
            model=NAMED,
            provider="openai_compatible",
        ),
        "generate stream": Asked(
            lambda c: generate(c, stream=True, details=True),
            "text_completion",
            {**wire.COUNTED, "input_tokens": 3, "request_stream": True},
            WORDS + 1,
            WORDS,
            model=None,
        ),
    },
    provider="hugging_face",
    # 0.x sends with requests and aiohttp, 1.x with httpx.
    refused=(errors.BadRequestError, errors.ValidationError, aiohttp.ClientResponseError),
    unreachable=(
        httpx2.ConnectError,
        httpx.ConnectError,
        requests.ConnectionError,
        aiohttp.ClientConnectorError,
    ),
    slow=(errors.InferenceTimeoutError, httpx.ReadTimeout, requests.ReadTimeout),
    cut=(
        httpx.RemoteProtocolError,
        httpx2.RemoteProtocolError,
        requests.ConnectionError,
        requests.exceptions.ChunkedEncodingError,
        aiohttp.ClientPayloadError,
        aiohttp.ServerDisconnectedError,
    ),
    failing=((errors.OverloadedError,), ("overloaded", "_OTHER")),
)


class TestHuggingFace(Scenarios):
    sdk = HUGGING_FACE

    @pytest.fixture
    def routed(self, server, monkeypatch):
        """The client's own addresses lead to the server."""
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        for task in ("text-generation", "feature-extraction"):
            helper = PROVIDERS["hf-inference"][task]
            monkeypatch.setattr(helper, "base_url", server.url + "/hf-inference")

    def ask(self, driver, function):
        asynchronous = driver.name == "async"
        name = "AsyncInferenceClient" if asynchronous else "InferenceClient"
        with hooked(self.sdk) as calls:
            client = getattr(huggingface_hub, name)(provider="hf-inference", api_key="key")
            driver.do(function, client)
            close(driver, client)
        return calls

    def test_a_model_in_the_path(self, driver, routed):
        name = f"org/tiny-{driver.name}"
        calls = self.ask(driver, lambda c: generate(c, model=name, details=True))
        call = calls.only
        assert (call.operation, call.model) == ("text_completion", name)
        assert {**call.facts, **wire.COUNTED} == call.facts

    def test_features_of_a_model_in_the_path(self, driver, routed):
        name = f"org/{driver.name}-features"
        calls = self.ask(driver, lambda c: c.feature_extraction("a secret", model=name))
        assert (calls.only.operation, calls.only.model) == ("embeddings", name)
        assert calls.only.attempts == 1

    def test_no_model_is_named_where_there_is_but_one(self, driver, server):
        asked = Asked(lambda c: c.chat_completion(MESSAGES), "chat", {})
        _, calls = self.both(driver, server, asked)
        assert calls.only.model is None
        assert calls.only.facts["response_model"] == MODEL

    def test_facts_of_the_request(self, driver, server):
        asked = Asked(
            lambda c: generate(
                c,
                temperature=0.5,
                top_k=40,
                top_p=0.75,
                max_new_tokens=9,
                stop=["a secret"],
                frequency_penalty=0.25,
                grammar={"type": "json", "value": {"title": "a secret"}},
            ),
            "text_completion",
            {},
        )
        _, calls = self.both(driver, server, asked)
        facts = calls.only.facts
        assert facts.pop("request_stream", False) is False
        assert facts == {
            "request_temperature": 0.5,
            "request_top_k": 40,
            "request_top_p": 0.75,
            "request_max_tokens": 9,
            "request_stop_count": 1,
            "request_frequency_penalty": 0.25,
            "output_type": "json",
        }

    def test_the_clients_own_way_to_openai(self, driver, server):
        asked = Asked(
            lambda c: c.chat.completions.create(model="tiny", messages=MESSAGES), "chat", {}
        )
        _, calls = self.both(driver, server, asked)
        assert (
            calls.only.facts["cache_read_tokens"] == USAGE["prompt_tokens_details"]["cached_tokens"]
        )

    def test_a_stream_that_is_dropped_while_the_client_lives(self, driver, server):
        with hooked(self.sdk) as calls:
            client = make(driver, server.url, 30)
            driver.items(driver.do(chat, client, stream=True), 2)
            driver.collect()
            assert calls.wait().outcome == "abandoned"
            close(driver, client)
        assert calls.only.chunks >= 2

    def test_other_tasks_are_left_alone(self, driver, server):
        with hooked(self.sdk) as calls:
            client = make(driver, server.url + "/text-classification", 30)
            assert driver.do(client.text_classification, "a secret")
            close(driver, client)
        assert server.requests
        assert not calls.opened_calls


def test_who_downloads_a_model_never_meets_us():
    code = """
import sys
from sottovoce.instrumentors import HuggingFaceInstrumentor
HuggingFaceInstrumentor().instrument()
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
assert not [name for name in sys.modules if name.startswith("sottovoce.clients")]
assert not [name for name in sys.modules if name.startswith("sottovoce.transports")]
from huggingface_hub import InferenceClient
assert hasattr(InferenceClient._inner_post, "__sottovoce_original__")
HuggingFaceInstrumentor().uninstrument()
assert not hasattr(InferenceClient._inner_post, "__sottovoce_original__")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

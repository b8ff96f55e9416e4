"""The first version of Cohere's API, through its SDK as old as 5.0: the same as of the second."""

import contextvars
import inspect

import cohere
import httpx
from cohere.core.api_error import ApiError

from servers import cohere as wire
from servers.provider import WORDS
from servers.scenarios import Asked, Scenarios, Sdk, hooked
from sottovoce.clients import cohere as room

TOLD = {**wire.COUNTED, "finish_reasons": ["COMPLETE"]}
RETRIES = "max_retries" in inspect.signature(cohere.Client).parameters
OFFLINE = "offline" in inspect.signature(cohere.Client.tokenize).parameters
BATCHES = "batching" in inspect.signature(cohere.Client.embed).parameters
PREFIX = "" if hasattr(cohere, "ClientV2") else "/v1"


def make(driver, url, timeout):
    return wire.connect((cohere.Client, cohere.AsyncClient), driver, url + PREFIX, timeout)


class TestCohereV1(Scenarios):
    sdk = Sdk(
        room=room,
        serve=wire.serve,
        make=make,
        close=wire.disconnect,
        asked={
            "chat": Asked(
                lambda c: c.chat(model="tiny", message="a secret question"), "chat", TOLD
            ),
            "generate": Asked(
                lambda c: c.generate(model="tiny", prompt="a secret question"),
                "text_completion",
                {**wire.COUNTED, "finish_reasons": ["MAX_TOKENS"]},
            ),
            "embed": Asked(lambda c: c.embed(model="tiny", texts=["a secret"]), "embeddings", {}),
            "rerank": Asked(
                lambda c: c.rerank(model="tiny", query="a secret", documents=["a secret"]),
                "rerank",
                {},
            ),
            "chat stream": Asked(
                lambda c: c.chat_stream(model="tiny", message="a secret question"),
                "chat",
                {**TOLD, "user_turn": True},
                WORDS + 2,
                WORDS + 1,
            ),
        },
        provider="cohere",
        # 5.0 reads the errors of streams wrongly.
        refused=(cohere.BadRequestError, *(() if RETRIES else (httpx.ResponseNotRead, ApiError))),
        unreachable=(httpx.ConnectError,),
        slow=(httpx.ReadTimeout,),
        cut=(httpx.RemoteProtocolError,),
        failing=((), ("_OTHER",)),
        attempts=3 if RETRIES else 1,
    )

    def test_no_model_is_asked_for(self, driver, server):
        with hooked(self.sdk) as calls:
            client = make(driver, server.url, 30)
            offline = {"offline": False} if OFFLINE else {}
            driver.do(client.tokenize, text="a secret", model="tiny", **offline)
            wire.disconnect(driver, client)
        assert server.requests
        assert not calls.opened_calls

    def test_texts_that_are_embedded_in_threads_belong_to_what_the_app_has_open(self, server):
        mine = contextvars.ContextVar("mine", default="nobody")
        opened = []
        with hooked(self.sdk) as calls:
            calls.opened = lambda call: opened.append((call.operation, mine.get()))
            driver = type("driver", (), {"name": "sync"})
            client = make(driver, server.url, 30)
            mine.set("the app's")
            client.embed(model="tiny", texts=["a secret"] * 200)
            client.mine.close()
        batches = 3 if BATCHES else 1
        assert opened == [("embeddings", "the app's")] * batches

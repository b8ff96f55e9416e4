"""google-genai's interactions, with and without us: another generator's client in the same SDK."""

import asyncio

import pytest

from servers.calls import Calls
from servers.fixtures import fresh, hooked
from servers.gemini import COUNTED, MODEL, WORDS, gemini_server
from sottovoce import guard
from sottovoce.clients import google_genai

genai = pytest.importorskip("google.genai")
basesdk = pytest.importorskip("google.genai._gaos.basesdk")  # since 2.0
from google.genai import types

http = basesdk.httpx  # httpx2 since 3.0

# The SDK's own, with and without us.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Interactions usage"),
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::google.genai._common.ExperimentalWarning"),
]
FACTS = {**COUNTED, "response_model": MODEL, "finish_reasons": ["completed"], "user_turn": True}
ASKED = {"model": "tiny", "input": "a secret question"}


@pytest.fixture(scope="module")
def running():
    with gemini_server() as server:
        yield server


@pytest.fixture
def server(running):
    return fresh(running)


def make(driver, server, **options):
    client = genai.Client(
        api_key="key",
        http_options=types.HttpOptions(
            base_url=server.url,
            httpx_client=http.Client(verify=False),
            httpx_async_client=http.AsyncClient(verify=False),
            retry_options=types.HttpRetryOptions(**{"attempts": 1, **options}),
        ),
    )
    return client.aio if driver.name == "async" else client


def close(driver, client):
    client._api_client._httpx_client.close()
    if driver.name == "async":
        driver.do(client._api_client._async_httpx_client.aclose)


def shown(thing):
    return type(thing), thing.model_dump()


def whole(driver, client, **more):
    return [shown(driver.do(client.interactions.create, **ASKED, **more))]


def stream(driver, client):
    opened = driver.do(client.interactions.create, **ASKED, stream=True)
    return [*map(shown, driver.items(opened))]


def left_early(driver, client):
    opened = driver.do(client.interactions.create, **ASKED, stream=True)
    found = [*map(shown, driver.items(opened, 2))]
    del opened
    driver.collect()
    return found


AGAIN = {"attempts": 3, "initial_delay": 0.001, "max_delay": 0.01}
SCENARIOS = {
    "whole": (whole, [], "completed", None, 1, {}),
    "stream": (stream, [], "completed", None, 1, {}),
    "break": (left_early, ["held"], "abandoned", None, 1, {}),
    "refused": (whole, ["403"], "failed", "403", 1, {}),
    "refused stream": (stream, ["400"], "failed", "400", 1, {}),
    "retried": (whole, ["429"], "completed", None, 2, AGAIN),
    "cut stream": (stream, ["cut"], "failed", "RemoteProtocolError", 1, {}),
    "error in a stream": (stream, ["error"], "failed", "503", 1, {}),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_one_call_and_no_difference(driver, server, scenario):
    act, plays, outcome, error, attempts, options = SCENARIOS[scenario]

    def run():
        server.play(*plays)
        if "held" in plays:
            server.gate.clear()
        client = make(driver, server, **options)
        try:
            return act(driver, client)
        except (Exception, asyncio.CancelledError) as raised:
            return [type(raised), str(raised), type(raised.__cause__)]
        finally:
            server.gate.set()
            close(driver, client)

    guard.failures.clear()
    calls = Calls()
    before = run()
    with hooked(google_genai.install, calls=calls):
        after = run()
    assert after == before
    call = calls.wait()
    assert calls.only is call
    assert not guard.failures
    found = call.error.__name__ if isinstance(call.error, type) else call.error
    assert (call.outcome, found, call.attempts) == (outcome, error, attempts)
    assert (call.operation, call.model, call.provider) == (
        "generate_content",
        "tiny",
        "gcp.gemini",
    )
    assert "secret" not in repr(call.facts)
    if outcome == "completed":
        assert {**call.facts, **FACTS} == call.facts
        assert call.chunks == (WORDS + 4 if call.stream else 0)

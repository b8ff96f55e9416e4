"""google-genai in every way a call can go, with and without us, on each library that it rides on."""

import asyncio
import inspect

import aiohttp
import httpx
import httpx2
import pytest
from google import genai
from google.genai import _api_client, types
from google.oauth2.credentials import Credentials

from servers import fixtures
from servers.calls import Calls
from servers.drivers import Async, Sync
from servers.fixtures import cancelled_while_reading, fresh
from servers.gemini import FACTS, WORDS, gemini_server
from servers.provider import ANSWER, MODEL
from sottovoce import guard, transports
from sottovoce.call import current_call
from sottovoce.clients import google_genai

# The SDK's own, with and without us.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
    pytest.mark.filterwarnings("ignore:The `dict` method"),
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
]
QUESTION = "a secret question"
WEATHER = types.Tool(
    function_declarations=[types.FunctionDeclaration(name="weather", description="secret")]
)


@pytest.fixture(scope="module")
def running():
    with gemini_server() as server:
        yield server


@pytest.fixture
def server(running):
    return fresh(running)


@pytest.fixture(params=["httpx2", "httpx", "aiohttp"])
def library(request, driver):
    """What the client sends its requests with; aiohttp only where it is asynchronous."""
    if request.param == "aiohttp" and driver.name == "sync":
        return "httpx2"
    return request.param


def hooked(calls):
    return fixtures.hooked(google_genai.install, calls=calls)


@pytest.fixture
def calls():
    guard.failures.clear()
    calls = Calls()
    with hooked(calls):
        yield calls
    assert not guard.failures


# What can be said to a client differs by version; 1.0 is asynchronous in name alone.
FIELDS = types.HttpOptions.model_fields
OWNER = getattr(_api_client, "BaseApiClient", None) or _api_client.ApiClient
THREADED = OWNER.__name__ == "ApiClient"
# Until then the SDK tried again by itself after seconds.
RETRIES = (
    "implicit_retry"
    not in inspect.signature(getattr(OWNER, "_async_request_once", OWNER._async_request)).parameters
)
NEWEST = httpx2 if hasattr(_api_client, "SyncHttpx2Client") else httpx


def make(driver, server, library="httpx2", vertex=False, url=None, **options):
    module = httpx if library == "httpx" else NEWEST
    if "httpx_client" in FIELDS:
        options = {"httpx_client": module.Client(verify=False), **options}
        if library != "aiohttp":
            options["httpx_async_client"] = module.AsyncClient(verify=False)
    elif "client_args" in FIELDS:
        options["client_args"] = {"verify": False}
    if library == "aiohttp" and "async_client_args" in FIELDS:
        options["async_client_args"] = {"ssl": False}
    given = types.HttpOptions(base_url=url or server.url, **options)
    if vertex:
        client = genai.Client(
            vertexai=True,
            project="a-secret-project",
            location="europe-west1",
            credentials=Credentials(token="token"),
            http_options=given,
        )
    else:
        client = genai.Client(api_key="key", http_options=given)
    return client.aio if driver.name == "async" else client


def close(driver, client):
    api = client._api_client
    if driver.name == "async" and hasattr(client, "aclose"):
        driver.do(client.aclose)
    for name in ("_httpx_client", "_async_httpx_client", "_aiohttp_session"):
        http = getattr(api, name, None)
        if hasattr(http, "aclose"):
            driver.do(http.aclose) if driver.name == "async" else None
        elif name == "_httpx_client" and http is not None:
            http.close()


def shown(thing):
    """What the app can see of a result; the header with the time aside."""
    dump = thing.model_dump() if hasattr(thing, "model_dump") else thing
    if isinstance(dump, dict) and dump.get("sdk_http_response"):
        dump["sdk_http_response"]["headers"] = sorted(
            name for name in dump["sdk_http_response"]["headers"]
        )
    return type(thing), dump


def ask(driver, client, model="tiny", **config):
    function = client.models.generate_content
    return driver.do(function, model=model, contents=QUESTION, config=config or None)


def ask_stream(driver, client, model="tiny", **config):
    function = client.models.generate_content_stream
    return driver.do(function, model=model, contents=QUESTION, config=config or None)


def whole(driver, client, _):
    return [shown(ask(driver, client))]


def stream(driver, client, _):
    opened = ask_stream(driver, client)
    assert current_call.get() is None
    return [type(opened), *map(shown, driver.items(opened))]


def chat(driver, client, _):
    return [shown(driver.do(client.chats.create(model="tiny").send_message, QUESTION))]


def chat_stream(driver, client, _):
    opened = driver.do(client.chats.create(model="tiny").send_message_stream, QUESTION)
    return [*map(shown, driver.items(opened))]


def left_early(driver, client, server):
    server.gate.clear()
    opened = ask_stream(driver, client)
    found = [*map(shown, driver.items(opened, 2))]
    driver.close(opened)
    del opened
    driver.collect()  # the SDK leaves the response to the collector
    return found


def dropped(driver, client, server):
    server.gate.clear()
    opened = ask_stream(driver, client)
    found = [*map(shown, driver.items(opened, 2))]
    del opened
    driver.collect()
    return found


def timeout(driver, client, server):
    server.gate.clear()
    return stream(driver, client, server)


def cancelled(driver, client, server):
    server.gate.clear()
    return cancelled_while_reading(
        driver, lambda: client.models.generate_content_stream(model="tiny", contents=QUESTION)
    )


OK = ("completed", None)
ABANDONED = ("abandoned", None)
ONCE = {"retry_options": {"attempts": 1}} if "retry_options" in FIELDS else {}
THRICE = {"retry_options": {"attempts": 3, "initial_delay": 0.001, "max_delay": 0.01}}
NOBODY = "http://127.0.0.1:1"
# By httpx, aiohttp and requests.
UNREACHABLE = ("failed", {"ConnectError", "ClientConnectorError", "ConnectionError"})
BROKEN = (
    "failed",
    {
        "RemoteProtocolError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ConnectionError",
        "ChunkedEncodingError",
        "ProtocolError",
        "IncompleteRead",
    },
)
# What is done, what the server plays, how the call ends, how often is asked, options.
SCENARIOS = {
    "whole": (whole, [], OK, 1, {}),
    "gzip": (whole, ["gzip"], OK, 1, {}),
    "chat": (chat, [], OK, 1, {}),
    "stream": (stream, [], OK, 1, {}),
    "chat stream": (chat_stream, [], OK, 1, {}),
    "break": (left_early, ["held"], ABANDONED, 1, {}),
    "dropped": (dropped, ["held"], ABANDONED, 1, {}),
    "blocked": (whole, ["blocked"], OK, 1, {}),
    "blocked stream": (stream, ["blocked"], OK, 1, {}),
    "refused": (whole, ["400"], ("failed", {"400"}), 1, {}),
    "refused stream": (stream, ["403"], ("failed", {"403"}), 1, {}),
    "retried": (whole, ["429", "503"], OK, 3, THRICE),
    "retried stream": (stream, ["429"], OK, 2, THRICE),
    "retried in vain": (whole, ["429"] * 3, ("failed", {"429"}), 3, THRICE),
    "no connection": (whole, [], UNREACHABLE, 1, {"url": NOBODY, **ONCE}),
    "hung up": (whole, ["disconnect"], BROKEN, 1, ONCE),
    "cut": (whole, ["cut"], BROKEN, 1, ONCE),
    "cut stream": (stream, ["cut"], BROKEN, 1, ONCE),
    "error in a stream": (stream, ["error"], ("failed", {"503"}), 1, {}),
    "bare error in a stream": (stream, ["bare_error"], ("failed", {"503"}), 1, {}),
    "timeout": (
        timeout,
        ["slow"],
        ("failed", {"ReadTimeout", "TimeoutError", "SocketTimeoutError", "ConnectionError"}),
        1,
        {"timeout": 1000, **ONCE},
    ),
    "cancelled": (cancelled, ["slow"], ("cancelled", {"CancelledError"}), 1, {}),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_one_call_and_no_difference(driver, server, library, scenario):
    do, plays, (outcome, errors), attempts, options = SCENARIOS[scenario]
    if do is cancelled and (driver.name == "sync" or THREADED):
        return
    if options.keys() - FIELDS - {"url"} or (library == "aiohttp" and options and RETRIES):
        return

    def run():
        return fixtures.played(
            server,
            plays,
            lambda: make(driver, server, library, **options),
            lambda client: do(driver, client, server),
            lambda client: close(driver, client),
        )

    call = fixtures.one_call(server, run, hooked)
    error = call.error.__name__ if isinstance(call.error, type) else call.error
    assert (call.outcome, error is None or error in errors) == (outcome, True), call.error
    assert (call.operation, call.model, call.provider) == (
        "generate_content",
        "tiny",
        "gcp.gemini",
    )
    assert (call.local, call.attempts) == (True, attempts)
    if outcome == "completed" and "blocked" not in scenario:
        assert {**call.facts, **FACTS, "user_turn": True} == call.facts
    if "blocked" in scenario:
        assert call.facts["finish_reasons"] == ["PROHIBITED_CONTENT"]
    if outcome == "completed":
        assert call.stream is ("stream" in scenario.split())
        assert call.chunks == (0 if not call.stream else 1 if "blocked" in scenario else WORDS + 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_aiohttp_is_asked_again_after_a_broken_connection(server, calls, streamed):
    if RETRIES:
        return
    server.play("disconnect")
    driver = Async()
    client = make(driver, server, "aiohttp", **THRICE)
    if streamed:
        driver.items(ask_stream(driver, client))
    else:
        ask(driver, client)
    close(driver, client)
    driver.stop()
    assert (calls.only.outcome, calls.only.attempts) == ("completed", 2)
    assert {**calls.only.facts, **FACTS} == calls.only.facts


@pytest.mark.parametrize("streamed", [False, True])
def test_vertex(driver, server, library, calls, streamed):
    client = make(driver, server, library, vertex=True)
    if streamed:
        driver.items(ask_stream(driver, client, "gemini-2.5-flash"))
    else:
        ask(driver, client, "gemini-2.5-flash")
    close(driver, client)
    assert server.requests[0][0].startswith("/v1beta1/projects/a-secret-project/locations/")
    call = calls.only
    assert (call.provider, call.model) == ("gcp.vertex_ai", "gemini-2.5-flash")
    assert {**call.facts, **FACTS} == call.facts
    assert "secret" not in repr(call.facts)


def test_a_tuned_model(driver, server, calls):
    client = make(driver, server, vertex=True)
    ask(driver, client, "projects/a-secret-project/locations/l/endpoints/123")
    close(driver, client)
    assert calls.only.model == "endpoints/123"


def test_what_was_asked(driver, server, library, calls):
    client = make(driver, server, library)
    thinks = "thinking_level" in types.ThinkingConfig.model_fields
    ask(
        driver,
        client,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        candidate_count=2,
        max_output_tokens=64,
        stop_sequences=["a secret stop"],
        response_mime_type="application/json",
        **({"thinking_config": {"thinking_level": "LOW"}} if thinks else {}),
        system_instruction="a secret instruction",
    )
    close(driver, client)
    expected = {
        "request_model": "tiny",
        "request_temperature": 0.5,
        "request_top_p": 0.9,
        "request_top_k": 40,
        "request_choice_count": 2,
        "request_max_tokens": 64,
        "request_stop_count": 1,
        **({"request_reasoning_level": "low"} if thinks else {}),
        "output_type": "json",
        "user_turn": True,
    }
    facts = calls.only.facts
    assert {**facts, **expected} == facts


def test_a_function_that_the_sdk_runs_takes_two_calls(driver, server, library, calls):
    def weather(place: str) -> str:
        """Say a secret thing about the weather."""
        ran.append(place)
        return "a secret result"

    ran = []
    client = make(driver, server, library)
    answer = ask(driver, client, tools=[weather])
    close(driver, client)
    assert (answer.text, ran) == (ANSWER, ["a secret place"])
    first, second = calls.ended_calls
    assert first.facts["tool_names"] == ["weather"]
    assert first.facts["tool_call_count"] == 1
    assert (first.facts["user_turn"], second.facts["user_turn"]) == (True, False)
    assert "tool_call_count" not in second.facts
    assert all(call.facts["request_tool_count"] == 1 for call in (first, second))
    assert "secret" not in repr((first.facts, second.facts))


def test_a_tool_call_in_a_stream(driver, server, library, calls):
    client = make(driver, server, library)
    driver.items(ask_stream(driver, client, tools=[WEATHER]))
    close(driver, client)
    assert calls.only.facts["tool_names"] == ["weather"]
    assert calls.only.chunks == 2


@pytest.mark.parametrize(
    ("vertex", "model", "tokens"),
    [(False, "gemini-embedding-001", None), (True, "text-embedding-005", 11)],
)
def test_embeddings(driver, server, library, calls, vertex, model, tokens):
    client = make(driver, server, library, vertex=vertex)
    config = {"output_dimensionality": 3}
    found = driver.do(
        client.models.embed_content, model=model, contents=[QUESTION] * 2, config=config
    )
    close(driver, client)
    assert len(found.embeddings) == 2
    call = calls.only
    assert (call.operation, call.model, call.outcome) == ("embeddings", model, "completed")
    assert call.facts["request_dimensions"] == 3
    assert call.facts.get("input_tokens") == tokens


@pytest.mark.filterwarnings("ignore:The generate_images method is deprecated")
def test_images(driver, server, library, calls):
    client = make(driver, server, library, vertex=True)
    driver.do(client.models.generate_images, model="imagen-4.0-generate-001", prompt=QUESTION)
    close(driver, client)
    call = calls.only
    assert (call.operation, call.model) == ("generate_content", "imagen-4.0-generate-001")
    assert call.facts == {"request_model": call.model, "output_type": "image"}


def test_counting_tokens_is_no_call(driver, server, library, calls):
    client = make(driver, server, library)
    assert driver.do(client.models.count_tokens, model="tiny", contents=QUESTION).total_tokens
    close(driver, client)
    assert not calls.opened_calls


@pytest.mark.parametrize(
    ("url", "vertex", "provider"),
    [
        ("https://generativelanguage.googleapis.com", False, "gcp.gemini"),
        ("https://europe-west1-aiplatform.googleapis.com", True, "gcp.vertex_ai"),
        ("https://aiplatform.googleapis.com", True, "gcp.vertex_ai"),
        ("https://gateway.example.org", False, "gcp.gemini"),
        ("https://gateway.example.org/genai", True, "gcp.vertex_ai"),
    ],
)
def test_the_provider_is_known_by_address_or_client(server, calls, url, vertex, provider):
    def forward(request):
        answer = NEWEST.post(server.url + request.url.path, content=request.content, verify=False)
        return NEWEST.Response(200, json=answer.json())

    if "httpx_client" not in FIELDS:
        return
    http = NEWEST.Client(transport=NEWEST.MockTransport(forward))
    driver = Sync()
    client = make(driver, server, vertex=vertex, url=url, httpx_client=http)
    ask(driver, client)
    client.close()
    assert (calls.only.provider, calls.only.local) == (provider, False)
    assert calls.only.facts["response_model"] == MODEL


def test_raw_requests(server):
    """The same paths without the SDK: the array that a stream is by default as well."""
    guard.failures.clear()
    body = {"contents": [{"parts": [{"text": QUESTION}]}]}
    calls = Calls()
    transports.install_wire()
    for name in ("httpx", "requests"):
        transports.set_raw_recorder(name, calls)
    try:
        url = server.url + "/v1beta/models/tiny"
        for verb in ("generateContent", "streamGenerateContent?alt=sse", "streamGenerateContent"):
            httpx2.post(f"{url}:{verb}", json=body, verify=False)
            with httpx.stream("POST", f"{url}:{verb}", json=body, verify=False) as answer:
                assert len(b"".join(answer.iter_bytes())) > 100
    finally:
        for name in ("httpx", "requests"):
            transports.set_raw_recorder(name, None)
        transports.remove_wire()
    assert not guard.failures
    assert len(calls.ended_calls) == 6
    for call in calls.ended_calls:
        assert (call.model, call.provider, call.operation) == (
            "tiny",
            "gcp.gen_ai",
            "generate_content",
        )
        assert {**call.facts, **FACTS} == call.facts
    assert [call.chunks for call in calls.ended_calls] == [0, 0, 0, WORDS + 1, 0, WORDS + 1]
    assert [call.stream for call in calls.ended_calls] == [False, False] + [True] * 4


async def test_calls_at_the_same_time_are_not_confused(server, calls):
    client = make(Async, server, "aiohttp")

    async def one(number):
        model = f"tiny-{number}"
        if number % 2:
            await client.models.generate_content(model=model, contents=QUESTION)
        else:
            stream = await client.models.generate_content_stream(model=model, contents=QUESTION)
            async for _ in stream:
                assert current_call.get() is None

    await asyncio.gather(*map(one, range(12)))
    if hasattr(client, "aclose"):
        await client.aclose()
    assert {call.model for call in calls.ended_calls} == {f"tiny-{n}" for n in range(12)}
    assert all({**call.facts, **FACTS} == call.facts for call in calls.ended_calls)


def test_nothing_is_left_behind():
    before = OWNER._request, OWNER._async_request
    send = aiohttp.ClientSession._request, httpx2.Client.send
    with hooked(Calls()):
        assert OWNER._request is not before[0]
        assert OWNER._async_request is not before[1]
    assert (OWNER._request, OWNER._async_request) == before
    assert (aiohttp.ClientSession._request, httpx2.Client.send) == send

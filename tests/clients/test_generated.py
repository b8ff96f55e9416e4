"""The generated SDKs, each in every way a call can go: one call, and the app sees no difference.

Every scenario runs without us and with us, and what the app sees of both is compared.
"""

import functools
import importlib
import inspect
from dataclasses import dataclass, field

import pytest

from servers import anthropic as claude
from servers import fixtures
from servers.calls import Calls
from servers.provider import MODEL, ProviderServer
from sottovoce.call import current_call
from sottovoce.clients import anthropic, generated

MESSAGES = [{"role": "user", "content": "a secret question"}]
USAGE = {"input_tokens": 11, "output_tokens": 7, "cache_read_tokens": 3, "reasoning_tokens": 2}


@dataclass(frozen=True)
class Sdk:
    """One SDK: `params` of a call, the facts of its whole answer and of its stream."""

    module: str
    clients: tuple[str, str]
    prefix: str = ""
    serve: object = ProviderServer
    params: dict = field(default_factory=lambda: {"model": "tiny", "messages": MESSAGES})
    options: dict = field(default_factory=dict)
    resource: object = lambda client: client.chat.completions
    whole: dict = field(
        default_factory=lambda: {**USAGE, "finish_reasons": ["stop"], "response_model": MODEL}
    )
    streamed: dict = field(
        default_factory=lambda: {"finish_reasons": ["stop"], "response_model": MODEL}
    )
    provider: str = "openai_compatible"

    def __getattr__(self, name):
        return getattr(importlib.import_module(self.module), name)


TOLD = {**claude.COUNTED, "finish_reasons": ["end_turn"], "response_model": claude.MODEL}
SDKS = {
    "openai": Sdk("openai", ("OpenAI", "AsyncOpenAI"), "/v1"),
    "anthropic": Sdk(
        "anthropic",
        ("Anthropic", "AsyncAnthropic"),
        serve=claude.serve,
        params={"model": "tiny", "messages": MESSAGES, "max_tokens": 16},
        resource=lambda client: client.messages,
        whole=TOLD,
        streamed=TOLD,
        provider="anthropic",
    ),
    "groq": Sdk("groq", ("Groq", "AsyncGroq")),
    "together": Sdk("together", ("Together", "AsyncTogether")),
    "cerebras": Sdk(
        "cerebras.cloud.sdk",
        ("Cerebras", "AsyncCerebras"),
        options={"warm_tcp_connection": False},
    ),
}


@pytest.fixture(params=SDKS)
def sdk(request):
    pytest.importorskip(SDKS[request.param].module)
    return SDKS[request.param]


@pytest.fixture(scope="module")
def servers():
    started = {}
    for serve in (ProviderServer, claude.serve):
        started[serve] = serve().__enter__()
    yield started
    for server in started.values():
        server.__exit__()


@pytest.fixture
def server(servers, sdk):
    server = servers[sdk.serve]
    server.scenarios.clear()
    server.requests.clear()
    server.gate.set()
    return server


def hooked(sdk, calls):
    if sdk.module == "anthropic":
        return fixtures.hooked(anthropic.install, calls=calls)
    return fixtures.hooked(generated.install, (sdk.module.partition(".")[0],), calls=calls)


def make(driver, server, sdk, **options):
    kind = "DefaultAsyncHttpxClient" if driver.name == "async" else "DefaultHttpxClient"
    default = getattr(importlib.import_module(sdk.module), kind, None)
    if default is not None:
        options = {"http_client": default(verify=False), **options}
    cls = getattr(sdk, sdk.clients[driver.name == "async"])
    known = inspect.signature(cls.__init__).parameters
    own = {name: value for name, value in sdk.options.items() if name in known}
    given = {"base_url": server.url + sdk.prefix, **own, **options}
    return driver.client(server, cls=cls, **given)


def shown(thing):
    """What the app can see of a result."""
    dump = getattr(thing, "model_dump", None)
    return type(thing), dump() if dump else thing


def create(driver, client, sdk, **params):
    return driver.do(sdk.resource(client).create, **sdk.params, **params)


def whole(driver, client, sdk, _):
    return [shown(create(driver, client, sdk))]


def raw(driver, client, sdk, _):
    answer = driver.do(sdk.resource(client).with_raw_response.create, **sdk.params)
    return [type(answer), answer.status_code, shown(driver.do(answer.parse))]


def streaming_response(driver, client, sdk, _):
    manager = sdk.resource(client).with_streaming_response.create(**sdk.params)
    answer = driver.enter(manager)
    found = [type(answer), shown(driver.do(answer.parse))]
    driver.leave(manager)
    return found


def stream(driver, client, sdk, _):
    opened = create(driver, client, sdk, stream=True)
    assert current_call.get() is None
    return [type(opened), *map(shown, driver.items(opened))]


def raw_stream(driver, client, sdk, _):
    answer = driver.do(sdk.resource(client).with_raw_response.create, **sdk.params, stream=True)
    return [type(answer), *map(shown, driver.items(driver.do(answer.parse)))]


def left_early(driver, client, sdk, _):
    opened = create(driver, client, sdk, stream=True)
    found = [*map(shown, driver.items(opened, 2))]
    driver.close(opened)
    return found


def dropped(driver, client, sdk, _):
    opened = create(driver, client, sdk, stream=True)
    found = [*map(shown, driver.items(opened, 2))]
    del opened
    driver.collect()
    return found


def never_read(driver, client, sdk, _):
    opened = create(driver, client, sdk, stream=True)
    driver.close(opened)
    return [type(opened)]


def timeout(driver, client, sdk, server):
    server.gate.clear()
    # Given with the call: anthropic 0.25 heeds no other.
    opened = create(driver, client, sdk, stream=True, timeout=20)
    fixtures.impatient(opened.response)
    return [*map(shown, driver.items(opened))]


def cancelled(driver, client, sdk, server):
    server.gate.clear()
    return fixtures.cancelled_while_reading(
        driver, lambda: sdk.resource(client).create(**sdk.params, stream=True)
    )


OK = ("completed", None)
ABANDONED = ("abandoned", None)
REFUSED = ("failed", "BadRequestError")
# What is done, what the server plays, how the call ends, how often is asked, options.
SCENARIOS = {
    "whole": (whole, [], OK, 1, {}),
    "raw": (raw, [], OK, 1, {}),
    "streaming response": (streaming_response, [], OK, 1, {}),
    "gzip": (whole, ["gzip"], OK, 1, {}),
    "stream": (stream, [], OK, 1, {}),
    "raw stream": (raw_stream, [], OK, 1, {}),
    "stream byte by byte": (stream, ["bytewise"], OK, 1, {}),
    "compressed stream": (stream, ["gzip"], OK, 1, {}),
    "break": (left_early, [], ABANDONED, 1, {}),
    "dropped": (dropped, [], ABANDONED, 1, {}),
    "never read": (never_read, [], ABANDONED, 1, {}),
    "refused": (whole, ["400"], REFUSED, 1, {}),
    "refused stream": (stream, ["400"], REFUSED, 1, {}),
    "retried": (whole, ["429", "503"], OK, 3, {"max_retries": 2}),
    "retried stream": (stream, ["429"], OK, 2, {"max_retries": 2}),
    "retried in vain": (whole, ["429"] * 2, ("failed", "RateLimitError"), 2, {"max_retries": 1}),
    "no connection": (
        whole,
        [],
        ("failed", "APIConnectionError"),
        1,
        {"base_url": "http://127.0.0.1:1"},
    ),
    "hung up": (whole, ["disconnect"], ("failed", "APIConnectionError"), 1, {}),
    "cut": (whole, ["cut"], ("failed", "APIConnectionError"), 1, {}),
    "cut stream": (stream, ["cut"], ("failed", "RemoteProtocolError"), 1, {}),
    "error in a stream": (stream, ["error"], ("failed", None), 1, {}),
    "timeout": (timeout, ["slow"], ("failed", "ReadTimeout"), 1, {}),
    "cancelled": (cancelled, ["slow"], ("cancelled", "CancelledError"), 1, {}),
}


def name_of(error):
    return error.__name__ if isinstance(error, type) else error


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_one_call_and_no_difference(sdk, driver, server, scenario):
    do, plays, (outcome, error), attempts, options = SCENARIOS[scenario]
    if do is cancelled and driver.name == "sync":
        return

    def run():
        return fixtures.played(
            server,
            plays,
            lambda: make(driver, server, sdk, **options),
            lambda client: do(driver, client, sdk, server),
            driver.close,
        )

    call = fixtures.one_call(server, run, functools.partial(hooked, sdk))
    assert call.outcome == outcome
    assert (call.operation, call.model, call.provider) == ("chat", "tiny", sdk.provider)
    assert (call.local, call.attempts) == (True, attempts)
    if do is not whole and error and outcome == "failed" and error.endswith("Error"):
        assert name_of(call.error) in {error, "APIConnectionError"}
    elif scenario == "error in a stream":
        assert call.error in {"overloaded", "overloaded_error"}
    else:
        assert name_of(call.error) == error
    if outcome == "completed":
        facts = sdk.streamed if "stream" in scenario.split() else sdk.whole
        assert {**call.facts, **facts} == call.facts
        assert call.stream is ("stream" in scenario.split())
        assert bool(call.chunks) is call.stream


def test_what_is_no_model_request_is_left_alone(sdk, driver, server):
    calls = Calls()
    with hooked(sdk, calls):
        client = make(driver, server, sdk)
        driver.do(client.get, "/v1/models", cast_to=object)
        driver.close(client)
    assert not calls.opened_calls


def test_nothing_is_left_behind(sdk, driver, server):
    module = importlib.import_module(generated.FAMILIES[sdk.module.partition(".")[0]][0])
    before = module.SyncAPIClient.request, module.AsyncAPIClient.request
    with hooked(sdk, Calls()):
        assert module.SyncAPIClient.request is not before[0]
        assert module.AsyncAPIClient.request is not before[1]
    assert (module.SyncAPIClient.request, module.AsyncAPIClient.request) == before

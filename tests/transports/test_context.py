"""Trace context on the wire: with every library, to own hosts, never to others.

Two servers: one on loopback, which is our own, and one that the operator said is somebody else's.
"""

import asyncio
import http.client
import http.server
import json
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field

import aiohttp
import httpx
import httpx2
import openai
import pytest
import requests
import urllib3
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import default_setter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sottovoce import guard, instrumentors
from sottovoce.call import current_call
from sottovoce.settings import read

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}]}
BODY = json.dumps(CHAT).encode()
JSON = {"Content-Type": "application/json"}
PATH = "/v1/chat/completions"
ANSWER = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
).encode()
W3C = TraceContextTextMapPropagator()
TWO = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""Somebody's `traceparent`."""


class Server:
    """Answers chats and keeps the headers of every request, oldest first.

    Attributes:
        failures: how many requests are answered with 503 first.
        elsewhere: where requests are sent on to, once, with 307, which keeps the body.
    """

    def __enter__(self):
        outer = self
        self.seen, self.failures, self.elsewhere = [], 0, None

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.seen.append({name.lower(): value for name, value in self.headers.items()})
                status, body, more = 200, ANSWER, {}
                if outer.failures:
                    outer.failures -= 1
                    status, body = 503, b"{}"
                elif outer.elsewhere:
                    status, body, more = 307, b"", {"Location": outer.elsewhere}
                    outer.elsewhere = None
                self.send_response(status)
                for name, value in {**JSON, "Content-Length": len(body), **more}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self.url = self.base + PATH
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join(60)
        self._server.server_close()

    def reset(self):
        self.seen, self.failures, self.elsewhere = [], 0, None

    @property
    def parents(self):
        return [headers.get("traceparent") for headers in self.seen]


@pytest.fixture(scope="module")
def both():
    with Server() as ours, Server() as theirs:
        yield ours, theirs


@dataclass
class Bench:
    ours: Server
    theirs: Server
    spans: InMemorySpanExporter
    kinds: list = field(default_factory=list)

    @property
    def span(self):
        [span] = self.spans.get_finished_spans()
        return span

    @property
    def expected(self):
        """The `traceparent` that makes the only span the parent."""
        found = self.span.context
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


LIBRARIES = ("OpenAI", "HTTPX", "Requests", "AioHTTP", "URLLib3", "HTTPClient")


@pytest.fixture
def apply(both, no_policy):
    propagator = propagate.get_global_textmap()
    tracers, exporter = TracerProvider(), InMemorySpanExporter()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    bench = Bench(*both, exporter)
    for server in both:
        server.reset()
    guard.failures.clear()

    def instrument(*names, propagators=(W3C,), **environ):
        propagate.set_global_textmap(CompositePropagator(list(propagators)))
        named = f"127.0.0.1:{bench.theirs.port}=vllm:remote"
        settings, warnings = read(
            {"SOTTOVOCE_KEY": "k" * 32, "SOTTOVOCE_ENDPOINTS": named, **environ}
        )
        assert not warnings
        for name in names or LIBRARIES:
            kind = getattr(instrumentors, f"{name}Instrumentor")()
            bench.kinds.append(kind)
            kind.instrument(
                tracer_provider=tracers, meter_provider=MeterProvider(), settings=settings
            )
        return bench

    yield instrument
    for kind in bench.kinds:
        kind.uninstrument()
    tracers.shutdown()
    propagate.set_global_textmap(propagator)
    assert current_call.get() is None
    assert not guard.failures


@pytest.fixture
def bench(apply):
    return apply()


# Every way of asking follows redirects and tries again twice, as far as its library does.


def by_httpx(library):
    def ask(url, headers):
        with library.Client(follow_redirects=True) as client:
            client.post(url, json=CHAT, headers=headers)

    return ask


def by_async_httpx(library):
    def ask(url, headers):
        async def main():
            async with library.AsyncClient(follow_redirects=True) as client:
                await client.post(url, json=CHAT, headers=headers)

        asyncio.run(main())

    return ask


def by_requests(url, headers):
    with requests.Session() as session:
        retry = urllib3.Retry(2, status_forcelist=[503], allowed_methods=None)
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
        session.post(url, data=BODY, headers=headers)


def by_urllib3(url, headers):
    retry = urllib3.Retry(2, status_forcelist=[503], allowed_methods=None)
    with urllib3.PoolManager() as manager:
        manager.request("POST", url, body=BODY, headers=headers, retries=retry)


def by_pool(url, headers):
    """With the defaults of the pool, in order of their places."""
    port = int(url.split(":")[2].split("/")[0])
    with urllib3.HTTPConnectionPool("127.0.0.1", port, headers=headers) as pool:
        pool.urlopen("POST", PATH, BODY, None, False)


def by_http_client(url, headers):
    connection = http.client.HTTPConnection(url.split("/")[2])
    connection.request("POST", PATH, BODY, headers)
    connection.getresponse().read()
    connection.close()


def by_urllib(url, headers):
    request = urllib.request.Request(url, BODY, headers, method="POST")
    with urllib.request.urlopen(request) as answer:
        answer.read()


def by_aiohttp(url, headers):
    async def main():
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=BODY, headers=headers) as answer,
        ):
            await answer.read()

    asyncio.run(main())


def by_openai(url, headers):
    base = url.removesuffix("/chat/completions")
    with openai.OpenAI(base_url=base, api_key="k", max_retries=2) as client:
        client.chat.completions.create(**CHAT, extra_headers=headers)


def by_async_openai(url, headers):
    async def main():
        base = url.removesuffix("/chat/completions")
        async with openai.AsyncOpenAI(base_url=base, api_key="k", max_retries=2) as client:
            await client.chat.completions.create(**CHAT, extra_headers=headers)

    asyncio.run(main())


WAYS = {
    "openai": by_openai,
    "async openai": by_async_openai,
    "httpx": by_httpx(httpx),
    "async httpx": by_async_httpx(httpx),
    "httpx2": by_httpx(httpx2),
    "async httpx2": by_async_httpx(httpx2),
    "requests": by_requests,
    "urllib3": by_urllib3,
    "urllib3's pool": by_pool,
    "http.client": by_http_client,
    "urllib": by_urllib,
    "aiohttp": by_aiohttp,
}
RETRYING = ("openai", "async openai", "requests", "urllib3")
FOLLOWING = tuple(set(WAYS) - {"urllib3's pool", "http.client", "urllib"})


@pytest.mark.parametrize("way", WAYS)
def test_own_hosts_get_it_and_the_apps_headers_stay_as_they_are(bench, way):
    headers = dict(JSON)
    WAYS[way](bench.ours.url, headers)
    assert bench.ours.parents == [bench.expected]
    assert headers == JSON
    # The same again: nothing is left of the first time.
    bench.spans.clear()
    WAYS[way](bench.ours.url, headers)
    assert bench.ours.parents[1:] == [bench.expected]
    assert headers == JSON


@pytest.mark.parametrize("way", WAYS)
def test_others_get_nothing(bench, way):
    WAYS[way](bench.theirs.url, dict(JSON))
    assert bench.theirs.parents == [None]
    assert bench.span.attributes["gen_ai.provider.name"] == "vllm"
    assert not {"tracestate", "baggage"} & bench.theirs.seen[0].keys()


@pytest.mark.parametrize("way", WAYS)
def test_others_get_it_when_the_operator_says_so(apply, way):
    bench = apply(SOTTOVOCE_PROPAGATION="all")
    WAYS[way](bench.theirs.url, dict(JSON))
    assert bench.theirs.parents == [bench.expected]


@pytest.mark.parametrize("name", ["traceparent", "TraceParent"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_there_already_stays(bench, way, name):
    WAYS[way](bench.ours.url, {**JSON, name: TWO})
    assert bench.ours.parents == [TWO]
    assert bench.span


@pytest.mark.parametrize("way", RETRYING)
def test_each_attempt_has_the_same_parent(bench, way):
    bench.ours.failures = 2
    WAYS[way](bench.ours.url, dict(JSON))
    assert bench.ours.parents == [bench.expected] * 3


@pytest.mark.parametrize("way", sorted(FOLLOWING))
def test_a_redirect_to_somebody_else_loses_it(bench, way):
    bench.ours.elsewhere = bench.theirs.url
    WAYS[way](bench.ours.url, dict(JSON))
    assert bench.ours.parents == [bench.expected]
    assert bench.theirs.parents == [None]


@pytest.mark.parametrize("way", sorted(FOLLOWING))
def test_a_redirect_from_somebody_else_to_an_own_host_gets_it(bench, way):
    bench.theirs.elsewhere = bench.ours.url.replace("127.0.0.1", "localhost")
    WAYS[way](bench.theirs.url, dict(JSON))
    assert bench.theirs.parents == [None]
    assert bench.ours.parents == [bench.expected]


@pytest.mark.parametrize("way", sorted(FOLLOWING))
def test_a_redirect_on_the_same_host_keeps_it(bench, way):
    bench.ours.elsewhere = bench.ours.url
    WAYS[way](bench.ours.url, dict(JSON))
    assert bench.ours.parents == [bench.expected] * 2


@pytest.mark.parametrize("way", ["httpx", "urllib3", "aiohttp", "http.client"])
def test_a_call_is_a_child_of_what_the_app_does_and_brings_its_trace_state(bench, way):
    state = trace.TraceState([("vendor", "1")])
    around = trace.SpanContext(
        7, 8, is_remote=False, trace_flags=trace.TraceFlags(1), trace_state=state
    )
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(around)))
    WAYS[way](bench.ours.url, dict(JSON))
    context.detach(token)
    assert bench.span.context.trace_id == 7
    assert bench.ours.parents == [bench.expected]
    assert bench.ours.seen[0]["tracestate"] == "vendor=1"


@pytest.mark.parametrize("way", ["openai", "async httpx", "requests", "aiohttp", "urllib"])
def test_an_operator_can_have_none(apply, way):
    bench = apply(propagators=())
    WAYS[way](bench.ours.url, dict(JSON))
    assert bench.ours.parents == [None]


class Scattering(W3CBaggagePropagator):
    """Writes baggage as Jaeger's propagator does: a header for each entry."""

    def inject(self, carrier, context=None, setter=default_setter):
        for name, value in baggage.get_all(context).items():
            setter.set(carrier, f"uberctx-{name}", value)


@pytest.mark.parametrize("asked", [None, "tracecontext,baggage"])
@pytest.mark.parametrize("way", ["openai", "async httpx2", "requests", "aiohttp", "http.client"])
def test_baggage_never_goes_along(apply, way, asked):
    bench = apply(
        propagators=(W3C, W3CBaggagePropagator(), Scattering()),
        **({} if asked is None else {"OTEL_PROPAGATORS": asked}),
    )
    token = context.attach(baggage.set_baggage("user.email", "bob"))
    WAYS[way](bench.ours.url, dict(JSON))
    WAYS[way](bench.theirs.url, dict(JSON))
    context.detach(token)
    seen = bench.ours.seen[0]
    assert not {"baggage", "uberctx-user.email"} & seen.keys()
    assert bench.ours.parents[0]
    assert "bob" not in str(bench.theirs.seen[0])


@pytest.mark.parametrize(
    "way", ["httpx", "async httpx2", "requests", "urllib3", "urllib", "aiohttp"]
)
def test_what_is_no_models_is_left_alone(bench, way):
    WAYS[way](f"{bench.ours.base}/other", dict(JSON))
    assert bench.ours.parents == [None]
    assert not bench.spans.get_finished_spans()


# Requests that the app sends again.


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_request_of_httpx_that_is_sent_twice(bench, library):
    with library.Client() as client:
        request = client.build_request("POST", bench.ours.url, json=CHAT)
        headers, before = request.headers, request.headers.raw
        for _ in range(2):
            bench.spans.clear()
            response = client.send(request)
            assert bench.ours.parents[-1] == bench.expected
            assert response.request is request
            assert request.headers is headers
            assert request.headers.raw == before
    assert len(set(bench.ours.parents)) == 2


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_what_a_transport_of_the_app_does_to_a_request_stays(bench, library):
    class Signing(library.HTTPTransport):
        def handle_request(self, request):
            request.read()
            request.headers["X-Signed"] = "yes"
            request.extensions = {**request.extensions, "signed": True}
            return super().handle_request(request)

    def upload():
        yield BODY

    with library.Client(transport=Signing()) as client:
        request = client.build_request("POST", bench.ours.url, content=upload(), headers=JSON)
        response = client.send(request)
    assert bench.ours.parents == [bench.expected]
    assert response.request is request
    assert request.content == BODY
    assert request.headers["x-signed"] == "yes"
    assert request.extensions["signed"] is True
    assert "traceparent" not in request.headers


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_an_exception_is_of_the_apps_request(bench, library):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # Nobody accepts: the connection opens, the answer never comes.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}{PATH}"
        with library.Client(timeout=0.05) as client:
            request = client.build_request("POST", url, json=CHAT)
            with pytest.raises(library.ReadTimeout) as raised:
                client.send(request)
    assert raised.value.request is request
    assert "traceparent" not in request.headers


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_what_an_auth_of_the_app_asks_for_first_is_not_the_calls(bench, library):
    class Token(library.Auth):
        def auth_flow(self, request):
            yield library.Request("POST", f"{bench.ours.base}/token", json={"grant": "x"})
            request.headers["Authorization"] = "Bearer t"
            yield request

    with library.Client(auth=Token()) as client:
        client.post(bench.ours.url, json=CHAT)
    assert bench.ours.parents == [None, bench.expected]
    assert bench.ours.seen[1]["authorization"] == "Bearer t"


def test_a_prepared_request_that_is_sent_twice(bench):
    with requests.Session() as session:
        request = session.prepare_request(requests.Request("POST", bench.ours.url, json=CHAT))
        before = dict(request.headers)
        for _ in range(2):
            bench.spans.clear()
            response = session.send(request)
            assert bench.ours.parents[-1] == bench.expected
            assert response.request is request
            assert dict(request.headers) == before
    assert len(set(bench.ours.parents)) == 2


def test_a_request_of_urllib_that_is_sent_twice(bench):
    request = urllib.request.Request(bench.ours.url, BODY, JSON, method="POST")
    urllib.request.urlopen(request).close()
    before = request.header_items()
    urllib.request.urlopen(request).close()
    assert request.header_items() == before
    assert len(set(bench.ours.parents)) == 2
    assert not request.has_header("Traceparent")


def test_headers_of_a_session_stay_as_they_are(bench):
    pool = urllib3.PoolManager(headers=urllib3.HTTPHeaderDict(JSON))
    pool.request("POST", bench.ours.url, body=BODY)
    assert dict(pool.headers) == JSON
    pool.clear()

    async def main():
        async with aiohttp.ClientSession(headers=JSON) as session:
            async with session.post(bench.ours.url, data=BODY) as answer:
                await answer.read()
            return dict(session.headers)

    assert asyncio.run(main()) == JSON
    assert all(bench.ours.parents)


class Several:
    """Headers that cannot be copied, with a name that is there twice."""

    def __iter__(self):
        return iter(("X-Twice", "X-Twice"))

    def items(self):
        return [("X-Twice", "1"), ("X-Twice", "2"), *JSON.items()]


def test_headers_that_cannot_be_copied_are_sent_as_they_are(bench):
    by_http_client(bench.ours.url, Several())
    assert bench.ours.seen[0]["x-twice"] == "2"
    assert bench.ours.parents == [None]
    assert bench.span


def test_names_of_headers_in_bytes(bench):
    with requests.Session() as session:
        session.post(bench.ours.url, data=BODY, headers={b"Content-Type": b"application/json"})
        session.post(bench.ours.url, data=BODY, headers={b"Traceparent": TWO.encode(), **JSON})
    assert bench.ours.parents[0] not in {None, TWO}
    assert bench.ours.parents[1] == TWO


def test_a_tunnel_through_a_proxy_is_the_proxys(bench, both):
    """What asks the proxy for a tunnel says nothing; nobody speaks TLS behind it here."""
    asked = []

    def serve():
        connection, _ = proxy.accept()
        with connection, connection.makefile("rb") as stream:
            while (line := stream.readline()) not in {b"\r\n", b""}:
                asked.append(line.decode().strip().lower())

    proxy = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()

    async def main():
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.post(
                    "https://localhost/v1/chat/completions",
                    json=CHAT,
                    proxy=f"http://127.0.0.1:{proxy.getsockname()[1]}",
                )

    asyncio.run(main())
    thread.join(60)
    proxy.close()
    assert asked[0].startswith("connect localhost:443")
    assert not [line for line in asked if line.startswith("traceparent")]


def test_switched_off_nothing_is_added_any_more(bench):
    for kind in bench.kinds:
        kind.uninstrument()
    for way in WAYS.values():
        way(bench.ours.url, dict(JSON))
    assert bench.ours.parents == [None] * len(WAYS)
    assert not bench.spans.get_finished_spans()


@pytest.mark.parametrize("name", ["HTTPX", "Requests", "AioHTTP", "URLLib3", "HTTPClient"])
def test_each_library_does_it_alone(apply, name):
    bench = apply(name)
    way = {"HTTPX": "httpx", "HTTPClient": "http.client"}.get(name, name.lower())
    WAYS[way](bench.ours.url, dict(JSON))
    assert bench.ours.parents == [bench.expected]


def test_the_sdk_does_it_alone(apply):
    bench = apply("OpenAI")
    by_openai(bench.ours.url, dict(JSON))
    by_openai(bench.theirs.url, dict(JSON))
    assert all(bench.ours.parents)
    assert bench.theirs.parents == [None]


def test_a_failing_propagator_is_no_affair_of_the_app(apply):
    class Broken(TraceContextTextMapPropagator):
        def inject(self, *_, **__):
            raise RuntimeError("canary")

    bench = apply(propagators=(Broken(),))
    for way in WAYS.values():
        way(bench.ours.url, dict(JSON))
    assert bench.ours.parents == [None] * len(WAYS)
    assert guard.failures == {"record.carried": len(WAYS)}
    guard.failures.clear()

"""The app has the first event of a stream before the server sends the second, with us as without.

The server waits until the app says that it has it: whoever read ahead would wait in vain.
"""

import asyncio
import http.client
import json
import threading
import urllib.request
import zlib

import aiohttp
import httpx
import httpx2
import openai
import pytest
import requests
import urllib3
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from servers.provider import Handler, ProviderServer
from sottovoce import guard
from sottovoce.instrumentors import ALL
from sottovoce.settings import Settings

PATIENCE = 20
SAID = [{"role": "user", "content": "a secret question"}]
STREAM = {"model": "tiny", "messages": SAID, "stream": True}
BODY = json.dumps(STREAM).encode()
HEADERS = {"Content-Type": "application/json"}


class Holding(Handler):
    """Sends an event, and the rest when the app has it."""

    def stream(self, operation, body, scenario):
        self.send_response(200)
        self.send_header("Content-Type", self.stream_type)
        self.send_header("Transfer-Encoding", "chunked")
        coded = self.path.startswith("/gzip/")
        if coded:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        pack = zlib.compressobj(wbits=31)
        for number, event in enumerate(self.streams[operation](body)):
            data = self.written(*event)
            self.chunk(pack.compress(data) + pack.flush(zlib.Z_SYNC_FLUSH) if coded else data)
            if number == 0:
                self.provider.in_time = self.provider.has_first.wait(PATIENCE)
        self.chunk(pack.flush() if coded else b"")
        self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def server():
    with ProviderServer(Holding) as server:
        server.has_first = threading.Event()
        yield server
        server.has_first.set()


@pytest.fixture(params=[False, True], ids=["without", "with"])
def hooked(request):
    applied = [kind() for kind in ALL] if request.param else []
    for each in applied:
        each.instrument(
            tracer_provider=TracerProvider(),
            meter_provider=MeterProvider(),
            settings=Settings(key="a key of these tests"),
        )
    yield
    for each in applied:
        each.uninstrument()
    assert not guard.failures


def by_httpx(library):
    def app(url, has_first):
        with library.Client(verify=False, timeout=None) as client:
            with client.stream("POST", url, json=STREAM) as response:
                for _ in response.iter_bytes():
                    has_first()

    return app


def by_async_httpx(library):
    async def app(url, has_first):
        async with library.AsyncClient(verify=False, timeout=None) as client:
            async with client.stream("POST", url, json=STREAM) as response:
                async for _ in response.aiter_bytes():
                    has_first()

    return app


def by_requests(url, has_first):
    with requests.post(url, json=STREAM, stream=True, timeout=None) as response:
        for _ in response.iter_content(None):
            has_first()


def by_urllib3(url, has_first):
    with urllib3.PoolManager() as manager:
        response = manager.request("POST", url, json=STREAM, preload_content=False)
        for _ in response.stream():
            has_first()


def by_http_client(url, has_first):
    host, _, path = url.partition("//")[2].partition("/")
    connection = http.client.HTTPConnection(host)
    connection.request("POST", f"/{path}", BODY, HEADERS)
    with connection.getresponse() as response:
        while response.read1():
            has_first()
    connection.close()


def by_urllib(url, has_first):
    with urllib.request.urlopen(urllib.request.Request(url, BODY, HEADERS)) as response:
        while response.read1(10):
            has_first()


async def by_aiohttp(url, has_first):
    async with aiohttp.ClientSession() as session, session.post(url, json=STREAM) as response:
        async for _ in response.content.iter_any():
            has_first()


def by_openai(url, has_first):
    base = url.removesuffix("/chat/completions")
    with openai.OpenAI(base_url=base, api_key="key", timeout=None) as client:
        for _ in client.chat.completions.create(**STREAM):
            has_first()


async def by_async_openai(url, has_first):
    base = url.removesuffix("/chat/completions")
    async with openai.AsyncOpenAI(base_url=base, api_key="key", timeout=None) as client:
        async for _ in await client.chat.completions.create(**STREAM):
            has_first()


APPS = {
    "httpx": by_httpx(httpx),
    "httpx2": by_httpx(httpx2),
    "httpx, async": by_async_httpx(httpx),
    "httpx2, async": by_async_httpx(httpx2),
    "requests": by_requests,
    "urllib3": by_urllib3,
    "http.client": by_http_client,
    "urllib": by_urllib,
    "aiohttp": by_aiohttp,
    "openai": by_openai,
    "openai, async": by_async_openai,
}


@pytest.mark.parametrize("coding", ["", "/gzip"])
@pytest.mark.parametrize("name", APPS)
def test_nobody_waits_for_more_than_there_is(server, hooked, name, coding):
    app, url = APPS[name], f"{server.url}{coding}/v1/chat/completions"
    if asyncio.iscoroutinefunction(app):
        asyncio.run(app(url, server.has_first.set))
    else:
        app(url, server.has_first.set)
    assert server.in_time

"""What a model call through each HTTP library costs with us: whole calls, chunks, other requests.

CPU time of the thread that asks, over loopback, from a server in a process of its own; rounds
with and without us take turns. A chunk's cost is the slope between a short stream and a long
one, so that the call's own falls out. Everything is recorded, into an exporter that drops it.
Run it with `python benchmarks/transports.py [rounds]`.
"""

import asyncio
import http.client
import json
import random
import statistics
import subprocess
import sys
import time

import aiohttp
import httpx
import httpx2
import requests
import urllib3
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from sottovoce import instrumentors
from sottovoce.settings import Settings

CALLS, OTHERS = 40, 100
SHORT, LONG = 20, 420
MESSAGES = [{"role": "user", "content": "word " * 60}]

SERVER = r"""
import json, re, socket, threading

def event(delta, reason=None):
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1,
            "model": "gpt-4o-2024-08-06", "service_tier": "default", "choices": [choice]}
    data = b"data: " + json.dumps(body).encode() + b"\n\n"
    return b"%x\r\n" % len(data) + data + b"\r\n"

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
ANSWER = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 60},
    "finish_reason": "stop"}], "usage": USAGE}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: "
WHOLE = HEAD + b"application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
PIECE, LAST = event({"content": "word "}), event({}, "stop") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

def serve(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = connection.makefile("rb")
    while line := stream.readline():
        size = 0
        while (header := stream.readline().lower()) != b"\r\n":
            if header.startswith(b"content-length:"):
                size = int(header[15:])
        body = json.loads(stream.read(size))
        if not body.get("stream"):
            connection.sendall(WHOLE)
            continue
        connection.sendall(HEAD + b"text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(body["n_chunks"]):
            connection.sendall(PIECE)
        connection.sendall(LAST)

listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""


def httpx_calls(library):
    def make(url):
        client = library.Client(verify=False)

        def whole(path, body):
            client.post(url + path, json=body)

        def stream(path, body):
            with client.stream("POST", url + path, json=body) as response:
                for _ in response.iter_bytes():
                    pass

        return whole, stream

    return make


def requests_calls(url):
    session = requests.Session()

    def whole(path, body):
        session.post(url + path, json=body)

    def stream(path, body):
        with session.post(url + path, json=body, stream=True) as response:
            for _ in response.iter_content(None):
                pass

    return whole, stream


def urllib3_calls(url):
    manager = urllib3.PoolManager()

    def whole(path, body):
        manager.request("POST", url + path, json=body)

    def stream(path, body):
        response = manager.request("POST", url + path, json=body, preload_content=False)
        for _ in response.stream(None):
            pass

    return whole, stream


def http_client_calls(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))

    def whole(path, body):
        connection.request("POST", path, json.dumps(body))
        connection.getresponse().read()

    def stream(path, body):
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        while response.read1(65536):
            pass

    return whole, stream


def aiohttp_calls(url):
    loop = asyncio.new_event_loop()

    async def opened():
        return aiohttp.ClientSession()

    session = loop.run_until_complete(opened())

    def whole(path, body):
        async def main():
            async with session.post(url + path, json=body) as response:
                await response.read()

        loop.run_until_complete(main())

    def stream(path, body):
        async def main():
            async with session.post(url + path, json=body) as response:
                async for _ in response.content.iter_any():
                    pass

        loop.run_until_complete(main())

    return whole, stream


LIBRARIES = {
    "httpx": (httpx_calls(httpx), instrumentors.HTTPXInstrumentor),
    "httpx2": (httpx_calls(httpx2), instrumentors.HTTPXInstrumentor),
    "requests": (requests_calls, instrumentors.RequestsInstrumentor),
    "urllib3": (urllib3_calls, instrumentors.URLLib3Instrumentor),
    "http.client": (http_client_calls, instrumentors.HTTPClientInstrumentor),
    "aiohttp": (aiohttp_calls, instrumentors.AioHTTPInstrumentor),
}


class Nowhere(SpanExporter):
    def export(self, spans):
        return SpanExportResult.SUCCESS


def cpu(function, times, *args):
    started = time.thread_time_ns()
    for _ in range(times):
        function(*args)
    return (time.thread_time_ns() - started) / times / 1000


def measured(whole, stream):
    """µs of a whole call, of a chunk, and of a request that asks no model."""
    body = {"model": "gpt-4o", "messages": MESSAGES}
    costs = [cpu(stream, 3, "/v1/chat/completions", streamed(body, n)) for n in (SHORT, LONG)]
    return (
        cpu(whole, CALLS, "/v1/chat/completions", body),
        (costs[1] - costs[0]) / (LONG - SHORT),
        cpu(whole, OTHERS, "/v1/traces", {"spans": []}),
    )


def streamed(body, chunks):
    return {**body, "stream": True, "n_chunks": chunks}


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(Nowhere()))
    meters = MeterProvider([InMemoryMetricReader()])
    chosen = Settings(key="a key of the benchmark, not a secret")
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    found = {name: {True: [], False: []} for name in LIBRARIES}
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        pairs = {name: make(url) for name, (make, _) in LIBRARIES.items()}
        for number in range(rounds + 2):
            runs = [(name, hooked) for name in LIBRARIES for hooked in (True, False)]
            random.shuffle(runs)
            for name, hooked in runs:
                instrumentor = LIBRARIES[name][1]()
                if hooked:
                    instrumentor.instrument(
                        tracer_provider=tracers, meter_provider=meters, settings=chosen
                    )
                costs = measured(*pairs[name])
                if hooked:
                    instrumentor.uninstrument()
                if number > 1:  # two rounds to warm up
                    found[name][hooked].append(costs)
    finally:
        server.kill()
        server.wait()
    table(found)


def table(found):
    print("µs of CPU in the thread that asks: without us, and added by us (medians)")
    print(f"  {'':12} {'whole call':>22} {'chunk of a stream':>22} {'any other POST':>22}")
    for name, costs in found.items():
        cells = []
        for column in range(3):
            without = statistics.median(cost[column] for cost in costs[False])
            extra = statistics.median(cost[column] for cost in costs[True]) - without
            cells.append(f"{without:12.1f} {extra:+9.2f}")
        print(f"  {name:12} " + " ".join(cells))


if __name__ == "__main__":
    main()

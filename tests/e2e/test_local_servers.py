"""Model servers as people run them at home, each a process of its own, asked in every way.

What the span says is what the server itself answered. What the servers need beside this
project's environment is in `requirements/local-servers.txt`, installed by uv into a folder.
"""

import asyncio
import gc
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import anthropic
import httpx
import httpx2
import openai
import pytest
import requests
import urllib3
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from e2e.conftest import free_ports
from sottovoce import guard, instrumentors
from sottovoce.call import current_call
from sottovoce.settings import read

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SAID = "a secret question"
KEY = "a key of these tests, 32 bytes.."
HEADERS = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
LONG = 1500
"""Tokens of an answer that is still under way when the test acts."""

LLAMA_SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = "tiny.gguf", ["127.0.0.1"], int(sys.argv[1])
params.n_ctx, params.n_parallel, params.kv_unified = 2048 * 8, 8, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.embedding, params.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
server = xllamacpp.Server(params)
sys.stdin.read()
"""
"""llama.cpp's own server, which xllamacpp carries: it runs as long as its input is open."""

PATHS = {
    "chat": "/v1/chat/completions",
    "text_completion": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


def body(what, stream, tokens):
    """What is asked; `what` is an operation or one of the other APIs for it."""
    asked = {"model": "tiny"}
    if what in {"chat", "messages"}:
        asked |= {"messages": [{"role": "user", "content": SAID}]}
    else:
        asked |= {"prompt" if what == "text_completion" else "input": SAID}
    if what != "embeddings":
        asked |= {"max_output_tokens" if what == "responses" else "max_tokens": tokens}
    if stream:
        asked |= {"stream": True}
    if stream == "with usage":
        asked |= {"stream_options": {"include_usage": True}}
    return asked


@dataclass
class LocalServer:
    """One kind of server.

    Attributes:
        command: after the interpreter; `{port}` is filled in.
        asked: what it answers.
        usage: whether it tells the tokens of a stream to who asks for them.
    """

    name: str
    command: tuple
    asked: tuple
    usage: bool
    environ: dict = field(default_factory=dict)


SERVERS = {
    each.name: each
    for each in (
        LocalServer(
            "mlx_lm",
            ("-m", "mlx_lm.server", "--model", "tiny", "--port", "{port}"),
            ("chat", "text_completion"),
            usage=True,
            environ={"MLX_DISABLE_COMPILE": "1", "HF_HUB_OFFLINE": "1"},
        ),
        LocalServer(
            "llama_cpp",
            (
                *("-m", "llama_cpp.server", "--model", "tiny.gguf", "--port", "{port}"),
                *("--n_ctx", "2048", "--n_threads", "1", "--embedding", "true"),
            ),
            ("chat", "text_completion", "embeddings"),
            usage=False,
        ),
        LocalServer(
            "xllamacpp",
            ("-c", LLAMA_SERVER, "{port}"),
            ("chat", "text_completion", "embeddings", "responses", "messages"),
            usage=True,
        ),
    )
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with tiny models of random weights, and what the servers need beside ours."""
    folder = tmp_path_factory.mktemp("servers")
    environ = {**os.environ, "MLX_DISABLE_COMPILE": "1"}
    for name, target in {"tiny_mlx": "tiny", "tiny_gguf": "tiny.gguf"}.items():
        # Wide enough to be under way for a while.
        more = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import {name}; "
        more += f"{name}.make({target!r}, hidden=256, layers=6)"
        subprocess.run([sys.executable, "-c", more], cwd=folder, env=environ, check=True)
    uv = Path(sys.executable).with_name("uv")
    pinned = ("--require-hashes", "-r", str(ROOT / "requirements" / "local-servers.txt"))
    install = [uv, "pip", "install", "-q", "--python", sys.executable, "--target", folder / "site"]
    # From uv's cache, when everything is there: without a look at any index.
    if subprocess.run([*install, "--offline", *pinned], capture_output=True).returncode:
        subprocess.run([*install, *pinned], check=True)
    return folder


def answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
            return answer.status == 200
    except (OSError, http.client.HTTPException):
        return False


@contextmanager
def running(home, kind):
    """A server that is ready; gives its process and its port."""
    [port] = free_ports(1)
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(home / "site")}
    log = home / f"{kind.name}-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *(part.format(port=port) for part in kind.command)],
            cwd=home,
            env=environ | kind.environ,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + 90
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process, port
    finally:
        process.stdin.close()
        process.kill()
        process.wait(20)


@pytest.fixture(scope="module", params=SERVERS)
def server(request, home):
    kind = SERVERS[request.param]
    with running(home, kind) as (_, port):
        yield kind, port


@pytest.fixture
def recording(no_policy):
    """Instruments everything that is asked with here; gives the spans."""
    exporter, kinds = InMemorySpanExporter(), []
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    guard.failures.clear()
    guard.undecodable.clear()

    def instrument(**environ):
        settings, warnings = read({"SOTTOVOCE_KEY": KEY, **environ})
        assert not warnings
        for name in (
            "OpenAI",
            "Anthropic",
            "HTTPX",
            "Requests",
            "AioHTTP",
            "URLLib3",
            "HTTPClient",
        ):
            kind = getattr(instrumentors, f"{name}Instrumentor")()
            kinds.append(kind)
            kind.instrument(
                tracer_provider=tracers, meter_provider=MeterProvider(), settings=settings
            )
        return exporter

    yield instrument
    for kind in kinds:
        kind.uninstrument()
    tracers.shutdown()
    assert current_call.get() is None
    assert not guard.failures
    assert guard.undecodable.keys() <= {"sse"}  # a stream that breaks off


# Every way of asking gives the JSON values that the server sent, one after the other.


def parts(lines):
    """The JSON of an event stream's lines."""
    for line in lines:
        text = line.decode() if isinstance(line, bytes) else line
        name, _, data = text.partition(":")
        if name == "data" and data.strip() != "[DONE]":
            yield json.loads(data)


def by_sdk(port, what, asked):
    url = f"http://127.0.0.1:{port}"
    if what == "messages":
        client = anthropic.Anthropic(base_url=url, api_key="key", max_retries=0)
        create = client.messages.create
    else:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)
        create = {
            "chat": client.chat.completions,
            "text_completion": client.completions,
            "embeddings": client.embeddings,
            "responses": client.responses,
        }[what].create
    with client:
        answer = create(**asked)
        if not asked.get("stream"):
            yield answer.model_dump(mode="json", warnings=False)
            return
        with answer:
            for item in answer:
                yield item.model_dump(mode="json", warnings=False)


def by_httpx(port, what, asked, library=httpx):
    url = f"http://127.0.0.1:{port}{PATHS[what]}"
    if not asked.get("stream"):
        yield library.post(url, json=asked, headers=HEADERS, timeout=60).json()
        return
    with library.stream("POST", url, json=asked, headers=HEADERS, timeout=60) as answer:
        yield from parts(answer.iter_lines())


def by_httpx2(port, what, asked):
    return by_httpx(port, what, asked, httpx2)


def by_requests(port, what, asked):
    url = f"http://127.0.0.1:{port}{PATHS[what]}"
    stream = "stream" in asked
    with requests.post(url, json=asked, headers=HEADERS, timeout=60, stream=stream) as answer:
        if stream:
            yield from parts(answer.iter_lines())
        else:
            yield answer.json()


def by_urllib3(port, what, asked):
    url = f"http://127.0.0.1:{port}{PATHS[what]}"
    with urllib3.PoolManager(retries=False) as pool:
        answer = pool.request("POST", url, json=asked, headers=HEADERS, preload_content=False)
        try:
            if "stream" in asked:
                rest = b""
                for piece in answer.stream(512):
                    *lines, rest = (rest + piece).split(b"\n")
                    yield from parts(lines)
            else:
                yield json.loads(answer.read())
        finally:
            answer.close()


def by_urllib(port, what, asked):
    url = f"http://127.0.0.1:{port}{PATHS[what]}"
    request = urllib.request.Request(url, json.dumps(asked).encode(), HEADERS)
    with urllib.request.urlopen(request, timeout=60) as answer:
        if "stream" in asked:
            yield from parts(answer)
        else:
            yield json.load(answer)


def over(make):
    """A generator of what an asynchronous one gives, on a loop of its own."""

    def way(port, what, asked):
        loop = asyncio.new_event_loop()
        items = make(port, what, asked)
        try:
            while True:
                try:
                    yield loop.run_until_complete(anext(items))
                except StopAsyncIteration:
                    return
        finally:
            loop.run_until_complete(items.aclose())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return way


@over
async def by_aiohttp(port, what, asked):
    url = f"http://127.0.0.1:{port}{PATHS[what]}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=asked, headers=HEADERS) as answer,
    ):
        if "stream" not in asked:
            yield await answer.json()
            return
        async for line in answer.content:
            for part in parts([line]):
                yield part


@over
async def by_async_sdk(port, what, asked):
    url = f"http://127.0.0.1:{port}"
    if what == "messages":
        client = anthropic.AsyncAnthropic(base_url=url, api_key="key", max_retries=0)
        create = client.messages.create
    else:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)
        create = {
            "chat": client.chat.completions,
            "text_completion": client.completions,
            "embeddings": client.embeddings,
            "responses": client.responses,
        }[what].create
    async with client:
        answer = await create(**asked)
        if not asked.get("stream"):
            yield answer.model_dump(mode="json", warnings=False)
            return
        async with answer:
            async for item in answer:
                yield item.model_dump(mode="json", warnings=False)


WAYS = {
    "sdk": by_sdk,
    "async sdk": by_async_sdk,
    "httpx": by_httpx,
    "httpx2": by_httpx2,
    "requests": by_requests,
    "urllib3": by_urllib3,
    "urllib": by_urllib,
    "aiohttp": by_aiohttp,
}


def counted(values):
    """Input, output and cached tokens as the server told them; None for what it did not."""
    told = {}
    for value in values:
        for place in (value, value.get("response"), value.get("message")):
            told |= {
                key: one
                for key, one in ((place or {}).get("usage") or {}).items()
                if one is not None
            }
    cached = told.get("cache_read_input_tokens")
    given = told.get("input_tokens")
    if cached is not None:  # Anthropic's input tokens are those that were not cached
        return given + cached, told["output_tokens"], cached
    details = told.get("prompt_tokens_details") or told.get("input_tokens_details") or {}
    given = told.get("prompt_tokens", given)
    made = told.get("completion_tokens", told.get("output_tokens"))
    timed = timings(values)
    if given is None and timed:
        return timed["cache_n"] + timed["prompt_n"], timed["predicted_n"], timed["cache_n"]
    return given, made, details.get("cached_tokens")


def timings(values):
    """What llama.cpp's server told last of its work; `{}` for others, and on its other routes."""
    told = [value["timings"] for value in values if value.get("timings")]
    return told[-1] if told else {}


def assert_timed(told, timed):
    """The span says how fast the engine was, where the server told it."""
    rates = {"prompt": "prefill", "predicted": "decode"}
    for name, rate in rates.items():
        count = timed.get(f"{name}_n", 0) - (name == "predicted")
        worth_it = count > (name == "prompt") and timed[f"{name}_ms"] > 0
        expected = count / timed[f"{name}_ms"] * 1000 if worth_it else None
        assert told.get(f"sottovoce.{rate}.throughput") == (expected and pytest.approx(expected))


def one_span(spans, port, what, provider):
    """The only span, whose outline is right."""
    [span] = spans.get_finished_spans()
    spans.clear()
    told = span.attributes
    operation = what if what in {"text_completion", "embeddings"} else "chat"
    assert span.kind is SpanKind.CLIENT
    assert span.parent is None
    assert span.name.split(" ")[0] == told["gen_ai.operation.name"] == operation
    assert told["gen_ai.provider.name"] == provider
    assert (told["server.address"], told["server.port"]) == ("127.0.0.1", port)
    assert "secret" not in span.to_json()
    return span


def ended(spans):
    """Wait for what was dropped: it is ended by another thread."""
    deadline = time.monotonic() + 60
    while not spans.get_finished_spans() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)


@pytest.mark.parametrize("way", WAYS)
def test_whole_answers(server, recording, way):
    kind, port = server
    spans = recording()
    for what in kind.asked:
        values = list(WAYS[way](port, what, body(what, None, 5)))
        own = "anthropic" if what == "messages" else "openai_compatible"
        span = one_span(spans, port, what, own)
        told = span.attributes
        given, made, cached = counted(values)
        assert_timed(told, timings(values))
        assert given > 0
        assert told["gen_ai.usage.input_tokens"] == given
        assert told.get("gen_ai.usage.cache_read.input_tokens") == cached
        assert span.status.status_code is StatusCode.UNSET
        assert told["sottovoce.call.outcome"] == "completed"
        if what != "embeddings":
            assert told["gen_ai.usage.output_tokens"] == made == 5


@pytest.mark.parametrize("usage", ["with usage", "without"])
@pytest.mark.parametrize("way", WAYS)
def test_streams(server, recording, way, usage):
    kind, port = server
    # By name here; by address above.
    spans = recording(SOTTOVOCE_ENDPOINTS=f"127.0.0.1:{port}={kind.name}:local")
    for what in kind.asked:
        if what == "embeddings" or (usage == "with usage" and what in {"responses", "messages"}):
            continue
        values = list(WAYS[way](port, what, body(what, usage, 5)))
        span = one_span(spans, port, what, kind.name)
        told = span.attributes
        given, made, cached = counted(values)
        assert_timed(told, timings(values))
        # Unasked, llama.cpp's server tells it with the last event of a completion, by its timings.
        asked_for = what in {"responses", "messages"} or usage == "with usage"
        if asked_for or given is None:
            assert (given is not None) == (asked_for and kind.usage)
        assert told.get("gen_ai.usage.input_tokens") == given
        assert told.get("gen_ai.usage.output_tokens") == made
        assert told.get("gen_ai.usage.cache_read.input_tokens") == cached
        assert told["gen_ai.request.stream"] is True
        # The event that says that the answer is complete is no chunk of it.
        last = what in {"responses", "messages"}
        assert told["sottovoce.response.chunks"] == len(values) - last
        assert told["gen_ai.response.time_to_first_chunk"] > 0
        assert told["sottovoce.call.outcome"] == "completed"
        assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("streamed", [False, True])
def test_the_servers_own_route(server, recording, streamed):
    kind, port = server
    if kind.name != "xllamacpp":
        return
    spans = recording()
    asked = {"prompt": SAID, "n_predict": 5, "stream": streamed}
    with httpx.Client(timeout=60) as client:
        answer = client.post(f"http://127.0.0.1:{port}/completion", json=asked)
    [*_, last] = parts(answer.iter_lines()) if streamed else [answer.json()]
    span = one_span(spans, port, "text_completion", "llama_cpp")
    told = span.attributes
    assert told["gen_ai.usage.input_tokens"] == last["tokens_evaluated"] > 0
    assert told["gen_ai.usage.output_tokens"] == last["tokens_predicted"] == 5
    assert told["gen_ai.usage.cache_read.input_tokens"] == last["timings"]["cache_n"]
    assert told["gen_ai.response.finish_reasons"] == ("length",)
    assert_timed(told, last["timings"])


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_that_is_left_early_is_no_error(server, recording, way):
    kind, port = server
    spans = recording()
    values = WAYS[way](port, "chat", body("chat", "with usage", LONG))
    next(values)
    values.close()
    ended(spans)
    span = one_span(spans, port, "chat", "openai_compatible")
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["sottovoce.call.outcome"] == "abandoned"
    assert "error.type" not in span.attributes


@pytest.mark.parametrize("way", WAYS)
def test_what_a_server_refuses(server, recording, way):
    kind, port = server
    spans = recording()
    asked = {"model": "tiny", "messages": "no list", "max_tokens": 5}
    values = []
    try:
        values = list(WAYS[way](port, "chat", asked))
    except Exception as error:
        values = error
    span = one_span(spans, port, "chat", "openai_compatible")
    assert span.status.status_code is StatusCode.ERROR, values
    assert span.status.description is None
    told = span.attributes["error.type"]
    assert told.startswith("openai.") if "sdk" in way else 400 <= int(told) < 600


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_is_killed_while_it_answers(home, recording, name):
    kind = SERVERS[name]
    # llama_cpp.server stops an answer when somebody else asks.
    ways = list(WAYS.values())[: 1 if name == "llama_cpp" else None]
    with ExitStack() as stack:
        process, port = stack.enter_context(running(home, kind))
        spans = recording()
        under_way = threading.Barrier(len(ways) + 1, timeout=60)

        def ask(way):
            values = way(port, "chat", body("chat", "with usage", LONG))
            next(values)
            under_way.wait()
            try:
                for _ in values:
                    pass
            except Exception as error:
                return type(error)
            return None

        pool = stack.enter_context(ThreadPoolExecutor(len(ways)))
        asked = [pool.submit(ask, way) for way in ways]
        under_way.wait()
        process.kill()
        raised = [each.result(60) for each in asked]
    assert len(spans.get_finished_spans()) == len(ways)
    seen = []
    for span in spans.get_finished_spans():
        told = span.attributes
        seen.append(
            (span.status.status_code, told["sottovoce.call.outcome"], told.get("error.type"))
        )
    assert {each[:2] for each in seen} == {(StatusCode.ERROR, "failed")}, (seen, raised)
    assert all(each[2] for each in seen)

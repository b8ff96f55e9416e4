"""Servers asked without an SDK: each request is one call all the same."""

import asyncio

import httpx
import pytest
import requests

from servers import cohere, huggingface, llama_server, lm_studio, mistral, ollama
from servers.calls import Calls
from servers.provider import WORDS
from servers.scenarios import MESSAGES
from sottovoce import guard, transports

ASK = {"model": "tiny", "messages": MESSAGES}
OLLAMA = {**ollama.COUNTED, "finish_reasons": ["stop"]}
COHERE = {**cohere.COUNTED, "finish_reasons": ["COMPLETE"]}
INPUTS = {
    "inputs": "a secret question",
    "parameters": {"details": True, "max_new_tokens": 18},
}
CONVERSED = {"input_tokens": 11, "output_tokens": 7, "finish_reasons": ["stop"], "user_turn": True}
INPUT = {"inputs": "a secret question"}
SAID = {"model": "tiny", "input": "a secret question"}
PROMPT = {"prompt": "a secret question", "n_predict": 5}

WHOLE = [
    (ollama, "/api/chat", {**ASK, "stream": False}, "chat", "ollama", OLLAMA),
    (
        ollama,
        "/api/generate",
        {"model": "tiny", "prompt": "a secret", "stream": False},
        "text_completion",
        "ollama",
        OLLAMA,
    ),
    (
        ollama,
        "/api/embed",
        {"model": "tiny", "input": "a secret", "stream": False},
        "embeddings",
        "ollama",
        {"input_tokens": 8},
    ),
    (cohere, "/v2/chat", ASK, "chat", "cohere", COHERE),
    (cohere, "/v1/chat", {"model": "tiny", "message": "a secret"}, "chat", "cohere", COHERE),
    (cohere, "/v2/embed", {"model": "tiny"}, "embeddings", "cohere", {"input_tokens": 2}),
    (cohere, "/v2/rerank", {"model": "tiny"}, "rerank", "cohere", {}),
    (cohere, "/v1/rerank", {"model": "tiny"}, "rerank", "openai_compatible", {}),
    (
        huggingface,
        "/hf-inference/models/org/tiny/pipeline/feature-extraction",
        {"inputs": "a secret"},
        "embeddings",
        "hugging_face",
        {"request_model": "org/tiny"},
    ),
    (huggingface, "/generate", INPUTS, "text_completion", "hugging_face", huggingface.COUNTED),
    (huggingface, "/", INPUTS, "text_completion", "hugging_face", huggingface.COUNTED),
    (llama_server, "/completion", PROMPT, "text_completion", "llama_cpp", llama_server.TOLD),
    (llama_server, "/embedding", {"content": "a secret"}, "embeddings", "llama_cpp", {}),
    (lm_studio, "/api/v1/chat", SAID, "chat", "lm_studio", lm_studio.TOLD),
    (mistral, "/v1/conversations", INPUT, "chat", "mistral_ai", CONVERSED),
    (mistral, "/v1/conversations/conv_1/restart", INPUT, "chat", "mistral_ai", CONVERSED),
]
STREAMS = [
    # Whoever does not say otherwise gets a stream.
    (ollama, "/api/chat", ASK, "chat", "ollama", OLLAMA, WORDS),
    (
        ollama,
        "/api/generate",
        {"model": "tiny", "prompt": "a secret", "stream": True},
        "text_completion",
        "ollama",
        OLLAMA,
        WORDS,
    ),
    (cohere, "/v2/chat", {**ASK, "stream": True}, "chat", "cohere", COHERE, WORDS + 3),
    (
        cohere,
        "/v1/chat",
        {"model": "tiny", "message": "a secret", "stream": True},
        "chat",
        "cohere",
        COHERE,
        WORDS + 1,
    ),
    (
        huggingface,
        "/generate_stream",
        INPUTS,
        "text_completion",
        "hugging_face",
        {**huggingface.COUNTED, "input_tokens": 3},
        WORDS,
    ),
    (
        huggingface,
        "/",
        {**INPUTS, "stream": True},
        "text_completion",
        "hugging_face",
        {**huggingface.COUNTED, "input_tokens": 3},
        WORDS,
    ),
    (
        llama_server,
        "/completion",
        {**PROMPT, "stream": True},
        "text_completion",
        "llama_cpp",
        llama_server.TOLD,
        WORDS + 1,
    ),
    (
        lm_studio,
        "/api/v1/chat",
        {**SAID, "stream": True},
        "chat",
        "lm_studio",
        lm_studio.TOLD,
        lm_studio.EVENTS,
    ),
    (
        mistral,
        "/v1/conversations/conv_1",
        {**INPUT, "stream": True},
        "chat",
        "mistral_ai",
        CONVERSED,
        WORDS + 1,
    ),
]


@pytest.fixture(scope="module")
def servers():
    kinds = (ollama, cohere, huggingface, llama_server, lm_studio, mistral)
    running = {module: module.serve().__enter__() for module in kinds}
    yield running
    for server in running.values():
        server.__exit__()


@pytest.fixture
def raw():
    calls = Calls()
    guard.failures.clear()
    guard.undecodable.clear()
    for name in ("httpx", "requests"):
        transports.install_wire(name)
        transports.set_raw_recorder(name, calls)
    yield calls
    for name in ("httpx", "requests"):
        transports.set_raw_recorder(name, None)
        transports.remove_wire(name)
    assert not guard.failures
    assert not guard.undecodable


def by_httpx(url, body, stream):
    with httpx.Client(verify=False) as client:
        if not stream:
            return client.post(url, json=body).content
        with client.stream("POST", url, json=body) as response:
            return "\n".join(response.iter_lines())


def by_requests(url, body, stream):
    with requests.post(url, json=body, stream=stream, timeout=30) as response:
        return b"\n".join(response.iter_lines()) if stream else response.content


@pytest.mark.parametrize("ask", [by_httpx, by_requests])
@pytest.mark.parametrize(("wire", "path", "body", "operation", "provider", "facts"), WHOLE)
def test_whole_answers(servers, raw, ask, wire, path, body, operation, provider, facts):
    assert ask(servers[wire].url + path, body, stream=False)
    call = raw.only
    assert (call.outcome, call.operation, call.provider) == ("completed", operation, provider)
    assert (call.stream, call.attempts, call.local) == (False, 1, True)
    assert {**call.facts, **facts} == call.facts
    assert "secret" not in repr(call.facts)


@pytest.mark.parametrize("ask", [by_httpx, by_requests])
@pytest.mark.parametrize("scenario", ["ok", "bytewise"])
@pytest.mark.parametrize(
    ("wire", "path", "body", "operation", "provider", "facts", "chunks"), STREAMS
)
def test_streams(servers, raw, ask, scenario, wire, path, body, operation, provider, facts, chunks):
    servers[wire].play(scenario)
    assert ask(servers[wire].url + path, body, stream=True)
    call = raw.only
    assert (call.outcome, call.operation, call.provider) == ("completed", operation, provider)
    assert (call.stream, call.chunks) == (True, chunks)
    assert {**call.facts, **facts} == call.facts


@pytest.mark.parametrize(
    "path",
    [
        "/api/chat",
        "/v2/chat",
        "/rerank",
        "/generate",
        "/completion",
        "/embedding",
        "/",
        "",
        "/v1/conversations",
    ],
)
def test_somebody_elses_paths(servers, raw, path):
    by_httpx(servers[ollama].url + path, {"hello": "a secret"}, stream=False)
    assert not raw.opened_calls


def test_downloads_and_housekeeping(servers, raw):
    with httpx.Client(verify=False) as client:
        client.post(servers[ollama].url + "/api/pull", json={"model": "tiny"})
        client.post(servers[ollama].url + "/api/show", json={"model": "tiny"})
        client.get(servers[huggingface].url + "/org/tiny/resolve/main/model.safetensors")
    assert not raw.opened_calls


@pytest.mark.parametrize("path", ["/api/chat", "/v2/chat", "/generate_stream"])
def test_a_stream_whose_type_is_not_told(servers, raw, path):
    rows = {row[1]: row for row in STREAMS if row[0] is not cohere or row[1] == "/v2/chat"}
    wire, _, body, _, _, facts, chunks = rows[path]
    servers[wire].play("no_type")
    by_httpx(servers[wire].url + path, {**body, "stream": True}, stream=True)
    assert {**raw.only.facts, **facts} == raw.only.facts
    assert (raw.only.stream, raw.only.chunks) == (True, chunks)


def test_a_reader_that_is_gone_while_the_response_is_kept(servers, raw):
    with httpx.Client(verify=False) as client:
        request = client.build_request("POST", servers[ollama].url + "/api/chat", json=ASK)
        response = client.send(request, stream=True)
        lines = response.iter_lines()
        next(lines)
        del lines
        assert raw.wait().outcome == "abandoned"
        response.close()
    assert raw.only.chunks


async def test_an_async_reader_that_is_gone_while_the_response_is_kept(servers, raw):
    async with httpx.AsyncClient(verify=False) as client:
        request = client.build_request("POST", servers[ollama].url + "/api/chat", json=ASK)
        response = await client.send(request, stream=True)
        lines = response.aiter_lines()
        await anext(lines)
        await lines.aclose()
        del lines
        for _ in range(10):  # the loop closes the generators beneath in tasks
            await asyncio.sleep(0)
        assert (await asyncio.to_thread(raw.wait)).outcome == "abandoned"
        await response.aclose()
    assert raw.only.chunks

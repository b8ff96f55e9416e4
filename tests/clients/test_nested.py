"""Model calls that are made while another call is under way: each is a call of its own."""

import asyncio

import httpx2
import openai
import pytest

from servers.provider import MODEL
from sottovoce.transports import httpx as wire

MESSAGES = [{"role": "user", "content": "a secret question"}]
GUARD = {"model": "guard", "messages": MESSAGES}


@pytest.fixture
def both(calls):
    """Calls of the SDK and of httpx alone."""
    wire.set_raw_recorder(calls)
    yield calls
    wire.set_raw_recorder(None)


def seen(calls):
    """What was asked, in the order of asking; every call was answered and has its own facts."""
    assert len(calls.ended_calls) == len(calls.opened_calls)
    assert calls.entered == 0
    for call in calls.opened_calls:
        assert (call.outcome, call.error, call.attempts) == ("completed", None, 1)
        assert call.facts["response_model"] == MODEL
        assert call.facts["input_tokens"] == 11
    return [(call.operation, call.model) for call in calls.opened_calls]


@pytest.mark.parametrize("event", ["request", "response"])
@pytest.mark.parametrize("stream", [False, True])
def test_in_a_hook_of_the_http_library(both, server, event, stream):
    inner = openai.OpenAI(
        base_url=server.url + "/v1", api_key="key", http_client=httpx2.Client(verify=False)
    )

    def ask(_):
        inner.embeddings.create(model="index", input="a secret question")
        httpx2.post(server.url + "/v1/chat/completions", json=GUARD, verify=False)

    http = httpx2.Client(verify=False, event_hooks={event: [ask]})
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="key", http_client=http)
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, **more)
    if stream:
        assert len(list(answer)) > 1
    assert seen(both) == [("chat", "tiny"), ("embeddings", "index"), ("chat", "guard")]


def test_by_a_tool_between_chunks(both, server):
    client = openai.OpenAI(
        base_url=server.url + "/v1", api_key="key", http_client=httpx2.Client(verify=False)
    )
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, **options)
    next(stream)
    client.embeddings.create(model="index", input="a secret question")
    list(stream)
    assert seen(both) == [("chat", "tiny"), ("embeddings", "index")]


@pytest.mark.parametrize("how", ["sdk", "raw"])
async def test_by_a_task_that_a_call_left_behind(both, server, how):
    """The task's context still names the call, which is open as long as its stream is read."""
    tasks, go = [], asyncio.Event()
    inner = openai.AsyncOpenAI(
        base_url=server.url + "/v1", api_key="key", http_client=httpx2.AsyncClient(verify=False)
    )

    async def ask():
        await go.wait()
        if how == "sdk":
            await inner.chat.completions.create(**GUARD)
        else:
            async with httpx2.AsyncClient(verify=False) as http:
                await http.post(server.url + "/v1/chat/completions", json=GUARD)

    async def start(_):
        tasks.append(asyncio.create_task(ask()))

    http = httpx2.AsyncClient(verify=False, event_hooks={"request": [start]})
    client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="key", http_client=http)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, **options)
    await anext(stream)
    go.set()
    await tasks[0]
    assert len([chunk async for chunk in stream]) > 1
    assert seen(both) == [("chat", "tiny"), ("chat", "guard")]
    await client.close()
    await inner.close()


def test_a_request_that_the_apps_transport_passes_on_is_the_same(both, server):
    inner = httpx2.Client(verify=False)

    def forward(request):
        answer = inner.post(f"{server.url}/v1/chat/completions", content=request.content)
        return httpx2.Response(200, json=answer.json())

    with httpx2.Client(transport=httpx2.MockTransport(forward)) as client:
        client.post("http://here/v1/chat/completions", json=GUARD)
    assert seen(both) == [("chat", "guard")]

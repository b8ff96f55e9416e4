"""Every way to call a model with the openai SDK becomes one call, and the app sees no difference."""

import asyncio

import httpx
import httpx2
import openai
import pydantic
import pytest
import trio

from servers.fixtures import impatient
from servers.provider import ANSWER, MODEL, WORDS
from sottovoce import guard
from sottovoce.call import current_call
from sottovoce.clients import generated
from sottovoce.guard import ImportHooks, Patches
from sottovoce.transports import httpx as wire

MESSAGES = [{"role": "user", "content": "a secret question"}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
USAGE = {
    "input_tokens": 11,
    "output_tokens": 7,
    "cache_read_tokens": 3,
    "reasoning_tokens": 2,
}


class Answer(pydantic.BaseModel):
    answer: int


def chat(client, **kwargs):
    return client.chat.completions.create(model="tiny", messages=MESSAGES, **kwargs)


def complete(client, **kwargs):
    return client.completions.create(model="tiny", prompt="a secret question", **kwargs)


def respond(client, **kwargs):
    return client.responses.create(model="tiny", input="a secret question", **kwargs)


def embed(client, **kwargs):
    return client.embeddings.create(model="tiny", input="a secret question", **kwargs)


WHOLE = {
    "chat": (chat, "chat", {**USAGE, "finish_reasons": ["stop"]}),
    "completions": (complete, "text_completion", {**USAGE, "finish_reasons": ["length"]}),
    "responses": (respond, "chat", {**USAGE, "finish_reasons": ["stop"]}),
    "embeddings": (embed, "embeddings", {"input_tokens": 11}),
}
STREAMS = {
    "chat": (lambda c: chat(c, **STREAM), WORDS + 3, WHOLE["chat"]),
    "completions": (lambda c: complete(c, stream=True), WORDS + 2, WHOLE["completions"]),
    "responses": (lambda c: respond(c, stream=True), WORDS + 7, WHOLE["responses"]),
}


@pytest.fixture
def client(driver, server, calls):
    client = driver.client(server)
    yield client
    driver.close(client)


@pytest.fixture(params=WHOLE)
def whole(request):
    return WHOLE[request.param]


@pytest.fixture(params=STREAMS)
def streamed(request):
    return STREAMS[request.param]


def answered(call, facts):
    assert (call.outcome, call.error) == ("completed", None)
    assert call.facts["response_model"] == MODEL
    assert {**call.facts, **facts} == call.facts
    return True


def test_whole_answers(driver, client, calls, server, whole):
    create, operation, facts = whole
    result = driver.do(create, client)
    assert type(result).__module__.startswith("openai.types")
    call = calls.only
    assert answered(call, facts)
    assert (call.operation, call.provider, call.model) == (operation, "openai_compatible", "tiny")
    assert (call.address, call.port, call.local) == ("127.0.0.1", server.port, True)
    assert (call.attempts, call.stream, call.chunks, call.in_process) == (1, False, 0, False)


def test_request_facts_come_from_what_is_sent(driver, client, calls):
    driver.do(chat, client, temperature=0.5, stop=["a secret stop"], n=2, extra_body={"top_k": 40})
    facts = calls.only.facts
    assert facts["request_temperature"] == 0.5
    assert facts["request_stop_count"] == 1
    assert facts["request_choice_count"] == 2
    assert facts["request_top_k"] == 40
    assert "secret" not in repr(facts)


def test_request_facts_of_a_body_given_as_bytes(driver, client, calls):
    body = b'{"model": "tiny", "messages": [], "temperature": 0.5}'
    driver.do(client.post, "/chat/completions", cast_to=object, content=body)
    assert calls.only.model == "tiny"
    assert calls.only.facts["request_temperature"] == 0.5
    assert answered(calls.only, USAGE)


def test_streams_read_to_the_end(driver, client, calls, streamed):
    create, events, (_, operation, facts) = streamed
    stream = driver.do(create, client)
    assert not calls.ended_calls
    assert current_call.get() is None
    assert len(driver.items(stream)) == events
    call = calls.only
    assert answered(call, facts)
    # The last event of the responses protocol says that it is over: no output came with it.
    chunks = events - 1 if create is STREAMS["responses"][0] else events
    assert (call.operation, call.stream, call.chunks) == (operation, True, chunks)
    assert call.start_ns < call.first_chunk_ns <= call.last_chunk_ns <= call.end_ns


@pytest.mark.parametrize("how", ["break", "next"])
def test_a_stream_that_is_dropped_was_abandoned_when_its_last_chunk_came(
    driver, client, calls, streamed, how
):
    create, *_ = streamed
    stream = driver.do(create, client)
    if how == "break":
        driver.items(stream, 3)
    else:
        step = stream.__anext__ if driver.name == "async" else stream.__next__
        for _ in range(3):
            driver.do(step)
        del step
    del stream
    driver.collect()
    call = calls.wait()
    assert (call.outcome, call.error) == ("abandoned", None)
    assert call.end_ns == call.last_chunk_ns > 0


def test_a_stream_that_is_never_read_was_abandoned_when_its_answer_came(
    driver, client, calls, streamed
):
    create, *_ = streamed
    stream = driver.do(create, client)
    answered_by = calls.opened_calls[0].start_ns + 10**10
    del stream
    driver.collect()
    call = calls.wait()
    assert (call.outcome, call.chunks) == ("abandoned", 0)
    assert call.start_ns < call.end_ns < answered_by


def test_a_closed_stream_was_abandoned_when_its_last_chunk_came(driver, client, calls, streamed):
    create, *_ = streamed
    stream = driver.do(create, client)
    driver.items(stream, 2)
    driver.close(stream)
    call = calls.only
    assert call.outcome == "abandoned"
    assert call.end_ns == call.last_chunk_ns


def test_stopping_after_the_finish_reason_abandons_nothing(driver, client, calls):
    stream = driver.do(chat, client, **STREAM)
    chunks = driver.items(stream, WORDS + 2)
    assert chunks[-1].choices[0].finish_reason == "stop"
    driver.close(stream)
    assert (calls.only.outcome, calls.only.facts["finish_reasons"]) == ("completed", ["stop"])
    assert calls.only.end_ns == calls.only.last_chunk_ns


def test_a_consumer_that_raises_abandons(driver, client, calls):
    stream = driver.enter(driver.do(chat, client, stream=True))
    with pytest.raises(ZeroDivisionError):
        for _ in driver.items(stream, 2):
            raise ZeroDivisionError
    driver.leave(stream)
    assert calls.only.outcome == "abandoned"


def test_a_stream_still_held_at_exit_is_abandoned(driver, client, calls):
    from sottovoce.dropped import stop_all

    stream = driver.do(chat, client, stream=True)
    driver.items(stream, 2)
    stop_all()
    assert calls.only.outcome == "abandoned"
    driver.close(stream)


def test_connection_cut_in_a_stream(driver, client, calls, server, streamed):
    create, *_ = streamed
    server.play("cut")
    stream = driver.do(create, client)
    with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
        driver.items(stream)
    call = calls.only
    assert (call.outcome, call.error) == ("failed", httpx2.RemoteProtocolError)
    assert call.chunks == 3


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_refused(driver, client, calls, server, whole, status):
    create, *_ = whole
    server.play(str(status))
    with pytest.raises(openai.APIStatusError) as raised:
        driver.do(create, client)
    call = calls.only
    assert call.outcome == "failed"
    assert call.error is type(raised.value)
    assert "secret" not in repr(call.facts)


def test_refused_streams(driver, client, calls, server, streamed):
    create, *_ = streamed
    server.play("400")
    with pytest.raises(openai.BadRequestError):
        driver.do(create, client)
    assert calls.only.error is openai.BadRequestError


def test_retries_are_attempts_of_one_call(driver, server, calls, whole):
    create, _, facts = whole
    server.play("429", "503")
    client = driver.client(server, max_retries=2)
    driver.do(create, client)
    assert answered(calls.only, facts)
    assert calls.only.attempts == 3
    assert len(server.requests) == 3
    driver.close(client)


def test_retries_of_a_stream(driver, server, calls):
    server.play("429", "disconnect")
    client = driver.client(server, max_retries=2)
    driver.items(driver.do(chat, client, **STREAM))
    assert answered(calls.only, USAGE)
    assert calls.only.attempts == 3
    driver.close(client)


def test_retries_that_all_fail(driver, server, calls):
    server.play("429", "429", "429")
    client = driver.client(server, max_retries=2)
    with pytest.raises(openai.RateLimitError):
        driver.do(chat, client)
    assert (calls.only.error, calls.only.attempts) == (openai.RateLimitError, 3)
    driver.close(client)


def test_no_connection(driver, server, calls):
    client = driver.client(server, base_url="http://127.0.0.1:1/v1")
    with pytest.raises(openai.APIConnectionError):
        driver.do(chat, client)
    assert calls.only.error is openai.APIConnectionError
    assert calls.only.attempts == 1
    driver.close(client)


def test_timeout(driver, server, calls):
    server.gate.clear()
    server.play("slow")
    client = driver.client(server, timeout=20)
    stream = driver.do(chat, client, stream=True)
    impatient(stream.response)
    with pytest.raises((openai.APITimeoutError, httpx2.ReadTimeout)):
        driver.items(stream)
    assert calls.only.error is httpx2.ReadTimeout
    driver.close(client)


def test_stream_helper_of_chat(driver, client, calls):
    manager = client.chat.completions.stream(
        model="tiny", messages=MESSAGES, stream_options={"include_usage": True}
    )
    stream = driver.enter(manager)
    assert driver.items(stream)
    final = driver.do(stream.get_final_completion)
    driver.leave(manager)
    assert final.usage.total_tokens == 18
    assert answered(calls.only, {**USAGE, "finish_reasons": ["stop"]})
    assert calls.only.chunks == WORDS + 3


def test_stream_helper_of_responses(driver, client, calls):
    manager = client.responses.stream(model="tiny", input="a secret question")
    stream = driver.enter(manager)
    assert driver.do(stream.get_final_response).output_text == ANSWER
    driver.leave(manager)
    assert answered(calls.only, USAGE)


def test_parse(driver, client, calls):
    parsed = driver.do(
        client.chat.completions.parse, model="tiny", messages=MESSAGES, response_format=Answer
    )
    assert parsed.choices[0].message.parsed == Answer(answer=1)
    assert answered(calls.only, {**USAGE, "output_type": "json"})


def test_parse_of_responses(driver, client, calls):
    parsed = driver.do(client.responses.parse, model="tiny", input="q", text_format=Answer)
    assert parsed.output_parsed == Answer(answer=1)
    assert answered(calls.only, {**USAGE, "output_type": "json"})


def test_raw_response(driver, client, calls):
    raw = driver.do(
        client.chat.completions.with_raw_response.create, model="tiny", messages=MESSAGES
    )
    assert answered(calls.only, USAGE)
    assert raw.status_code == 200
    assert raw.parse().choices[0].message.content == ANSWER


def test_raw_response_of_a_stream(driver, client, calls):
    raw = driver.do(
        client.chat.completions.with_raw_response.create,
        model="tiny",
        messages=MESSAGES,
        **STREAM,
    )
    assert type(raw).__name__ == "LegacyAPIResponse"
    assert not calls.ended_calls
    assert len(driver.items(raw.parse())) == WORDS + 3
    assert answered(calls.only, USAGE)


@pytest.mark.parametrize("stream", [{}, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("read", ["parse", "read", "iter_lines", "iter_bytes", "iter_text", "no"])
def test_streaming_response(driver, client, calls, stream, read):
    manager = client.chat.completions.with_streaming_response.create(
        model="tiny", messages=MESSAGES, **stream
    )
    response = driver.enter(manager)
    assert not calls.ended_calls
    if read == "parse":
        parsed = driver.do(response.parse)
        if stream:
            driver.items(parsed)
    elif read == "read":
        driver.do(response.read)
    elif read != "no":
        driver.items(getattr(response, read)())
    driver.leave(manager)
    if read == "no":
        assert (calls.only.outcome, calls.only.chunks) == ("abandoned", 0)
    else:
        assert answered(calls.only, {**USAGE, "finish_reasons": ["stop"]})
        assert calls.only.stream is bool(stream)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw_deflate", "br"])
def test_compressed(driver, client, calls, server, coding):
    server.play(coding)
    driver.items(driver.do(chat, client, **STREAM))
    assert answered(calls.only, USAGE)
    assert calls.only.chunks == WORDS + 3


def test_compressed_whole(driver, client, calls, server):
    server.play("gzip")
    driver.do(chat, client)
    assert answered(calls.only, USAGE)


@pytest.mark.parametrize("scenario", ["bytewise", "comments", "no_type", "no_done", "slow"])
def test_odd_but_right_streams(driver, client, calls, server, scenario):
    server.play(scenario)
    assert len(driver.items(driver.do(chat, client, **STREAM))) == WORDS + 3
    assert answered(calls.only, {**USAGE, "finish_reasons": ["stop"]})
    assert calls.only.chunks == WORDS + 3


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [("malformed", "json"), ("not_utf8", "utf8"), ("wrong_types", "type"), ("huge", None)],
)
def test_streams_that_are_wrong_leave_the_app_alone(
    driver, client, calls, server, scenario, reason
):
    server.play(scenario)
    manager = client.chat.completions.with_streaming_response.create(
        model="tiny", messages=MESSAGES, **STREAM
    )
    response = driver.enter(manager)
    lines = driver.items(response.iter_bytes())
    driver.leave(manager)
    assert lines
    call = calls.only
    assert call.outcome == "completed"
    assert {**call.facts, **USAGE, "finish_reasons": ["stop"]} == call.facts
    if reason:
        assert guard.undecodable[reason]


@pytest.mark.parametrize("scenario", ["no_usage", "wrong_types", "no_type", "huge"])
def test_whole_answers_that_are_odd(driver, client, calls, server, scenario):
    server.play(scenario)
    driver.do(chat, client)
    call = calls.only
    assert call.outcome == "completed"
    assert call.facts["response_model"] == MODEL
    assert ("input_tokens" in call.facts) is (scenario in {"no_type", "huge"})


@pytest.mark.parametrize("scenario", ["malformed", "not_utf8"])
def test_whole_answers_that_are_wrong(driver, client, calls, server, scenario):
    server.play(scenario)
    with pytest.raises(ValueError):
        driver.do(chat, client)
    assert calls.only.outcome == "failed"
    assert guard.undecodable


@pytest.mark.parametrize("scenario", ["cut", "disconnect"])
def test_whole_answers_that_break_off(driver, client, calls, server, scenario):
    server.play(scenario)
    with pytest.raises(openai.APIConnectionError):
        driver.do(chat, client)
    assert calls.only.error is openai.APIConnectionError


def test_an_error_in_a_stream(driver, client, calls, server):
    server.play("error")
    with pytest.raises(openai.APIError):
        driver.items(driver.do(chat, client, stream=True))
    assert (calls.only.outcome, calls.only.error) == ("failed", "overloaded")


def test_an_error_that_looks_like_a_success(driver, client, calls, server):
    server.play("error")
    driver.do(chat, client)
    assert (calls.only.outcome, calls.only.error) == ("failed", "overloaded")


async def test_calls_at_the_same_time_are_not_confused(server, calls):
    http = openai.DefaultAsyncHttpxClient(verify=False)
    client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="key", http_client=http)

    async def one(number):
        model = f"tiny-{number}"
        if number % 2:
            await client.chat.completions.create(model=model, messages=MESSAGES)
        else:
            stream = await client.chat.completions.create(model=model, messages=MESSAGES, **STREAM)
            async for _ in stream:
                assert current_call.get() is None

    await asyncio.gather(*map(one, range(20)))
    assert current_call.get() is None
    assert {call.model for call in calls.ended_calls} == {f"tiny-{n}" for n in range(20)}
    assert all(answered(call, USAGE) for call in calls.ended_calls)
    assert all(call.stream is (int(call.model[5:]) % 2 == 0) for call in calls.ended_calls)
    await client.close()


# The SDK leaves its generators to the collector, with and without us.
@pytest.mark.filterwarnings("ignore:Async generator 'openai:ResourceWarning")
def test_on_trio(server, calls):
    async def main():
        http = openai.DefaultAsyncHttpxClient(verify=False)
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="key", http_client=http)
        await chat(client)
        async for _ in await chat(client, **STREAM):
            pass
        await client.close()

    trio.run(main)
    assert len(calls.ended_calls) == 2
    assert all(answered(call, USAGE) for call in calls.ended_calls)


async def test_a_cancelled_task(server, calls):
    server.gate.clear()
    server.play("slow")
    client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="key", max_retries=0)

    async def read():
        stream = await chat(client, stream=True)
        reading.set()
        async for _ in stream:
            pass

    reading = asyncio.Event()
    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls.only.outcome == "cancelled"
    await client.close()


async def test_a_task_cancelled_before_the_answer(server, calls):
    sending = asyncio.Event()

    async def never(request):
        sending.set()
        await asyncio.Event().wait()

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(never))
    client = openai.AsyncOpenAI(base_url="http://here/v1", api_key="key", http_client=http)
    task = asyncio.create_task(chat(client))
    await sending.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls.only.outcome == "cancelled"
    await client.close()


def test_a_dropped_coroutine_fails_nothing(server, calls):
    async def never(request):
        await Wait()

    class Wait:
        def __await__(self):
            yield

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(never))
    client = openai.AsyncOpenAI(base_url="http://here/v1", api_key="key", http_client=http)
    client._platform = "Unknown"
    coroutine = chat(client)
    coroutine.send(None)
    coroutine.close()
    assert current_call.get() is None
    assert calls.ended_calls[0].outcome == "abandoned"


@pytest.mark.parametrize(
    ("host", "provider", "local"),
    [
        ("https://api.openai.com/v1", "openai", False),
        ("https://api.groq.com/openai/v1", "groq", False),
        ("https://gateway.example.org/v1", "openai_compatible", False),
        ("http://localhost:11434/v1", "ollama", True),
    ],
)
def test_the_provider_is_known_by_its_address(driver, server, calls, host, provider, local):
    client, _ = mocked(driver, server, base_url=host)
    driver.do(chat, client)
    call = calls.only
    assert (call.provider, call.local) == (provider, local)
    assert call.port == (443 if host.startswith("https") else 11434)


@pytest.mark.parametrize("endpoint", ["https://mine.openai.azure.com", "https://gw.example.org"])
def test_azure(driver, server, calls, endpoint):
    cls = openai.AsyncAzureOpenAI if driver.name == "async" else openai.AzureOpenAI
    client, sent = mocked(
        driver, server, cls=cls, base_url=None, azure_endpoint=endpoint, api_version="2024-10-21"
    )
    driver.do(chat, client)
    assert sent[0].url.path == "/openai/deployments/tiny/chat/completions"
    assert (calls.only.provider, calls.only.attempts) == ("azure.ai.openai", 1)
    assert answered(calls.only, USAGE)


def test_who_answers_is_said_for_each_class_of_client_that_asks_there(driver, server, calls):
    named = openai.AsyncAzureOpenAI if driver.name == "async" else openai.AzureOpenAI
    plain, _ = mocked(driver, server, base_url="https://gw.example.org/openai")
    azure, _ = mocked(
        driver,
        server,
        cls=named,
        base_url=None,
        azure_endpoint="https://gw.example.org",
        api_version="2024-10-21",
    )
    # The very same address, as copies of a client have.
    plain._base_url = azure._base_url
    for client in (plain, azure, plain, azure):
        driver.do(chat, client)
    providers = [call.provider for call in calls.ended_calls]
    assert providers == ["openai_compatible", "azure.ai.openai"] * 2


def mocked(driver, server, **kwargs):
    """A client whose custom transport answers what the server would."""
    from servers.provider import chat as body

    sent = []

    def answer(request):
        sent.append(request)
        return httpx2.Response(200, json=body({}))

    async def answer_later(request):
        return answer(request)

    if driver.name == "async":
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer_later))
    else:
        http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return driver.client(server, http_client=http, **kwargs), sent


def test_a_path_given_as_a_whole_url_leads_where_it_says(driver, server, calls):
    client, _ = mocked(driver, server)
    url = "https://api.openai.com/v1/chat/completions"
    driver.do(client.post, url, cast_to=object, body={"model": "tiny"})
    call = calls.only
    assert (call.provider, call.address, call.port) == ("openai", "api.openai.com", 443)
    assert not call.local


def test_a_client_of_the_other_httpx(driver, server, calls):
    http = httpx.AsyncClient(verify=False) if driver.name == "async" else httpx.Client(verify=False)
    client = driver.client(server, http_client=http)
    driver.do(chat, client)
    driver.items(driver.do(chat, client, **STREAM))
    assert [call.outcome for call in calls.ended_calls] == ["completed", "completed"]
    assert all(answered(call, USAGE) for call in calls.ended_calls)
    driver.close(client)


def test_a_subclass(driver, server, calls):
    base = openai.AsyncOpenAI if driver.name == "async" else openai.OpenAI

    class Mine(base):
        def request(self, *args, **kwargs):
            return super().request(*args, **kwargs)

    client = driver.client(server, cls=Mine)
    driver.do(chat, client)
    assert answered(calls.only, USAGE)
    driver.close(client)


def test_what_is_no_model_request_is_left_alone(driver, client, calls):
    assert driver.do(client.models.list).data == []
    with pytest.raises(openai.NotFoundError):
        driver.do(client.vector_stores.search, "vs_1", query="a secret question")
    # Kept, not asked; another provider asks a model there.
    with pytest.raises(openai.NotFoundError):
        driver.do(client.post, "/conversations", cast_to=object, body={"items": []})
    assert not calls.opened_calls


def test_a_client_inside_a_call_opens_none(driver, client, calls):
    from sottovoce.call import Call

    outer = Call(calls, operation="chat", provider="other")
    token = current_call.set(outer)
    driver.do(chat, client)
    current_call.reset(token)
    assert calls.opened_calls == [outer]
    assert not outer.facts
    outer.end()
    driver.do(chat, client)
    assert len(calls.ended_calls) == 2


def test_a_request_that_the_apps_transport_makes_is_no_attempt(server, calls):
    inner = httpx2.Client(verify=False)

    def forward(request):
        answer = inner.post(
            f"{server.url}/v1/chat/completions", content=request.content, headers={"x": "y"}
        )
        return httpx2.Response(200, json=answer.json())

    http = httpx2.Client(transport=httpx2.MockTransport(forward))
    client = openai.OpenAI(base_url="http://here/v1", api_key="key", http_client=http)
    chat(client)
    assert answered(calls.only, USAGE)
    assert calls.only.attempts == 1


def test_suppressed(driver, client, calls):
    calls.suppressed = True
    driver.do(chat, client)
    driver.items(driver.do(chat, client, stream=True))
    assert not calls.opened_calls


def test_installing_late_twice_and_undoing(driver, server, no_failures):
    from servers.calls import Calls

    before = openai._base_client.SyncAPIClient.request, httpx2.Client.send, httpx.Client.send
    calls, second = Calls(), Calls()
    hooks, patches = ImportHooks(), Patches()
    generated.install(calls, hooks, patches)
    generated.install(second, hooks, patches)
    wire.install_wire()
    wire.install_wire()
    client = driver.client(server)
    kept = client.request
    stream = driver.do(chat, client, **STREAM)
    driver.do(chat, client)
    hooks.stop()
    wire.remove_wire()
    assert httpx2.Client.send is not before[1]
    wire.remove_wire()
    patches.undo()
    after = openai._base_client.SyncAPIClient.request, httpx2.Client.send, httpx.Client.send
    assert after == before
    client.request = kept
    driver.do(chat, client)
    assert len(driver.items(stream)) == WORDS + 3
    assert len(calls.ended_calls) == 2
    assert all(answered(call, USAGE) for call in calls.ended_calls)
    assert not second.opened_calls
    driver.close(client)


def test_an_unknown_family():
    with pytest.raises(KeyError):
        generated.install(None, ImportHooks(), Patches(), families=("nobody",))

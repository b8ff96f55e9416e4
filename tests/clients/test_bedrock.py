"""Every way to ask Bedrock with boto3 becomes one call, and the app sees no difference."""

import gc
import json
import threading
from urllib.parse import quote

import boto3
import botocore
import httpx
import pytest
from botocore.config import Config
from botocore.eventstream import EventStream
from botocore.parsers import ResponseParserError
from botocore.response import StreamingBody
from botocore.stub import Stubber

from servers import bedrock, fixtures
from servers.bedrock import CLAUDE, COUNTED, FAMILIES, QUESTION
from servers.calls import Calls
from sottovoce import transports
from sottovoce.call import current_call
from sottovoce.clients import bedrock as room

TITAN = "amazon.titan-text-express-v1"
META = "meta.llama3-70b-instruct-v1:0"
STREAMED = len(bedrock.CONVERSE_EVENTS)
TOOLS = {"tools": [{"toolSpec": {"name": "weather", "inputSchema": {"json": {}}}}]}


@pytest.fixture(scope="module")
def running_server():
    with bedrock.serve() as server:
        yield server


@pytest.fixture(scope="module")
def session():
    return boto3.Session("a key", "a secret", region_name="us-east-1")


@pytest.fixture
def make(session, server):
    made = []

    def make(service="bedrock-runtime", retries=1, **config):
        tries = {"mode": "standard", "total_max_attempts": retries}
        config = {"read_timeout": 5, **config}
        client = session.client(
            service, endpoint_url=server.url, config=Config(retries=tries, **config)
        )
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make):
    return make()


def hooked():
    return fixtures.hooked(room.install)


@pytest.fixture
def calls(no_failures):
    with hooked() as calls:
        yield calls


def converse(client, **more):
    return client.converse(modelId=CLAUDE, messages=QUESTION, **more)


def converse_stream(client, **more):
    return client.converse_stream(modelId=CLAUDE, messages=QUESTION, **more)["stream"]


def invoke(client, model=META, body=None):
    body = json.dumps(FAMILIES[model][0]) if body is None else body
    return client.invoke_model(modelId=model, body=body)["body"]


def invoke_stream(client, model=META):
    body = json.dumps(FAMILIES[model][0]).encode()
    return client.invoke_model_with_response_stream(modelId=model, body=body)["body"]


STREAMS = {"converse": converse_stream, "invoke": invoke_stream}
EVERY = {
    "converse": converse,
    "converse_stream": lambda client: list(converse_stream(client)),
    "invoke": lambda client: invoke(client).read(),
    "invoke_stream": lambda client: list(invoke_stream(client)),
}


@pytest.fixture(params=STREAMS)
def stream_of(request):
    return STREAMS[request.param]


@pytest.fixture(params=EVERY)
def ask(request):
    return EVERY[request.param]


def test_converse(client, calls, server):
    answer = converse(client, inferenceConfig={"maxTokens": 5, "stopSequences": ["a secret"]})
    assert answer["output"] == bedrock.CONVERSE["output"]
    call = calls.only
    assert (call.operation, call.provider, call.model) == ("chat", "aws.bedrock", CLAUDE)
    assert (call.outcome, call.error, call.attempts) == ("completed", None, 1)
    assert (call.address, call.port, call.local) == ("127.0.0.1", server.port, True)
    assert (call.stream, call.chunks, call.in_process) == (False, 0, False)
    assert call.facts == {
        "request_model": CLAUDE,
        "request_max_tokens": 5,
        "request_stop_count": 1,
        "user_turn": True,
        "finish_reasons": ["end_turn"],
        **COUNTED,
    }


def test_converse_with_tools(client, calls):
    converse(client, toolConfig=TOOLS)
    facts = calls.only.facts
    assert (facts["request_tool_count"], facts["tool_call_count"]) == (1, 1)
    assert facts["finish_reasons"] == ["tool_use"]


def test_converse_at_length(client, calls, server):
    server.play("huge")
    converse(client)
    assert {**calls.only.facts, **COUNTED} == calls.only.facts


def test_converse_stream(client, calls):
    stream = converse_stream(client, toolConfig=TOOLS)
    assert type(stream) is EventStream
    assert not calls.ended_calls
    assert current_call.get() is None
    assert [list(each)[0] for each in stream] == [kind for kind, _ in bedrock.CONVERSE_TOOL_EVENTS]
    call = calls.only
    assert (call.outcome, call.stream, call.attempts) == ("completed", True, 1)
    assert call.chunks == len(bedrock.CONVERSE_TOOL_EVENTS) - 1
    assert call.start_ns < call.first_chunk_ns <= call.last_chunk_ns <= call.end_ns
    assert {**call.facts, **COUNTED, "tool_call_count": 1} == call.facts


@pytest.mark.parametrize("model", FAMILIES)
def test_invoke(client, calls, model):
    _, asked, answer, facts, _, _ = FAMILIES[model]
    body = invoke(client, model)
    assert type(body) is StreamingBody
    assert not calls.ended_calls
    assert json.loads(body.read()) == answer
    call = calls.only
    assert call.outcome == "completed"
    assert call.operation == room.routes.match("POST", f"/model/{model}/invoke").operation
    # What the body does not say the headers do.
    assert call.facts == {"request_model": model, **asked, **facts}


@pytest.mark.parametrize("model", [model for model in FAMILIES if FAMILIES[model][4]])
def test_invoke_stream(client, calls, model):
    _, asked, _, _, chunks, facts = FAMILIES[model]
    read = [json.loads(each["chunk"]["bytes"]) for each in invoke_stream(client, model)]
    assert read == chunks
    call = calls.only
    assert (call.outcome, call.stream, call.chunks) == ("completed", True, len(chunks) - 1)
    expected = {"request_model": model, "request_stream": True, **asked, **facts}
    assert call.facts == expected


@pytest.mark.parametrize("kind", [str, bytes, bytearray, "file"])
def test_what_a_body_may_be(client, calls, tmp_path, kind):
    asked = json.dumps(FAMILIES[META][0])
    if kind == "file":
        (tmp_path / "body").write_text(asked)
        with (tmp_path / "body").open("rb") as body:
            invoke(client, body=body).read()
    else:
        invoke(client, body=asked if kind is str else kind(asked.encode())).read()
    assert ("request_max_tokens" in calls.only.facts) is (kind != "file")
    assert calls.only.facts["finish_reasons"] == ["stop"]


@pytest.mark.parametrize(
    "read",
    [
        lambda body: body.read(),
        lambda body: b"".join(iter(lambda: body.read(7), b"")),
        lambda body: b"".join(body.iter_chunks(5)),
        lambda body: b"".join(body),
        lambda body: b"".join(body.iter_lines(3)),
        lambda body: body.__enter__().read(),
    ],
    ids=["read", "read_some", "chunks", "iteration", "lines", "with"],
)
def test_ways_to_read_a_body(client, calls, read):
    assert json.loads(read(invoke(client))) == FAMILIES[META][2]
    assert calls.only.outcome == "completed"
    assert calls.only.facts["output_tokens"] == 7


@pytest.mark.parametrize("status", bedrock.ERRORS)
def test_refused(client, calls, server, ask, status):
    server.play(str(status))
    code = bedrock.ERRORS[status]
    with pytest.raises(getattr(client.exceptions, code)):
        ask(client)
    call = calls.only
    assert (call.outcome, call.error, call.attempts) == ("failed", code, 1)
    assert "secret" not in repr(call.facts)


def test_retries_are_attempts_of_one_call(make, calls, server, ask):
    server.play("429", "disconnect")
    ask(make(retries=3))
    call = calls.only
    assert (call.outcome, call.attempts) == ("completed", 3)
    assert call.facts["output_tokens"] == 7


def test_retries_that_all_fail(make, calls, server, ask):
    server.play("429", "429", "429")
    client = make(retries=3)
    with pytest.raises(client.exceptions.ThrottlingException):
        ask(client)
    assert (calls.only.error, calls.only.attempts) == ("ThrottlingException", 3)


def test_no_connection(session, calls):
    tries = {"total_max_attempts": 1}
    client = session.client(
        "bedrock-runtime", endpoint_url="http://127.0.0.1:1", config=Config(retries=tries)
    )
    with pytest.raises(botocore.exceptions.EndpointConnectionError):
        converse(client)
    call = calls.only
    assert call.error is botocore.exceptions.EndpointConnectionError
    assert call.attempts == 1
    client.close()


def test_what_the_service_would_refuse_is_no_call_that_failed_there(client, calls):
    with pytest.raises(botocore.exceptions.ParamValidationError):
        client.converse(messages=QUESTION)
    assert not calls.opened_calls
    with pytest.raises(botocore.exceptions.ParamValidationError):
        converse(client, inferenceConfig={"maxTokens": "many"})
    assert (calls.only.outcome, calls.only.attempts) == ("failed", 0)


def test_an_exception_in_a_stream(client, calls, server):
    server.play("error")
    with pytest.raises(botocore.exceptions.EventStreamError):
        list(converse_stream(client))
    assert (calls.only.outcome, calls.only.error) == ("failed", "ModelStreamErrorException")
    assert calls.only.chunks == 3


def test_a_connection_cut_in_a_stream(client, calls, server):
    server.play("cut")
    with pytest.raises(Exception) as raised:
        list(converse_stream(client))
    assert "Protocol" in type(raised.value).__name__
    call = calls.only
    assert (call.outcome, call.chunks) == ("failed", 3)
    assert issubclass(call.error, Exception)


def test_a_connection_cut_in_a_body(client, calls, server):
    server.play("cut")
    with pytest.raises(
        (botocore.exceptions.IncompleteReadError, botocore.exceptions.ResponseStreamingError)
    ):
        invoke(client).read()
    assert calls.only.outcome == "failed"


def test_a_connection_cut_where_botocore_makes_do_with_what_came(client, calls, server):
    server.play("cut")
    assert "output" not in converse(client)
    assert calls.only.outcome == "failed"


def test_timeout(make, calls, server, stream_of):
    server.gate.clear()
    server.play("slow")
    client = make(read_timeout=1)
    with pytest.raises(Exception, match="timed out"):
        list(stream_of(client))
    assert calls.only.outcome == "failed"


@pytest.mark.parametrize("how", ["break", "close", "drop", "never"])
def test_a_stream_that_is_not_read_to_its_end_was_abandoned(client, calls, server, stream_of, how):
    server.gate.clear()
    server.play("one")
    stream = stream_of(client)
    if how != "never":
        next(iter(stream))
    if how == "close":
        stream.close()
    del stream
    gc.collect()
    call = calls.wait()
    assert (call.outcome, call.error) == ("abandoned", None)
    assert call.chunks == (how != "never")


def test_a_stream_that_is_left_after_its_reason_was_complete(client, calls):
    stream = converse_stream(client)
    for each in stream:
        if "messageStop" in each:
            break
    stream.close()
    assert (calls.only.outcome, calls.only.facts["finish_reasons"]) == ("completed", ["end_turn"])


def test_a_body_that_is_dropped_was_abandoned(client, calls):
    body = invoke(client)
    body.close()
    assert calls.only.outcome == "abandoned"


@pytest.mark.parametrize("scenario", ["bytewise", "slow"])
def test_streams_in_any_pieces(client, calls, server, scenario):
    server.play(scenario)
    assert len(list(converse_stream(client))) == STREAMED
    assert calls.only.chunks == STREAMED - 1
    assert {**calls.only.facts, **COUNTED} == calls.only.facts


def test_other_operations_and_services_are_left_alone(make, client, calls):
    asked = {"converse": {"messages": QUESTION}}
    assert client.count_tokens(modelId=CLAUDE, input=asked)["inputTokens"] == 11
    make("bedrock").list_foundation_models()
    assert not calls.opened_calls


def test_credentials_that_are_fetched_meanwhile_are_no_attempt(make, calls, server):
    # AWS's query services are asked at no path, as Text Generation Inference is.
    sts = make("sts")

    def sign(**_):
        with pytest.raises(ResponseParserError):
            sts.get_caller_identity()

    client = make()
    client.meta.events.register("request-created.bedrock-runtime.Converse", sign)
    converse(client)
    assert [path for path, *_ in server.requests] == [
        "/",
        f"/model/{quote(CLAUDE, safe='')}/converse",
    ]
    assert (calls.only.attempts, calls.only.outcome) == (1, "completed")
    assert calls.only.facts.items() >= COUNTED.items()


def test_an_answer_that_never_was_on_the_wire(client, calls):
    with Stubber(client) as stub:
        stub.add_response("converse", bedrock.CONVERSE)
        stub.add_client_error("converse", "ThrottlingException")
        converse(client)
        assert calls.only.attempts == 0
        assert {**calls.only.facts, **COUNTED, "finish_reasons": ["end_turn"]} == calls.only.facts
        with pytest.raises(client.exceptions.ThrottlingException):
            converse(client)
    assert calls.ended_calls[1].error == "ThrottlingException"


def test_calls_in_threads_are_not_confused(client, calls):
    def one(number):
        if number % 2:
            converse(client)
        else:
            list(converse_stream(client))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(calls.ended_calls) == 10
    assert sum(call.stream for call in calls.ended_calls) == 5
    assert all({**call.facts, **COUNTED} == call.facts for call in calls.ended_calls)
    assert all(call.attempts == 1 for call in calls.ended_calls)


def test_a_suppressed_call(client, calls):
    calls.suppressed = True
    converse(client)
    assert not calls.opened_calls


def test_undoing(client, no_failures):
    before = botocore.client.BaseClient._make_api_call
    with hooked() as calls:
        assert botocore.client.BaseClient._make_api_call is not before
        stream = converse_stream(client)
    assert botocore.client.BaseClient._make_api_call is before
    converse(client)
    assert len(list(stream)) == STREAMED
    assert calls.only.outcome == "completed"


def said(function, *args):
    """What an app sees of a call: types and values, or what was raised."""
    try:
        found = function(*args)
    except Exception as error:
        return type(error), str(error), getattr(error, "response", None) and "response"
    if isinstance(found, dict):
        metadata = found.pop("ResponseMetadata")
        metadata["HTTPHeaders"].pop("date")
        return type(found), found, metadata
    return type(found), found


@pytest.mark.parametrize("scenario", ["ok", "400", "429", "cut", "disconnect", "error", "bytewise"])
def test_the_app_sees_the_same_with_and_without_us(client, server, ask, scenario):
    if scenario == "error" and ask not in (EVERY["converse_stream"], EVERY["invoke_stream"]):
        return
    server.play(scenario)
    without = said(ask, client)
    server.play(scenario)
    with hooked():
        assert said(ask, client) == without
    sent = [(path, body, headers.keys()) for path, headers, body in server.requests]
    assert sent[0] == sent[1]


def signed(server, path, body):
    return httpx.post(f"{server.url}{path}", json=body, headers={"Authorization": "AWS4"})


@pytest.fixture
def raw(no_failures):
    calls = Calls()
    transports.install_wire()
    transports.set_raw_recorder("httpx", calls)
    yield calls
    transports.set_raw_recorder("httpx", None)
    transports.remove_wire()


def test_without_an_sdk(raw, server):
    body = {"messages": QUESTION, "inferenceConfig": {"maxTokens": 5}}
    assert signed(server, "/model/us.anthropic.claude%3A0/converse", body).status_code == 200
    call = raw.only
    assert (call.provider, call.model) == ("aws.bedrock", "us.anthropic.claude:0")
    assert {**call.facts, **COUNTED, "request_max_tokens": 5} == call.facts


def test_a_stream_without_an_sdk(raw, server):
    with httpx.stream(
        "POST", f"{server.url}/model/{CLAUDE}/converse-stream", json={"messages": QUESTION}
    ) as response:
        list(response.iter_raw(10))
    call = raw.only
    assert (call.stream, call.chunks, call.outcome) == (True, STREAMED - 1, "completed")
    assert {**call.facts, **COUNTED} == call.facts

"""What is learnt of Bedrock's bodies and events: the documented ones, and anything else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers import bedrock
from servers.bedrock import CLAUDE, COUNTED, FAMILIES, STREAM_TYPE, event, exception, wrapped
from sottovoce.protocols import hosts, routes
from sottovoce.protocols.bedrock_converse import BEDROCK_CONVERSE
from sottovoce.protocols.bedrock_invoke import BEDROCK_EMBEDDINGS, BEDROCK_INVOKE
from sottovoce.protocols.bodies import MAX_PARSED_REQUEST, request_facts

JSON = "application/json"
CANARY = "the canary sings"
ASKED = {
    "modelId": CLAUDE,
    "messages": [{"role": "user", "content": [{"text": CANARY}]}],
    "system": [{"text": CANARY}],
    "inferenceConfig": {
        "maxTokens": 512,
        "temperature": 0.5,
        "topP": 0.9,
        "stopSequences": [CANARY, CANARY],
    },
    "toolConfig": {
        "tools": [
            {"toolSpec": {"name": "weather", "inputSchema": {"json": {"type": "object"}}}},
            {"cachePoint": {"type": "default"}},
        ]
    },
    "additionalModelRequestFields": {"top_k": 200, "secret": CANARY},
    "outputConfig": {
        "textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": CANARY}}},
        "effort": "high",
    },
    "serviceTier": {"type": "flex"},
    "requestMetadata": {"customer": CANARY},
    "promptVariables": {"name": {"text": CANARY}},
}
ASKED_FACTS = {
    "request_model": CLAUDE,
    "request_max_tokens": 512,
    "request_temperature": 0.5,
    "request_top_p": 0.9,
    "request_top_k": 200,
    "request_stop_count": 2,
    "request_tool_count": 1,
    "request_reasoning_level": "high",
    "request_service_tier": "flex",
    "output_type": "json",
    "user_turn": True,
}


each_protocol = pytest.mark.parametrize(
    "protocol", [BEDROCK_CONVERSE, BEDROCK_INVOKE, BEDROCK_EMBEDDINGS], ids=lambda each: each.name
)


def test_what_converse_is_asked():
    assert BEDROCK_CONVERSE.request(ASKED) == ASKED_FACTS


def test_what_converse_is_asked_at_length():
    large = {**ASKED, "system": [{"text": CANARY * MAX_PARSED_REQUEST}]}
    facts = request_facts(BEDROCK_CONVERSE, json.dumps(large).encode())
    assert facts["request_max_tokens"] == 512
    assert facts["request_stop_count"] == 2
    assert facts["user_turn"] is True
    assert CANARY not in repr(facts)


@pytest.mark.parametrize(
    ("message", "person"),
    [
        ({"role": "user", "content": [{"image": {"format": "png"}}]}, True),
        ({"role": "user", "content": [{"document": {}}, {"cachePoint": {}}]}, True),
        ({"role": "user", "content": [{"toolResult": {"toolUseId": "1"}}]}, False),
        ({"role": "user", "content": [{"toolResult": {}}, {"text": CANARY}]}, False),
        ({"role": "assistant", "content": [{"text": CANARY}]}, False),
        ({"role": "user", "content": []}, False),
        ({"role": "user", "content": 7}, False),
    ],
)
def test_whose_turn_it_is(message, person):
    body = {"messages": [{"role": "user", "content": [{"text": "x"}]}, message]}
    assert BEDROCK_CONVERSE.request(body) == {"user_turn": person}
    assert BEDROCK_INVOKE.request(body) == {"user_turn": person}


def test_what_converse_answers(reading):
    read = reading(BEDROCK_CONVERSE, JSON).feed(json.dumps(bedrock.CONVERSE).encode()).finish()
    assert read.facts == {**COUNTED, "finish_reasons": ["end_turn"]}


def test_what_converse_answers_with_tools(reading):
    body = {**bedrock.CONVERSE_TOOL, "serviceTier": {"type": "flex"}}
    read = reading(BEDROCK_CONVERSE, JSON).feed(json.dumps(body).encode()).finish()
    assert read.facts == {
        **COUNTED,
        "finish_reasons": ["tool_use"],
        "tool_call_count": 1,
        "tool_names": ["weather"],
        "response_service_tier": "flex",
    }


def test_what_converse_answers_at_length(reading):
    text = {"message": {"role": "assistant", "content": [{"text": CANARY * 100_000}]}}
    body = {**bedrock.CONVERSE, "output": text}
    read = reading(BEDROCK_CONVERSE, JSON).feed(json.dumps(body).encode()).finish()
    assert read.facts == {**COUNTED, "finish_reasons": ["end_turn"]}
    assert read.malformed == []


def test_counts_without_a_cache():
    usage = {"inputTokens": 4, "outputTokens": 5, "totalTokens": 9}
    assert BEDROCK_CONVERSE.response({"usage": usage}) == {"input_tokens": 4, "output_tokens": 5}


@pytest.mark.parametrize(
    ("events", "more", "chunks"),
    [
        (bedrock.CONVERSE_EVENTS, {"finish_reasons": ["end_turn"]}, 8),
        (
            bedrock.CONVERSE_TOOL_EVENTS,
            {"finish_reasons": ["tool_use"], "tool_call_count": 1, "tool_names": ["weather"]},
            7,
        ),
    ],
)
def test_what_converse_streams(reading, events, more, chunks):
    frames = [event(kind, body) for kind, body in events]
    read = reading(BEDROCK_CONVERSE, STREAM_TYPE).feed(*frames)
    assert read.facts == {**COUNTED, **more}
    # The last event ends the call, without waiting for the connection.
    assert (read.call.is_open, read.call.outcome, read.call.chunks) == (False, "completed", chunks)
    assert read.malformed == []


@pytest.mark.parametrize("model", FAMILIES)
def test_what_the_families_are_asked(model):
    asked, facts, *_ = FAMILIES[model]
    assert BEDROCK_INVOKE.request(asked) == facts


@pytest.mark.parametrize("model", FAMILIES)
def test_what_the_families_answer(reading, model):
    *_, answer, facts, _, _ = FAMILIES[model]
    read = reading(BEDROCK_INVOKE, JSON).feed(json.dumps(answer).encode()).finish()
    counts = {"input_tokens", "output_tokens"}
    # Some say their counts in headers alone.
    missing = facts.keys() - read.facts.keys()
    assert missing <= counts
    assert read.facts == {fact: facts[fact] for fact in facts if fact not in missing}
    assert read.malformed == []


def test_vectors_are_not_parsed(reading, monkeypatch):
    answer = {"embedding": [0.25] * 10_000, "inputTextTokenCount": 11}
    monkeypatch.setattr("sottovoce.protocols.bodies._parse", None)
    read = reading(BEDROCK_EMBEDDINGS, JSON).feed(json.dumps(answer).encode()).finish()
    assert (read.facts, read.malformed) == ({"input_tokens": 11}, [])


@pytest.mark.parametrize("model", [model for model in FAMILIES if FAMILIES[model][4]])
def test_what_the_families_stream(reading, model):
    *_, chunks, facts = FAMILIES[model]
    read = reading(BEDROCK_INVOKE, STREAM_TYPE).feed(*map(wrapped, chunks))
    assert read.facts == facts
    assert (read.call.is_open, read.call.chunks) == (False, len(chunks) - 1)
    assert read.malformed == []


def test_tools_that_families_call(reading):
    nova = [
        {"contentBlockStart": {"start": {"toolUse": {"toolUseId": "1", "name": "a"}}}},
        {"messageStop": {"stopReason": "tool_use"}},
    ]
    claude = [
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "1", "name": "a", "input": {}},
        },
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
    ]
    for chunks in nova, claude:
        read = reading(BEDROCK_INVOKE, STREAM_TYPE).feed(*map(wrapped, chunks))
        assert read.facts == {
            "tool_call_count": 1,
            "tool_names": ["a"],
            "finish_reasons": ["tool_use"],
        }


@each_protocol
def test_an_exception_in_a_stream_fails_the_call(reading, protocol):
    read = reading(protocol, STREAM_TYPE).feed(exception("throttlingException"))
    assert (read.call.outcome, read.call.error) == ("failed", "ThrottlingException")


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "usage inputTokens outputTokens cacheReadInputTokens stopReason output message content "
                "toolUse toolConfig tools inferenceConfig stopSequences messages role metadata results "
                "tokenCount completionReason outputs choices generations stop_reason finish_reason type "
                "contentBlockStart start messageStop delta error textGenerationConfig "
                "amazon-bedrock-invocationMetrics inputTokenCount embeddingTypes p k modelId".split()
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@each_protocol
@given(body=JSONS)
def test_whatever_comes_nothing_is_raised_and_nothing_said_is_kept(reading, protocol, body):
    asked = protocol.request(body) if isinstance(body, dict) else {}
    assert CANARY not in repr({**asked, "request_model": None})
    data = json.dumps(body).encode()
    for content_type, chunks in (
        (JSON, [data]),
        (STREAM_TYPE, [wrapped(body)] + [event(k, {"x": v}) for k, v in _items(body)]),
        (STREAM_TYPE, [event(k, v) for k, v in _items(body) if isinstance(v, dict)]),
    ):
        read = reading(protocol, content_type).feed(*chunks).finish()
        assert CANARY not in repr({**read.facts, "response_model": None})
        assert "reader" not in read.malformed


def _items(body):
    return body.items() if isinstance(body, dict) else ()


@pytest.mark.parametrize(
    ("path", "operation", "facts"),
    [
        ("/model/a.b-v1%3A0/converse", "chat", {"request_model": "a.b-v1:0"}),
        ("/model/a.b-v1:0/converse/", "chat", {"request_model": "a.b-v1:0"}),
        (
            "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fx/converse-stream?y",
            "chat",
            {
                "request_model": "arn:aws:bedrock:us-east-1:1:inference-profile/x",
                "request_stream": True,
            },
        ),
        (
            "/model/arn:aws:bedrock:us-east-1:1:inference-profile/x/invoke",
            "chat",
            {"request_model": "arn:aws:bedrock:us-east-1:1:inference-profile/x"},
        ),
        (
            "/model/amazon.titan-embed-text-v2:0/invoke",
            "embeddings",
            {"request_model": "amazon.titan-embed-text-v2:0"},
        ),
        ("/model/cohere.rerank-v3-5:0/invoke", "rerank", {"request_model": "cohere.rerank-v3-5:0"}),
        (
            "/model/amazon.titan-text-lite-v1/invoke-with-response-stream",
            "text_completion",
            {"request_model": "amazon.titan-text-lite-v1", "request_stream": True},
        ),
        (
            "/model/stability.sd3-large-v1:0/invoke",
            "generate_content",
            {"request_model": "stability.sd3-large-v1:0", "output_type": "image"},
        ),
        ("/gateway/bedrock/model/a/invoke", "chat", {"request_model": "a"}),
    ],
)
def test_paths(path, operation, facts):
    route = routes.match("POST", path)
    assert (route.operation, route.provider, route.facts) == (operation, "aws.bedrock", facts)
    assert route.unmistakable


@pytest.mark.parametrize(
    "path",
    [
        "/invoke",
        "/model/invoke",
        "/model//invoke",
        "/model/x/count-tokens",
        "/my/model/x/invoke",
        "/models/x/invoke",
        "/guardrail-checks/invoke",
        "/model/x/invoke-with-bidirectional-stream",
    ],
)
def test_other_paths(path):
    assert routes.match("POST", path) is None


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("bedrock-runtime.us-east-1.amazonaws.com", "aws.bedrock"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "aws.bedrock"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "aws.bedrock"),
        ("vpce-1-2.bedrock-runtime.us-east-1.vpce.amazonaws.com", "aws.bedrock"),
        ("bedrock-mantle.us-east-1.api.aws", "aws.bedrock"),
        ("s3.us-east-1.amazonaws.com", "openai_compatible"),
        ("bedrock-runtime.example.org", "openai_compatible"),
        ("bedrock-runtime.us-east-1.evilamazonaws.com", "openai_compatible"),
    ],
)
def test_hosts(host, provider):
    assert hosts.provider(host)[0] == provider

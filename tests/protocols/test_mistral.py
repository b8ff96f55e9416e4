"""What Mistral has besides OpenAI's wire."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.mistral import OCR, conversation, conversation_events
from servers.provider import MODEL, sse
from sottovoce.protocols import match, request_facts
from sottovoce.protocols.mistral import MISTRAL_OCR
from sottovoce.protocols.mistral_conversations import MISTRAL_CONVERSATIONS
from sottovoce.protocols.openai_chat import OPENAI_CHAT

CANARY = "the canary sings"


@pytest.mark.parametrize(
    ("path", "operation", "model"),
    [
        ("/v1/agents/completions", "chat", None),
        ("/v1/fim/completions#stream", None, None),
        ("/v1/fim/completions", "text_completion", None),
        ("/v1/ocr", "generate_content", None),
        (
            "/v1/projects/p/locations/l/publishers/mistralai/models/codestral-2:rawPredict",
            "chat",
            "codestral-2",
        ),
        (
            "/v1/projects/p/locations/l/publishers/mistralai/models/codestral-2:streamRawPredict",
            "chat",
            "codestral-2",
        ),
        ("/rawPredict", "chat", None),
        ("/v1/projects/p/locations/l/endpoints/1:rawPredict", None, None),
        ("/v1/models/x/rawPredict", None, None),
        ("/v1/conversations", "chat", None),
        ("https://api.mistral.ai/v1/conversations/conv_0684fe18?x=1", "chat", None),
        ("/v1/conversations/conv_0684fe18/restart", "chat", None),
        ("/v1/conversations/conv_0684fe18/items", None, None),
        ("/v1/conversations/conv_0684fe18/history", None, None),
        ("/v1/things/conv_0684fe18", None, None),
        ("/v1/servers/1/restart", None, None),
    ],
)
def test_paths(path, operation, model):
    route = match("POST", path)
    assert (route and route.operation) == operation
    assert (route and route.facts.get("request_model")) == model


@pytest.mark.parametrize("padding", [0, 300_000])
def test_documents_are_only_named(reading, padding):
    body = {**OCR, "pages": [{**OCR["pages"][0], "markdown": CANARY + "x" * padding}]}
    read = reading(MISTRAL_OCR, "application/json").feed(json.dumps(body).encode()).finish()
    assert (read.facts, read.malformed) == ({"response_model": OCR["model"]}, [])


def test_the_tier_is_told_with_the_counts(reading):
    body = {
        "model": "mistral-small-latest",
        "usage": {"prompt_tokens": 16, "completion_tokens": 34, "service_tier": "priority"},
    }
    read = reading(OPENAI_CHAT, "application/json").feed(json.dumps(body).encode()).finish()
    assert read.facts == {
        "response_model": "mistral-small-latest",
        "response_service_tier": "priority",
        "input_tokens": 16,
        "output_tokens": 34,
    }


def test_a_document_is_a_persons():
    block = {"type": "document_url", "document_url": CANARY}
    asked = {"messages": [{"role": "user", "content": [block]}]}
    assert OPENAI_CHAT.request(asked) == {"user_turn": True}


ARGUMENTS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 9,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.2,
    "stop": [CANARY, "b"],
    "response_format": {"type": "json_schema", "json_schema": {"name": CANARY}},
    "reasoning_effort": "high",
}


@pytest.mark.parametrize("padding", [0, 70_000])
def test_what_a_conversation_is_asked(padding):
    entry = {"type": "message.input", "role": "user", "content": CANARY}
    body = {
        "inputs": [{**entry, "content": CANARY + "x" * padding}, entry],
        "stream": True,
        "instructions": CANARY,
        "tools": [{"type": "web_search"}, {"type": "function", "function": {"name": CANARY}}],
        "completion_args": ARGUMENTS,
        "model": "mistral-medium-latest",
    }
    assert request_facts(MISTRAL_CONVERSATIONS, json.dumps(body).encode()) == {
        "request_model": "mistral-medium-latest",
        "request_stream": True,
        "request_temperature": 0.5,
        "request_top_p": 0.9,
        "request_max_tokens": 9,
        "request_frequency_penalty": 0.1,
        "request_presence_penalty": 0.2,
        "request_stop_count": 2,
        "request_reasoning_level": "high",
        "request_tool_count": 2,
        "output_type": "json",
        "user_turn": True,
    }


@pytest.mark.parametrize(
    ("inputs", "turn"),
    [
        (CANARY, {"user_turn": True}),
        ([{"role": "user", "content": CANARY}], {"user_turn": True}),
        ([{"type": "function.result", "result": CANARY}], {"user_turn": False}),
        ([], {}),
        ([CANARY], {}),
        (None, {}),
    ],
)
def test_who_spoke_in_a_conversation(inputs, turn):
    assert MISTRAL_CONVERSATIONS.request({"inputs": inputs, "agent_id": "ag_1"}) == turn


COUNTED = {"response_model": MODEL, "input_tokens": 11, "output_tokens": 7}
CALLED = {"tool_call_count": 2, "tool_names": ["web_search", "weather"]}
CONVERSATIONS = [
    ({}, {**COUNTED, "finish_reasons": ["stop"]}),
    ({"tools": [{}]}, {**COUNTED, **CALLED, "finish_reasons": ["tool_calls"]}),
]


@pytest.mark.parametrize(("asked", "facts"), CONVERSATIONS)
def test_what_a_conversation_answers(reading, asked, facts):
    wire = json.dumps(conversation(asked)).encode()
    read = reading(MISTRAL_CONVERSATIONS, "application/json").feed(wire).finish()
    assert (read.facts, read.malformed, read.call.is_open) == (facts, [], True)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(("asked", "facts"), CONVERSATIONS)
def test_what_a_conversation_streams(reading, asked, facts, size):
    events = list(conversation_events(asked))
    wire = b"".join(sse(kind, data) for kind, data in events)
    read = reading(MISTRAL_CONVERSATIONS)
    read.feed(*(wire[i : i + size] for i in range(0, len(wire), size)))
    assert read.facts == facts
    assert (read.call.outcome, read.call.chunks) == ("completed", len(events) - 1)
    assert read.malformed == []


def test_an_error_ends_a_conversations_stream(reading):
    error = {"type": "conversation.response.error", "message": CANARY, "code": 503}
    read = reading(MISTRAL_CONVERSATIONS).feed(sse(error["type"], error))
    assert (read.call.outcome, read.call.error) == ("failed", "503")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "name", "model", "usage", "prompt_tokens", "stop"])
            | st.sampled_from(["response_format", "tool_call_id", "id", "output_index", "code"]),
            inner | st.sampled_from(["function.call", "tool.execution", "message.output"]),
            max_size=4,
        )
    ),
    max_leaves=10,
)
KEYS = ["type", "inputs", "outputs", "completion_args", "usage", "tools", "model", "code", "error"]
KINDS = st.sampled_from(["function.call.delta", "conversation.response.done"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON | KINDS))
def test_no_value_in_any_place_of_a_conversation_raises_or_brings_content(reading, body):
    wire = json.dumps(body).encode()
    for read in (
        reading(MISTRAL_CONVERSATIONS, "application/json").feed(wire).finish(),
        reading(MISTRAL_CONVERSATIONS).feed(b"data: " + wire + b"\n\n").finish(),
    ):
        assert "reader" not in read.malformed
        # A model may have any name; the policy decides what of it may be seen.
        read.call.facts.pop("response_model", None)
        assert CANARY not in repr((read.result, read.reader.error))
    asked = request_facts(MISTRAL_CONVERSATIONS, wire)
    asked.pop("request_model", None)
    assert CANARY not in repr(asked)

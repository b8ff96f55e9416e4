"""What is learnt of LM Studio's own API: what it is asked, answers and streams; broken ones."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import lm_studio as wire
from servers.provider import sse
from sottovoce.protocols.lm_studio import LM_STUDIO_CHAT

CANARY = "the canary sings"
ANSWERED = {key: value for key, value in wire.TOLD.items() if key != "user_turn"}


def test_what_was_asked():
    asked = {
        "model": "qwen/qwen3-8b",
        "input": CANARY,
        "system_prompt": CANARY,
        "integrations": [{"type": "plugin", "id": CANARY}],
        "stream": True,
        "temperature": 0,
        "top_p": 0.9,
        "top_k": 40,
        "max_output_tokens": 300,
        "reasoning": "low",
        "context_length": 8000,
        "previous_response_id": CANARY,
    }
    assert LM_STUDIO_CHAT.request(asked) == {
        "request_model": "qwen/qwen3-8b",
        "request_stream": True,
        "request_temperature": 0.0,
        "request_top_p": 0.9,
        "request_top_k": 40,
        "request_max_tokens": 300,
        "request_reasoning_level": "low",
        "user_turn": True,
    }
    items = [{"type": "text", "content": CANARY}, {"type": "image", "data_url": CANARY}]
    assert LM_STUDIO_CHAT.request({"input": items}) == {"user_turn": True}


@pytest.mark.parametrize("padding", [0, 300_000])
def test_what_is_answered(reading, padding):
    body = wire.chat({})
    body["output"][0]["content"] = "x" * padding
    read = reading(LM_STUDIO_CHAT, "application/json").feed(json.dumps(body).encode()).finish()
    # Of a long answer the end alone is looked at, where the statistics are.
    far = {"tool_call_count", "tool_names"} if padding else set()
    assert {**{k: v for k, v in ANSWERED.items() if k not in far}, **read.facts} == read.facts
    assert read.malformed == []


def test_a_stream_that_is_left_knows_the_tools_that_ran(reading):
    events = [sse(*event) for event in wire.chat_events({})][:-1]
    read = reading(LM_STUDIO_CHAT).feed(*events)
    called = {"tool_call_count": 1, "tool_names": ["web_search"]}
    assert read.facts == {"response_model": "tiny", **called}
    assert (read.call.chunks, read.call.is_open) == (wire.EVENTS, True)


def test_an_error_has_its_type_and_no_message(reading):
    read = reading(LM_STUDIO_CHAT).feed(sse("error", wire.LMStudioHandler.error))
    assert (read.call.outcome, read.call.error) == ("failed", "model_not_found")


KEYS = ["type", "model_instance_id", "output", "stats", "result", "error", "tool", "input", "model"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=10,
)
EVENTS = st.sampled_from([event for _, event in wire.chat_events({})] + [wire.chat({})])


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_no_value_in_any_place_raises_or_brings_content(reading, body, new):
    body = {**body, **new}
    data = json.dumps(body).encode()
    for read in (
        reading(LM_STUDIO_CHAT).feed(b"data: " + data + b"\n\n").finish(),
        reading(LM_STUDIO_CHAT, "application/json").feed(data).finish(),
    ):
        assert "reader" not in read.malformed
        # A model may have any name; the policy decides what of it may be seen.
        read.call.facts.pop("response_model", None)
        assert CANARY not in repr(read.result)
    asked = LM_STUDIO_CHAT.request(body)
    asked.pop("request_model", None)
    assert CANARY not in repr(asked)

"""What is learnt of Gemini's interactions, and what never is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import gemini as wire
from servers.gemini import COUNTED, MODEL, interaction, interaction_events
from sottovoce.protocols import match, request_facts
from sottovoce.protocols.bodies import MAX_PARSED_REQUEST
from sottovoce.protocols.gemini_interactions import GEMINI_INTERACTIONS

CANARY = "the canary sings"
FACTS = {**COUNTED, "response_model": MODEL, "finish_reasons": ["completed"]}
TOOLS = {"tools": [{"type": "function", "name": CANARY}]}
CALLING = {
    **FACTS,
    "finish_reasons": ["requires_action"],
    "tool_call_count": 1,
    "tool_names": ["weather"],
}
ASKED = {
    "model": "gemini-3-flash",
    "input": CANARY,
    "system_instruction": CANARY,
    "stream": True,
    "service_tier": "flex",
    "previous_interaction_id": CANARY,
    **TOOLS,
    "generation_config": {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 64,
        "stop_sequences": [CANARY],
        "thinking_level": "low",
        "seed": 7,
    },
}
ASKED_FACTS = {
    "request_model": "gemini-3-flash",
    "request_stream": True,
    "request_service_tier": "flex",
    "request_tool_count": 1,
    "request_temperature": 0.5,
    "request_top_p": 0.9,
    "request_max_tokens": 64,
    "request_stop_count": 1,
    "request_reasoning_level": "low",
    "user_turn": True,
}


def test_what_was_asked():
    assert request_facts(GEMINI_INTERACTIONS, json.dumps(ASKED).encode()) == ASKED_FACTS


def test_what_was_asked_at_length():
    body = {**ASKED, "input": [{"type": "text", "text": "x" * MAX_PARSED_REQUEST}]}
    facts = request_facts(GEMINI_INTERACTIONS, json.dumps(body).encode())
    assert facts == {k: v for k, v in ASKED_FACTS.items() if k != "request_reasoning_level"} | {
        "request_reasoning_level": "low"
    }


@pytest.mark.parametrize(
    ("given", "person"),
    [
        (CANARY, True),
        ({"type": "text", "text": CANARY}, True),
        ([{"type": "image", "data": CANARY}], True),
        ([{"type": "user_input", "content": []}], True),
        ([{"type": "user_input"}, {"type": "function_result", "result": CANARY}], False),
        ([{"type": "model_output"}], False),
        ([], None),
        (7, None),
    ],
)
def test_a_turn_is_a_persons_by_the_type_of_what_comes_last(given, person):
    assert GEMINI_INTERACTIONS.request({"input": given}).get("user_turn") is person


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        (interaction({}), FACTS),
        (interaction(TOOLS), CALLING),
        (interaction({}, "incomplete"), {**FACTS, "finish_reasons": ["incomplete"]}),
        (
            {"id": "v1_1", "model": MODEL, "status": "in_progress"},
            {"response_model": MODEL},
        ),
        ({**interaction({}), "steps": [{"type": "model_output", "content": "x" * 300_000}]}, FACTS),
    ],
)
def test_whole_answers(reading, body, facts):
    # Of a long answer the model is only known where it comes early.
    read = reading(GEMINI_INTERACTIONS, "application/json")
    read.feed(json.dumps(body).encode()).finish()
    assert (read.facts, read.malformed, read.reader.error) == (facts, [], None)


@pytest.mark.parametrize(("asked", "facts"), [({}, FACTS), (TOOLS, CALLING)])
@pytest.mark.parametrize("size", [1, 100_000])
def test_streams(reading, asked, facts, size):
    events = list(interaction_events(asked))
    wired = b"".join(
        b"event: %s\ndata: %s\n\n" % (event["event_type"].encode(), json.dumps(event).encode())
        for event in events
    )
    wired += b"event: done\ndata: [DONE]\n\n"
    read = reading(GEMINI_INTERACTIONS)
    read.feed(*(wired[i : i + size] for i in range(0, len(wired), size)))
    assert (read.facts, read.malformed) == (facts, [])
    assert (read.call.outcome, read.call.is_open) == ("completed", False)
    assert read.call.chunks == len(events) - 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"event_type": "error", "error": {"code": "internal", "message": CANARY}}, "internal"),
        ({"error": {"code": 429, "message": CANARY, "status": "RESOURCE_EXHAUSTED"}}, "429"),
        ({"status": "failed", "errors": [{"code": "internal", "message": CANARY}]}, "internal"),
        ({"status": "failed"}, "_OTHER"),
        ({"interaction": {"status": "failed"}}, "_OTHER"),
        (interaction({}), None),
    ],
)
def test_errors(body, code):
    assert GEMINI_INTERACTIONS.error(body) == code


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1beta/interactions", "generate_content"),
        ("/v1beta/interactions/v1_1", None),
        ("/v1beta/interactions/v1_1/cancel", None),
    ],
)
def test_paths(path, operation):
    route = match("POST", path)
    assert (route and route.operation) == operation


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "name", "status", "usage", "code", "total_input_tokens", "modality",
                 "input_tokens_by_modality", "tokens", "errors", "interaction", "thinking_level"]
            ),
            inner,
        )
    ),
    max_leaves=8,
)  # fmt: skip
KEYS = ["interaction", "step", "steps", "usage", "status", "error", "errors", "input", "tools",
        "generation_config", "event_type"]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING))
def test_no_value_in_any_place_raises_or_brings_content(reading, change):
    assert CANARY not in repr(GEMINI_INTERACTIONS.request({**ASKED, **change}))
    for body in (interaction({}), *wire.interaction_events(TOOLS)):
        data = json.dumps({**body, **change}).encode()
        for kind, sent in (
            ("application/json", data),
            ("text/event-stream", b"data: " + data + b"\n\n"),
        ):
            read = reading(GEMINI_INTERACTIONS, kind).feed(sent).finish()
            assert "reader" not in read.malformed
            assert CANARY not in repr(read.result)
            assert CANARY not in repr(read.reader.error)

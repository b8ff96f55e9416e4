"""What is learnt of Anthropic's streams: documented ones, those of others, broken ones."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import anthropic as claude
from servers.provider import sse
from sottovoce.protocols.anthropic_messages import ANTHROPIC_MESSAGES

CANARY = "the canary sings"
START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "claude",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 25, "output_tokens": 1},
    },
}
BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
DELTA = {
    "type": "content_block_delta",
    "index": 0,
    "delta": {
        "type": "text_delta",
        "text": CANARY + '"type":"tool_use","usage":{"input_tokens":1}',
    },
}
STOP = {"type": "message_stop"}
TOLD = {"response_model": "claude", "finish_reasons": ["end_turn"]}


def ended(usage, reason="end_turn"):
    delta = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": delta, "usage": usage}


def called(index, identity, name, kind="tool_use"):
    block = {"type": kind, "id": identity, "name": name, "input": {}}
    return {"type": "content_block_start", "index": index, "content_block": block}


def begun(**usage):
    return {**START, "message": {**START["message"], "usage": usage}}


STREAMS = {
    "documented": (
        [START, BLOCK, {"type": "ping"}, DELTA, DELTA, ended({"output_tokens": 15}), STOP],
        {**TOLD, "input_tokens": 25, "output_tokens": 15},
        6,
    ),
    "cached, and said again at the end": (
        [
            begun(input_tokens=3, cache_read_input_tokens=100, cache_creation_input_tokens=20),
            DELTA,
            ended(
                {
                    "input_tokens": 5,
                    "cache_read_input_tokens": 140,
                    "cache_creation_input_tokens": 20,
                    "output_tokens": 9,
                    "output_tokens_details": {"thinking_tokens": 4},
                }
            ),
            STOP,
        ],
        {
            **TOLD,
            "input_tokens": 165,
            "output_tokens": 9,
            "cache_read_tokens": 140,
            "cache_write_tokens": 20,
            "reasoning_tokens": 4,
        },
        3,
    ),
    "cached, and half said again": (
        [
            begun(input_tokens=3, cache_read_input_tokens=100, cache_creation_input_tokens=0),
            ended({"input_tokens": 3, "output_tokens": 9}),
            STOP,
        ],
        {
            **TOLD,
            "input_tokens": 103,
            "output_tokens": 9,
            "cache_read_tokens": 100,
            "cache_write_tokens": 0,
        },
        2,
    ),
    "counted by a gateway at the end alone": (
        [begun(input_tokens=0, output_tokens=0), ended({"input_tokens": 8, "output_tokens": 9})],
        {**TOLD, "input_tokens": 8, "output_tokens": 9},
        2,
    ),
    "counted by a gateway at the beginning alone": (
        [begun(input_tokens=8), ended({"input_tokens": 0, "output_tokens": 9})],
        {**TOLD, "input_tokens": 8, "output_tokens": 9},
        2,
    ),
    "tools": (
        [
            START,
            called(1, "toolu_1", "weather"),
            called(2, "srvtoolu_1", "web_search", "server_tool_use"),
            called(3, "mcptoolu_1", CANARY, "mcp_tool_use"),
            ended({"output_tokens": 2}, "tool_use"),
            STOP,
        ],
        {
            **TOLD,
            "finish_reasons": ["tool_use"],
            "input_tokens": 25,
            "output_tokens": 2,
            "tool_call_count": 3,
            "tool_names": ["weather", "web_search"],
        },
        5,
    ),
    "of types yet to come": (
        [
            START,
            {"type": "message_thought", "message": {"model": 5}, "delta": [CANARY]},
            {"type": "content_block_start", "index": 0, "content_block": {"type": CANARY}},
            ended({"output_tokens": 2, "new_tokens": 7}),
            STOP,
        ],
        {**TOLD, "input_tokens": 25, "output_tokens": 2},
        4,
    ),
}


def wire_of(bodies):
    return b"".join(sse(body["type"], body) for body in bodies)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1 << 20, 100, 1])
def test_a_stream_tells_its_facts(reading, name, size):
    bodies, facts, chunks = STREAMS[name]
    wire = wire_of(bodies)
    read = reading(ANTHROPIC_MESSAGES)
    read.feed(*(wire[i : i + size] for i in range(0, len(wire), size))).finish()
    assert read.facts == facts
    assert (read.call.chunks, read.call.outcome, read.call.error) == (chunks, "completed", None)
    assert not read.call.is_open
    assert read.malformed == []


def test_the_last_event_ends_the_call(reading):
    assert not reading(ANTHROPIC_MESSAGES).feed(wire_of([START, STOP])).call.is_open
    assert reading(ANTHROPIC_MESSAGES).feed(wire_of([START, DELTA])).call.is_open


def test_an_error_fails_the_call_with_its_type(reading):
    read = reading(ANTHROPIC_MESSAGES).feed(wire_of([START, DELTA, claude.ERROR]))
    assert (read.call.outcome, read.call.error) == ("failed", "overloaded_error")


def test_an_event_without_facts_is_never_parsed(reading):
    read = reading(ANTHROPIC_MESSAGES).feed(wire_of([START]))
    read.feed(b'event: content_block_delta\ndata: {"type": "content_block_delta", {{{ \n\n')
    assert (read.call.chunks, read.malformed) == (2, [])


def test_counts_of_another_type_set_nothing(reading):
    usage = {"input_tokens": "many", "output_tokens": -1, "cache_read_input_tokens": True}
    read = reading(ANTHROPIC_MESSAGES).feed(wire_of([START, ended(usage), STOP]))
    assert read.facts == {**TOLD, "input_tokens": 25}


def test_who_leaves_before_the_end_has_no_count_of_what_was_said(reading):
    """What the first event counts is written before anything was."""
    read = reading(ANTHROPIC_MESSAGES).feed(wire_of([START, BLOCK, *[DELTA] * 50]))
    assert read.facts == {"response_model": "claude", "input_tokens": 25}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "usage", "name", "input_tokens", "id"]), inner)
    ),
    max_leaves=8,
)
KEYS = ["type", "message", "delta", "usage", "content_block", "index", "error", "stop_reason"]
EVENTS = st.sampled_from([body for bodies, _, _ in STREAMS.values() for body in bodies])
CHANGES = st.lists(
    st.tuples(EVENTS, st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)), max_size=6
)


@settings(max_examples=200, deadline=None)
@given(CHANGES, st.integers(1, 200))
def test_no_event_raises_or_brings_content(reading, changes, size):
    bodies = [{**body, **change} for body, change in changes]
    wire = b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies)
    read = reading(ANTHROPIC_MESSAGES)
    read.feed(*(wire[i : i + size] for i in range(0, len(wire), size))).finish()
    assert "reader" not in read.malformed
    assert CANARY not in repr(read.result)

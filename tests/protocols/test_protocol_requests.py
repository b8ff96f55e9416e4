"""What is learnt of a request, from small bodies and from large ones, and what never is."""

import enum
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sottovoce.protocols import request_facts
from sottovoce.protocols.anthropic_messages import ANTHROPIC_MESSAGES
from sottovoce.protocols.bedrock_converse import BEDROCK_CONVERSE
from sottovoce.protocols.bedrock_invoke import BEDROCK_INVOKE
from sottovoce.protocols.bodies import MAX_PARSED_REQUEST
from sottovoce.protocols.checks import CHECKS
from sottovoce.protocols.openai_audio import OPENAI_AUDIO
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_completions import OPENAI_COMPLETIONS
from sottovoce.protocols.openai_embeddings import OPENAI_EMBEDDINGS
from sottovoce.protocols.openai_images import OPENAI_IMAGES
from sottovoce.protocols.openai_moderations import OPENAI_MODERATIONS
from sottovoce.protocols.openai_responses import OPENAI_RESPONSES
from sottovoce.protocols.skeleton import skeleton

ALL = [
    OPENAI_CHAT,
    OPENAI_COMPLETIONS,
    OPENAI_RESPONSES,
    OPENAI_EMBEDDINGS,
    OPENAI_IMAGES,
    OPENAI_AUDIO,
    OPENAI_MODERATIONS,
    ANTHROPIC_MESSAGES,
    BEDROCK_CONVERSE,
    BEDROCK_INVOKE,
]
CANARY = "the canary sings"
LONG = CANARY * 8000
USER = {"role": "user", "content": CANARY}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CANARY}"}}

EXAMPLES = [
    (
        OPENAI_CHAT,
        {
            "model": "gpt-4o-mini",
            "messages": [{"role": "system", "content": CANARY}, USER],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 1,
            "top_p": 0.9,
            "top_k": 40,
            "max_completion_tokens": 64,
            "max_tokens": 128,
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "n": 3,
            "stop": [CANARY, "b"],
            "reasoning_effort": "low",
            "service_tier": "auto",
            "tools": [{"type": "function", "function": {"name": CANARY}}] * 2,
            "response_format": {"type": "json_schema", "json_schema": {"name": CANARY}},
            "user": CANARY,
            "seed": 7,
            "metadata": {"k": CANARY},
        },
        {
            "request_model": "gpt-4o-mini",
            "request_stream": True,
            "request_temperature": 1.0,
            "request_top_p": 0.9,
            "request_top_k": 40,
            "request_max_tokens": 64,
            "request_frequency_penalty": 0.5,
            "request_presence_penalty": -0.5,
            "request_choice_count": 3,
            "request_stop_count": 2,
            "request_reasoning_level": "low",
            "request_service_tier": "auto",
            "request_tool_count": 2,
            "output_type": "json",
            "user_turn": True,
        },
    ),
    (
        OPENAI_CHAT,
        {"model": "m", "messages": [USER], "n": 1, "stop": "x", "functions": [{}], "max_tokens": 5},
        {
            "request_model": "m",
            "request_max_tokens": 5,
            "request_stop_count": 1,
            "request_tool_count": 1,
            "user_turn": True,
        },
    ),
    (
        OPENAI_CHAT,
        {"model": "m", "modalities": ["text", "audio"], "messages": []},
        {"request_model": "m", "output_type": "speech"},
    ),
    (
        OPENAI_COMPLETIONS,
        {
            "model": "gpt-3.5-turbo-instruct",
            "prompt": [CANARY, "two"],
            "n": 2,
            "max_tokens": 16,
            "suffix": CANARY,
        },
        {
            "request_model": "gpt-3.5-turbo-instruct",
            "request_choice_count": 2,
            "request_max_tokens": 16,
        },
    ),
    (
        OPENAI_RESPONSES,
        {
            "model": "gpt-5",
            "input": CANARY,
            "instructions": CANARY,
            "max_output_tokens": 99,
            "reasoning": {"effort": "high", "summary": "auto"},
            "text": {"format": {"type": "json_object"}, "verbosity": "low"},
            "tools": [{"type": "web_search"}],
            "service_tier": "flex",
            "previous_response_id": "resp_1",
        },
        {
            "request_model": "gpt-5",
            "request_max_tokens": 99,
            "request_reasoning_level": "high",
            "output_type": "json",
            "request_tool_count": 1,
            "request_service_tier": "flex",
            "user_turn": True,
        },
    ),
    (
        ANTHROPIC_MESSAGES,
        {
            "model": "claude-sonnet-4-5",
            "max_tokens": 1024,
            "system": CANARY,
            "messages": [USER],
            "stream": True,
            "temperature": 1.0,
            "top_p": 0.9,
            "top_k": 40,
            "stop_sequences": [CANARY, "b"],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {
                "effort": "low",
                "format": {"type": "json_schema", "schema": {"title": CANARY}},
            },
            "tools": [{"name": CANARY, "input_schema": {"type": "object"}}] * 2,
            "metadata": {"user_id": CANARY},
            "service_tier": "auto",
        },
        {
            "request_model": "claude-sonnet-4-5",
            "request_service_tier": "auto",
            "request_max_tokens": 1024,
            "request_stream": True,
            "request_temperature": 1.0,
            "request_top_p": 0.9,
            "request_top_k": 40,
            "request_stop_count": 2,
            "request_reasoning_level": "low",
            "request_tool_count": 2,
            "output_type": "json",
            "user_turn": True,
        },
    ),
    (
        ANTHROPIC_MESSAGES,
        {"model": "m", "messages": [USER], "output_format": {"type": "json_schema"}},
        {"request_model": "m", "output_type": "json", "user_turn": True},
    ),
    (
        OPENAI_IMAGES,
        {"model": "gpt-image-1", "prompt": CANARY, "n": 2, "stream": True, "size": "1024x1024"},
        {"request_model": "gpt-image-1", "request_choice_count": 2, "request_stream": True},
    ),
    (
        OPENAI_AUDIO,
        {"model": "tts", "input": CANARY, "voice": "alloy", "instructions": CANARY},
        {"request_model": "tts"},
    ),
    (
        OPENAI_MODERATIONS,
        {"model": "omni-moderation-latest", "input": [CANARY]},
        {"request_model": "omni-moderation-latest"},
    ),
    (
        OPENAI_EMBEDDINGS,
        {
            "model": "text-embedding-3-small",
            "input": [CANARY, "b"],
            "dimensions": 256,
            "encoding_format": "base64",
        },
        {
            "request_model": "text-embedding-3-small",
            "request_dimensions": 256,
            "request_encoding_formats": ["base64"],
        },
    ),
]


def enlarge(body):
    """Add so much content that the body is not parsed as a whole."""
    body = dict(body)
    if isinstance(body.get("messages"), list):
        body["messages"] = [{"role": "assistant", "content": LONG}, *body["messages"]]
        if len(body["messages"]) == 1:
            del body["messages"]
            body["padding"] = LONG
    else:
        body["padding"] = {"model": "nested", "text": ['"model":"in a string"', LONG], "n": 9}
    return body


@pytest.mark.parametrize(("protocol", "body", "facts"), EXAMPLES)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_small_and_a_large_body_tell_the_same(protocol, body, facts, indent):
    assert protocol.request(body) == facts
    assert request_facts(protocol, json.dumps(body, indent=indent).encode()) == facts
    large = json.dumps(enlarge(body), indent=indent).encode()
    assert len(large) > MAX_PARSED_REQUEST
    assert request_facts(protocol, large) == facts
    assert CANARY not in repr(protocol.request(enlarge(body)))
    assert CANARY not in repr(skeleton(large))


@pytest.mark.parametrize(
    ("message", "person"),
    [
        (USER, True),
        ({"role": "user", "content": [{"type": "text", "text": CANARY}]}, True),
        ({"role": "user", "content": [IMAGE]}, True),
        ({"role": "user", "content": [{"type": "tool_result", "content": CANARY}]}, False),
        ({"role": "user", "content": []}, False),
        ({"role": "tool", "tool_call_id": "c", "content": CANARY}, False),
        ({"role": "assistant", "content": CANARY}, False),
        ({"role": "system", "content": CANARY}, False),
        ({"content": CANARY}, False),
    ],
)
def test_a_turn_is_a_persons_by_role_and_block_type(message, person):
    body = {"model": "m", "messages": [USER, message]}
    assert OPENAI_CHAT.request(body)["user_turn"] is person
    large = json.dumps({"pad": LONG, **body}).encode()
    assert request_facts(OPENAI_CHAT, large)["user_turn"] is person


RESULT = {"type": "tool_result", "tool_use_id": "t", "content": CANARY}
TEXT = {"type": "text", "text": CANARY}


@pytest.mark.parametrize(
    ("message", "person"),
    [
        (USER, True),
        ({"role": "user", "content": [TEXT]}, True),
        ({"role": "user", "content": [{"type": "image", "source": {}}]}, True),
        ({"role": "user", "content": [{"type": "document", "source": {}}]}, True),
        ({"role": "user", "content": [RESULT]}, False),
        # What stands beside a result is nearly always a reminder of the app's.
        ({"role": "user", "content": [RESULT, TEXT]}, False),
        ({"role": "user", "content": [{"type": "mcp_tool_result", "content": []}]}, False),
        ({"role": "assistant", "content": [TEXT]}, False),
    ],
)
def test_a_message_to_claude_is_a_persons_unless_it_answers_a_tool(message, person):
    body = {"model": "m", "messages": [USER, message]}
    assert ANTHROPIC_MESSAGES.request(body)["user_turn"] is person
    large = json.dumps({"pad": LONG, **body}).encode()
    assert request_facts(ANTHROPIC_MESSAGES, large)["user_turn"] is person


@pytest.mark.parametrize(
    ("item", "person"),
    [
        (USER, True),
        ({"type": "message", "role": "user", "content": [{"type": "input_text"}]}, True),
        ({"type": "function_call_output", "call_id": "c", "output": CANARY}, False),
        ({"type": "reasoning", "summary": []}, False),
    ],
)
def test_a_responses_item_is_a_persons_by_role_and_block_type(item, person):
    body = {"model": "m", "input": [USER, item]}
    assert OPENAI_RESPONSES.request(body)["user_turn"] is person
    large = json.dumps({"pad": LONG, **body}).encode()
    assert request_facts(OPENAI_RESPONSES, large)["user_turn"] is person


class Model(str, enum.Enum):
    SMALL = "small-1"


class Rude(dict):
    def get(self, *args):
        raise RuntimeError("rude")


class Vector:
    def __ne__(self, other):
        return self

    __eq__ = __ne__

    def __bool__(self):
        raise ValueError("the truth of a vector is ambiguous")


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ({"model": 5, "stream": "yes", "temperature": "hot", "top_k": 1.5, "n": True}, {}),
        ({"model": "", "temperature": True, "max_tokens": -1, "tools": "all", "stop": 3}, {}),
        ({"model": "x" * 513, "temperature": float("nan"), "top_p": float("inf")}, {}),
        ({"model": "two\nlines", "service_tier": "a sentence, with words"}, {}),
        ({"model": None, "messages": None, "response_format": "json"}, {}),
        ({"messages": "hello", "response_format": {"type": ["x"]}, "modalities": {}}, {}),
        ({"messages": ["hello"], "reasoning_effort": "!"}, {}),
        ({"model": Model.SMALL}, {"request_model": "small-1"}),
        ({"model": Vector(), "n": Vector(), "messages": [Vector()]}, {}),
        ({"model": "m", "temperature": 10**400, "top_k": 2**70}, {"request_model": "m"}),
        (Rude(model="m"), {}),
    ],
)
def test_a_value_of_another_type_sets_nothing(body, facts):
    found = OPENAI_CHAT.request(body)
    assert found == facts
    assert all(type(value) in {str, int, float, bool, list} for value in found.values())


def test_every_row_names_a_fact_that_calls_have():
    rows = [row for protocol in ALL for row in (*protocol.asked, *protocol.answered)]
    assert {fact for fact, _, _ in rows} <= set(CHECKS)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b'{"model"', b"\xff\xfe", b"model=x", b"[" * 100_000]
)
def test_a_body_that_is_no_json_object_gives_no_facts(body):
    for protocol in ALL:
        assert request_facts(protocol, body) == {}
        assert request_facts(protocol, body.ljust(MAX_PARSED_REQUEST + 1)) == {}


def test_a_large_body_is_not_fooled_by_nested_keys_and_strings():
    body = {
        "metadata": {"model": "nested", "stream": True, "deep": [{"model": "deeper"}]},
        "messages": [
            {"role": "user", "content": '","model":"in text","stream":true,"a":"\\'},
            {"role": "assistant", "content": LONG + '\\"}],"model":"in text"'},
        ],
        "model": "real",
    }
    large = json.dumps(body).encode()
    assert request_facts(OPENAI_CHAT, large) == {"request_model": "real", "user_turn": False}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(["user", "tool", "text", "m", "json_object", "low", 'a"b', "\\", "é\u2028"])
KEYS = ["model", "messages", "input", "stop", "tools", "n", "stream", "text", "reasoning"]
KEYS += ["output_config", "stop_sequences"]
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": WORDS},
        optional={
            "content": WORDS | st.lists(st.fixed_dictionaries({"type": WORDS}), max_size=6) | JSON
        },
    ),
    max_size=12,
)


def only_objects(value, key=""):
    """Messages and blocks are objects; a list that mixes in others is no request."""
    if isinstance(value, dict):
        return {key: only_objects(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        kept = [
            v for v in value if isinstance(v, dict) or key not in {"messages", "input", "content"}
        ]
        return [only_objects(inner, key) for inner in kept]
    return value


BODIES = st.dictionaries(
    st.sampled_from(KEYS) | st.text(), JSON | WORDS | MESSAGES, max_size=9
).map(only_objects)


@settings(max_examples=200, deadline=None)
@given(BODIES, st.booleans(), st.sampled_from([None, 1, "\t"]))
@example(
    {"messages": [{"role": "user", "content": [{"type": "{"}, {"}": "]"}]}], "model": '\\"'},
    True,
    None,
)
def test_the_shape_of_any_body_tells_what_parsing_it_tells(body, ascii_only, indent):
    wire = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    parsed = json.loads(wire)
    shape = skeleton(wire)
    for protocol in (OPENAI_CHAT, OPENAI_RESPONSES, ANTHROPIC_MESSAGES):
        assert protocol.request(shape) == protocol.request(parsed)


def test_escapes_do_not_move_the_end_of_a_string():
    body = {
        "model": 'C:\\models\\tiny "one"',
        "messages": [{"role": "user", "content": json.dumps([CANARY + "\\", '"', '\\\\"'])}],
        "temperature": 0.5,
    }
    shape = skeleton(json.dumps(body).encode())
    assert OPENAI_CHAT.request(shape) == OPENAI_CHAT.request(body)
    assert CANARY not in repr(shape)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | BODIES.map(lambda b: json.dumps(b).encode()), st.data())
def test_no_bytes_make_the_shape_raise(wire, data):
    cut = data.draw(st.integers(0, len(wire)))
    noise = data.draw(st.sampled_from([b"", b'"', b"\\", b"{", b"]", b"\xff", b","]))
    assert isinstance(skeleton(wire[:cut] + noise + wire[cut:]), dict)
    assert isinstance(skeleton(wire[:cut]), dict)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), st.just(CANARY) | JSON, max_size=9))
def test_a_wrong_shape_never_brings_content_into_facts(body):
    for protocol in ALL:
        for value in protocol.request({**body, "model": "m"}).values():
            assert CANARY not in repr(value)


def test_a_body_that_is_no_mapping_gives_no_facts():
    for protocol in ALL:
        assert protocol.request(None) == {}
        assert protocol.response(42) == {}

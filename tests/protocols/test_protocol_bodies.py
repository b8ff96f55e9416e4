"""What is learnt of whole JSON answers: documented ones, large ones, errors, broken ones."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.protocols.anthropic_messages import ANTHROPIC_MESSAGES
from sottovoce.protocols.bedrock_converse import BEDROCK_CONVERSE
from sottovoce.protocols.bedrock_invoke import BEDROCK_INVOKE
from sottovoce.protocols.openai_audio import OPENAI_AUDIO
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_completions import OPENAI_COMPLETIONS
from sottovoce.protocols.openai_embeddings import OPENAI_EMBEDDINGS
from sottovoce.protocols.openai_images import OPENAI_IMAGES
from sottovoce.protocols.openai_moderations import OPENAI_MODERATIONS
from sottovoce.protocols.openai_responses import OPENAI_RESPONSES

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


def answer(content=CANARY, **message):
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1741569952,
        "model": "gpt-4.1-2025-04-14",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None, **message},
                "logprobs": None,
                "finish_reason": "tool_calls" if message else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 19,
            "completion_tokens": 10,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
        "service_tier": "default",
    }


CHAT_FACTS = {
    "response_model": "gpt-4.1-2025-04-14",
    "response_service_tier": "default",
    "finish_reasons": ["stop"],
    "input_tokens": 19,
    "output_tokens": 10,
    "cache_read_tokens": 3,
    "reasoning_tokens": 2,
}
CALL = {"id": "c", "type": "function", "function": {"name": CANARY, "arguments": "{}"}}

BODIES = {
    "chat": (OPENAI_CHAT, answer(), CHAT_FACTS),
    "chat with tool calls": (
        OPENAI_CHAT,
        answer(None, tool_calls=[CALL, CALL]),
        {**CHAT_FACTS, "finish_reasons": ["tool_calls"], "tool_call_count": 2},
    ),
    "chat with a call as it was written before there were several": (
        OPENAI_CHAT,
        answer(None, function_call={"name": "weather", "arguments": CANARY}),
        {**CHAT_FACTS, "finish_reasons": ["tool_calls"], "tool_call_count": 1}
        | {"tool_names": ["weather"]},
    ),
    "chat with one call written in both ways": (
        OPENAI_CHAT,
        answer(None, tool_calls=[CALL], function_call=CALL["function"]),
        {**CHAT_FACTS, "finish_reasons": ["tool_calls"], "tool_call_count": 1},
    ),
    "chat with choices in another order": (
        OPENAI_CHAT,
        {
            "model": "m",
            "choices": [
                {"index": 1, "finish_reason": "length", "message": {"content": CANARY}},
                {"index": 0, "finish_reason": "stop", "message": {"content": CANARY}},
            ],
        },
        {"response_model": "m", "finish_reasons": ["stop", "length"]},
    ),
    "azure": (
        OPENAI_CHAT,
        {
            **answer(),
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}],
            "usage": None,
        },
        {k: v for k, v in CHAT_FACTS.items() if not k.endswith("_tokens")},
    ),
    "mlx_lm.server": (
        OPENAI_CHAT,
        {
            "id": "chatcmpl-2",
            "system_fingerprint": "x",
            "object": "chat.completion",
            "model": "default_model",
            "created": 1,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "length",
                    "logprobs": {"content": [{"id": 3, "logprob": -1.5}]},
                    "message": {"role": "assistant", "content": CANARY, "reasoning": CANARY},
                }
            ],
            "usage": {
                "prompt_tokens": 7,
                "completion_tokens": 5,
                "total_tokens": 12,
                "prompt_tokens_details": {"cached_tokens": 6},
            },
        },
        {
            "response_model": "default_model",
            "finish_reasons": ["length"],
            "input_tokens": 7,
            "output_tokens": 5,
            "cache_read_tokens": 6,
        },
    ),
    "llama_cpp.server": (
        OPENAI_CHAT,
        {
            "id": "chatcmpl-3",
            "object": "chat.completion",
            "created": 1,
            "model": "/models/Some Folder/tiny.gguf",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": CANARY},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 21, "completion_tokens": 8, "total_tokens": 29},
        },
        {
            "response_model": "/models/Some Folder/tiny.gguf",
            "finish_reasons": ["stop"],
            "input_tokens": 21,
            "output_tokens": 8,
        },
    ),
    "completions": (
        OPENAI_COMPLETIONS,
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": "gpt-3.5-turbo-instruct",
            "choices": [{"text": CANARY, "index": 0, "logprobs": None, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        },
        {
            "response_model": "gpt-3.5-turbo-instruct",
            "finish_reasons": ["length"],
            "input_tokens": 5,
            "output_tokens": 7,
        },
    ),
    "responses": (
        OPENAI_RESPONSES,
        {
            "id": "resp_1",
            "object": "response",
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": CANARY,
            "model": "gpt-5",
            "output": [
                {"type": "reasoning", "summary": []},
                {"type": "web_search_call", "status": "completed"},
                {"type": "message", "content": [{"type": "output_text", "text": CANARY}]},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"usage": {"type": "x"}}}],
            "usage": {
                "input_tokens": 36,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 87,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 123,
            },
            "metadata": {"model": CANARY},
        },
        {
            "response_model": "gpt-5",
            "finish_reasons": ["stop"],
            "input_tokens": 36,
            "output_tokens": 87,
            "cache_read_tokens": 0,
            "reasoning_tokens": 0,
            "tool_call_count": 1,
        },
    ),
    "responses in the background": (
        OPENAI_RESPONSES,
        {"object": "response", "status": "queued", "model": "gpt-5", "output": [], "usage": None},
        {"response_model": "gpt-5"},
    ),
    "chat with sound and a tool that is named": (
        OPENAI_CHAT,
        {
            "model": "gpt-4o-audio-preview",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "tool_calls",
                    "message": {
                        "content": CANARY,
                        "audio": {"id": "a", "data": CANARY, "transcript": CANARY},
                        "tool_calls": [
                            {"id": "c", "type": "function", "function": {"name": "weather"}},
                            {"id": "d", "type": "custom", "custom": {"name": "time"}},
                            {"id": "e", "type": "function", "function": {"name": CANARY}},
                        ],
                    },
                }
            ],
            "usage": {
                "prompt_tokens": 19,
                "completion_tokens": 10,
                "prompt_tokens_details": {"audio_tokens": 7, "text_tokens": 12},
                "completion_tokens_details": {"audio_tokens": 8, "reasoning_tokens": 0},
            },
        },
        {
            "response_model": "gpt-4o-audio-preview",
            "finish_reasons": ["tool_calls"],
            "input_tokens": 19,
            "output_tokens": 10,
            "reasoning_tokens": 0,
            "input_audio_tokens": 7,
            "output_audio_tokens": 8,
            "tool_call_count": 3,
            "tool_names": ["weather", "time"],
        },
    ),
    "images": (
        OPENAI_IMAGES,
        {
            "created": 1713833628,
            "background": "transparent",
            "data": [{"b64_json": CANARY, "revised_prompt": CANARY}],
            "output_format": "png",
            "quality": "high",
            "size": "1024x1024",
            "usage": {
                "total_tokens": 100,
                "input_tokens": 50,
                "output_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            },
        },
        {
            "input_tokens": 50,
            "output_tokens": 50,
            "input_text_tokens": 10,
            "input_image_tokens": 40,
        },
    ),
    "a transcript": (
        OPENAI_AUDIO,
        {
            "text": CANARY,
            "logprobs": [{"token": CANARY, "logprob": -0.5}],
            "usage": {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 10, "audio_tokens": 4},
                "output_tokens": 45,
                "total_tokens": 59,
            },
        },
        {
            "input_tokens": 14,
            "output_tokens": 45,
            "input_text_tokens": 10,
            "input_audio_tokens": 4,
        },
    ),
    "a transcript that is paid for by the minute": (
        OPENAI_AUDIO,
        {"text": CANARY, "usage": {"type": "duration", "seconds": 6}},
        {},
    ),
    "a transcript of Mistral's": (
        OPENAI_AUDIO,
        {
            "model": "voxtral-mini-2507",
            "text": CANARY,
            "language": None,
            "segments": [{"text": CANARY, "start": 0, "end": 1}],
            "usage": {
                "prompt_audio_seconds": 203,
                "prompt_tokens": 4,
                "completion_tokens": 635,
                "total_tokens": 3264,
            },
        },
        {"response_model": "voxtral-mini-2507", "input_tokens": 4, "output_tokens": 635},
    ),
    "moderations": (
        OPENAI_MODERATIONS,
        {
            "id": "modr-1",
            "model": "omni-moderation-latest",
            "results": [{"flagged": True, "categories": {CANARY: True}}],
        },
        {"response_model": "omni-moderation-latest"},
    ),
    "messages": (
        ANTHROPIC_MESSAGES,
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-4-5-20250929",
            "content": [
                {"type": "thinking", "thinking": CANARY, "signature": CANARY},
                {"type": "text", "text": CANARY},
                {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
                {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
                {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": CANARY}},
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 2095,
                "cache_creation_input_tokens": 51,
                "cache_read_input_tokens": 2051,
                "output_tokens": 503,
                "output_tokens_details": {"thinking_tokens": 100},
                "service_tier": "standard",
            },
        },
        {
            "response_model": "claude-sonnet-4-5-20250929",
            "finish_reasons": ["tool_use"],
            "input_tokens": 4197,
            "output_tokens": 503,
            "cache_read_tokens": 2051,
            "cache_write_tokens": 51,
            "reasoning_tokens": 100,
            "response_service_tier": "standard",
            "tool_call_count": 2,
            "tool_names": ["web_search", "weather"],
        },
    ),
    "messages of others that speak the wire": (
        ANTHROPIC_MESSAGES,
        {
            "type": "message",
            "model": "local",
            "content": [{"type": "text", "text": CANARY}],
            "stop_reason": "stop_sequence",
            "stop_sequence": CANARY,
            "usage": {"input_tokens": 5, "output_tokens": 7},
        },
        {
            "response_model": "local",
            "finish_reasons": ["stop_sequence"],
            "input_tokens": 5,
            "output_tokens": 7,
        },
    ),
    "embeddings": (
        OPENAI_EMBEDDINGS,
        {
            "object": "list",
            "data": [{"object": "embedding", "embedding": [0.1, -0.2], "index": 0}],
            "model": "text-embedding-3-small",
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        {"response_model": "text-embedding-3-small", "input_tokens": 8},
    ),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("size", [1, 1000])
def test_a_body_tells_its_facts_and_leaves_the_call_open(reading, name, indent, size):
    protocol, body, facts = BODIES[name]
    wire = json.dumps(body, indent=indent).encode()
    read = reading(protocol, "application/json; charset=utf-8")
    read.feed(*(wire[i : i + size] for i in range(0, len(wire), size)))
    assert read.facts == {}
    assert read.finish().facts == facts
    assert (read.call.is_open, read.call.chunks, read.call.stream) == (True, 0, False)
    assert (read.malformed, read.reader.error) == ([], None)
    at_once = reading(protocol, None)
    at_once.reader.whole(b"\xef\xbb\xbf" + wire)
    assert at_once.facts == facts


@pytest.mark.parametrize("vectors", [1, 8, 200])
def test_a_large_embeddings_answer_is_read_at_its_edges(reading, vectors):
    body = {
        **BODIES["embeddings"][1],
        "data": [{"object": "embedding", "index": i, "embedding": [0.25] * 1536} for i in range(8)],
    }
    read = reading(OPENAI_EMBEDDINGS, "application/json").feed(json.dumps(body).encode()).finish()
    assert read.facts == {"response_model": "text-embedding-3-small", "input_tokens": 8}
    assert read.malformed == []


def test_an_embeddings_answer_that_begins_with_the_model_is_read_as_well(reading):
    body = {
        "id": "embd-1",
        "object": "list",
        "model": "first",
        "data": [{"index": 0, "embedding": [0.25] * 40_000, "object": "embedding"}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8, "completion_tokens": 0},
    }
    read = reading(OPENAI_EMBEDDINGS, "application/json").feed(json.dumps(body).encode()).finish()
    assert read.facts == {"response_model": "first", "input_tokens": 8}


@pytest.mark.parametrize("size", [5 << 20, 50_000])
def test_a_large_chat_answer_is_read_at_its_edges_and_text_does_not_fool_it(reading, size):
    fake = '"model":"fake","usage":{"prompt_tokens":1},"finish_reason":"fake"}'
    wire = json.dumps(answer(CANARY * 30_000 + fake * 3)).encode()
    read = reading(content_type="application/json")
    read.feed(*(wire[i : i + size] for i in range(0, len(wire), size))).finish()
    # The tier comes after the text, where only the counts and the reason are looked for.
    assert read.facts == {k: v for k, v in CHAT_FACTS.items() if k != "response_service_tier"}
    assert read.malformed == []


def test_a_large_answer_of_several_choices_says_nothing_of_their_ends(reading):
    body = answer(CANARY * 30_000)
    body["choices"] *= 2
    read = reading(content_type="application/json")
    read.call.facts["request_choice_count"] = 2
    read.feed(json.dumps(body).encode()).finish()
    assert "finish_reasons" not in read.facts
    assert read.facts["input_tokens"] == 19


def test_a_large_responses_answer_does_not_take_a_tools_schema_for_usage(reading):
    body = dict(BODIES["responses"][1])
    body["output"] = [{"type": "message", "content": [{"text": CANARY * 30_000}]}]
    body["tools"] = [{"name": "f", "model": "nested", "parameters": {"usage": {"type": "x"}}}]
    read = reading(OPENAI_RESPONSES, "application/json").feed(json.dumps(body).encode()).finish()
    assert read.facts == {
        "response_model": "gpt-5",
        "input_tokens": 36,
        "output_tokens": 87,
        "cache_read_tokens": 0,
        "reasoning_tokens": 0,
    }


def test_a_tools_schema_alone_is_no_usage(reading):
    body = {"status": "completed", "output": [{"text": CANARY * 30_000}], "usage": None}
    body["tools"] = [{"parameters": {"usage": {"input_tokens": {"type": "integer"}}}}]
    read = reading(OPENAI_RESPONSES, "application/json").feed(json.dumps(body).encode()).finish()
    assert (read.facts, read.malformed) == ({}, ["size"])


def test_a_large_body_without_usage_is_counted(reading):
    body = {"object": "list", "data": [0.5] * 10_000}
    read = reading(OPENAI_EMBEDDINGS, "application/json").feed(json.dumps(body).encode()).finish()
    assert (read.facts, read.malformed) == ({}, ["size"])


@pytest.mark.parametrize(
    ("protocol", "body", "code"),
    [
        (
            OPENAI_CHAT,
            {
                "error": {
                    "message": CANARY,
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "model_not_found",
                }
            },
            "model_not_found",
        ),
        (
            OPENAI_CHAT,
            {"error": {"message": CANARY, "type": "invalid_request_error", "code": None}},
            "invalid_request_error",
        ),
        (
            OPENAI_CHAT,
            {"error": {"code": "429", "message": CANARY, "innererror": {"code": CANARY}}},
            "429",
        ),
        (OPENAI_CHAT, {"error": CANARY}, "_OTHER"),
        (OPENAI_EMBEDDINGS, {"object": "error", "message": CANARY, "code": 400}, "400"),
        (
            OPENAI_RESPONSES,
            {"status": "failed", "error": {"code": "server_error", "message": CANARY}},
            "server_error",
        ),
        (OPENAI_RESPONSES, {"error": {"type": "x_error"}}, "x_error"),
        (
            ANTHROPIC_MESSAGES,
            {"type": "error", "error": {"type": "overloaded_error", "message": CANARY}},
            "overloaded_error",
        ),
        (ANTHROPIC_MESSAGES, {"type": "error", "error": None}, "_OTHER"),
        (ANTHROPIC_MESSAGES, {"error": {"message": CANARY, "code": 400}}, "400"),
        (ANTHROPIC_MESSAGES, {"type": "message", "error": None}, None),
        (
            OPENAI_IMAGES,
            {"error": {"code": "content_policy_violation"}},
            "content_policy_violation",
        ),
        (OPENAI_CHAT, {"detail": CANARY}, None),
        (OPENAI_CHAT, {"error": None}, None),
    ],
)
def test_an_error_is_known_by_its_code_and_the_call_is_left_to_its_opener(
    reading, protocol, body, code
):
    read = reading(protocol, "application/problem+json").feed(json.dumps(body).encode()).finish()
    assert read.reader.error == code
    assert read.call.is_open
    assert CANARY not in repr(read.facts)


@pytest.mark.parametrize(
    ("wire", "reasons"),
    [
        (b"", []),
        (b"{", ["json"]),
        (b"[]", ["type"]),
        (b"null", ["type"]),
        (b"upstream timed out", ["json"]),
        (b'{"model":"m","x":"\xff"}', ["utf8"]),
        (b'{"usage":7}', ["type"]),
        (b'{"usage":{"prompt_tokens":"7"},"model":[]}', ["type"]),
        (b'{"model":"m","choices":7,"service_tier":""}', []),
        (b'{"a":' + b"[" * 100_000, ["json"]),
        (b'{"usage":{"prompt_tokens":' + b"9" * 5000 + b"}}", ["json"]),
    ],
)
def test_a_broken_body_is_counted_and_does_no_harm(reading, wire, reasons):
    read = reading(content_type="application/json").feed(wire).finish()
    assert read.malformed == reasons
    assert set(read.facts) <= {"response_model"}
    assert read.call.is_open


@pytest.mark.parametrize("size", [5 << 20, 50_000])
@pytest.mark.parametrize("name", ["images", "messages"])
def test_the_counts_of_a_large_answer_are_found_at_its_end(reading, name, size):
    protocol, body, facts = BODIES[name]
    place = "data" if name == "images" else "content"
    large = {**body, place: [{"b64_json": CANARY * 30_000, "text": '"usage":{"input_tokens":1}'}]}
    wire = json.dumps(large).encode()
    read = reading(protocol, "application/json")
    read.feed(*(wire[i : i + size] for i in range(0, len(wire), size))).finish()
    kept = {k: v for k, v in facts.items() if not k.startswith("tool_")}
    assert (read.facts, read.malformed) == (kept, [])


@pytest.mark.parametrize("kind", ["text/plain", "audio/mpeg", "text/html", None])
def test_other_content_is_not_looked_at(reading, kind):
    read = reading(content_type=kind).feed(json.dumps(answer()).encode(), b"data: {}\n\n").finish()
    assert (read.facts, read.call.chunks, read.malformed) == ({}, 0, [])
    assert read.call.is_open


def test_a_reader_that_is_closed_early_leaves_the_call_as_it_is(reading):
    read = reading(content_type="application/json").feed(b'{"model":"m"')
    read.reader.close()
    assert read.finish().facts == {}
    assert read.call.is_open


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["index", "finish_reason", "code", "type"]), inner)
    ),
    max_leaves=8,
)
KEYS = ["choices", "usage", "error", "output", "status", "response", "item", "type", "object"]
KEYS += ["message", "content", "content_block", "delta", "stop_reason", "index"]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(BODIES)), st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_no_value_in_any_place_raises_or_brings_content(reading, name, change):
    wire = json.dumps({**BODIES[name][1], **change}).encode()
    for protocol in ALL:
        whole = reading(protocol, "application/json").feed(wire).finish()
        event = reading(protocol).feed(b"data: " + wire + b"\n\n").finish()
        for read in (whole, event):
            assert "reader" not in read.malformed
            assert CANARY not in repr(read.result)
            assert CANARY not in repr(read.reader.error)

"""What is learnt of event streams: the examples of the API's reference, and broken ones."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_completions import OPENAI_COMPLETIONS
from sottovoce.protocols.openai_responses import OPENAI_RESPONSES
from sottovoce.protocols.reader import MAX_EVENT

CANARY = "the canary sings"
DONE = b"data: [DONE]\n\n"


def chunk(delta=None, finish=None, index=0, **more):
    choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1730000000,
        "model": "gpt-4o-mini-2024-07-18",
        "system_fingerprint": "fp_1",
        "choices": [choice],
        **more,
    }


ROLE = chunk({"role": "assistant", "content": ""}, service_tier="default", usage=None)
HELLO = chunk({"content": CANARY}, usage=None)
STOP = chunk({}, "stop", usage=None)
USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
}
LAST = {**chunk(), "choices": [], "usage": USAGE}
MODEL = {"response_model": "gpt-4o-mini-2024-07-18"}
COUNTS = {
    "input_tokens": 19,
    "output_tokens": 10,
    "cache_read_tokens": 8,
    "cache_write_tokens": 4,
    "reasoning_tokens": 2,
}


def tool(index, identity=None, name=None, arguments="", choice=0):
    call = {"index": index}
    if identity:
        call |= {"id": identity, "type": "function"}
    call["function"] = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return chunk({"tool_calls": [call]}, index=choice)


AZURE_FIRST = {
    "choices": [],
    "created": 0,
    "id": "",
    "model": "",
    "object": "",
    "prompt_filter_results": [
        {"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}
    ],
}
MLX = {
    "id": "chatcmpl-2",
    "system_fingerprint": "0.32-arm64",
    "object": "chat.completion.chunk",
    "model": "default_model",
    "created": 1,
}

STREAMS = {
    "with usage": (
        [ROLE, HELLO, HELLO, STOP, LAST],
        {**MODEL, **COUNTS, "response_service_tier": "default", "finish_reasons": ["stop"]},
    ),
    "without usage": (
        [ROLE, HELLO, STOP],
        {**MODEL, "response_service_tier": "default", "finish_reasons": ["stop"]},
    ),
    "usage null throughout": (
        [HELLO, {**STOP, "usage": None}],
        {**MODEL, "finish_reasons": ["stop"]},
    ),
    "several choices, ending out of order": (
        [
            chunk({"content": "a"}, index=0),
            chunk({"content": "b"}, index=1),
            chunk({}, "length", index=1),
            chunk({"content": "c"}, index=2),
            chunk({}, "stop", index=0),
            chunk({}, "content_filter", index=2),
        ],
        {**MODEL, "finish_reasons": ["stop", "length", "content_filter"]},
    ),
    "a choice that never ends": (
        [chunk({"content": "a"}, index=0), chunk({}, "stop", index=1)],
        {**MODEL, "finish_reasons": ["error", "stop"]},
    ),
    "tool calls": (
        [
            ROLE,
            tool(0, "call_a", "weather"),
            tool(0, arguments='{"name": "'),
            tool(0, arguments='x"}'),
            tool(1, "call_b", "time"),
            tool(1, arguments="{}"),
            chunk({}, "tool_calls"),
        ],
        {
            **MODEL,
            "response_service_tier": "default",
            "finish_reasons": ["tool_calls"],
            "tool_call_count": 2,
            "tool_names": ["weather", "time"],
        },
    ),
    "tool calls that are all number 0": (
        [HELLO, tool(0, "a", "f"), tool(0, "b", "f"), chunk({}, "tool_calls")],
        {**MODEL, "finish_reasons": ["tool_calls"], "tool_call_count": 2}
        | {"tool_names": ["f", "f"]},
    ),
    "tool calls that repeat their name and have no id": (
        [HELLO, tool(0, None, "f"), tool(0, None, "f", "{}"), chunk({}, "tool_calls")],
        {**MODEL, "finish_reasons": ["tool_calls"], "tool_call_count": 1} | {"tool_names": ["f"]},
    ),
    "a call as it was written before there were several": (
        [
            HELLO,
            chunk({"function_call": {"name": "f", "arguments": ""}}),
            chunk({"function_call": {"arguments": "{}"}}),
            chunk({}, "function_call"),
        ],
        {**MODEL, "finish_reasons": ["function_call"], "tool_call_count": 1}
        | {"tool_names": ["f"]},
    ),
    "azure": (
        [AZURE_FIRST, HELLO, STOP],
        {**MODEL, "finish_reasons": ["stop"]},
    ),
    "groq": (
        [HELLO, {**STOP, "x_groq": {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}}],
        {**MODEL, "finish_reasons": ["stop"], "input_tokens": 3, "output_tokens": 4},
    ),
    "deepseek": (
        [
            {
                **STOP,
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 1,
                    "prompt_cache_hit_tokens": 8,
                    "prompt_cache_miss_tokens": 1,
                },
            }
        ],
        {
            **MODEL,
            "finish_reasons": ["stop"],
            "input_tokens": 9,
            "output_tokens": 1,
            "cache_read_tokens": 8,
        },
    ),
    "mlx_lm.server": (
        [
            {
                **MLX,
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": None,
                        "delta": {"role": "assistant", "content": CANARY},
                    }
                ],
            },
            {
                **MLX,
                "choices": [
                    {"index": 0, "finish_reason": "length", "delta": {"role": "assistant"}}
                ],
            },
            {
                **MLX,
                "choices": [],
                "usage": {
                    "prompt_tokens": 7,
                    "completion_tokens": 5,
                    "total_tokens": 12,
                    "prompt_tokens_details": {"cached_tokens": 0},
                },
            },
        ],
        {
            "response_model": "default_model",
            "finish_reasons": ["length"],
            "input_tokens": 7,
            "output_tokens": 5,
            "cache_read_tokens": 0,
        },
    ),
}

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "in_progress",
    "model": "gpt-5-2025-08-07",
    "output": [],
    "usage": None,
    "service_tier": "auto",
}
RESPONSE_USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 1},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 123,
}
RESPONSE_COUNTS = {
    "input_tokens": 36,
    "output_tokens": 87,
    "cache_read_tokens": 12,
    "cache_write_tokens": 1,
    "reasoning_tokens": 64,
}
MESSAGE = {"type": "message", "role": "assistant", "content": [{"text": CANARY}]}
FUNCTION = {"type": "function_call", "id": "fc_1", "name": CANARY, "arguments": "{}"}


def events(*bodies):
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (body["type"].encode(), json.dumps(body).encode())
        for body in bodies
    )


def response(kind, **more):
    return {"type": kind, "sequence_number": 0, "response": {**RESPONSE, **more}}


DELTA = {"type": "response.output_text.delta", "item_id": "msg_1", "delta": CANARY}
ADDED = {"type": "response.output_item.added", "output_index": 1, "item": FUNCTION}
CREATED = response("response.created")
COMPLETED = response(
    "response.completed",
    status="completed",
    service_tier="default",
    output=[MESSAGE],
    usage=RESPONSE_USAGE,
)

RESPONSES = {
    "completed": (
        [CREATED, response("response.in_progress"), DELTA, DELTA, COMPLETED],
        {
            "response_model": "gpt-5-2025-08-07",
            "response_service_tier": "default",
            "finish_reasons": ["stop"],
            **RESPONSE_COUNTS,
        },
        4,
        ("completed", None),
    ),
    "tool calls": (
        [
            CREATED,
            ADDED,
            response("response.completed", status="completed", output=[MESSAGE, FUNCTION]),
        ],
        {
            "response_model": "gpt-5-2025-08-07",
            "response_service_tier": "auto",
            "finish_reasons": ["tool_calls"],
            "tool_call_count": 1,
        },
        2,
        ("completed", None),
    ),
    "incomplete": (
        [
            CREATED,
            DELTA,
            response(
                "response.incomplete",
                status="incomplete",
                incomplete_details={"reason": "max_output_tokens"},
                usage=RESPONSE_USAGE,
            ),
        ],
        {
            "response_model": "gpt-5-2025-08-07",
            "response_service_tier": "auto",
            "finish_reasons": ["length"],
            **RESPONSE_COUNTS,
        },
        2,
        ("completed", None),
    ),
    "failed": (
        [
            CREATED,
            response(
                "response.failed",
                status="failed",
                error={"code": "server_error", "message": CANARY},
            ),
        ],
        {
            "response_model": "gpt-5-2025-08-07",
            "response_service_tier": "auto",
            "finish_reasons": ["error"],
        },
        1,
        ("failed", "server_error"),
    ),
    "error": (
        [
            CREATED,
            {"type": "error", "code": "rate_limit_exceeded", "message": CANARY, "param": None},
        ],
        {"response_model": "gpt-5-2025-08-07", "response_service_tier": "auto"},
        1,
        ("failed", "rate_limit_exceeded"),
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_chat_stream_tells_its_facts(reading, sse, name):
    bodies, facts = STREAMS[name]
    read = reading().feed(sse(*bodies))
    assert read.facts == facts
    assert read.call.chunks == len(bodies)
    assert read.call.stream
    assert not read.call.is_open
    assert read.call.outcome == "completed"
    assert read.malformed == []
    assert read.finish().call.recorder.ends == 1


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("size", [1 << 20, 100, 1])
def test_a_responses_stream_tells_its_facts(reading, name, size):
    bodies, facts, chunks, end = RESPONSES[name]
    wire = events(*bodies)
    read = reading(OPENAI_RESPONSES)
    read.feed(*(wire[i : i + size] for i in range(0, len(wire), size)))
    assert read.facts == facts
    assert read.call.chunks == chunks
    assert (read.call.outcome, read.call.error) == end
    assert not read.call.is_open
    assert read.malformed == []


def test_a_dropped_responses_stream_knows_the_tool_calls_that_began(reading):
    read = reading(OPENAI_RESPONSES).feed(events(CREATED, ADDED, DELTA))
    assert read.facts["tool_call_count"] == 1
    assert read.call.is_open


def test_text_completions_have_the_shape_of_chat(reading, sse):
    piece = {"object": "text_completion", "model": "m", "choices": [{"text": CANARY, "index": 0}]}
    last = {**piece, "choices": [{"text": "", "index": 0, "finish_reason": "length"}]}
    read = reading(OPENAI_COMPLETIONS).feed(sse(piece, last))
    assert read.facts == {"response_model": "m", "finish_reasons": ["length"]}
    assert read.call.chunks == 2


def test_keepalive_comments_and_other_fields_are_no_chunks(reading, sse):
    wire = (
        b": keepalive 3/10\n\nretry: 10\n\nid: 1\nevent: message\n"
        + sse(ROLE, end=b"")
        + b": keepalive 10/10\n\n"
        + sse(STOP)
    )
    read = reading().feed(wire)
    assert read.call.chunks == 2
    assert read.malformed == []


@pytest.mark.parametrize(
    "wire",
    [
        b'data:{"model":"m",\ndata:"choices":[]}\n\n',
        b'\xef\xbb\xbfdata: {"model":"m","choices":[]}\n\n',
        b'data: {"model":"m","choices":[]}\r\n\r\n',
        b'data: {"model":"m","choices":[]}\r\r',
        b'data: {"model":"m","choices":[]}\r\n\n',
        b'data: {"model":"m",\rdata: "choices":[]}\n\n',
        b'\n\n\ndata: {"model":"m","choices":[]}\n\n\n\n',
        b'data: {"model":"m",\r\nevent: x\rdata: "choices":[]}\n\n',
        b'event: x\ndata: {"model":"m","choices":[]}\nid: 3\n\n',
        b'data2: {"model":"no"}\ndata: {"model":"m"}\n\n',
    ],
)
def test_every_spelling_of_the_grammar_is_read_wherever_it_is_cut(reading, wire):
    for at in range(len(wire) + 1):
        read = reading().feed(wire[:at], wire[at:], DONE)
        assert (read.facts, read.call.chunks) == ({"response_model": "m"}, 1), at
        assert not read.call.is_open


def test_an_event_without_facts_is_counted_and_never_parsed(reading):
    read = reading().feed(b'data: {"model":"m","choices":[]}\n\n')
    read.feed(b"data: this is no JSON at all \xff\n\n", b"data:\n\n")
    assert read.call.chunks == 3
    assert read.malformed == []


def test_nothing_after_the_last_event_counts(reading, sse):
    read = reading().feed(sse(ROLE, STOP), sse(HELLO, end=b""), sse(LAST, HELLO), b"data: x")
    assert read.call.chunks == 2
    assert "input_tokens" not in read.facts
    assert read.finish().malformed == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"error": {"message": CANARY, "type": "server_error", "code": None}}, "server_error"),
        ({"error": {"message": CANARY, "type": "x", "code": "content_filter"}}, "content_filter"),
        ({"error": {"message": CANARY, "code": 429}}, "429"),
        ({"error": {"message": CANARY, "code": CANARY}}, "_OTHER"),
        ({"error": {"message": CANARY, "code": "1234", "type": ["x"]}}, "_OTHER"),
        ({"error": CANARY}, "_OTHER"),
        (
            {"object": "error", "message": CANARY, "type": "BadRequestError", "code": 400},
            "BadRequestError",
        ),
    ],
)
def test_an_error_event_fails_the_call_with_a_code_never_a_message(reading, sse, body, code):
    read = reading().feed(sse(HELLO, body, end=b""))
    assert (read.call.outcome, read.call.error, read.reader.error) == ("failed", code, code)
    assert read.call.chunks == 1
    assert read.reader.done


def test_a_stream_that_ends_without_its_last_event_ends_the_call(reading, sse):
    read = reading().feed(sse(HELLO, STOP, end=b"")).finish()
    assert (read.call.outcome, read.call.chunks, read.malformed) == ("completed", 2, [])


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_the_last_event_counts_without_its_blank_line(reading, sse, missing):
    read = reading().feed(sse(HELLO, STOP)[:-missing])
    read.finish()
    assert (read.call.outcome, read.call.chunks) == ("completed", 2)
    assert read.malformed == ([] if missing < 3 else ["sse"])


def test_a_truncated_stream_is_recorded_with_what_is_known_and_counted(reading, sse):
    wire = sse(ROLE, HELLO, HELLO)
    read = reading().feed(wire[: wire.rindex(CANARY.encode()) + 5]).finish()
    assert read.facts == {**MODEL, "response_service_tier": "default"}
    assert (read.call.chunks, read.call.outcome) == (2, "completed")
    assert read.malformed == ["sse"]


def test_a_truncated_event_of_several_lines_is_no_chunk(reading):
    read = reading().feed(b'data: {"model":"m"}\n\ndata: {\ndata: "usage":{\n').finish()
    assert (read.call.chunks, read.malformed) == (1, ["sse"])


def test_a_fault_at_the_end_of_a_stream_still_ends_the_call(reading, sse):
    read = reading().feed(sse(HELLO, end=b"")[:-1])
    read.reader._seen = None
    read.finish()
    assert read.malformed == ["reader"]
    assert read.call.outcome == "completed"
    assert read.call.recorder.ends == 1


def test_a_stream_without_a_finish_reason_is_counted_as_broken_off(reading, sse):
    assert reading().feed(sse(ROLE, HELLO, end=b"")).finish().malformed == ["sse"]


def test_malformed_events_are_chunks_and_counted(reading):
    read = reading().feed(
        b'data: {"model":"m"}\n\n',
        b'data: {"finish_reason":"stop", broken\n\n',
        b'data: ["finish_reason", {"usage":{}}]\n\n',
        b'data: {"usage":{"prompt_tokens":3},"text":"\xff\xfe"}\n\n',
        b'data: {"usage":{}, "deep":' + b"[" * 100_000 + b"\n\n",
    )
    assert read.call.chunks == 5
    assert read.malformed == ["json", "type", "utf8", "json"]
    assert read.facts == {"response_model": "m", "input_tokens": 3}


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": "19"},
        {"prompt_tokens": -1},
        {"prompt_tokens": 1.5},
        {"prompt_tokens": True},
        {"prompt_tokens": 2**64},
        {"prompt_tokens": [CANARY], "completion_tokens": {"a": CANARY}},
        {"prompt_tokens_details": "none"},
    ],
)
def test_usage_of_another_type_sets_nothing_and_is_counted_once(reading, sse, usage):
    read = reading().feed(sse(HELLO, {**LAST, "usage": usage}))
    assert read.facts == MODEL
    assert read.malformed == ["type"]


@pytest.mark.parametrize(
    "choices",
    [
        None,
        "stop",
        [None, "x", 3],
        [{"index": "0", "finish_reason": "stop"}],
        [{"index": 10**9, "finish_reason": "stop"}],
        [{"index": -1, "finish_reason": "stop"}],
        [{"index": 0, "finish_reason": {"a": 1}, "delta": [1], "name": "x"}],
        [{"index": 0, "delta": {"tool_calls": [None, {"index": {}, "name": "x"}]}}],
    ],
)
def test_choices_of_another_shape_do_no_harm(reading, sse, choices):
    read = reading().feed(sse(HELLO, {**STOP, "choices": choices, "usage": {}}, STOP))
    assert read.facts == {**MODEL, "finish_reasons": ["stop"]}
    assert read.malformed == []


@pytest.mark.parametrize("piece", [1 << 24, 65536, 1000])
def test_a_ten_megabyte_event_is_not_parsed_but_its_usage_is_found(reading, piece):
    body = {**chunk({"content": CANARY * 700_000}, "stop"), "usage": USAGE}
    wire = b"data: " + json.dumps(body).encode() + b"\n\n"
    assert len(wire) > 10 << 20
    read = reading().feed(b'data: {"model":"first","choices":[]}\n\n')
    read.feed(*(wire[i : i + piece] for i in range(0, len(wire), piece)))
    assert read.malformed == ["size"]
    assert read.facts == {**MODEL, **COUNTS, "finish_reasons": ["stop"]}
    assert read.call.chunks == 2
    assert read.feed(DONE).call.outcome == "completed"


@pytest.mark.parametrize("piece", [1 << 24, 65536])
def test_a_last_event_that_is_too_large_still_ends_the_call(reading, piece):
    big = {**MESSAGE, "content": [{"text": CANARY * 100_000}]}
    body = response("response.completed", status="completed", output=[big], usage=RESPONSE_USAGE)
    wire = events(CREATED, DELTA, body)
    read = reading(OPENAI_RESPONSES)
    read.feed(*(wire[i : i + piece] for i in range(0, len(wire), piece)))
    assert not read.call.is_open
    assert read.facts == {
        "response_model": "gpt-5-2025-08-07",
        "response_service_tier": "auto",
        **RESPONSE_COUNTS,
    }


def test_memory_is_bounded_however_long_an_event_or_a_stream_is(reading):
    import tracemalloc

    piece = b"x" * 60_000
    read = reading().feed(b'data: {"model":"m"}\n\ndata: {"a":"')
    tracemalloc.start()
    try:
        for _ in range(500):
            read.feed(piece)
        for _ in range(100):
            read.feed(b"\ndata: ", piece)
        for _ in range(2000):
            read.feed(b"\n\ndata: {}\n\n")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_EVENT
    assert read.malformed == ["size"]


def test_a_fault_of_a_protocol_or_recorder_never_reaches_the_app(reading, sse):
    read = reading()
    read.reader._seen = None
    read.feed(sse(HELLO, STOP, end=b""))
    assert "reader" in read.malformed
    read.finish()
    assert not read.call.is_open


WIRES = [
    b": keepalive 1/2\n\n" + b"".join(
        b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
        for body in [*STREAMS["tool calls"][0], chunk({"content": "äöü 🐦 \u2028"}), LAST]
    ) + DONE,
    events(*RESPONSES["completed"][0]),
    (b"\xef\xbb\xbf" + b"".join(
        b"data: " + json.dumps(body, indent=1).encode().replace(b"\n", b"\ndata: ") + b"\n\n"
        for body in STREAMS["with usage"][0]
    ) + DONE).replace(b"\n", b"\r\n"),
    b"data: " + json.dumps(HELLO).encode() + b"\r\r" + b'data: {"finish_reason":"x\r\r' + DONE[:-1],
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(WIRES),
    st.lists(st.floats(0, 1), max_size=12),
    st.sampled_from([OPENAI_CHAT, OPENAI_RESPONSES]),
)
@example(WIRES[0], [], OPENAI_CHAT)
def test_any_split_of_any_stream_tells_the_same(reading, wire, cuts, protocol):
    whole = reading(protocol).feed(wire).finish().result
    places = [0, *sorted(int(cut * len(wire)) for cut in cuts), len(wire)]
    parts = [wire[a:b] for a, b in zip(places, places[1:], strict=False)]
    assert reading(protocol).feed(*parts).finish().result == whole
    bytewise = [wire[i : i + 1] for i in range(len(wire))]
    assert reading(protocol).feed(*bytewise).finish().result == whole


MUTATIONS = [
    b"",
    b"\n",
    b"\r",
    b"\n\n",
    b"{",
    b"}",
    b'"',
    b"\\",
    b"\xff",
    b"[",
    b"null",
    b"-1",
    b"\x00",
]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(WIRES),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.sampled_from(MUTATIONS)), max_size=8),
    st.integers(1, 400),
)
def test_no_mutated_stream_raises_or_brings_content(reading, wire, mutations, size):
    for place, length, noise in mutations:
        at = int(place * len(wire))
        wire = wire[:at] + noise + wire[at + length :]
    for protocol in (OPENAI_CHAT, OPENAI_RESPONSES):
        read = reading(protocol)
        read.feed(*(wire[i : i + size] for i in range(0, len(wire), size))).finish()
        assert not read.call.is_open
        assert read.call.recorder.ends == 1
        assert "reader" not in read.malformed
        assert "canary" not in repr(read.result)
        for fact, value in read.facts.items():
            for word in value if isinstance(value, list) else [value]:
                assert isinstance(word, int) or len(word) <= 128, fact


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"data: ", b"\n\n", b"\r", DONE])))
def test_no_bytes_raise(reading, chunks):
    for kind in ("text/event-stream", "application/json", None):
        read = reading(content_type=kind).feed(*chunks).finish()
        assert "reader" not in read.malformed
        assert read.facts == {}

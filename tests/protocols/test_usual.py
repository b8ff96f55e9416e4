"""Chunks that are told to be one event without a fact sooner than others count the same."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sottovoce.protocols import usual
from sottovoce.protocols.anthropic_messages import ANTHROPIC_MESSAGES
from sottovoce.protocols.bedrock_converse import BEDROCK_CONVERSE
from sottovoce.protocols.bedrock_invoke import BEDROCK_INVOKE
from sottovoce.protocols.gemini import GEMINI
from sottovoce.protocols.ollama import OLLAMA_CHAT
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_responses import OPENAI_RESPONSES
from sottovoce.protocols.reader import MAX_EVENT

CANARY = "the canary sings"


def chat(content=CANARY, index=0, finish=None, **more):
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
    return {"id": "chatcmpl-1", "created": 1, "model": "gpt-4o", "choices": [choice], **more}


def delta(text=CANARY, **more):
    inner = {"type": "text_delta", "text": text}
    return {"type": "content_block_delta", "index": 0, "delta": inner, **more}


def part(text=CANARY, **more):
    return {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, **more}]}


def piece(number=7, text=CANARY, **more):
    kind = "response.output_text.delta"
    return {"type": kind, "sequence_number": number, "item_id": "msg_1", "delta": text, **more}


def line(text=CANARY, calls=(), **more):
    message = {"role": "assistant", "tool_calls": list(calls), "content": text}
    return {"model": "llama3", "message": message, "done": False, **more}


USAGE = {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29}
TOOL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
STREAMS = {
    OPENAI_CHAT: [
        chat(),
        chat('a "quote", \\ and\nlines\r'),
        chat(index=1),
        chat("", finish="stop"),
        chat(obfuscation="Xy", usage=None),
        chat(usage=USAGE),
        {**chat(), "choices": [{"index": 0, "delta": {"role": "assistant"}}]},
        {**chat(), "choices": [{"index": 0, "delta": {"tool_calls": [TOOL]}}]},
        {"error": {"message": CANARY, "code": "overloaded"}},
        {"object": "error", "message": CANARY, "code": 500},
    ],
    ANTHROPIC_MESSAGES: [
        {"type": "message_start", "message": {"id": "msg_1", "model": "claude"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        delta(),
        delta("\r\n\n"),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "content_block": {"type": "tool_use", "id": "t", "name": "f"},
        },
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 7},
        },
        {"type": "error", "error": {"type": "overloaded_error", "message": CANARY}},
        {"type": "message_stop"},
    ],
    GEMINI: [
        part(),
        part(finishReason="STOP"),
        {"usageMetadata": {"promptTokenCount": 3}},
        {**part(), "usageMetadata": {"promptTokenCount": 3}, "modelVersion": "gemini-2.5-flash"},
        {"error": {"code": 503, "message": CANARY, "status": "UNAVAILABLE"}},
    ],
    # As a proxy may pass them on.
    BEDROCK_CONVERSE: [
        {"contentBlockDelta": {"delta": {"text": CANARY}, "contentBlockIndex": 0}},
        {"messageStart": {"role": "assistant"}},
        {"contentBlockStart": {"start": {"toolUse": {"toolUseId": "t", "name": "f"}}}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"messageStop": {"stopReason": "end_turn"}},
        {"error": {"code": "throttlingException", "message": CANARY}},
        {"metadata": {"usage": {"inputTokens": 3, "outputTokens": 7}}},
    ],
    BEDROCK_INVOKE: [
        delta(),
        {"generation": CANARY, "stop_reason": None},
        {"error": {"code": "throttlingException", "message": CANARY}},
        {"outputText": CANARY, "index": 0, "completionReason": None},
        {"outputText": CANARY, "index": 0, "completionReason": "FINISH"},
    ],
    OLLAMA_CHAT: [
        line(),
        line(calls=[{"function": {"name": "f", "arguments": {}}}]),
        line(calls=[{"function": {"arguments": {"id": CANARY}, "name": "g"}}]),
        line(created_at="2025-01-01T00:00:00Z"),
        line("", done=True, done_reason="stop", eval_count=7),
        {"error": CANARY},
    ],
    OPENAI_RESPONSES: [
        {"type": "response.created", "response": {"id": "resp_1", "model": "gpt-4o"}},
        piece(),
        piece(8),
        piece(logprobs=[], obfuscation="Xy"),
        {"type": "response.output_item.added", "item": {"type": "function_call", "name": "f"}},
        {"type": "error", "code": "server_error", "message": CANARY},
        {"type": "response.completed", "response": {"status": "completed", "model": "gpt-4o"}},
    ],
}
SEPARATORS = [(",", ":"), (", ", ": "), (" ,\t", " :  ")]
ENDS = [b"\n\n", b"\n\n", b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\n", b"\n\n\n", b"\n \n", b""]
LINES = [b"", b"", b": comment\n", b"id: 5\n", b"event: data:\n", b"data\n", b"\xef\xbb\xbf"]


def written(body, separators=(",", ":"), end=b"\n\n", before=b"", *, named=False, space=True):
    name = b"event: %s\n" % body["type"].encode() if named and "type" in body else b""
    text = json.dumps(body, separators=separators).encode()
    return before + name + (b"data: " if space else b"data:") + text + end


def events(protocol):
    return st.builds(
        written,
        st.sampled_from(STREAMS[protocol]),
        st.sampled_from(SEPARATORS),
        st.sampled_from(ENDS),
        st.sampled_from(LINES),
        named=st.booleans(),
        space=st.booleans(),
    )


@st.composite
def streams(draw):
    """A protocol, and what came, in the chunks in which it came."""
    protocol = draw(st.sampled_from(list(STREAMS)))
    ordinary = written(STREAMS[protocol][draw(st.sampled_from([0, 3]))], named=draw(st.booleans()))
    drawn = draw(st.lists(events(protocol) | st.just(ordinary), max_size=12))
    data = [ordinary] * 5 + drawn
    if draw(st.booleans()):
        # Two in one, or one in two.
        place = draw(st.integers(0, len(data) - 1))
        cut = draw(st.integers(0, 60))
        data[place : place + 2] = [
            data[place][:cut],
            data[place][cut:] + b"".join(data[place + 1 : place + 2]),
        ]
    return protocol, data


@settings(max_examples=400, deadline=None)
@given(streams())
@example((OPENAI_CHAT, [written(chat())] * 6 + [written(chat()) * 2, written(chat())]))
@example((OPENAI_CHAT, [written(chat())] * 6 + [written(chat(), end=b"\n"), b"\n"]))
@example((OPENAI_CHAT, [written(chat())] * 6 + [written(chat()) + b"data: {", b"}\n\n"]))
@example((ANTHROPIC_MESSAGES, [written(delta())] * 6 + [written(STREAMS[ANTHROPIC_MESSAGES][-2])]))
@example((BEDROCK_INVOKE, [written(delta())] * 6 + [written({"error": {}}, space=False)]))
def test_the_network_chunks_do_not_matter(reading, stream):
    protocol, chunks = stream
    fast = reading(protocol).feed(*chunks).finish()
    slow = reading(protocol)
    for byte in b"".join(chunks):
        slow.feed(bytes([byte]))
    assert fast.result == slow.finish().result
    assert CANARY not in repr(fast.result)


@settings(max_examples=300, deadline=None)
@given(streams(), st.text("canry \"'\\{}[]:,0é", min_size=12))
def test_what_was_said_is_not_kept(reading, stream, text):
    protocol, chunks = stream
    canary = f"{CANARY} {text} {CANARY}"
    read = reading(protocol)
    for chunk in chunks:
        said = chunk.replace(CANARY.encode(), json.dumps(canary)[1:-1].encode())
        read.feed(said)
        if said.endswith(b"\n\n"):
            kept = [getattr(read.reader, name) for name in read.reader.__slots__]
            assert (
                CANARY.encode()
                not in repr([one for one in kept if isinstance(one, bytes)]).encode()
            )


@given(st.binary(max_size=200) | st.text('"{}[]:, data\nid1', max_size=80).map(str.encode))
def test_how_events_begin_is_a_beginning_that_holds_no_sentence(data):
    event = b'data: {"id": "1", ' + data
    begun = usual.beginning(event, b"")
    assert event.startswith(begun)
    assert begun.startswith(b"data: {")
    # Of a later event, too, and never more than both have.
    other = usual.beginning(b'data: {"id": "1", "index": 0, "delta": "' + data, begun)
    assert begun.startswith(other)


@pytest.mark.parametrize(
    ("event", "known"),
    [
        (chat(), b'data: {"id": "chatcmpl-1", "created": 1, "model": "gpt-4o", "choices": [{"index": 0, "delta": {'),
        (chat(model="what was said"), b'data: {"id": "chatcmpl-1", "created": 1,'),
        (delta(), b'data: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta",'),
        ({"content": "word", "id": "1"}, b"data: {"),
        ({"text": "word", "id": "1"}, b"data: {"),
        ({"delta": "word", "id": "1"}, b"data: {"),
        ({"index": 0, "arguments": {"id": "word", "age": 42}}, b'data: {"index": 0,'),
        ({"choices": [{"index": 0, "logprobs": {"word": 0}}]}, b'data: {"choices": [{"index": 0,'),
        ({"message": {"tool_calls": [], "content": "word"}}, b"data: {"),
        ({"index": 0, "content": {"age": 42}}, b'data: {"index": 0,'),
        ({"index": 1, "token": {"id": 5432, "text": "word"}}, b'data: {"index": 1,'),
    ],
)  # fmt: skip
def test_what_is_compared_ends_where_content_may_begin(event, known):
    assert usual.beginning(written(event, (", ", ": ")), b"") == known


def test_of_events_that_begin_in_two_ways_what_both_have_is_compared():
    one, other = written(chat(index=1), (", ", ": ")), written(chat(index=12), (", ", ": "))
    begun = usual.beginning(other, usual.beginning(one, b""))
    assert begun == b'data: {"id": "chatcmpl-1", "created": 1, "model": "gpt-4o", "choices": [{'
    ping = written({"type": "ping"}, named=True)
    assert usual.beginning(ping, begun) == b"event: ping\ndata: {"


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("protocol", STREAMS, ids=lambda protocol: protocol.name)
def test_no_event_with_a_fact_is_taken_for_one_without(reading, protocol, named):
    def written_so(body):
        return written(body, named=named)

    for ordinary in STREAMS[protocol]:
        for other in STREAMS[protocol]:
            chunks = [written_so(ordinary)] * 6 + [written_so(other)] * 2 + [written_so(ordinary)]
            fast = reading(protocol).feed(*chunks).finish()
            slow = reading(protocol)
            for chunk in chunks:
                slow.feed(chunk[:9], chunk[9:])
            assert fast.result == slow.finish().result


def test_an_event_that_is_too_long_to_be_read_is_told_of(reading):
    read = reading().feed(*[written(chat())] * 6, written(chat("x" * MAX_EVENT)))
    assert (read.call.chunks, read.malformed) == (7, ["size"])


def test_after_the_last_event_nothing_counts(reading):
    read = reading().feed(*[written(chat())] * 6, b"data: [DONE]\n\n", written(chat()))
    assert (read.call.chunks, read.call.is_open) == (6, False)


def test_chunks_of_other_types_are_skipped(reading):
    read = reading().feed(*[written(chat())] * 6)
    for odd in (None, "data: {}\n\n", memoryview(b"data: {}\n\n"), 5):
        read.feed(odd)
    read.feed(written(chat()))
    assert (read.call.chunks, set(read.malformed)) == (7, {"reader"})


def test_how_an_event_with_facts_begins_is_not_how_those_without_do(reading):
    def counts(tokens):
        usage = {"output_tokens": tokens}
        return written({"type": "message_delta", "delta": {}, "usage": usage}, named=True)

    ordinary = [written(delta(), named=True)] * 6
    read = reading(ANTHROPIC_MESSAGES).feed(*ordinary, *map(counts, (7, 8, 9)))
    assert read.facts == {"output_tokens": 9}

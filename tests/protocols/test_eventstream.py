"""Amazon's binary frames: split wherever they are cut, bounded, and never wrong for long."""

import json
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.bedrock import STREAM_TYPE, delta, event, exception, frame, wrapped
from sottovoce.protocols.bedrock_converse import BEDROCK_CONVERSE
from sottovoce.protocols.eventstream import Frames
from sottovoce.protocols.reader import MAX_EVENT

STOP = event("messageStop", {"stopReason": "end_turn"})


def split(*chunks, limit=1 << 20):
    frames = Frames(limit)
    found = [json.loads(each) for chunk in chunks for each in frames.feed(chunk)]
    return found, frames


@pytest.fixture
def read(reading):
    return reading(BEDROCK_CONVERSE, STREAM_TYPE)


def test_an_event_says_what_it_is():
    [found], frames = split(STOP)
    assert found == {"messageStop": {"stopReason": "end_turn", "p": "abcdefgh"}}
    assert frames.whole


def test_headers_of_every_type():
    fields = b"\x01a\x00\x01b\x01\x01c\x02x\x01d\x03xx\x01e\x04xxxx\x01f\x05xxxxxxxx"
    fields += b"\x01g\x06\x00\x03xyz\x01h\x08xxxxxxxx\x01i\x09xxxxxxxxxxxxxxxx"
    fields += b"\x0b:event-type\x07\x00\x04stop"
    prelude = struct.pack(">II", len(fields) + 2 + 16, len(fields))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    assert split(prelude + fields + b"{}" + b"crc ")[0] == [{"stop": {}}]


@pytest.mark.parametrize(("more", "known"), [(300, True), (5000, False)])
def test_headers_of_any_size(more, known):
    found, _ = split(frame(b"{}", event_type="stop", padding="x" * more))
    assert found == ([{"stop": {}}] if known else [{}])


def test_an_exception_has_a_code_and_no_message():
    [found], _ = split(exception("throttlingException"))
    assert found == {"error": {"code": "ThrottlingException"}}


def test_an_error_has_a_code_and_no_message():
    bad = frame(b"", message_type="error", error_code="InternalError", error_message="secret")
    assert split(bad)[0] == [{"error": {"code": "InternalError"}}]
    bad = frame(b"", message_type="error", error_code='a "secret"')
    assert split(bad)[0] == [{"error": {"code": ""}}]


def test_a_models_own_chunk_is_given_as_it_is():
    assert split(wrapped({"completion": "x"}))[0] == [{"completion": "x"}]


@pytest.mark.parametrize("payload", [b'{"bytes": "x"}', b'{"bytes": "a\\"b"}', b'{"b": 1}', b""])
def test_a_chunk_that_cannot_be_decoded_says_nothing(payload):
    found, _ = split(frame(payload, event_type="chunk"))
    assert len(found) == 1
    assert "bytes" not in found[0]


@pytest.mark.parametrize("kind", ['a"b', "", "x" * 65, "é"])
def test_a_type_that_is_no_word_says_nothing(kind):
    assert split(frame(b'{"stopReason": "x"}', event_type=kind))[0] == [{}]


def test_a_frame_that_is_too_large_is_passed_over():
    large = event("contentBlockDelta", {"text": "x" * 5000})
    found, frames = split(STOP + large + STOP, limit=1000)
    assert [list(each) for each in found] == [["messageStop"], [], ["messageStop"]]
    assert frames.oversized
    pieces = [(large + STOP)[at : at + 7] for at in range(0, len(large + STOP), 7)]
    assert [list(each) for each in split(*pieces, limit=1000)[0]] == [[], ["messageStop"]]


def test_memory_is_bounded_whatever_a_frame_says_of_its_length():
    prelude = struct.pack(">II", 0xFFFFFFFF, 0)
    prelude += struct.pack(">I", zlib.crc32(prelude))
    frames = Frames(1000)
    assert list(frames.feed(prelude)) == [b"{}"]
    for _ in range(100):
        assert list(frames.feed(b"x" * 10_000)) == []
    assert len(frames._held) == 0
    assert not frames.whole


@pytest.mark.parametrize("at", range(12))
def test_a_wrong_prelude_is_noticed(at):
    bad = bytearray(STOP)
    bad[at] ^= 1
    found, frames = split(STOP, bytes(bad), STOP)
    assert (len(found), frames.broken) == (1, True)


def test_a_length_too_short_for_its_own_headers():
    prelude = struct.pack(">II", 16, 1)
    found, frames = split(STOP + prelude + struct.pack(">I", zlib.crc32(prelude)) + STOP)
    assert (len(found), frames.broken) == (1, True)


@given(
    st.lists(
        st.sampled_from([STOP, event(*delta("x")), wrapped({"a": 1}), exception()]), max_size=6
    ),
    st.lists(st.integers(0, 1200), max_size=6),
)
def test_it_does_not_matter_where_the_network_cuts(parts, cuts):
    stream = b"".join(parts)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert split(*pieces)[0] == split(stream)[0]


@given(st.binary(max_size=300), st.binary(max_size=100), st.booleans())
@settings(max_examples=300)
def test_whatever_is_in_a_frame_it_never_raises(payload, fields, named):
    if named:
        fields = b"\x0b:event-type\x07\x00\x05chunk" + fields
    prelude = struct.pack(">II", len(fields) + len(payload) + 16, len(fields))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    [event] = Frames(1 << 20).feed(prelude + fields + payload + b"crc!")
    assert isinstance(event, bytes)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_whatever_comes_the_reader_never_raises(reading, chunks):
    read = reading(BEDROCK_CONVERSE, STREAM_TYPE).feed(STOP, *chunks).finish()
    assert read.facts == {"finish_reasons": ["end_turn"]}
    assert read.call.outcome == "completed"


def test_each_frame_is_a_chunk(read):
    read.feed(event(*delta("a")), event(*delta("b")) + event(*delta("c")))
    assert (read.call.chunks, read.facts, read.malformed) == (3, {}, [])
    assert read.call.stream


def test_content_that_looks_like_another_kind_of_stream_changes_nothing(read):
    tricky = event(*delta('data: {"stopReason": "x"}\n\ndata: [DONE]\n\n'))
    at = tricky.index(b"data")
    read.feed(tricky[:at], tricky[at:], STOP)
    assert read.facts == {"finish_reasons": ["end_turn"]}
    assert (read.call.chunks, read.call.is_open) == (2, True)


def test_what_is_no_event_stream_is_told_once(read):
    read.feed(b"<html>what is this</html>", b"more of it").finish()
    assert (read.malformed, read.call.chunks, read.facts) == (["sse"], 0, {})


def test_a_stream_that_breaks_off(read):
    read.feed(event(*delta("a")), STOP[:-3]).finish()
    assert (read.malformed, read.facts) == (["sse"], {})


def test_a_huge_event_is_told(read):
    read.feed(event(*delta("x" * MAX_EVENT)), STOP).finish()
    assert read.malformed == ["size"]
    assert read.facts == {"finish_reasons": ["end_turn"]}

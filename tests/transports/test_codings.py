"""Bodies that do not say what they are, or grow to more than anybody wants to read."""

import contextlib
import gzip
import json
import sys
import tracemalloc
import zlib

import brotli
import httpx2
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from servers.provider import chat, chat_events, sse
from sottovoce import guard
from sottovoce.transports import codings

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a secret question"}]}
STREAM = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
URL = "http://here/v1/chat/completions"


def client(body, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Client(
        transport=httpx2.MockTransport(
            lambda _: httpx2.Response(200, headers=headers, content=httpx2.ByteStream(body))
        )
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/octet-stream", None])
def test_a_type_that_says_nothing_is_known_by_what_was_asked(raw_calls, kind, stream):
    body = b"".join(sse(*event) for event in chat_events(STREAM))
    if not stream:
        body = json.dumps(chat(CHAT)).encode()
    headers = {} if kind is None else {"content_type": kind}
    with client(body, **headers) as http:
        assert http.post(URL, json=STREAM if stream else CHAT).content == body
        with http.stream("POST", URL, json=STREAM if stream else CHAT) as response:
            assert response.read() == body
    assert [call.facts["output_tokens"] for call in raw_calls.ended_calls] == [7, 7]


def test_text_is_not_read_as_anything_else(raw_calls):
    with client(b"it is late", content_type="text/plain") as http:
        assert http.post(URL, json=CHAT).text == "it is late"
    assert raw_calls.only.outcome == "completed"
    assert guard.undecodable == {"json": 1}


def test_a_bomb_that_the_app_passes_on_is_not_undone(raw_calls, monkeypatch):
    monkeypatch.setattr(codings, "MOST_PLAIN", 1 << 20)
    body = b"".join(sse(*event) for event in chat_events(STREAM))
    bomb = gzip.compress(body + b": " + bytes(1 << 22) + b"\n\n" + body)
    with client(bomb, content_type="text/event-stream", content_encoding="gzip") as http:
        with http.stream("POST", URL, json=CHAT) as response:
            assert b"".join(response.iter_raw()) == bomb
    assert raw_calls.only.outcome == "completed"
    assert raw_calls.only.facts["output_tokens"] == 7


def test_a_bomb_of_one_event_is_counted(raw_calls, monkeypatch):
    monkeypatch.setattr(codings, "MOST_PLAIN", 1 << 20)
    bomb = gzip.compress(b'data: {"a": "' + bytes(1 << 22))
    with client(bomb, content_type="text/event-stream", content_encoding="gzip") as http:
        with http.stream("POST", URL, json=CHAT) as response:
            assert b"".join(response.iter_raw()) == bomb
    assert raw_calls.only.outcome == "completed"
    assert guard.undecodable == {"encoding": 1}


def packed(data, *names):
    for name in names:
        if name == "gzip":
            data = gzip.compress(data)
        elif name == "deflate":
            data = zlib.compress(data)
        elif name == "br":
            data = brotli.compress(data, quality=1)
        else:
            data = zstandard.compress(data)
    return data


CHAINS = [["gzip"], ["deflate"], ["br"], ["zstd"], ["gzip", "br"], ["zstd", "gzip", "deflate"]]


@pytest.mark.parametrize("names", CHAINS, ids=",".join)
@given(data=st.binary(max_size=300), size=st.integers(1, 50))
def test_every_coding_comes_off_wherever_it_is_cut(names, data, size):
    undo = codings.decompress(", ".join(names))
    body = packed(data, *names)
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    assert b"".join(piece for part in parts for piece in undo(part)) == data


@pytest.mark.parametrize("names", CHAINS, ids=",".join)
@given(data=st.binary(max_size=60))
def test_garbage_raises_before_it_grows(names, data):
    undo = codings.decompress(",".join(names))
    with contextlib.suppress(Exception):
        assert sum(map(len, undo(data))) < 1 << 24


@pytest.mark.parametrize("names", CHAINS, ids=",".join)
def test_a_bomb_is_undone_in_small_pieces_and_not_to_its_end(names, monkeypatch):
    monkeypatch.setattr(codings, "MOST_PLAIN", 1 << 23)
    bomb = packed(bytes(1 << 26), *names)
    undo = codings.decompress(", ".join(names))
    largest = total = 0
    tracemalloc.start()
    with pytest.raises(ValueError):
        for piece in undo(bomb):
            largest = max(largest, len(piece))
            total += len(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total <= 1 << 23
    assert largest <= 1 << 24
    assert peak < 1 << 25


def test_frames_of_zstd_that_follow_one_another():
    undo = codings.decompress("zstd")
    body = packed(b"one ", "zstd") + packed(b"two", "zstd")
    assert b"".join(undo(body)) == b"one two"


@pytest.mark.parametrize("coding", [None, "", "identity", " Identity , identity"])
def test_no_coding(coding):
    assert codings.decompress(coding) is None


@pytest.mark.parametrize("coding", ["rot13", "gzip, rot13", "gzip;q=1", ",".join(["gzip"] * 9)])
def test_a_coding_that_is_none(coding):
    with pytest.raises((LookupError, ValueError)):
        codings.decompress(coding)


def test_what_the_app_has_not_loaded_is_not_loaded(monkeypatch):
    for name in ("brotli", "brotlicffi", "zstandard", "compression.zstd", "backports.zstd"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for coding in ("br", "zstd"):
        with pytest.raises(LookupError):
            codings.decompress(coding)
    assert "brotli" not in sys.modules


def test_a_brotli_whose_output_has_no_limit_is_not_used(monkeypatch):
    class Old:
        class Decompressor:
            def process(self, data):
                return bytes(1 << 30)

    monkeypatch.setitem(sys.modules, "brotli", Old)
    with pytest.raises(LookupError):
        codings.decompress("br")

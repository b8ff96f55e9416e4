"""What HTTP puts around a body comes off, wherever the network cuts it; garbage harms nobody."""

import http.client
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers.calls import Calls
from sottovoce import exchange, guard
from sottovoce.protocols import routes
from sottovoce.transports.tap import Framing, tap

pieces = st.lists(st.binary(min_size=1, max_size=60), max_size=8)
extension = st.sampled_from([b"", b" ", b";a=b", b';a="\xff"', b"\t;" + b"x" * 30])
trailers = st.sampled_from([b"", b"X-T: 1\r\n", b"A: b\r\nC: d\r\n"])


def cut(data, sizes):
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


@settings(deadline=None)
@given(
    pieces=pieces,
    extension=extension,
    trailers=trailers,
    end=st.sampled_from([b"\r\n", b"\n"]),
    zeros=st.sampled_from([b"", b"00"]),
    sizes=st.lists(st.integers(1, 20), max_size=40),
)
def test_chunks(pieces, extension, trailers, end, zeros, sizes):
    wire = b"".join(zeros + b"%X" % len(piece) + extension + end + piece + end for piece in pieces)
    wire += b"0" + end + trailers + end
    framing, got = Framing(None, chunked=True), []
    for part in cut(wire, sizes):
        framing.take(part, got.append)
    assert framing.ended
    assert b"".join(got) == b"".join(pieces)
    framing.take(b"5\r\nagain\r\n", got.append)
    assert b"".join(got) == b"".join(pieces)


@given(st.binary(max_size=60), st.integers(0, 80), st.lists(st.integers(1, 20), max_size=10))
def test_a_length(data, length, sizes):
    framing, got = Framing(length, chunked=False), []
    for part in cut(data, sizes):
        if not framing.ended:
            framing.take(part, got.append)
    assert b"".join(got) == data[:length]
    assert framing.ended is (len(data) >= length)


@given(st.binary(max_size=60), st.lists(st.integers(1, 20), max_size=10))
def test_until_the_end_of_the_connection(data, sizes):
    framing, got = Framing(None, chunked=False), []
    for part in cut(data, sizes):
        framing.take(part, got.append)
    assert b"".join(got) == data
    assert framing.open_ended
    assert not framing.ended


@given(
    st.lists(st.binary(max_size=40) | st.sampled_from([b"5\r\n", b"\r\n", b"0\r\n"]), max_size=9)
)
def test_garbage_is_refused_and_kept_nowhere(parts):
    framing, got = Framing(None, chunked=True), []
    try:
        for part in parts:
            framing.take(part, got.append)
    except ValueError:
        pass
    assert sum(map(len, got)) <= sum(map(len, parts))


def test_a_line_without_an_end_is_refused():
    framing = Framing(None, chunked=True)
    with pytest.raises(ValueError):
        for _ in range(100):
            framing.take(b"1" * 1000, lambda _: None)
    framing = Framing(None, chunked=True)
    with pytest.raises(ValueError):
        framing.take(b"1" * 5000 + b"\r\n", lambda _: None)


class Wire:
    """A socket as far as `HTTPResponse` looks."""

    def __init__(self, data):
        self._data = data

    def makefile(self, mode):
        return io.BufferedReader(io.BytesIO(self._data))


READS = {
    "read": lambda response: response.read(),
    "read some": lambda response: b"".join(iter(lambda: response.read(7), b"")),
    "read1": lambda response: b"".join(iter(lambda: response.read1(7), b"")),
    "lines": lambda response: b"".join(response),
    "readinto": lambda response: b"".join(into(response)),
}


def into(response):
    buffer = bytearray(5)
    while count := response.readinto(buffer):
        yield bytes(buffer[:count])


@settings(deadline=None)
@given(
    wire=st.binary(max_size=200)
    | st.lists(
        st.sampled_from(
            [b"5\r\nhello\r\n", b"\r\n", b"0\r\n", b"data: {}\n\n", b"6\r\ndata: \r\n", b"-1\r\n"]
        ),
        max_size=8,
    ).map(b"".join),
    header=st.sampled_from(
        ["Transfer-Encoding: chunked", "Content-Length: 12", "Connection: close", "X: y"]
    ),
    kind=st.sampled_from(["text/event-stream", "application/json", "text/html"]),
    coding=st.sampled_from(["", "Content-Encoding: gzip\r\n", "Content-Encoding: br, zstd\r\n"]),
    how=st.sampled_from(sorted(READS)),
)
def test_a_response_reads_the_same_whatever_comes(wire, header, kind, coding, how):
    head = f"HTTP/1.1 200 OK\r\n{header}\r\nContent-Type: {kind}\r\n{coding}\r\n".encode()

    def read(prepare):
        response = http.client.HTTPResponse(Wire(head + wire), method="POST")
        response.begin()
        prepare(response)
        try:
            return READS[how](response), response.isclosed(), response.length
        except Exception as error:
            return type(error), str(error), response.isclosed()
        finally:
            response.close()

    route = routes.match("POST", "/v1/chat/completions")
    target = exchange.server("http", "127.0.0.1", 80, "/", ())
    calls = Calls()
    call = exchange.open_call(calls, route, {"request_model": "tiny"}, target)
    guard.failures.clear()
    assert read(lambda response: tap(call, route, response)) == read(lambda _: None)
    assert calls.ended_calls == ([call] if call.watched else [])
    assert not guard.failures

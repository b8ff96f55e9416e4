"""An HTTP/1.1 server on loopback whose answers are written byte by byte: good, odd and hostile.

How a request is answered is the first segment of its path, `/SCENARIO/v1/chat/completions`, so
that any number of threads can ask at once. Requests are counted, connections as well.
"""

import contextlib
import gzip
import json
import socket
import threading
import time
import zlib

import brotli
import zstandard

from servers.provider import ERROR, WORDS, chat, chat_events, sse

EVENTS = [sse(*event) for event in chat_events({"stream_options": {"include_usage": True}})]
WHOLE = json.dumps(chat({})).encode()
STREAM = b"".join(EVENTS)
CHUNKS = WORDS + 3
STOP = object()


def head(*lines, status="200 OK"):
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def chunked(data):
    return b"%x\r\n" % len(data) + data + b"\r\n"


def whole(body, *lines, status="200 OK", kind="application/json"):
    length = f"Content-Length: {len(body)}"
    return head(f"Content-Type: {kind}", length, *lines, status=status) + body


def streamed(pieces, *lines, end=b"0\r\n\r\n"):
    yield head("Content-Type: text/event-stream", "Transfer-Encoding: chunked", *lines)
    for piece in pieces:
        yield chunked(piece)
    yield end


def coded(coding):
    if coding == "gzip":
        return gzip.compress(STREAM, mtime=0)
    if coding == "deflate":
        return zlib.compress(STREAM)
    if coding == "br":
        return brotli.compress(STREAM)
    if coding == "zstd":
        return zstandard.compress(STREAM)
    return zstandard.compress(gzip.compress(STREAM, mtime=0))


def in_pieces(data, size=40):
    return [data[at : at + size] for at in range(0, len(data), size)]


def redirect(path, times):
    # 307 keeps the method and the body.
    path = path.replace(f"redirect{times}", f"redirect{times - 1}")
    return head(f"Location: {path}", "Content-Length: 0", status="307 Temporary Redirect")


SCENARIOS = {
    "whole": lambda _: [whole(WHOLE)],
    "whole_chunked": lambda _: [
        head("Content-Type: application/json", "Transfer-Encoding: chunked"),
        *[chunked(piece) for piece in in_pieces(WHOLE)],
        b"0\r\n\r\n",
    ],
    "whole_until_close": lambda _: [
        head("Content-Type: application/json", "Connection: close") + WHOLE,
        STOP,
    ],
    "whole_gzip": lambda _: [
        whole(gzip.compress(WHOLE, mtime=0), "Content-Encoding: gzip"),
    ],
    "whole_cut": lambda _: [whole(WHOLE)[:-50], STOP],
    "error_in_200": lambda _: [whole(json.dumps(ERROR).encode())],
    "stream": lambda _: streamed(EVENTS),
    "stream_until_close": lambda _: [
        head("Content-Type: text/event-stream", "Connection: close"),
        *EVENTS,
        STOP,
    ],
    "stream_length": lambda _: [whole(STREAM, kind="text/event-stream")],
    "stream_trailers": lambda _: streamed(EVENTS, "Trailer: X-T", end=b"0\r\nX-T: 1\r\n\r\n"),
    "stream_extensions": lambda _: [
        head("Content-Type: text/event-stream", "Transfer-Encoding: chunked"),
        *[b"%X;name=value\r\n" % len(piece) + piece + b"\r\n" for piece in EVENTS],
        b"0\r\n\r\n",
    ],
    "stream_one_packet": lambda _: [b"".join(streamed(EVENTS))],
    "stream_bytewise": lambda _: in_pieces(b"".join(streamed(in_pieces(STREAM, 7))), 1),
    "stream_gzip": lambda _: streamed(in_pieces(coded("gzip")), "Content-Encoding: gzip"),
    "stream_deflate": lambda _: streamed(in_pieces(coded("deflate")), "Content-Encoding: deflate"),
    "stream_br": lambda _: streamed(in_pieces(coded("br")), "Content-Encoding: br"),
    "stream_zstd": lambda _: streamed(in_pieces(coded("zstd")), "Content-Encoding: zstd"),
    "stream_cut": lambda _: [*list(streamed(EVENTS))[:4], STOP],
    "stream_cut_in_chunk": lambda _: [*list(streamed(EVENTS))[:4], b"50\r\ndata: {", STOP],
    "stream_reset": lambda _: [*list(streamed(EVENTS))[:4], "reset"],
    "stream_hangs": lambda _: [*list(streamed(EVENTS))[:4], "hang"],
    "stream_open_hangs": lambda _: [
        head("Content-Type: text/event-stream", "Connection: close") + EVENTS[0],
        "hang",
    ],
    "hangs": lambda _: ["hang"],
    "no_answer": lambda _: [STOP],
    "400": lambda _: [whole(b'{"error": {}}', status="400 Bad Request")],
    "429": lambda _: [whole(b'{"error": {}}', status="429 Too Many Requests")],
    "500": lambda _: [whole(b"no", status="500 Oh", kind="text/html")],
    "204": lambda _: [head(status="204 No Content")],
    "continue": lambda _: [head(status="100 Continue"), whole(WHOLE)],
    "redirect2": lambda path: [redirect(path, 2)],
    "redirect1": lambda path: [redirect(path, 1)],
    "redirect0": lambda _: [whole(WHOLE)],
    # Hostile.
    "too_long": lambda _: [whole(WHOLE) + b"more than was said", STOP],
    "bad_length": lambda _: [
        head("Content-Type: application/json", "Content-Length: nonsense", "Connection: close")
        + WHOLE,
        STOP,
    ],
    "both_lengths": lambda _: [
        head("Content-Type: text/event-stream", "Transfer-Encoding: chunked", "Content-Length: 3"),
        *[chunked(piece) for piece in EVENTS],
        b"0\r\n\r\n",
    ],
    "bad_chunks": lambda _: [
        # At once: what aiohttp makes of it depends on when it comes.
        head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        + chunked(EVENTS[0])
        + b"zz\r\nwhat\r\n",
        STOP,
    ],
    "negative_chunk": lambda _: [
        # At once: what aiohttp makes of it depends on when it comes.
        head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        + chunked(EVENTS[0])
        + b"-5\r\nwhat\r\n",
        STOP,
    ],
    "garbage_gzip": lambda _: [whole(b"not gzip at all", "Content-Encoding: gzip")],
    "cut_gzip": lambda _: [whole(gzip.compress(WHOLE, mtime=0)[:-20], "Content-Encoding: gzip")],
    "unknown_coding": lambda _: [whole(WHOLE, "Content-Encoding: rot13")],
    "garbage": lambda _: [b"what is this\r\n\r\n", STOP],
    "huge_header": lambda _: [head("X-Huge: " + "x" * 200_000, "Content-Length: 0"), STOP],
    "many_headers": lambda _: [
        head(*[f"X-{n}: y" for n in range(5000)], "Content-Length: 0"),
        STOP,
    ],
    "no_type": lambda _: [head(f"Content-Length: {len(WHOLE)}") + WHOLE],
    "empty": lambda _: [whole(b"")],
}


def _hang_up(connection):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class ByHandServer:
    """`requests` counts what was asked, `connections` how many were opened."""

    def __init__(self):
        self.requests = 0
        self.connections = 0
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._open = set()

    def __enter__(self):
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._socket.settimeout(0.05)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._closing.set()
        with self._lock:
            for connection in self._open:
                _hang_up(connection)
        for thread in list(self._threads):
            thread.join(5)
        self._socket.close()

    def at(self, scenario):
        return f"{self.url}/{scenario}/v1/chat/completions"

    def _accept(self):
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                self._threads = [t for t in self._threads if t.is_alive()]
                continue
            with self._lock:
                self.connections += 1
                self._open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection):
        connection.settimeout(60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = connection.makefile("rb")
        try:
            while (path := self._request(stream)) is not None:
                with self._lock:
                    self.requests += 1
                if not self._answer(connection, path):
                    return
        except OSError:
            """The client hung up: what several tests are about."""
        finally:
            stream.close()
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _request(self, stream):
        line = stream.readline()
        if not line:
            return None
        headers = {}
        while (header := stream.readline()) not in {b"\r\n", b""}:
            name, _, value = header.decode().partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            while size := int(stream.readline(), 16):
                stream.read(size + 2)
            stream.readline()
        else:
            stream.read(int(headers.get("content-length", 0)))
        path = line.split()[1].decode()
        # As to a proxy: a whole URL.
        return "/" + path.split("/", 3)[3] if "://" in path else path

    def _answer(self, connection, path):
        for piece in SCENARIOS[path.split("/")[1]](path):
            if piece is STOP:
                return False
            if piece == "reset":
                linger = b"\1\0\0\0\0\0\0\0"
                time.sleep(0.05)  # what was sent before would be thrown away
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return False
            if piece == "hang":
                # Until the client goes away, or the tests are over.
                connection.settimeout(0.05)
                while not self._closing.is_set():
                    try:
                        if not connection.recv(1):
                            break
                    except TimeoutError:
                        continue
                return False
            connection.sendall(piece)
        return True

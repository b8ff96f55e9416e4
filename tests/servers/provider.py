"""A model provider on loopback that speaks OpenAI's wire, well or badly.

Real sockets, real HTTP/1.1, a thread per connection. `play()` says how the next requests are
answered, one scenario each; afterwards, and by default, everything is answered properly::

    with ProviderServer() as server:
        server.play("429", "cut")
        openai.OpenAI(base_url=server.url + "/v1", api_key="k")
"""

import gzip
import json
import threading
import time
import zlib
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = "the secret answer"
MODEL = "tiny-2026-01-01"
WORDS = 5
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
ERROR = {"error": {"message": "the secret reason", "type": "server_error", "code": "overloaded"}}
RESPONSES_USAGE = {
    "input_tokens": 11,
    "output_tokens": 7,
    "total_tokens": 18,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens_details": {"reasoning_tokens": 2},
}


def chat(body):
    content = json.dumps({"answer": 1}) if "response_format" in body else ANSWER
    message = {"role": "assistant", "content": content, "refusal": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": USAGE,
    }


def completion(body):
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "text": ANSWER, "finish_reason": "length", "logprobs": None}],
        "usage": USAGE,
    }


def response(body, status="completed"):
    text = json.dumps({"answer": 1}) if "text" in body else ANSWER
    part = {"type": "output_text", "text": text, "annotations": []}
    output = [
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [part],
        }
    ]
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": MODEL,
        "output": output if status == "completed" else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": RESPONSES_USAGE if status == "completed" else None,
    }


def embeddings(body):
    return {
        "object": "list",
        "model": MODEL,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 1.0]}],
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
    }


def chat_events(body):
    def chunk(delta, reason=None, **more):
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}],
            **more,
        }

    content = '{"answer": 1}' if "response_format" in body else "word "
    pieces = [content] if "response_format" in body else [content] * WORDS
    yield None, chunk({"role": "assistant", "content": ""})
    for piece in pieces:
        yield None, chunk({"content": piece})
    yield None, chunk({}, "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        yield None, {**chunk({}), "choices": [], "usage": USAGE}
    yield None, None


def completion_events(body):
    def chunk(text, reason=None):
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": MODEL,
            "choices": [choice],
        }

    for _ in range(WORDS):
        yield None, chunk("word ")
    yield None, chunk("", "length")
    yield None, {**chunk(""), "choices": [], "usage": USAGE}
    yield None, None


def response_events(body):
    number = iter(range(100))

    def event(kind, **more):
        return kind, {"type": kind, "sequence_number": next(number), **more}

    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    whole = response(body)
    item = whole["output"][0]
    part = item["content"][0]
    yield event("response.created", response=response(body, "in_progress"))
    yield event("response.output_item.added", output_index=0, item={**item, "content": []})
    yield event("response.content_part.added", **place, part={**part, "text": ""})
    for _ in range(WORDS):
        yield event("response.output_text.delta", **place, delta="word ", logprobs=[])
    yield event("response.output_text.done", **place, text=part["text"], logprobs=[])
    yield event("response.content_part.done", **place, part=part)
    yield event("response.output_item.done", output_index=0, item=item)
    yield event("response.completed", response=whole)


WHOLE = {
    "chat/completions": chat,
    "completions": completion,
    "responses": response,
    "embeddings": embeddings,
}
EVENTS = {
    "chat/completions": chat_events,
    "completions": completion_events,
    "responses": response_events,
}


def sse(event, data):
    text = "[DONE]" if data is None else json.dumps(data)
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {text}\n\n".encode()


HELD = 60
"""Seconds that a server waits to be told to go on."""


class ProviderServer:
    """The server; `requests` are the (path, headers, body bytes) that came.

    `handler` speaks another wire: a subclass of `Handler`.
    """

    def __init__(self, handler=None):
        self._handler = handler or Handler
        self.scenarios = deque()
        self.requests = []
        self.came = threading.Event()  # set with each request
        self.gate = threading.Event()  # what "slow" waits for between its chunks
        self.gate.set()

    def play(self, *scenarios):
        self.scenarios.extend(scenarios)

    def __enter__(self):
        server = self

        class Bound(self._handler):
            provider = server

        self._http = _Quiet(("127.0.0.1", 0), Bound)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.gate.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


class _Quiet(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that hangs up is what several tests are about."""


class Handler(BaseHTTPRequestHandler):
    """Answers by how a path ends: `wholes` make bodies of a request's, `streams` its events."""

    protocol_version = "HTTP/1.1"
    provider = None
    wholes = WHOLE
    streams = EVENTS
    error = ERROR
    stream_type = "text/event-stream; charset=utf-8"
    written = staticmethod(sse)

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(200, json.dumps({"object": "list", "data": []}).encode())

    def do_POST(self):
        raw = self.body()
        self.provider.requests.append((self.path, dict(self.headers), raw))
        self.provider.came.set()
        try:
            body = json.loads(raw)
        except ValueError:
            body = {}
        operation = self.operation()
        if operation is None:
            self.answer(404, b'{"error": {"message": "no such path"}}')
            return
        scenarios = self.provider.scenarios
        scenario = scenarios.popleft() if scenarios else "ok"
        if scenario.isdigit():
            self.refuse(int(scenario), raw)
        elif self.is_streamed(body) and operation in self.streams:
            self.stream(operation, body, scenario)
        else:
            self.whole(operation, body, scenario)

    def operation(self):
        path = self.path.partition("?")[0].rstrip("/")
        return next((key for key in self.wholes if path.endswith("/" + key)), None)

    def is_streamed(self, body):
        return body.get("stream")

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status, body, content_type="application/json", **headers):
        self.send_response(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, raw):
        # As real providers do: the message echoes what was asked.
        error = {"message": f"cannot do {raw.decode('utf-8', 'replace')}", "code": "bad_thing"}
        self.answer_json(status, {"error": error})

    def answer_json(self, status, body):
        self.answer(status, json.dumps(body).encode(), Retry_After_Ms="1")

    def whole(self, operation, body, scenario):
        answer = self.wholes[operation](body)
        if scenario == "no_usage":
            answer.pop("usage")
        elif scenario == "wrong_types":
            answer["usage"] = {"prompt_tokens": "eleven", "completion_tokens": -7}
        data = json.dumps(answer).encode()
        if scenario == "gzip":
            self.answer(200, gzip.compress(data, mtime=0), Content_Encoding="gzip")
        elif scenario == "malformed":
            self.answer(200, data[: len(data) // 2])
        elif scenario == "error":
            self.answer(200, json.dumps(self.error).encode())
        elif scenario == "not_utf8":
            self.answer(200, b'{"model": "\xff\xfe", "choices": [], "object": "list"}')
        elif scenario == "no_type":
            self.answer(200, data, content_type=None)
        elif scenario == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:20])
            self.hang_up()
        elif scenario == "disconnect":
            self.hang_up()
        elif scenario == "huge":
            answer["padding"] = "x" * 10_000_000
            self.answer(200, json.dumps(answer).encode())
        else:
            self.answer(200, data)

    def hang_up(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def stream(self, operation, body, scenario):
        if scenario == "disconnect":
            self.hang_up()
            return
        coding = scenario if scenario in {"gzip", "deflate", "raw_deflate", "br"} else None
        self.send_response(200)
        if scenario != "no_type":
            self.send_header("Content-Type", self.stream_type)
        if coding:
            self.send_header("Content-Encoding", coding.removeprefix("raw_"))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        compress, flush = compressor(coding)
        try:
            for count, (event, data) in enumerate(self.streams[operation](body)):
                if scenario == "cut" and count == 3:
                    self.hang_up()
                    return
                if scenario == "slow":
                    time.sleep(0.01)
                    self.provider.gate.wait(HELD)
                if scenario == "no_done" and data is None:
                    break
                for piece in self.damaged(self.written(event, data), scenario, count):
                    self.chunk(compress(piece))
            self.chunk(flush())
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def damaged(self, event, scenario, count):
        return damaged(event, scenario, count)

    def chunk(self, data):
        if data:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()


def damaged(event, scenario, count):
    """The bytes of one event, as they are sent in a scenario."""
    if scenario == "malformed" and count == 2:
        return [b'data: {"choices": [{"finish_reason": "st\n\n']
    if scenario == "not_utf8" and count == 2:
        return [b'data: {"choices": [], "usage": {"prompt_tokens": 1, "x": "\xff\xfe"}}\n\n']
    if scenario == "wrong_types" and count == 2:
        return [b'data: {"choices": [], "usage": {"prompt_tokens": "x"}, "model": 7}\n\n']
    if scenario == "error" and count == 2:
        return [sse(None, ERROR)]
    if scenario == "comments":
        return [b": ping\n\n", event]
    if scenario == "bytewise":
        return [event[i : i + 1] for i in range(len(event))]
    if scenario == "huge" and count == 2:
        return [b'data: {"choices": [], "padding": "' + b"x" * 10_000_000 + b'"}\n\n']
    return [event]


def compressor(coding):
    if coding in {"gzip", "deflate", "raw_deflate"}:
        bits = {"gzip": 31, "deflate": 15, "raw_deflate": -15}[coding]
        state = zlib.compressobj(wbits=bits)
        return (lambda data: state.compress(data) + state.flush(zlib.Z_SYNC_FLUSH)), state.flush
    if coding == "br":
        import brotli

        state = brotli.Compressor()
        return (lambda data: state.process(data) + state.flush()), state.finish
    return (lambda data: data), (lambda: b"")

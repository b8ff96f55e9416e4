"""What reading costs: µs per streamed chunk, per whole answer, per request and per route.

    python benchmarks/decoders.py

Each figure is the fastest of the windows, which other work on the machine disturbs least;
the spread is the slowest window over the fastest. Reading alone: no network, no SDK, no
recorder, so what is shown is what a call or chunk costs on top of them.
"""

import json
import timeit

from sottovoce.call import Call
from sottovoce.protocols import Reader, match, request_facts
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_embeddings import OPENAI_EMBEDDINGS
from sottovoce.protocols.openai_responses import OPENAI_RESPONSES

WINDOWS = 15
WINDOW_S = 0.05


class Silent:
    """A recorder that does nothing."""

    def opened(self, call):
        pass

    def ended(self, call):
        pass


def measure(name, action, *, per=1):
    """Print the cost of `action`, which does `per` of what is counted."""
    timer = timeit.Timer(action)
    number = max(1, int(WINDOW_S / max(timer.timeit(1), 1e-7)))
    number = max(1, int(WINDOW_S / max(timer.timeit(number) / number, 1e-7)))
    windows = [window / number / per * 1e6 for window in timer.repeat(WINDOWS, number)]
    print(f"{name:<58}{min(windows):>10.2f}{max(windows) / min(windows):>9.1f}x")


def spell(body, **options):
    return b"data: " + json.dumps(body, separators=(",", ":"), **options).encode() + b"\n\n"


def chunk(delta, finish=None, **more):
    return spell(
        {
            "id": "chatcmpl-CkX0bJnZ4q7wV2mT9sR5uY8p",
            "object": "chat.completion.chunk",
            "created": 1730000000,
            "model": "gpt-4o-mini-2024-07-18",
            "service_tier": "default",
            "system_fingerprint": "fp_0ba0d124f1",
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
            "usage": None,
            **more,
        }
    )


def response_event(kind, **more):
    body = {"type": kind, "sequence_number": 12, **more}
    return b"event: " + kind.encode() + b"\n" + spell(body)


def started(protocol):
    """A reader that has seen the beginning of its stream."""
    call = Call(Silent(), operation="chat", provider="openai")
    reader = Reader(call, protocol, "text/event-stream")
    if protocol is OPENAI_RESPONSES:
        reader.feed(response_event("response.created", response={"model": "gpt-5"}))
    else:
        reader.feed(chunk({"role": "assistant", "content": ""}))
    return reader


def whole(protocol, body):
    call = Call(Silent(), operation="chat", provider="openai")
    reader = Reader(call, protocol, "application/json")
    reader.feed(body)
    reader.finish()


TEXT = "Some words of an answer, and a few more. " * 40
PLAIN = chunk({"content": " hello"}, obfuscation="abcdefgh")
DELTA = response_event(
    "response.output_text.delta",
    item_id="msg_0123456789abcdef0123456789abcdef",
    output_index=0,
    content_index=0,
    delta=" hello",
    logprobs=[],
    obfuscation="abcdefgh",
)
USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 400,
    "total_tokens": 419,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
        "service_tier": "default",
    }
).encode()
VECTORS = json.dumps(
    {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": [0.0123456] * 1536} for i in range(8)
        ],
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 64, "total_tokens": 64},
    }
).encode()


def request(words):
    return json.dumps(
        {
            "messages": [
                {"role": "system", "content": "You answer briefly."},
                {"role": "user", "content": "word\n" * words},
            ],
            "model": "gpt-4o-mini",
            "stream": True,
            "temperature": 0.2,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}] * 4,
        }
    ).encode()


def long_requests():
    """Requests of three sizes: a long text, one full of quotes, a long talk with tools."""
    quoted = json.dumps([{"key": "value", "n": 1}] * 25)
    turns = [
        {"role": "user", "content": "What about the next?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function"}]},
        {"role": "tool", "tool_call_id": "a", "content": quoted},
    ]
    for size in (100_000, 1_000_000, 10_000_000):
        for name, messages in (
            ("a text", [{"role": "user", "content": "word\n" * (size // 6)}]),
            ("JSON in a text", [{"role": "user", "content": quoted * (size // 900)}]),
            ("a talk with tools", turns * (size // 1_100) + turns[:1]),
        ):
            body = {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 99}
            yield name, json.dumps(body).encode()


def main():
    print(f"{'':<58}{'µs':>10}{'spread':>10}")
    reader = started(OPENAI_CHAT)
    gate, call = OPENAI_CHAT.may_hold_fact.search, reader._call
    measure("the gate: may this chunk hold a fact?", lambda: gate(PLAIN))
    measure("the time of a chunk: Call.chunk()", call.chunk)
    measure(f"chat chunk without a fact ({len(PLAIN)} B)", lambda: reader.feed(PLAIN))
    four = PLAIN * 4
    measure("  four in one network chunk, each", lambda: reader.feed(four), per=4)
    crlf = PLAIN.replace(b"\n", b"\r\n")
    measure("  with \\r\\n", lambda: reader.feed(crlf))
    first, second = PLAIN[:150], PLAIN[150:]
    measure("  cut in two", lambda: (reader.feed(first), reader.feed(second)))
    fact, counts = chunk({}, "stop"), spell({"model": "m", "choices": [], "usage": USAGE})
    measure(f"chat chunk with a finish reason ({len(fact)} B)", lambda: reader.feed(fact))
    measure(f"chat chunk with usage ({len(counts)} B)", lambda: reader.feed(counts))
    responses = started(OPENAI_RESPONSES)
    measure(f"responses event without a fact ({len(DELTA)} B)", lambda: responses.feed(DELTA))
    measure("one reader", lambda: Reader(call, OPENAI_CHAT, "text/event-stream"))
    measure(
        f"whole chat answer ({len(ANSWER)} B), its call included",
        lambda: whole(OPENAI_CHAT, ANSWER),
    )
    measure(
        f"whole embeddings answer, 8x1536 ({len(VECTORS) >> 10} KiB)",
        lambda: whole(OPENAI_EMBEDDINGS, VECTORS),
    )
    measure("  json.loads of the same", lambda: json.loads(VECTORS))
    small, large = request(100), request(30_000)
    body = json.loads(small)
    measure("request as an object", lambda: OPENAI_CHAT.request(body))
    measure(f"request ({len(small)} B)", lambda: request_facts(OPENAI_CHAT, small))
    measure(f"request ({len(large) >> 10} KiB)", lambda: request_facts(OPENAI_CHAT, large))
    for name, wire in long_requests():
        measure(
            f"request: {name} ({len(wire) >> 10} KiB)",
            lambda wire=wire: request_facts(OPENAI_CHAT, wire),
        )
    measure("route: another path", lambda: match("POST", "/api/v1/users/1234/orders"))
    measure("route: another method", lambda: match("GET", "/v1/chat/completions"))
    measure("route: a model's", lambda: match("POST", "/v1/chat/completions"))


if __name__ == "__main__":
    main()

"""Bodies that do not say what they are, or grow to more than anybody wants to read."""

import gzip
import json

import httpx2
import pytest

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

"""Large requests of the app's own: sent as they are, their facts known as far as it costs little."""

import json

import httpx
import httpx2
import pytest

from sottovoce import guard

TOOL = json.dumps([{"secret": "what a tool answered", "number": n} for n in range(3_000)])
QUESTION = {"role": "user", "content": "a secret question"}
HISTORY = [QUESTION, {"role": "tool", "content": TOOL}] * 10
FACTS = {"request_model": "tiny", "request_max_tokens": 5, "user_turn": True}


def post(library, url, messages):
    body = {"model": "tiny", "messages": messages, "max_tokens": 5}
    response = library.post(url, json=body)
    assert json.loads(response.request.content) == body
    return response


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_who_has_the_last_word_of_a_long_history_is_known(library, raw_calls, server):
    response = post(library, server.url + "/v1/chat/completions", [*HISTORY, QUESTION])
    assert response.status_code == 200
    call = raw_calls.only
    assert {**call.facts, **FACTS} == call.facts
    assert not guard.undecodable


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_what_would_take_long_is_left_out_and_counted(library, raw_calls, server):
    messages = [{"role": "user", "content": TOOL * 10}]
    assert post(library, server.url + "/v1/chat/completions", messages).status_code == 200
    call = raw_calls.only
    assert call.facts["request_model"] == "tiny"
    assert "user_turn" not in call.facts
    assert guard.undecodable == {"size": 1}

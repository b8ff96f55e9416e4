"""What engines tell of their own work over HTTP: llama.cpp's timings; on the way they are of a part."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.protocols import request_facts
from sottovoce.protocols.llama_server import LLAMA_COMPLETION, LLAMA_EMBEDDING
from sottovoce.protocols.ollama import OLLAMA_CHAT
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_completions import OPENAI_COMPLETIONS
from sottovoce.protocols.openai_responses import OPENAI_RESPONSES

CANARY = "the canary sings"
TIMINGS = {
    "cache_n": 236,
    "prompt_n": 11,
    "prompt_ms": 30.958,
    "prompt_per_token_ms": 2.8143,
    "prompt_per_second": 355.3,
    "predicted_n": 35,
    "predicted_ms": 661.064,
    "predicted_per_token_ms": 18.887,
    "predicted_per_second": 52.94,
    "draft_n": 20,
    "draft_n_accepted": 15,
}
COUNTED = {"input_tokens": 247, "output_tokens": 35, "cache_read_tokens": 236}
TOLD = {
    **COUNTED,
    "prefill_rate": pytest.approx(355.32, rel=1e-3),
    "decode_rate": pytest.approx(51.43, rel=1e-3),
    "draft_accepted_share": 15 / 20,
}
NAMED = {"response_model": "tiny", "finish_reasons": ["stop"]}


def choice(**more):
    return {"index": 0, "finish_reason": None, **more}


def chunk(*choices, **more):
    return {"object": "chat.completion.chunk", "model": "tiny", "choices": [*choices], **more}


SAID = chunk(choice(delta={"content": CANARY}))
ENDS = chunk(choice(delta={}, finish_reason="stop"))
PARTLY = {**TIMINGS, "predicted_n": 1, "predicted_ms": 0.001}
NATIVE = {
    "index": 0,
    "content": CANARY,
    "stop": True,
    "model": "tiny",
    "tokens_predicted": 35,
    "tokens_evaluated": 247,
    "generation_settings": {"stop": [CANARY], "n_predict": 35},
    "prompt": CANARY,
    "stop_type": "word",
    "stopping_word": CANARY,
    "timings": TIMINGS,
}
WHOLES = [
    (OPENAI_CHAT, {"model": "tiny", "choices": [choice(message={}, finish_reason="stop")]}),
    (OPENAI_COMPLETIONS, {"model": "tiny", "choices": [choice(text="", finish_reason="stop")]}),
    (LLAMA_COMPLETION, NATIVE),
]


@pytest.mark.parametrize("padding", [0, 300_000])
@pytest.mark.parametrize(("protocol", "body"), WHOLES)
def test_a_whole_answer(reading, protocol, body, padding):
    body = {"model": "tiny", "padding": "x" * padding, **body, "timings": TIMINGS}
    read = reading(protocol, "application/json").feed(json.dumps(body).encode()).finish()
    assert read.facts == {**NAMED, **TOLD}
    assert read.malformed == []


def test_what_the_usage_says_counts_more(reading):
    body = {**WHOLES[0][1], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}
    facts = OPENAI_CHAT.response({**body, "timings": TIMINGS})
    assert (facts["input_tokens"], facts["output_tokens"]) == (5, 4)
    assert facts["decode_rate"] == TOLD["decode_rate"]


@pytest.mark.parametrize("each", [False, True], ids=["last chunk", "every chunk"])
@pytest.mark.parametrize("usage", [False, True], ids=["no usage", "usage"])
def test_a_stream(reading, sse, each, usage):
    said = {**SAID, "timings": PARTLY} if each else SAID
    last = [ENDS] if each or usage else []
    if usage:
        counts = {"prompt_tokens": 247, "completion_tokens": 35}
        last += [{**chunk(), "usage": counts, "timings": TIMINGS}]
    else:
        last = [{**ENDS, "timings": TIMINGS}]
    read = reading(OPENAI_CHAT).feed(sse(said, said, said, said, said, *last))
    assert read.facts == {**NAMED, **TOLD}
    assert read.malformed == []


def test_a_stream_that_is_left_tells_nothing_of_its_parts(reading, sse):
    body = {**chunk(choice(text=CANARY)), "timings": PARTLY}
    read = reading(OPENAI_COMPLETIONS).feed(sse(*[body] * 6, end=b""))
    assert read.facts == {"response_model": "tiny"}
    native = {"index": 0, "content": CANARY, "stop": False, "tokens_predicted": 1}
    read = reading(LLAMA_COMPLETION).feed(sse(*[{**native, "timings": PARTLY}] * 6, end=b""))
    assert read.facts == {}


def test_a_stream_of_its_own_route(reading, sse):
    said = {"index": 0, "content": CANARY, "tokens": [1], "stop": False, "tokens_evaluated": 247}
    read = reading(LLAMA_COMPLETION).feed(sse(*[said] * 6, NATIVE, end=b"")).finish()
    assert read.facts == {**NAMED, **TOLD}
    assert (read.call.outcome, read.call.chunks, read.malformed) == ("completed", 7, [])


def test_a_response(reading):
    done = {
        "type": "response.completed",
        "response": {
            "model": "tiny",
            "status": "completed",
            "output": [{"type": "message"}],
            "usage": {"input_tokens": 247, "output_tokens": 35},
        },
        "timings": TIMINGS,
    }
    event = b"event: response.completed\ndata: " + json.dumps(done).encode() + b"\n\n"
    assert reading(OPENAI_RESPONSES).feed(event).facts == {**NAMED, **TOLD}


@pytest.mark.parametrize(
    ("timings", "facts"),
    [
        # All of the prompt was in the cache, one token was made: neither has a rate.
        (
            {**TIMINGS, "prompt_n": 1, "predicted_n": 1, "draft_n": 0},
            {"input_tokens": 237, "output_tokens": 1, "cache_read_tokens": 236},
        ),
        # Servers of before August 2025 do not tell what was cached.
        ({"prompt_n": 11, "predicted_n": 35}, {"output_tokens": 35}),
        ({**TIMINGS, "prompt_ms": 0.0, "predicted_ms": 0}, COUNTED),
    ],
)
def test_what_would_say_nothing_is_left_out(timings, facts):
    body = {**NATIVE, "timings": timings}
    del body["tokens_evaluated"], body["tokens_predicted"]
    found = LLAMA_COMPLETION.response(body)
    found.pop("draft_accepted_share", None)
    assert found == {**NAMED, **facts}


def test_what_its_own_route_is_asked():
    asked = {
        "prompt": CANARY,
        "n_predict": 9,
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "stop": [CANARY],
        "json_schema": {"title": CANARY},
        "stream": True,
        "grammar": CANARY,
    }
    assert LLAMA_COMPLETION.request(asked) == {
        "request_max_tokens": 9,
        "request_temperature": 0.5,
        "request_top_k": 40,
        "request_top_p": 0.9,
        "request_stop_count": 1,
        "request_stream": True,
        "output_type": "json",
    }
    assert LLAMA_COMPLETION.request({"prompt": CANARY, "n_predict": -1}) == {}
    assert LLAMA_EMBEDDING.request({"content": CANARY, "model": "tiny"}) == {
        "request_model": "tiny"
    }


def test_what_its_own_route_answers_in_a_list(reading):
    for protocol, body, facts in (
        (LLAMA_COMPLETION, NATIVE, {**NAMED, **TOLD}),
        (LLAMA_EMBEDDING, {"index": 0, "embedding": [[0.25]]}, {}),
    ):
        wire = json.dumps([body, body]).encode()
        read = reading(protocol, "application/json").feed(wire).finish()
        assert (read.facts, read.malformed) == (facts, [])


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.just(CANARY)
    | st.just([CANARY])
    | st.dictionaries(st.sampled_from(sorted(TIMINGS)), st.just(CANARY), max_size=2)
)
TIMED = st.dictionaries(st.sampled_from(sorted(TIMINGS)), VALUES)
NS = [key for _, key, _ in OLLAMA_CHAT.answered if key.endswith(("duration", "count"))]


@settings(max_examples=300, deadline=None)
@given(
    VALUES | TIMED,
    st.dictionaries(st.sampled_from([*NS, "stop", "choices", "stop_type", "done"]), VALUES),
)
def test_no_value_in_any_place_raises_or_brings_content(reading, timings, more):
    body = {"timings": timings, **more}
    wire = json.dumps(body).encode()
    for protocol in (OPENAI_CHAT, OPENAI_COMPLETIONS, LLAMA_COMPLETION, OLLAMA_CHAT):
        for read in (
            reading(protocol, "application/json").feed(wire).finish(),
            reading(protocol).feed(b"data: " + wire + b"\n\n").finish(),
        ):
            assert "reader" not in read.malformed
            assert CANARY not in repr(read.result)
            for fact in ("prefill_rate", "decode_rate", "draft_accepted_share"):
                assert 0 <= read.facts.get(fact, 0) < float("inf")
        assert CANARY not in repr(request_facts(protocol, wire))

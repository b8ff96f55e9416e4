"""What is learnt of the wires of Ollama, Cohere and Hugging Face, and what never is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import cohere as cohere_wire
from servers import huggingface as hf_wire
from servers import ollama as ollama_wire
from sottovoce.protocols import hosts, match, request_facts
from sottovoce.protocols.bodies import MAX_PARSED_REQUEST
from sottovoce.protocols.checks import CHECKS
from sottovoce.protocols.cohere import COHERE_CHAT, COHERE_EMBED, RERANK
from sottovoce.protocols.huggingface import HF_FEATURES, HF_TEXT_GENERATION
from sottovoce.protocols.ollama import OLLAMA_CHAT, OLLAMA_EMBED, OLLAMA_GENERATE

CANARY = "the canary sings"
ALL = [
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    OLLAMA_EMBED,
    COHERE_CHAT,
    COHERE_EMBED,
    RERANK,
    HF_TEXT_GENERATION,
    HF_FEATURES,
]
USER = {"role": "user", "content": CANARY}

REQUESTS = [
    (
        OLLAMA_CHAT,
        {
            "model": "gemma3",
            "messages": [{"role": "system", "content": CANARY}, {**USER, "images": [CANARY]}],
            "tools": [{"type": "function", "function": {"name": CANARY}}],
            "format": {"type": "object", "title": CANARY},
            "options": {
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": 40,
                "num_predict": 128,
                "frequency_penalty": 0.5,
                "presence_penalty": 1.5,
                "stop": [CANARY, "b"],
                "seed": 7,
            },
            "think": "high",
            "keep_alive": "5m",
        },
        {
            "request_model": "gemma3",
            "request_stream": True,
            "request_temperature": 0.5,
            "request_top_p": 0.9,
            "request_top_k": 40,
            "request_max_tokens": 128,
            "request_frequency_penalty": 0.5,
            "request_presence_penalty": 1.5,
            "request_stop_count": 2,
            "request_reasoning_level": "high",
            "request_tool_count": 1,
            "output_type": "json",
            "user_turn": True,
        },
    ),
    (
        OLLAMA_CHAT,
        {
            "model": "m",
            "stream": False,
            "think": False,
            "format": "",
            "options": {"num_predict": -1},
            "messages": [USER, {"role": "tool", "tool_name": CANARY, "content": CANARY}],
        },
        {
            "request_model": "m",
            "request_stream": False,
            "request_reasoning_level": "false",
            "user_turn": False,
        },
    ),
    (
        OLLAMA_GENERATE,
        {"model": "m", "prompt": CANARY, "system": CANARY, "stream": False},
        {"request_model": "m", "request_stream": False, "user_turn": True},
    ),
    (
        OLLAMA_GENERATE,
        {"model": "m", "prompt": CANARY, "suffix": CANARY, "stream": False},
        {"request_model": "m", "request_stream": False, "user_turn": False},
    ),
    (
        OLLAMA_EMBED,
        {"model": "m", "input": [CANARY], "dimensions": 128, "truncate": True},
        {"request_model": "m", "request_dimensions": 128},
    ),
    (
        COHERE_CHAT,
        {
            "model": "command-a-03-2025",
            "stream": True,
            "messages": [USER, {"role": "assistant", "tool_plan": CANARY}],
            "documents": [CANARY],
            "tools": [{}, {}],
            "response_format": {"type": "json_object", "json_schema": {"title": CANARY}},
            "max_tokens": 9,
            "stop_sequences": [CANARY],
            "temperature": 0.3,
            "k": 0,
            "p": 0.75,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.25,
            "thinking": {"type": "disabled"},
        },
        {
            "request_model": "command-a-03-2025",
            "request_stream": True,
            "request_max_tokens": 9,
            "request_stop_count": 1,
            "request_temperature": 0.3,
            "request_top_k": 0,
            "request_top_p": 0.75,
            "request_frequency_penalty": 0.5,
            "request_presence_penalty": 0.25,
            "request_reasoning_level": "disabled",
            "request_tool_count": 2,
            "output_type": "json",
            "user_turn": False,
        },
    ),
    (
        COHERE_EMBED,
        {
            "model": "embed-v4.0",
            "texts": [CANARY],
            "input_type": "classification",
            "embedding_types": ["float", "int8"],
            "output_dimension": 256,
        },
        {
            "request_model": "embed-v4.0",
            "request_encoding_formats": ["float", "int8"],
            "request_dimensions": 256,
        },
    ),
    (
        RERANK,
        {"model": "rerank-v4.0", "query": CANARY, "documents": [CANARY], "top_n": 3},
        {"request_model": "rerank-v4.0"},
    ),
    (
        HF_TEXT_GENERATION,
        {
            "inputs": CANARY,
            "stream": True,
            "parameters": {
                "temperature": 0.5,
                "top_k": 10,
                "top_p": 0.95,
                "max_new_tokens": 20,
                "frequency_penalty": 0.1,
                "stop": [CANARY],
                "grammar": {"type": "json", "value": {"title": CANARY}},
            },
        },
        {
            "request_stream": True,
            "request_temperature": 0.5,
            "request_top_k": 10,
            "request_top_p": 0.95,
            "request_max_tokens": 20,
            "request_frequency_penalty": 0.1,
            "request_stop_count": 1,
            "output_type": "json",
        },
    ),
    (HF_FEATURES, {"inputs": [CANARY], "dimensions": 64}, {"request_dimensions": 64}),
]


@pytest.mark.parametrize(("protocol", "body", "facts"), REQUESTS)
def test_what_a_request_tells(protocol, body, facts):
    assert request_facts(protocol, json.dumps(body).encode()) == facts
    large = json.dumps({"padding": [CANARY * 8000], **body}).encode()
    assert len(large) > MAX_PARSED_REQUEST
    assert request_facts(protocol, large) == facts


def test_a_question_of_coheres_first_version_is_a_persons_unless_tools_answered():
    body = {"message": CANARY, "chat_history": []}
    assert COHERE_CHAT.request(body) == {"user_turn": True}
    answered = {**body, "tool_results": [{"outputs": [CANARY]}]}
    assert COHERE_CHAT.request(answered) == {"user_turn": False}
    large = json.dumps({**answered, "message": CANARY * 8000}).encode()
    assert request_facts(COHERE_CHAT, large) == {"user_turn": False}


TWO_CALLS = {"tool_call_count": 2, "tool_names": ["weather", "weather"]}
TIMED = {fact: pytest.approx(value) for fact, value in ollama_wire.TIMED.items()}
OLLAMA = {**ollama_wire.COUNTED, **TIMED, "finish_reasons": ["stop"]}
EMBEDDED = {
    "response_model": "llama3.2",
    "input_tokens": 8,
    "load_s": pytest.approx(0.0010195),
}
COHERE = {**cohere_wire.COUNTED, "finish_reasons": ["COMPLETE"]}
TOOLS = {"tools": [{}]}
DETAILS = {"parameters": {"details": True}}

ANSWERS = [
    (OLLAMA_CHAT, ollama_wire.chat({}), OLLAMA),
    (OLLAMA_CHAT, ollama_wire.chat({"tools": [{}], "think": True}), {**OLLAMA, **TWO_CALLS}),
    (OLLAMA_GENERATE, ollama_wire.generate({"prompt": CANARY}), OLLAMA),
    (
        OLLAMA_GENERATE,
        ollama_wire.generate({}),
        {"response_model": ollama_wire.MODEL, "finish_reasons": ["load"]},
    ),
    (OLLAMA_EMBED, ollama_wire.embed({}), EMBEDDED),
    (OLLAMA_EMBED, ollama_wire.embedding({}), {}),
    (
        OLLAMA_EMBED,
        {"model": "m", "data": [], "usage": {"prompt_tokens": 8}},
        {"response_model": "m", "input_tokens": 8},
    ),
    (COHERE_CHAT, cohere_wire.chat({}), COHERE),
    (
        COHERE_CHAT,
        cohere_wire.chat(TOOLS),
        {**COHERE, "finish_reasons": ["TOOL_CALL"], **TWO_CALLS},
    ),
    (
        COHERE_CHAT,
        {"finish_reason": "MAX_TOKENS", "usage": {"tokens": {"input_tokens": 7.0}}},
        {"finish_reasons": ["MAX_TOKENS"], "input_tokens": 7},
    ),
    (COHERE_CHAT, cohere_wire.chat_v1({}), COHERE),
    (
        COHERE_CHAT,
        cohere_wire.chat_v1(TOOLS),
        {**COHERE, "tool_call_count": 1, "tool_names": ["weather"]},
    ),
    (COHERE_CHAT, cohere_wire.generate_v1({}), {**COHERE, "finish_reasons": ["MAX_TOKENS"]}),
    (COHERE_EMBED, cohere_wire.embed({}), {"input_tokens": 2}),
    (RERANK, cohere_wire.rerank({}), {}),
    (
        RERANK,
        {"model": "rerank-2", "data": [], "usage": {"total_tokens": 26}},
        {"response_model": "rerank-2", "input_tokens": 26},
    ),
    (HF_TEXT_GENERATION, hf_wire.generate(DETAILS), {**hf_wire.COUNTED, "input_tokens": 3}),
    (HF_TEXT_GENERATION, [hf_wire.generate(DETAILS)], {**hf_wire.COUNTED, "input_tokens": 3}),
    (HF_TEXT_GENERATION, [hf_wire.generate({})], {}),
    (HF_TEXT_GENERATION, [], {}),
    (HF_FEATURES, hf_wire.features({}), {}),
]


@pytest.mark.parametrize(("protocol", "body", "facts"), ANSWERS)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_a_whole_answer_tells(reading, protocol, body, facts, size):
    wire = json.dumps(body).encode()
    read = reading(protocol, "application/json")
    read.feed(*(wire[i : i + size] for i in range(0, len(wire), size))).finish()
    assert read.facts == facts
    assert (read.malformed, read.reader.error, read.call.is_open) == ([], None, True)


LARGE = "a secret" * 100_000
VECTORS = [[0.25] * 1536] * 8


@pytest.mark.parametrize(
    ("protocol", "body", "facts"),
    [
        (OLLAMA_CHAT, {**ollama_wire.chat({}), "message": {"content": LARGE}}, OLLAMA),
        (OLLAMA_GENERATE, {**ollama_wire.generate({"prompt": "x"}), "response": LARGE}, OLLAMA),
        (OLLAMA_EMBED, {**ollama_wire.embed({}), "embeddings": VECTORS}, EMBEDDED),
        (
            COHERE_CHAT,
            {"id": "1", "message": {"content": LARGE}, **cohere_wire.chat({})},
            {k: v for k, v in COHERE.items() if k != "cache_read_tokens"},
        ),
        (
            COHERE_EMBED,
            {**cohere_wire.embed({}), "embeddings": {"float": VECTORS}},
            {"input_tokens": 2},
        ),
        (HF_FEATURES, VECTORS, {}),
    ],
)
def test_a_large_answer_is_read_at_its_edges(reading, protocol, body, facts):
    if "message" in body:
        body["message"] = {"content": LARGE}
    read = reading(protocol, "application/json").feed(json.dumps(body).encode()).finish()
    assert read.facts == facts
    assert read.malformed == []


def written(events, form):
    return [form(event, data) for event, data in events]


def v2(event, data):
    return cohere_wire.sse(event, data)


STREAMS = [
    (OLLAMA_CHAT, ollama_wire.chat_lines({}), ollama_wire.as_line, OLLAMA),
    (OLLAMA_CHAT, ollama_wire.chat_lines(TOOLS), ollama_wire.as_line, {**OLLAMA, **TWO_CALLS}),
    (OLLAMA_GENERATE, ollama_wire.generate_lines({}), ollama_wire.as_line, OLLAMA),
    (COHERE_CHAT, cohere_wire.chat_events({}), v2, COHERE),
    (
        COHERE_CHAT,
        cohere_wire.chat_events(TOOLS),
        v2,
        {**COHERE, "finish_reasons": ["TOOL_CALL"], **TWO_CALLS},
    ),
    (COHERE_CHAT, cohere_wire.chat_v1_lines({}), ollama_wire.as_line, COHERE),
    (
        HF_TEXT_GENERATION,
        hf_wire.generate_events(DETAILS),
        v2,
        {**hf_wire.COUNTED, "input_tokens": 3},
    ),
]
STREAMS = [(protocol, written(events, form), facts) for protocol, events, form, facts in STREAMS]


def content_type(protocol, wire):
    if wire.startswith((b"data:", b"event:")):
        return "text/event-stream"
    return "application/stream+json" if protocol is COHERE_CHAT else "application/x-ndjson"


@pytest.mark.parametrize(("protocol", "events", "facts"), STREAMS)
@pytest.mark.parametrize("size", [1, 7, 0, 1 << 20])
def test_what_a_stream_tells(reading, protocol, events, facts, size):
    wire = b"".join(events)
    pieces = [wire[i : i + size] for i in range(0, len(wire), size)] if size else events
    read = reading(protocol, content_type(protocol, wire)).feed(*pieces)
    assert read.facts == facts
    assert (read.call.is_open, read.call.outcome, read.malformed) == (False, "completed", [])
    counted = [event for event in events if b"[DONE]" not in event]
    assert read.call.chunks == len(counted) - 1  # the last one says that it is over


@pytest.mark.parametrize(
    ("protocol", "kind", "event", "code"),
    [
        (OLLAMA_CHAT, "application/x-ndjson", b'{"error":"the canary sings"}\n', "_OTHER"),
        (HF_TEXT_GENERATION, "text/event-stream", b'data: {"error":"x"}\n\n', "_OTHER"),
        (
            HF_TEXT_GENERATION,
            "text/event-stream",
            b'data: {"error":"the canary sings","error_type":"overloaded"}\n\n',
            "overloaded",
        ),
        (
            COHERE_CHAT,
            "text/event-stream",
            b'data: {"type":"message-end","delta":{"finish_reason":"ERROR","error":"x"}}\n\n',
            "_OTHER",
        ),
    ],
)
def test_an_error_in_a_stream_ends_it(reading, protocol, kind, event, code):
    read = reading(protocol, kind).feed(event)
    assert (read.call.outcome, read.call.error) == ("failed", code)


def test_every_row_names_a_fact_that_calls_have():
    rows = [row for protocol in ALL for row in (*protocol.asked, *protocol.answered)]
    assert {fact for fact, _, _ in rows} <= set(CHECKS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "delta", "error", "tool_calls", "function", "name", "id"])
            | st.sampled_from(
                ["usage", "tokens", "billed_units", "input_tokens", "type", "details"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
KEYS = ["model", "message", "messages", "prompt", "options", "format", "think", "stop", "stream"]
KEYS += [
    "done",
    "done_reason",
    "eval_count",
    "prompt_eval_count",
    "error",
    "type",
    "delta",
    "index",
    "prompt_eval_duration",
    "eval_duration",
    "load_duration",
    "total_duration",
]
KEYS += ["usage", "meta", "response", "event_type", "finish_reason", "generations", "tool_calls"]
KEYS += ["thinking", "response_format", "tool_results", "parameters", "details", "generated_text"]
BODIES = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8) | st.sampled_from(
    [body for _, body, _ in ANSWERS if isinstance(body, dict)]
).flatmap(lambda body: st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda new: body | new))


@settings(max_examples=150, deadline=None)
@given(BODIES | st.lists(JSON, max_size=3))
def test_no_value_in_any_place_raises_or_brings_content(reading, body):
    wire = json.dumps(body).encode()
    for protocol in ALL:
        reads = [
            reading(protocol, "application/json").feed(wire).finish(),
            reading(protocol).feed(b"data: " + wire + b"\n\n").finish(),
            reading(protocol, "application/x-ndjson").feed(wire + b"\n").finish(),
        ]
        for read in reads:
            assert "reader" not in read.malformed
            # A model may have any name; the policy decides what of it may be seen.
            read.call.facts.pop("response_model", None)
            assert CANARY not in repr(read.result)
            assert CANARY not in repr(read.reader.error)
        asked = {**protocol.request(body), **request_facts(protocol, wire)}
        assert CANARY not in repr({k: v for k, v in asked.items() if k != "request_model"})


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(STREAMS), st.data())
def test_noise_in_a_stream_never_raises(reading, stream, data):
    protocol, events, _ = stream
    wire = b"".join(events)
    cut = data.draw(st.integers(0, len(wire)))
    noise = data.draw(st.binary(max_size=20) | st.sampled_from([b"\n\n", b"\r", b'"', b"{", b"["]))
    read = reading(protocol, content_type(protocol, wire)).feed(wire[:cut] + noise + wire[cut:])
    read.finish()
    assert "reader" not in read.malformed
    assert CANARY not in repr(read.result)


@pytest.mark.parametrize(
    ("path", "operation", "protocol", "provider"),
    [
        ("/api/chat", "chat", "ollama_chat", "ollama"),
        ("/ollama/api/chat", "chat", "ollama_chat", "ollama"),
        ("/api/generate", "text_completion", "ollama_generate", "ollama"),
        ("/api/embed", "embeddings", "ollama_embed", "ollama"),
        ("/api/embeddings", "embeddings", "ollama_embed", "ollama"),
        ("/api/v1/embeddings", "embeddings", "openai_embeddings", None),
        ("/v2/chat", "chat", "cohere_chat", "cohere"),
        ("/v1/chat", "chat", "cohere_chat", "cohere"),
        ("/v1/generate", "text_completion", "cohere_chat", "cohere"),
        ("/v2/embed", "embeddings", "cohere_embed", "cohere"),
        ("/v2/rerank", "rerank", "rerank", "cohere"),
        ("/v1/rerank", "rerank", "rerank", None),
        ("/rerank", "rerank", "rerank", None),
        ("/generate", "text_completion", "hf_text_generation", "hugging_face"),
        ("/generate_stream", "text_completion", "hf_text_generation", "hugging_face"),
    ],
)
def test_paths(path, operation, protocol, provider):
    route = match("POST", path)
    assert (route.operation, route.protocol.name) == (operation, protocol)
    assert route.provider == provider


@pytest.mark.parametrize(
    "path",
    ["/api/show", "/api/pull", "/api/create", "/api/tags", "/api/chats", "/v1/tokenize"]
    + ["/v1/classify", "/v2/parse", "/v1/embed-jobs", "/models/m/pipeline/fill-mask"]
    + ["/pipeline/feature-extraction", "/v1/systemone", "/generate/stream"],
)
def test_other_paths_are_nobodys_business(path):
    assert match("POST", path) is None


def test_a_model_in_a_path():
    path = "/hf-inference/models/intfloat/e5%2Dlarge/pipeline/feature-extraction"
    route = match("POST", path)
    assert (route.operation, route.facts) == ("embeddings", {"request_model": "intfloat/e5-large"})


@pytest.mark.parametrize(
    ("host", "port", "provider"),
    [
        ("ollama.com", None, ("ollama", True)),
        ("localhost", 11434, ("ollama", False)),
        ("api.cohere.com", None, ("cohere", True)),
        ("router.huggingface.co", None, ("hugging_face", True)),
        ("x.us-east-1.aws.endpoints.huggingface.cloud", None, ("hugging_face", True)),
    ],
)
def test_hosts(host, port, provider):
    assert hosts.provider(host, port) == provider

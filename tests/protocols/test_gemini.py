"""What is learnt of Gemini's wire, at Google and on Vertex AI, and what never is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import gemini as wire
from servers.gemini import FACTS, candidate
from sottovoce.protocols import match, reader, request_facts
from sottovoce.protocols.bodies import MAX_PARSED_REQUEST
from sottovoce.protocols.elements import Elements
from sottovoce.protocols.gemini import GEMINI, GEMINI_EMBEDDINGS
from sottovoce.protocols.skeleton import skeleton

CANARY = "the canary sings"
LONG = CANARY * 8000
MODEL = FACTS["response_model"]
TEXT = {"text": CANARY}
ASKED = {
    "contents": [
        {"role": "user", "parts": [TEXT]},
        {"role": "model", "parts": [TEXT]},
        {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": CANARY}}]},
    ],
    "systemInstruction": {"parts": [TEXT]},
    "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
    "tools": [
        {"functionDeclarations": [{"name": CANARY, "description": CANARY}, {"name": CANARY}]},
        {"googleSearch": {}},
    ],
    "cachedContent": CANARY,
    "labels": {"team": CANARY},
    "serviceTier": "flex",
    "generationConfig": {
        "temperature": 0.4,
        "topP": 1,
        "topK": 40.0,
        "candidateCount": 2,
        "maxOutputTokens": 256,
        "presencePenalty": 0.5,
        "frequencyPenalty": -0.5,
        "stopSequences": [CANARY, "b"],
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT", "properties": {"temperature": {"type": "STRING"}}},
        "thinkingConfig": {"thinkingLevel": "LOW", "includeThoughts": True},
        "seed": 7,
    },
}
ASKED_FACTS = {
    "request_temperature": 0.4,
    "request_top_p": 1.0,
    "request_top_k": 40,
    "request_choice_count": 2,
    "request_max_tokens": 256,
    "request_presence_penalty": 0.5,
    "request_frequency_penalty": -0.5,
    "request_stop_count": 2,
    "request_reasoning_level": "low",
    "request_service_tier": "flex",
    "request_tool_count": 3,
    "output_type": "json",
    "user_turn": True,
}


def snake(value):
    """The other spelling that Google takes."""
    if isinstance(value, dict):
        return {
            "".join("_" + c.lower() if c.isupper() else c for c in k): snake(v)
            for k, v in value.items()
        }
    return [snake(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("spell", [dict, snake])
@pytest.mark.parametrize("padding", [0, MAX_PARSED_REQUEST])
def test_what_was_asked(spell, padding):
    body = spell({**ASKED, "systemInstruction": {"parts": [{"text": CANARY + "x" * padding}]}})
    assert request_facts(GEMINI, json.dumps(body).encode()) == ASKED_FACTS


@pytest.mark.parametrize(
    ("contents", "person"),
    [
        ([{"parts": [TEXT]}], True),
        ({"role": "user", "parts": TEXT}, True),
        ([{"role": "user", "parts": [{"fileData": {"fileUri": CANARY}}]}], True),
        ([{"role": "user", "parts": [{"functionResponse": {"name": "f"}}]}], False),
        ([{"role": "function", "parts": [{"functionResponse": {"name": "f"}}]}], False),
        ([{"role": "user", "parts": [TEXT]}, {"role": "model", "parts": [TEXT]}], False),
        ([{"role": "user", "parts": []}], False),
        ([{"role": "user"}], False),
        ([], None),
        ([CANARY], None),
        (7, None),
    ],
)
def test_a_turn_is_a_persons_by_role_and_parts(contents, person):
    assert GEMINI.request({"contents": contents}).get("user_turn") is person


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"responseModalities": ["TEXT", "IMAGE"]}, "image"),
        ({"responseModalities": ["AUDIO"]}, "speech"),
        ({"responseModalities": ["TEXT"], "responseMimeType": "application/json"}, "json"),
        ({"responseMimeType": "text/plain"}, "text"),
        ({"responseMimeType": CANARY}, None),
        ({}, None),
    ],
)
def test_output_types(config, kind):
    assert GEMINI.request({"generationConfig": config}).get("output_type") == kind
    large = json.dumps({"contents": [{"parts": [{"text": LONG}]}], "generationConfig": config})
    assert request_facts(GEMINI, large.encode()).get("output_type") == kind


THOUGHT = {"text": CANARY, "thought": True}
ANSWERS = {
    "text": (wire.whole({}), FACTS),
    "tool calls": (
        wire.answer(candidate(wire.CALL, TEXT, wire.CALL, finishReason="STOP")),
        {**FACTS, "tool_call_count": 2, "tool_names": ["weather"] * 2},
    ),
    "several candidates": (
        wire.answer(
            candidate(TEXT, finishReason="MAX_TOKENS", index=1),
            candidate(TEXT, finishReason="STOP"),
        ),
        {**FACTS, "finish_reasons": ["STOP", "MAX_TOKENS"]},
    ),
    "cut off while thinking": (
        wire.answer(
            {"content": {"role": "model"}, "finishReason": "MAX_TOKENS", "index": 0},
            usage={"promptTokenCount": 11, "thoughtsTokenCount": 59, "totalTokenCount": 70},
        ),
        {
            "response_model": MODEL,
            "finish_reasons": ["MAX_TOKENS"],
            "input_tokens": 11,
            "output_tokens": 59,
            "reasoning_tokens": 59,
        },
    ),
    "a blocked prompt": (
        wire.BLOCKED,
        {"response_model": MODEL, "finish_reasons": ["PROHIBITED_CONTENT"], "input_tokens": 11},
    ),
    "a reason that says nothing": (
        wire.answer(candidate(TEXT, finishReason="FINISH_REASON_UNSPECIFIED")),
        {key: value for key, value in FACTS.items() if key != "finish_reasons"},
    ),
    "no counts": (
        wire.answer(candidate(TEXT, finishReason="STOP"), usage={"trafficType": "ON_DEMAND"}),
        {"response_model": MODEL, "finish_reasons": ["STOP"]},
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("indent", [None, 2])
def test_whole_answers(reading, name, indent):
    body, facts = ANSWERS[name]
    data = json.dumps(body, indent=indent).encode()
    read = reading(GEMINI, "application/json; charset=UTF-8").feed(data[:9], data[9:]).finish()
    assert (read.facts, read.malformed, read.reader.error) == (facts, [], None)
    assert (read.call.is_open, read.call.chunks) == (True, 0)


def test_a_large_answer_is_read_at_its_end_and_text_does_not_fool_it(reading):
    fake = '"finishReason": "FAKE", "usageMetadata": {"promptTokenCount": 1}, "modelVersion": "x"'
    image = {"inlineData": {"mimeType": "image/png", "data": "A" * 400_000}}
    body = wire.answer(candidate(TEXT, image, {"text": fake}, finishReason="STOP", index=0))
    read = reading(GEMINI, "application/json").feed(json.dumps(body, indent=2).encode()).finish()
    assert (read.facts, read.malformed) == (FACTS, [])


def events_of(body=None):
    return list(wire.events(body or {}))


TOOLS = {"tools": [{"functionDeclarations": [{"name": "weather"}]}]}
PIECES = [
    candidate({"functionCall": {"name": "f", "partialArgs": [{"x": 1}], "willContinue": True}}),
    candidate({"functionCall": {"partialArgs": [{"x": CANARY}], "willContinue": True}}),
    candidate({"functionCall": {}}),
]
SO_FAR = {"promptTokenCount": 11, "candidatesTokenCount": 1, "thoughtsTokenCount": 1}
STREAMS = {
    "text": (events_of(), FACTS),
    "tools": (events_of(TOOLS), {**FACTS, "tool_call_count": 1, "tool_names": ["weather"]}),
    "arguments in pieces": (
        [wire.answer(piece, usage=SO_FAR) for piece in PIECES] + events_of()[-1:],
        {**FACTS, "tool_call_count": 1, "tool_names": ["f"]},
    ),
    "several calls": (
        [*events_of(TOOLS)[:1], *events_of(TOOLS)],
        {**FACTS, "tool_call_count": 2, "tool_names": ["weather"] * 2},
    ),
    "counts on their own": (
        [
            *events_of()[:-1],
            wire.answer(candidate(TEXT, finishReason="STOP"), usage=SO_FAR),
            {"usageMetadata": wire.USAGE, "modelVersion": MODEL},
        ],
        FACTS,
    ),
    "Vertex AI counts at the end": (
        [
            wire.answer(candidate(TEXT), usage={"trafficType": "ON_DEMAND"}),
            wire.answer(candidate(TEXT, finishReason="STOP")),
        ],
        FACTS,
    ),
    "a reason in every chunk": (
        [wire.answer(candidate(TEXT, finishReason="STOP"), usage=SO_FAR)] * 3 + events_of()[-1:],
        FACTS,
    ),
    "a blocked prompt": ([wire.BLOCKED], ANSWERS["a blocked prompt"][1]),
    "broken off": (
        [wire.answer(candidate(TEXT), usage=SO_FAR)] * 3,
        {"response_model": MODEL, "input_tokens": 11},
    ),
}


def as_sse(bodies):
    return b"".join(b"data: " + json.dumps(body).encode() + b"\r\n\r\n" for body in bodies)


def as_array(bodies):
    return b"[" + b",\r\n".join(map(wire.pretty, bodies)) + b"\n]\n"


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("array", [False, True])
def test_streams(reading, name, size, array):
    bodies, facts = STREAMS[name]
    if name == "counts on their own":
        bodies = [wire.answer(candidate(TEXT)), *bodies]  # the model is known by the first
    read = reading(GEMINI, "text/event-stream")
    data = as_sse(bodies)
    if array:
        read.call.stream = True
        read.reader = type(read.reader)(
            read.call, GEMINI, "application/json; charset=UTF-8", read.malformed.append
        )
        data = as_array(bodies)
    read.feed(*(data[i : i + size] for i in range(0, len(data), size)))
    assert read.call.is_open
    assert read.call.chunks == len(bodies)
    read.finish()
    assert read.facts == facts
    assert (read.call.outcome, read.call.is_open) == ("completed", False)
    assert read.malformed == ([] if "finish_reasons" in facts else ["sse"])


def test_text_alone_is_never_parsed(reading, monkeypatch):
    read = reading(GEMINI).feed(as_sse(events_of()[:1]))
    parsed = []
    monkeypatch.setattr(reader, "parsed", lambda _protocol, data, _tell: parsed.append(data))
    read.feed(as_sse(events_of()[:1]) * 20)
    assert (parsed, read.call.chunks) == ([], 21)
    read.feed(as_sse(events_of()[-1:]))
    assert len(parsed) == 1


@pytest.mark.parametrize("size", [1, 20, 100_000])
@pytest.mark.parametrize("bare", [False, True])
def test_an_error_in_a_stream_fails_the_call(reading, size, bare):
    error = wire.pretty(wire.error(503)) + b"\n" if bare else as_sse([wire.error(503)])
    data = as_sse(events_of()[:2]) + error
    read = reading(GEMINI).feed(*(data[i : i + size] for i in range(0, len(data), size)))
    assert (read.call.outcome, read.call.error, read.call.chunks) == ("failed", "503", 2)


def test_an_array_that_was_read_as_a_whole(reading):
    read = reading(GEMINI, "application/json")
    read.reader.whole(as_array(events_of()))
    assert (read.facts, read.malformed) == (FACTS, [])


def test_an_element_that_is_too_large_is_counted(reading):
    read = reading(GEMINI)
    read.call.stream = True
    reader = type(read.reader)(read.call, GEMINI, "application/json", read.malformed.append)
    large = wire.answer(candidate({"text": "x" * (1 << 20)}))
    data = as_array([events_of()[0], large, *events_of()[-1:]])
    for start in range(0, len(data), 65536):
        reader.feed(data[start : start + 65536])
    reader.finish()
    assert (read.facts, read.call.chunks, read.malformed) == (FACTS, 3, ["size"])


@pytest.mark.parametrize("hostile", [b"{" * 300, b'{"a":' * 300, b"{" + b"[" * 300])
def test_brackets_without_end_are_not_followed(reading, hostile):
    read = reading(GEMINI)
    read.call.stream = True
    reader = type(read.reader)(read.call, GEMINI, "application/json", read.malformed.append)
    reader.feed(as_array(events_of()[:1])[:-3] + b"," + hostile)
    reader.feed(hostile)
    reader.finish()
    assert read.malformed == ["sse"]
    assert (read.call.chunks, read.call.outcome) == (1, "completed")


EMBEDDED = {
    "embedContent": {"input_tokens": 4},
    "batchEmbedContents": {},
    "predict": {"input_tokens": 11},
}


@pytest.mark.parametrize("verb", EMBEDDED)
def test_embeddings(reading, verb):
    data = wire.pretty(wire.EMBEDDINGS[verb])
    read = reading(GEMINI_EMBEDDINGS, "application/json").feed(data).finish()
    assert (read.facts, read.malformed) == (EMBEDDED[verb], [])


@pytest.mark.parametrize(
    ("body", "dimensions"),
    [
        ({"content": {"parts": [TEXT]}, "outputDimensionality": 64}, 64),
        ({"content": {"parts": [TEXT]}, "output_dimensionality": 64}, 64),
        ({"content": {}, "embedContentConfig": {"outputDimensionality": 64, "title": CANARY}}, 64),
        ({"requests": [{"model": CANARY, "content": {}, "outputDimensionality": 64}] * 2}, 64),
        ({"instances": [{"content": CANARY}], "parameters": {"outputDimensionality": 64}}, 64),
        ({"instances": [{"content": CANARY}], "parameters": {}}, None),
    ],
)
def test_the_size_of_embeddings(body, dimensions):
    assert GEMINI_EMBEDDINGS.request(body).get("request_dimensions") == dimensions


@pytest.mark.parametrize(
    ("path", "operation", "facts"),
    [
        ("/v1beta/models/gemini-2.5-flash:generateContent", "generate_content", {}),
        ("models/gemini-2.5-flash:generateContent", "generate_content", {}),
        ("/v1beta/models/gemini-2.5-flash:generateContent?key=secret", "generate_content", {}),
        (
            "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            "generate_content",
            {"request_stream": True},
        ),
        (
            "/v1/projects/p/locations/l/publishers/google/models/gemini-2.5-flash:generateContent",
            "generate_content",
            {},
        ),
        (
            "/v1/projects/p/locations/l/endpoints/123:streamGenerateContent",
            "generate_content",
            {"request_model": "endpoints/123", "request_stream": True},
        ),
        (
            "/v1beta/tunedModels/my-model:generateContent",
            "generate_content",
            {"request_model": "tunedModels/my-model"},
        ),
        ("/v1beta/models/gemini-2.5-flash:embedContent", "embeddings", {}),
        ("/v1beta/models/gemini-2.5-flash:batchEmbedContents", "embeddings", {}),
        (
            "/v1/projects/p/locations/l/publishers/google/models/text-embedding-005:predict",
            "embeddings",
            {"request_model": "text-embedding-005"},
        ),
        (
            "/v1/publishers/google/models/textembedding-gecko%40001:predict",
            "embeddings",
            {"request_model": "textembedding-gecko@001"},
        ),
        (
            "/v1beta/models/imagen-4.0-generate-001:predict",
            "generate_content",
            {"request_model": "imagen-4.0-generate-001", "output_type": "image"},
        ),
        (
            "/v1beta/models/veo-3.0-generate-001:predictLongRunning",
            "generate_content",
            {"request_model": "veo-3.0-generate-001"},
        ),
    ],
)
def test_paths(path, operation, facts):
    route = match("POST", path)
    assert route.operation == operation
    assert route.facts == {"request_model": "gemini-2.5-flash", **facts}
    assert route.unmistakable


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/models/gemini-2.5-flash:countTokens",
        "/v1beta/models/gemini-2.5-flash:computeTokens",
        "/v1beta/models/gemini-2.5-flash:batchGenerateContent",
        "/v1beta/models/gemini-2.5-flash",
        "/v1beta/cachedContents",
        "/upload/v1beta/files",
        "/v1/models/half_plus_two:predict",
        "/v1/projects/p/locations/l/endpoints/123:predict",
        "/generateContent",
        "/predict",
        "/v1/models/a/b:generateContent",
    ],
)
def test_other_paths(path):
    assert match("POST", path) is None


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.sampled_from(['"', "\\", "{", "]}"]),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    ),
    st.integers(1, 40),
    st.booleans(),
)
def test_any_element_comes_out_as_it_went_in(value, size, indent):
    objects = [{"a": value}, {}, {"b": [value]}]
    data = json.dumps(objects, indent=2 if indent else None).encode()
    elements = Elements(1 << 20)
    found = [e for i in range(0, len(data), size) for e in elements.feed(data[i : i + size])]
    assert [json.loads(element) for element in found] == objects
    assert elements.whole


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=100))
def test_no_bytes_make_the_splitter_raise(first, second):
    elements = Elements(50)
    for element in [*elements.feed(first), *elements.feed(b'"' + second), *elements.feed(b"}]")]:
        assert len(element) <= 50


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["index", "finishReason", "parts", "content", "functionCall", "name", "blockReason",
                 "promptTokenCount", "candidatesTokenCount", "statistics", "embeddings", "code",
                 "role", "thinkingConfig", "thinkingLevel", "topK", "functionDeclarations"]
            ),
            inner,
        )
    ),
    max_leaves=10,
)  # fmt: skip
KEYS = ["candidates", "usageMetadata", "promptFeedback", "modelVersion", "error", "predictions",
        "finishReason", "contents", "generationConfig", "tools", "requests", "parameters"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING))
def test_no_value_in_any_place_raises_or_brings_content(reading, change):
    change.pop("modelVersion", None)
    data = json.dumps({**wire.whole({}), **change}).encode()
    for protocol in (GEMINI, GEMINI_EMBEDDINGS):
        assert CANARY not in repr(protocol.request({**ASKED, **change}))
        for kind, sent in [
            ("application/json", data),
            ("text/event-stream", b"data: " + data + b"\n\n"),
            ("application/json", b"[" + data + b"]"),
        ]:
            read = reading(protocol, kind).feed(sent).finish()
            assert "reader" not in read.malformed
            assert CANARY not in repr(read.result)
            assert CANARY not in repr(read.reader.error)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING))
def test_the_shape_of_a_request_tells_what_parsing_it_tells(change):
    for config in (ASKED, snake(ASKED)):
        body = json.loads(
            json.dumps(
                {**config, **{k: v for k, v in change.items() if k not in {"contents", "tools"}}}
            )
        )
        assert GEMINI.request(skeleton(json.dumps(body).encode())) == GEMINI.request(body)

"""Large requests at a bounded cost: what their beginning and their end tell is what all of it tells."""

import json
import random
import sys
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sottovoce.protocols import request_facts, routes
from sottovoce.protocols.bodies import MAX_PARSED_REQUEST
from sottovoce.protocols.outline import MOST_PARSED, MOST_TEXT, outline

CANARY = "xq-canary-ring-a-bell"
PATHS = [
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/v2/chat",
    "/v1/chat",
    "/v1beta/models/gemini:generateContent",
    "/v1beta/models/gemini:batchEmbedContents",
    "/model/a.b/converse",
    "/model/a.b/invoke",
    "/completion",
]
PROTOCOLS = {
    route.protocol.name: route.protocol
    for route in (routes.match("POST", path) for path in PATHS)
    if route is not None
}
CHAT = PROTOCOLS["openai_chat"]

WORDS = ["user", "tool", "text", "m", "low", '],"n":1', '"}],"model":"in text"', "\\" * 5, ""]
TYPES = ["role", "content", "parts", "type", "tool_calls", "toolResult", "name", "temperature"]
TYPES += ["num_predict", "maxOutputTokens", "stopSequences"]


class Bodies(random.Random):
    """Requests of many shapes, in any order, full of quotes and brackets."""

    def text(self):
        made = "".join(self.choices('ab"\\[]{},: \né\u2028', k=self.randrange(12)))
        return self.choice([*WORDS, made, made])

    def scalar(self):
        return self.choice([None, True, False, self.randrange(99), 0.5, self.text(), self.text()])

    def some(self, make, most=4):
        return [make() for _ in range(self.randrange(most))]

    def object(self):
        """With one key at least: an empty tool is none."""
        return {self.choice(TYPES): self.text() for _ in range(self.randrange(1, 4))}

    def options(self):
        return {
            key: self.choice([self.scalar, self.texts])() for key in self.some(self.type_, most=6)
        }

    def type_(self):
        return self.choice(TYPES)

    def texts(self):
        return self.some(self.text)

    def objects(self):
        return self.some(self.object)

    def message(self):
        content = self.choice([self.text, self.objects])()
        made = {"role": self.choice(WORDS), "content": content, "x": self.objects()}
        return {key: made[key] for key in self.sample(list(made), self.randrange(4))}

    def messages(self):
        return self.some(self.message, most=12)

    def anything(self, depth=3):
        inner = partial(self.anything, depth - 1)
        kinds = [self.scalar, self.texts, self.messages]
        if depth:
            kinds += [lambda: {self.text(): inner() for _ in range(3)}, lambda: self.some(inner)]
        return self.choice(kinds)()

    def body(self):
        """Values as a request has them; anything where nobody looks."""
        kinds = {
            self.messages: "messages contents input inputs requests chat_history",
            self.objects: "tools functions tool_results documents",
            self.options: "options generationConfig generation_config parameters reasoning "
            "response_format output_config format",
            self.scalar: "model prompt message suffix think n stream raw max_tokens "
            "max_completion_tokens",
            self.texts: "stop stop_sequences modalities",
            self.anything: "metadata x system",
        }
        made = [(key, make) for make, keys in kinds.items() for key in keys.split()]
        return {key: make() for key, make in self.sample(made, self.randrange(14))}


BODIES = st.integers(0, 1 << 32).map(lambda seed: Bodies(seed).body())


@settings(max_examples=500, deadline=None)
@given(
    BODIES,
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(0, 700),
    st.integers(0, 60),
    st.integers(0, 400),
)
@example(
    {"messages": [{"role": "user"}], "input": [{"role": "user"}, {"role": "tool"}]},
    (",", ":"),
    None,
    True,
    70,
    0,
    40,
)
@example({"message": "a", "x": "b", "tool_results": [1], "n": 2}, (",", ":"), None, True, 70, 9, 9)
def test_none_tells_another_fact_than_the_whole(
    body, separators, indent, ascii_only, structure, text, tail
):
    wire = json.dumps(body, separators=separators, indent=indent, ensure_ascii=ascii_only)
    whole = json.loads(wire)
    known, complete, lacks = outline(wire.encode("utf-8", "replace"), structure, text, 0, tail)
    for protocol in PROTOCOLS.values():
        facts = protocol.request(whole)
        if complete:
            assert protocol.request(known) == facts
        else:
            assert protocol.certain(known, lacks).items() <= facts.items()


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200) | BODIES.map(lambda body: json.dumps(body).encode()),
    st.data(),
    st.integers(0, 300),
    st.integers(0, 60),
    st.sampled_from([0, 1 << 18]),
    st.integers(0, 200),
)
def test_no_bytes_are_more_than_no_json(wire, data, structure, text, parsed, tail):
    cut = data.draw(st.integers(0, len(wire)))
    noise = data.draw(st.sampled_from([b"", b'"', b"\\", b"{", b"]", b"\xff", b","]))
    try:
        known = outline(wire[:cut] + noise + wire[cut:], structure, text, parsed, tail).body
    except ValueError:
        return
    assert isinstance(known, dict)


def texts(size):
    """Texts of `size` bytes: prose, JSON inside JSON, code, a script without ASCII."""
    return {
        "prose": "The quick brown fox. \n" * (size // 22),
        "said": 'He said: "no", and went. ' * (size // 25),
        "json": json.dumps([{"k": n, "v": "x"} for n in range(size // 20)]),
        "code": 'print("hello\\n")\n' * (size // 17),
        "script": "漢字仮名" * (size // 12),
    }


TOOL = {
    "type": "function",
    "function": {
        "name": CANARY,
        "parameters": {
            "type": "object",
            "properties": {f"p{n}": {"type": "string", "enum": ["a", "b"]} for n in range(20)},
        },
    },
}


def history(text, number=250):
    """A chat in which a person speaks and tools answer `text`; a person has the last word."""
    return [
        message
        for _ in range(number)
        for message in (
            {"role": "user", "content": CANARY},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function"}]},
            {"role": "tool", "tool_call_id": "a", "content": text},
        )
    ] + [{"role": "user", "content": CANARY}]


PARAMETERS = {"temperature": 0.5, "max_tokens": 7, "stream": True, "stop": ["a", CANARY]}
FACTS = {
    "request_model": "m",
    "request_temperature": 0.5,
    "request_max_tokens": 7,
    "request_stream": True,
    "request_stop_count": 2,
    "user_turn": True,
}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("name", list(texts(100)))
@pytest.mark.parametrize("order", ["model messages", "messages model", "model messages tools"])
def test_a_long_history_is_known_from_both_ends(name, separators, order):
    given = {"model": "m", "messages": history(texts(3_000)[name]), "tools": [TOOL] * 30}
    body = {**{key: given[key] for key in order.split()}, **PARAMETERS}
    wire = json.dumps(body, separators=separators).encode()
    assert len(wire) > 2 * MOST_PARSED
    tools = {"request_tool_count": 30} if "tools" in order else {}
    assert request_facts(CHAT, wire) == FACTS | tools


@pytest.mark.parametrize("name", list(texts(100)))
@pytest.mark.parametrize("size", [MOST_TEXT // 2, MOST_PARSED // 2])
def test_one_long_text_is_walked_over(name, size):
    text = CANARY + texts(2 * size)[name][:size]
    body = {"messages": [{"role": "user", "content": text}], "model": "m", **PARAMETERS}
    wire = json.dumps(body).encode()
    assert len(wire) > MAX_PARSED_REQUEST
    assert request_facts(CHAT, wire) == FACTS


def test_what_cannot_be_known_is_left_out_and_told():
    body = {"model": "m", "prompt": texts(2_000_000)["json"], "max_tokens": 7, "stream": True}
    told = []
    facts = request_facts(CHAT, json.dumps(body).encode(), told.append)
    # Nobody knows whether there is another key for it between, so `max_tokens` is not told.
    assert facts == {"request_model": "m", "request_stream": True}
    assert told == ["size"]


def test_what_stands_around_a_text_that_is_too_long_is_known():
    messages = [*history("a", 200), {"role": "user", "content": texts(900_000)["json"]}]
    body = {"model": "m", "messages": messages, **PARAMETERS}
    told = []
    facts = request_facts(CHAT, json.dumps(body).encode(), told.append)
    assert facts == {fact: value for fact, value in FACTS.items() if fact != "user_turn"}
    assert told == ["size"]


def test_another_list_between_is_noticed():
    examples = [{"role": "tool", "content": CANARY}] * 4_000
    body = {"messages": history(CANARY), "few_shots": examples, "model": "m"}
    facts = request_facts(CHAT, json.dumps(body).encode())
    assert facts == {"request_model": "m"}


def calls(body):
    """How many functions, Python's and the engine's, are called to read it."""
    wire = json.dumps(body).encode()
    count = 0

    def called(_frame, event, _argument):
        nonlocal count
        count += event in {"call", "c_call"}

    request_facts(CHAT, wire)
    sys.setprofile(called)
    try:
        request_facts(CHAT, wire)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", list(texts(100)))
def test_what_it_takes_does_not_grow_with_the_body(name):
    for text in texts(200)[name], texts(4_000)[name]:
        few, many = (
            calls({"model": "m", "messages": history(text, number), **PARAMETERS})
            for number in (800, 8_000 if len(text) < 1_000 else 2_000)
        )
        assert few * 0.9 <= many <= few * 1.1
    few, many = (
        calls({"model": "m", "messages": [{"role": "user", "content": texts(size)[name]}]})
        for size in (600_000, 6_000_000)
    )
    assert many <= few * 1.1

"""Whole answers that are long: what is looked at is their end, what is learnt is the same."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.protocols.cohere import COHERE_EMBED
from sottovoce.protocols.mistral import MISTRAL_OCR
from sottovoce.protocols.ollama import OLLAMA_EMBED
from sottovoce.protocols.openai_chat import OPENAI_CHAT
from sottovoce.protocols.openai_embeddings import OPENAI_EMBEDDINGS
from sottovoce.protocols.openai_images import OPENAI_IMAGES
from sottovoce.protocols.whole import read_json

FLAT = [OPENAI_EMBEDDINGS, OPENAI_IMAGES, OLLAMA_EMBED, COHERE_EMBED, MISTRAL_OCR]
COUNTS = (
    st.none()
    | st.integers(-1, 9)
    | st.dictionaries(
        st.sampled_from(
            ["prompt_tokens", "total_tokens", "input_tokens", "billed_units", "details"]
        ),
        st.integers(0, 9) | st.just("many") | st.just({"cached_tokens": 1}),
        max_size=3,
    )
)
MODELS = st.sampled_from(["m-1", "", 'a "model": "x"', "m\n", None, 3])
ASIDE = st.text(max_size=40) | st.sampled_from(['{"usage": {"prompt_tokens": 1}, "model": "no"}'])


def _numbers(protocol):
    return [0.25] * (protocol.parse_up_to // 4)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_the_end_alone_tells_what_both_ends_do(reading, data):
    protocol = data.draw(st.sampled_from(FLAT))
    names = [*protocol.tail_keys, "model", "data", "note", "error", "meta"]
    body = {}
    for name in data.draw(st.permutations(names)):
        values = {"model": MODELS, "note": ASIDE, "data": st.just(_numbers(protocol))}
        body[name] = data.draw(values.get(name, COUNTS))
    wire = json.dumps(body).encode()
    read, whole = reading(protocol, "application/json"), reading(protocol, "application/json")
    whole.reader.whole(wire)
    error = read_json(read.call, protocol, wire, read.malformed.append)
    assert (read.facts, error, read.malformed) == (whole.facts, whole.reader.error, whole.malformed)


@pytest.mark.parametrize("junk", [b"", b"x", b'"model"', b'"model": "', b'"usage": {', b"\xff" * 9])
@pytest.mark.parametrize("protocol", [*FLAT, OPENAI_CHAT], ids=lambda protocol: protocol.name)
def test_what_breaks_off_tells_nothing_and_never_raises(reading, protocol, junk):
    read = reading(protocol, "application/json")
    body = b'{"data": [' + b"1," * protocol.parse_up_to + junk
    assert read_json(read.call, protocol, body, read.malformed.append) is None
    assert read.facts == {}
    assert read.malformed == ["size"]


def test_of_a_long_answer_the_end_alone_is_looked_at(reading):
    class Body(bytes):
        def __getitem__(self, key):
            looked_at.append(key)
            return bytes.__getitem__(self, key)

    looked_at = []
    vectors = [{"embedding": "AAAA" * 2048, "index": place} for place in range(8)]
    body = {"data": vectors, "model": "m-1", "usage": {"prompt_tokens": 9, "total_tokens": 9}}
    read = reading(OPENAI_EMBEDDINGS, "application/json")
    read_json(read.call, OPENAI_EMBEDDINGS, Body(json.dumps(body).encode()))
    assert read.facts == {"response_model": "m-1", "input_tokens": 9}
    assert [key.start for key in looked_at] == [-1024]

"""What Mistral has besides OpenAI's wire."""

import json

import pytest

from servers.mistral import OCR
from sottovoce.protocols import match
from sottovoce.protocols.mistral import MISTRAL_OCR
from sottovoce.protocols.openai_chat import OPENAI_CHAT

CANARY = "the canary sings"


@pytest.mark.parametrize(
    ("path", "operation", "model"),
    [
        ("/v1/agents/completions", "chat", None),
        ("/v1/fim/completions#stream", None, None),
        ("/v1/fim/completions", "text_completion", None),
        ("/v1/ocr", "generate_content", None),
        (
            "/v1/projects/p/locations/l/publishers/mistralai/models/codestral-2:rawPredict",
            "chat",
            "codestral-2",
        ),
        (
            "/v1/projects/p/locations/l/publishers/mistralai/models/codestral-2:streamRawPredict",
            "chat",
            "codestral-2",
        ),
        ("/rawPredict", "chat", None),
        ("/v1/projects/p/locations/l/endpoints/1:rawPredict", None, None),
        ("/v1/models/x/rawPredict", None, None),
        ("/v1/conversations", None, None),
    ],
)
def test_paths(path, operation, model):
    route = match("POST", path)
    assert (route and route.operation) == operation
    assert (route and route.facts.get("request_model")) == model


@pytest.mark.parametrize("padding", [0, 300_000])
def test_documents_are_only_named(reading, padding):
    body = {**OCR, "pages": [{**OCR["pages"][0], "markdown": CANARY + "x" * padding}]}
    read = reading(MISTRAL_OCR, "application/json").feed(json.dumps(body).encode()).finish()
    assert (read.facts, read.malformed) == ({"response_model": OCR["model"]}, [])


def test_the_tier_is_told_with_the_counts(reading):
    body = {
        "model": "mistral-small-latest",
        "usage": {"prompt_tokens": 16, "completion_tokens": 34, "service_tier": "priority"},
    }
    read = reading(OPENAI_CHAT, "application/json").feed(json.dumps(body).encode()).finish()
    assert read.facts == {
        "response_model": "mistral-small-latest",
        "response_service_tier": "priority",
        "input_tokens": 16,
        "output_tokens": 34,
    }


def test_a_document_is_a_persons():
    block = {"type": "document_url", "document_url": CANARY}
    asked = {"messages": [{"role": "user", "content": [block]}]}
    assert OPENAI_CHAT.request(asked) == {"user_turn": True}

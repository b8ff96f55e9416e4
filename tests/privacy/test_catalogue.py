import re

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sottovoce.privacy.catalogue import is_descriptor, is_public

PUBLIC = """
gpt-4o gpt-4o-mini gpt-4o-2024-08-06 gpt-4 gpt-4-0613 gpt-4-turbo-2024-04-09 gpt-4-1106-preview
gpt-3.5-turbo-0125 gpt-4.1-nano gpt-5-mini gpt-5.1 o1 o3-mini o4-mini o3-mini-2025-01-31
chatgpt-4o-latest gpt-4o-audio-preview-2024-12-17 text-embedding-3-small text-embedding-ada-002
dall-e-3 whisper-1 tts-1-hd omni-moderation-latest claude-3-5-sonnet-20241022 claude-3-opus-20240229
claude-sonnet-4-20250514 claude-opus-4-1 claude-haiku-4-5 claude-2.1 gemini-1.5-pro-002
gemini-2.5-flash-preview-05-20 gemini-2.5-flash-lite gemini-embedding-001 mistral-large-latest
mistral-small-2503 open-mistral-nemo codestral-latest command-r-plus deepseek-chat
deepseek-reasoner grok-2-1212 sonar-pro mlx-community/Llama-3.2-3B-Instruct-4bit
mlx-community/Qwen3-30B-A3B-4bit meta-llama/Meta-Llama-3-8B Qwen/Qwen2.5-Coder-32B-Instruct
mistralai/Mixtral-8x7B-Instruct-v0.1 google/gemma-2-9b-it google/gemma-3-27b-it-qat-q4_0-gguf
microsoft/Phi-3-mini-4k-instruct BAAI/bge-m3 openai/gpt-oss-20b mlx-community/gpt-oss-20b-MXFP4-Q4
TinyLlama/TinyLlama-1.1B-Chat-v1.0 HuggingFaceTB/SmolLM2-135M-Instruct
llama3.2:3b llama3.2 llama3.1:8b-instruct-q4_K_M qwen2.5-coder:7b gemma3:4b mistral:latest
deepseek-r1:8b mixtral:8x7b nomic-embed-text:v1.5 gpt-oss:20b
""".split()

PRIVATE = [
    "",
    "gpt-4o:acme",
    "ft:gpt-4o:acme:proj",
    "ft:gpt-4o-mini-2024-07-18:acme::abc123",
    "gpt-4o-acme",
    "acme-gpt-4o",
    "gpt-4o-2024-08-06-acme",
    "gpt-4o-mini-2024-07-18-2024-07-19",
    "claude-acme",
    "mlx-community/acme-secret-4bit",
    "mlx-community/Llama-3.2-3B-acme-4bit",
    "acme/Llama-3.2-3B",
    "a/meta-llama/Llama-3.2-3B",
    "/home/bob/llama3.gguf",
    "../llama3.2",
    "llama3.2:acme",
    "llama3.2:3b:acme",
    "llama3.2:",
    "gpt-4-11-22-33-44-55",
    "gpt-01-70-12-34-56-78",
    "gpt-4o\n",
    "gpt-4o ",
    "gpt-4o#acme",
    "gpt-4о",  # a Cyrillic letter
    "h:0123456789ab",
    "accounts/acme/models/llama-v3",
]


@pytest.mark.parametrize("model", PUBLIC)
def test_public_ids_are_known(model):
    assert is_public(model)


@pytest.mark.parametrize("model", PRIVATE)
def test_private_ids_are_not(model):
    assert not is_public(model)


@given(st.sampled_from(PUBLIC), st.from_regex(r"[-:/._@ ][a-z0-9]{6,}", fullmatch=True))
@hypothesis_settings(max_examples=200, deadline=None)
def test_no_suffix_of_ones_own_makes_a_public_id(model, suffix):
    # A date is the one ending of six or more characters that public ids do have.
    if not re.fullmatch(r"[-]20\d{6}", suffix):
        assert not is_public(model + suffix) or suffix[1:] in {"latest", "preview", "instruct"}


@pytest.mark.parametrize("model", ["-" * 100_000, "gpt-" * 50_000, "llama3.2:" + "q4_k_" * 50_000])
def test_a_long_id_is_not_looked_at(model):
    assert not is_public(model)
    assert not is_descriptor(model)


def test_descriptors_are_of_the_registrys_vocabularies_alone():
    assert is_descriptor("llama-lt_1M-4bit")
    for other in ("acme-lt_1M-4bit", "llama-acme-4bit", "llama-lt_1M-acme", "llama-4bit", "llama"):
        assert not is_descriptor(other)

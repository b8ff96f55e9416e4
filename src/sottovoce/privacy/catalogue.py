"""Which model ids are publicly known, so that one of them tells nothing about who asked.

An id is read as words, and *every* word must be known: a family of the table below first, then
versions, sizes, quantizations, dates and words of a closed list, each at most as often as
public ids have them. Nothing that a person types freely fits: ``gpt-4o:acme``, ``ft:gpt-4o:x``,
``gpt-4o-acme`` and ``mlx-community/acme-4bit`` are not in the catalogue.

Besides ids there are *descriptors*, which our runtimes give to a model of a local file:
``{architecture}-{size bucket}-{quantization}``, each of a closed vocabulary.
"""

from __future__ import annotations

import re
from typing import Final

from sottovoce.registry import ATTRIBUTES

LONGEST: Final = 96
"""Characters of the longest id that is looked at."""

HOSTED: Final = frozenset({
    "chatgpt", "claude", "codestral", "command", "dall", "davinci", "deepseek", "devstral", "embed",
    "gemini", "gpt", "grok", "magistral", "ministral", "mistral", "o1", "o3", "o4", "omni", "open",
    "pixtral", "sonar", "text", "tts", "voxtral", "whisper",
})  # fmt: skip
"""First words of the ids of hosted models."""

OPEN_WEIGHTS: Final = frozenset({
    "all", "bge", "codegemma", "codellama", "codestral", "command", "deepseek", "devstral",
    "embeddinggemma", "falcon", "gemma", "glm", "gpt", "granite", "granite3", "granite4", "hermes",
    "llama", "llava", "lfm2", "magistral", "mathstral", "meta", "minicpm", "ministral", "mistral",
    "mixtral", "moondream", "mxbai", "nemo", "nemotron", "nomic", "olmo", "openchat", "orca", "phi",
    "pixtral", "qwen", "qwen3", "qwq", "smollm", "smollm2", "smollm3", "snowflake", "solar",
    "stablelm", "starcoder", "starcoder2", "tinyllama", "vicuna", "wizardcoder", "yi", "zephyr",
})  # fmt: skip
"""First words of the names of open-weight models; a version may follow without a dash."""

ORGANISATIONS: Final = frozenset({
    "01-ai", "allenai", "baai", "bartowski", "cohereforai", "coherelabs", "deepseek-ai", "google",
    "huggingfacetb", "ibm-granite", "intfloat", "liquidai", "lmstudio-community", "meta-llama",
    "microsoft", "mistralai", "mixedbread-ai", "mlx-community", "nomic-ai", "nousresearch",
    "nvidia", "openai", "qwen", "sentence-transformers", "snowflake", "thebloke", "tiiuae",
    "tinyllama", "unsloth", "zai-org",
})  # fmt: skip
"""Publishers whose repositories are looked at; anyone may publish under some of these."""

WORDS: Final = frozenset({
    "ada", "ai", "air", "arctic", "audio", "base", "chat", "code", "coder", "codex", "creative",
    "deep", "distill", "dolphin", "dpo", "dwq", "e", "embed", "embedding", "english", "exp",
    "experimental", "fast", "flash", "gguf", "haiku", "hd", "hf", "image", "instant", "instruct",
    "it", "l6", "l12", "large", "latest", "light", "lite", "live", "llama", "m3", "math", "max", "maverick",
    "medium", "mini", "minilm", "mistral", "mixtral", "mlx", "moderation", "multilingual", "nano",
    "nemo", "nightly", "non", "omni", "open", "opus", "oss", "plus", "preview", "pro", "prover",
    "qat", "qwen", "r", "r1", "realtime", "reasoner", "reasoning", "research", "safe", "saba", "scout", "search",
    "small", "sonnet", "speech", "sonar", "super", "text", "think", "thinking", "tiny", "tool",
    "transcribe", "tts", "turbo", "ultra", "v", "vision", "vl", "wizard", "xl", "xs",
})  # fmt: skip
"""Words that may follow a family."""

_VERSION: Final = re.compile(r"[vrk]?\d{1,2}(?:\.\d{1,2})?o?")
_SIZE: Final = re.compile(r"(?:\d{1,2}x)?[ae]?\d{1,3}(?:\.\d{1,2})?[bmk]")
_QUANTIZATION: Final = re.compile(
    r"[2-8]bit|int[48]|nf4|fp8|fp16|fp32|bf16|f16|f32|awq|gptq|mxfp4|i?q[1-8](?:_(?:0|1|k|k_[sml]|xs|xxs|s|m|nl))?"
)
_DATE: Final = re.compile(
    r"-(?:20[2-3]\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
    r"|20[2-3]\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[1-9]|1[0-2])-(?:20[2-3]\d|0[1-9]|[12]\d|3[01])"
    r"|(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    r"|2[2-9](?:0[1-9]|1[0-2])"
    r"|00[1-9])(?=-|$)"
)
_GLUED: Final = re.compile(r"([a-z]+\d?)(\d(?:\.\d{1,2})?)")
_DASHES: Final = re.compile(r"[- ]|_(?![0-9a-z]{1,3}(?:[-_.]|$))")

# How often each kind of word may occur: enough for public ids, too little to spell anything.
_MOST: Final = {"version": 2, "size": 2, "quantization": 2, "word": 5}

_ARCHITECTURES: Final = ATTRIBUTES["sottovoce.model.architecture"].values or frozenset()
_BUCKETS: Final = ATTRIBUTES["sottovoce.model.parameters"].values or frozenset()
_QUANTIZATIONS: Final = ATTRIBUTES["sottovoce.model.quantization"].values or frozenset()


def is_public(model: str) -> bool:
    """Whether `model` is the id of a publicly known model. Linear in its length."""
    if not model or len(model) > LONGEST or not model.isascii():
        return False
    organisation, slash, name = model.lower().rpartition("/")
    if slash:
        # An Ollama reference may name its library, a hub id its publisher; nothing is deeper.
        return (organisation in ORGANISATIONS or organisation == "library") and _is_name(
            name, OPEN_WEIGHTS
        )
    name, colon, tag = name.partition(":")
    if colon:
        return _is_name(name, OPEN_WEIGHTS) and _is_tag(tag)
    return _is_name(name, HOSTED) or _is_name(name, OPEN_WEIGHTS)


def is_descriptor(model: str) -> bool:
    """Whether `model` is ``{architecture}-{size bucket}-{quantization}`` of our vocabularies."""
    parts = model.rsplit("-", 2)
    return (
        len(parts) == 3  # noqa: PLR2004 - the three parts of the name
        and parts[1] in _BUCKETS
        and parts[2] in _QUANTIZATIONS
        and parts[0] in _ARCHITECTURES
    )


def _is_name(name: str, families: frozenset[str]) -> bool:
    name = name.removesuffix(".gguf")
    words = _DASHES.split(_DATE.sub("", name, count=1))
    family = words[0]
    if family not in families:
        glued = _GLUED.fullmatch(family)
        if glued is None or glued[1] not in families:
            return False
    return _are_known(words[1:])


def _is_tag(tag: str) -> bool:
    return bool(tag) and _are_known(_DASHES.split(_DATE.sub("", f"-{tag}", count=1).lstrip("-")))


def _are_known(words: list[str]) -> bool:
    seen = dict.fromkeys(_MOST, 0)
    for word in words:
        kind = _kind(word)
        if kind is None:
            return False
        seen[kind] += 1
        if seen[kind] > _MOST[kind]:
            return False
    return True


def _kind(word: str) -> str | None:
    if word in WORDS or word in OPEN_WEIGHTS:
        return "word"
    if _VERSION.fullmatch(word):
        return "version"
    if _SIZE.fullmatch(word):
        return "size"
    if _QUANTIZATION.fullmatch(word):
        return "quantization"
    return None

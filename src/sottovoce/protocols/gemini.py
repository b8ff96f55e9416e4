"""Gemini's content and embeddings, by Google's API of that name and by Vertex AI.

Wire: https://ai.google.dev/api/generate-content, https://ai.google.dev/api/embeddings and
https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference. Both take the
names of a request's fields in either of protobuf's spellings, and leave out what is 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, Seen
from sottovoce.protocols.tables import Body, Candidates, Find, Table, at, of, read, rows

PERSON_PARTS: Final = frozenset({"text", "inlineData", "inline_data", "fileData", "file_data"})
"""Parts that a person's turn is made of; what a function gave back is not among them."""

_DECLARATIONS: Final = frozenset({"functionDeclarations", "function_declarations"})
_OUTPUT_TYPES: Final = {"application/json": "json", "text/plain": "text", "text/x.enum": "text"}
_REASON = re.compile(r"(?!.*_UNSPECIFIED)[A-Z][A-Z_]{1,63}").fullmatch


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    """Give the objects in a list, or the one that stands for it."""
    if isinstance(value, Mapping):
        return [value]
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def from_person(content: Any) -> bool | None:
    """Tell whether a content comes from a person, by its role and the kinds of its parts."""
    if not isinstance(content, Mapping):
        return None
    if content.get("role", "user") != "user":
        return False
    return any(not PERSON_PARTS.isdisjoint(part) for part in _mappings(content.get("parts")))


@of("contents")
def _user_turn(body: Body) -> bool | None:
    contents = body.get("contents")
    if isinstance(contents, list):
        return from_person(contents[-1]) if contents else None
    return from_person(contents)


@of("tools")
def _tool_count(body: Body) -> int | None:
    """Count functions one by one, tools that run at Google as one each."""
    tools = body.get("tools")
    total = 0
    for tool in tools if isinstance(tools, list) else [tools]:
        if not isinstance(tool, Mapping):
            return None
        for kind, value in tool.items():
            total += len(value) if kind in _DECLARATIONS and isinstance(value, list) else 1
    return total


def _whole_number(find: Find) -> Find:
    """Take 40.0 for 40: the SDK sends counts as it was given them."""

    def whole(body: Body) -> Any:
        value = find(body)
        return int(value) if type(value) is float and value.is_integer() else value

    return of(find.__dict__["key"])(whole)


def _settings() -> Iterable[tuple[str, Find]]:
    for key in ("generationConfig", "generation_config"):
        for fact, names in _SETTINGS.items():
            for name in names:
                yield fact, _whole_number(at(key, name))
        for fact, find in _DERIVED.items():
            yield fact, _of_config(key, find)


def _of_config(key: str, find: Find) -> Find:
    def derive(body: Body) -> Any:
        config = body.get(key)
        return find(config) if isinstance(config, Mapping) else None

    return of(key)(derive)


def _either(config: Body, *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _output_type(config: Body) -> str | None:
    modalities = _either(config, "responseModalities", "response_modalities")
    spoken = {str(one).upper() for one in modalities} if isinstance(modalities, list) else set()
    if "AUDIO" in spoken:
        return "speech"
    if "IMAGE" in spoken:
        return "image"
    kind = _either(config, "responseMimeType", "response_mime_type")
    return _OUTPUT_TYPES.get(kind) if isinstance(kind, str) else None


def _choice_count(config: Body) -> Any:
    count = _either(config, "candidateCount", "candidate_count")
    return None if count == 1 else count


def _stop_count(config: Body) -> int | None:
    stop = _either(config, "stopSequences", "stop_sequences")
    return len(stop) if isinstance(stop, list) and stop else None


def _reasoning_level(config: Body) -> str | None:
    thinking = _either(config, "thinkingConfig", "thinking_config")
    level = (
        _either(thinking, "thinkingLevel", "thinking_level")
        if isinstance(thinking, Mapping)
        else None
    )
    return level.lower() if isinstance(level, str) and _REASON(level.upper()) else None


_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "request_temperature": ("temperature",),
    "request_top_p": ("topP", "top_p"),
    "request_top_k": ("topK", "top_k"),
    "request_max_tokens": ("maxOutputTokens", "max_output_tokens"),
    "request_frequency_penalty": ("frequencyPenalty", "frequency_penalty"),
    "request_presence_penalty": ("presencePenalty", "presence_penalty"),
}
_DERIVED: Final[Mapping[str, Find]] = {
    "request_choice_count": _choice_count,
    "request_stop_count": _stop_count,
    "request_reasoning_level": _reasoning_level,
    "output_type": _output_type,
}


def _sum_of(*names: str) -> Find:
    """Find the sum of the counts in `usageMetadata` that are there."""

    @of("usageMetadata")
    def total(body: Body) -> Any:
        usage = body.get("usageMetadata")
        if not isinstance(usage, Mapping):
            return usage
        counts = [usage[name] for name in names if usage.get(name) is not None]
        if all(type(count) is int for count in counts):
            return sum(counts) if counts else None
        return counts

    return total


def _of_modality(modality: str, *names: str) -> Find:
    """Find the sum of what lists such as ``[{"modality": "TEXT", "tokenCount": 8}]`` count of it."""

    @of("usageMetadata")
    def count(body: Body) -> Any:
        usage = body.get("usageMetadata")
        if not isinstance(usage, Mapping):
            return None
        # A count of 0 is left out.
        counts = [
            item.get("tokenCount", 0)
            for name in names
            for item in _mappings(usage.get(name))
            if item.get("modality") == modality
        ]
        return sum(counts) if counts else None

    return count


def _reason_of(value: Any) -> str | None:
    return value if isinstance(value, str) and _REASON(value) else None


def _block_reason(body: Body) -> str | None:
    feedback = body.get("promptFeedback")
    return _reason_of(feedback.get("blockReason")) if isinstance(feedback, Mapping) else None


def _look(body: Body, seen: Seen) -> bool:
    """Add what candidates say of their ends and of tool calls; whether the answer goes on."""
    candidates = _mappings(body.get("candidates"))
    # The end of an answer too long to be parsed; a prompt that was blocked has no candidates.
    ends = [_reason_of(body.get("finishReason")) or _block_reason(body)]
    seen.finished(0, ends[0])
    for candidate in candidates:
        index = candidate.get("index", 0)
        reason = _reason_of(candidate.get("finishReason"))
        ends.append(reason)
        seen.finished(index, reason)
        content = candidate.get("content")
        for part in _mappings(content.get("parts")) if isinstance(content, Mapping) else ():
            called = part.get("functionCall")
            # Arguments may be streamed: the pieces that follow have no name.
            if isinstance(called, Mapping) and called.get("name"):
                seen.tool(index, len(seen.tool_places), called.get("id"), called["name"])
    return bool(candidates) and not any(ends)


def _event(body: Body, seen: Seen) -> Candidates:
    goes_on = _look(body, seen)
    found = {**read(CHUNK, body), **seen.candidates()}
    if goes_on:
        # What was written until then; without the last event nobody knows how much there was.
        return {fact: value for fact, value in found.items() if fact not in _WRITTEN}
    return found


_WRITTEN: Final = frozenset(
    {
        "output_tokens",
        "output_text_tokens",
        "output_image_tokens",
        "output_audio_tokens",
        "reasoning_tokens",
    }
)


def _seen(fact: str) -> Find:
    """Find what the candidates of a whole answer say together."""

    def find(body: Body) -> Any:
        seen = Seen()
        _look(body, seen)
        return seen.candidates().get(fact)

    return find


_SPLIT: Final = {
    "input": (
        ("TEXT", "IMAGE", "AUDIO", "VIDEO"),
        ("promptTokensDetails", "toolUsePromptTokensDetails"),
    ),
    "output": (("TEXT", "IMAGE", "AUDIO"), ("candidatesTokensDetails",)),
    "cache_read": (("TEXT", "IMAGE", "AUDIO"), ("cacheTokensDetails",)),
}
"""What is counted by modality: facts, and where."""

ASKED: Final[Table] = rows(
    *_settings(),
    ("request_service_tier", at("serviceTier")),
    ("request_service_tier", at("service_tier")),
    ("request_tool_count", _tool_count),
    ("user_turn", _user_turn),
)

CHUNK: Final[Table] = rows(
    ("response_model", at("modelVersion")),
    # The prompt's tokens include cached ones, not what tools at Google gave back.
    ("input_tokens", _sum_of("promptTokenCount", "toolUsePromptTokenCount")),
    # The candidates' tokens do not include thoughts.
    ("output_tokens", _sum_of("candidatesTokenCount", "thoughtsTokenCount")),
    ("cache_read_tokens", at("usageMetadata", "cachedContentTokenCount")),
    ("reasoning_tokens", at("usageMetadata", "thoughtsTokenCount")),
    *(
        (f"{kind}_{modality.lower()}_tokens", _of_modality(modality, *names))
        for kind, (modalities, names) in _SPLIT.items()
        for modality in modalities
    ),
)

ANSWERED: Final[Table] = CHUNK + rows(
    ("finish_reasons", of("candidates")(_seen("finish_reasons"))),
    ("finish_reasons", of("promptFeedback")(_seen("finish_reasons"))),
    ("finish_reasons", of("finishReason")(_seen("finish_reasons"))),
    ("tool_call_count", of("candidates")(_seen("tool_call_count"))),
    ("tool_names", of("candidates")(_seen("tool_names"))),
)

MAY_HOLD_FACT: Final = re.compile(
    rb'"(?:(?:finishReason|blockReason|functionCall)"\s*:|error"\s*:\s*\{'
    rb'|(?:(?<=\{")|(?<=\{\n  "))usageMetadata")'
)
"""An end, the beginning of a tool call, an error, or counts that come after the end. Counts so
far and the model are in every chunk: the reader parses the first ones for them."""

GEMINI: Final = Protocol(
    name="gemini",
    asked=ASKED,
    answered=ANSWERED,
    event=_event,
    error=openai_chat.find_error,
    may_hold_fact=MAY_HOLD_FACT,
    tail_keys=("usageMetadata", "modelVersion", "finishReason"),
    array=True,
)


def _dimensions(key: str) -> Find:
    """Find the size asked for: in the body, in its config, or in the first of a batch, all alike."""

    @of(key)
    def find(body: Body) -> Any:
        value = body.get(key)
        if isinstance(value, (str, Mapping, list)):
            inner = next(iter(_mappings(value)), {})
            return _either(inner, "outputDimensionality", "output_dimensionality")
        return value

    return _whole_number(find)


@of("predictions")
def _predicted_tokens(body: Body) -> Any:
    """Sum what Vertex AI counted for each text."""
    counts = [
        at("embeddings", "statistics", "token_count")(prediction)
        for prediction in _mappings(body.get("predictions"))
    ]
    # Whole numbers are sent as 6.0 by some models.
    wholes = [int(c) for c in counts if type(c) in {int, float} and c == int(c)]
    return sum(wholes) if wholes and len(wholes) == len(counts) else None


_SIZES: Final = (
    "outputDimensionality",
    "output_dimensionality",
    "embedContentConfig",
    "parameters",
    "requests",
)

GEMINI_EMBEDDINGS: Final = Protocol(
    name="gemini_embeddings",
    asked=rows(*(("request_dimensions", _dimensions(key)) for key in _SIZES)),
    answered=rows(
        ("input_tokens", at("usageMetadata", "promptTokenCount")),
        ("input_tokens", _predicted_tokens),
    ),
    event=lambda _body, _seen: {},
    error=openai_chat.find_error,
    may_hold_fact=MAY_HOLD_FACT,
    tail_keys=("usageMetadata",),
    # A vector of 3072 numbers is 60 KB; counts of several texts are only found by parsing.
    parse_up_to=64 * 1024,
)

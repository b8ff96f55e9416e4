"""OpenAI chat completions, and what the many servers that speak it add to it.

Wire: https://platform.openai.com/docs/api-reference/chat. The same rows serve text
completions, whose answers have the same shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.protocols.checks import MAX_INDEX
from sottovoce.protocols.protocol import Protocol, Seen, error_code, names
from sottovoce.protocols.tables import (
    Body,
    Candidates,
    Table,
    at,
    length,
    of,
    read,
    rows,
    together,
    used,
)
from sottovoce.protocols.timings import TIMINGS

PERSON_BLOCKS: Final = frozenset(
    {
        "text", "image_url", "input_audio", "file", "input_text", "input_image", "input_file",
        "document_url",
    }
)  # fmt: skip
"""Types of content blocks that a person's turn is made of; results of tools are not among them."""

OUTPUT_TYPES: Final = {"text": "text", "json_object": "json", "json_schema": "json"}
"""`response_format` types in the words of `gen_ai.output.type`."""


def from_person(message: Any) -> bool | None:
    """Tell whether a message comes from a person, by its role and its blocks' types."""
    if type(message) is not dict and not isinstance(message, Mapping):
        return None
    if message.get("role") != "user":
        return False
    content = message.get("content")
    if isinstance(content, str):
        return True
    return isinstance(content, (list, tuple)) and any(
        isinstance(block, Mapping) and block.get("type") in PERSON_BLOCKS for block in content
    )


def find_error(body: Body) -> str | None:
    """Find an error's code in ``{"error": {…}}``, ``{"error": "…"}`` or ``{"object": "error", …}``."""
    error = body.get("error")
    if error is not None:
        if isinstance(error, Mapping):
            return error_code(error.get("code"), error.get("type"))
        if error:
            return error_code()
    if body.get("object") == "error":  # vLLM
        return error_code(body.get("type"), body.get("code"))
    return None


@of("stop")
def stop_count(body: Body) -> int | None:
    """Count the stop sequences; what they are is the app's own text."""
    stop = body.get("stop")
    return 1 if isinstance(stop, str) else len(stop) if isinstance(stop, list) else None


@of("n")
def choice_count(body: Body) -> Any:
    """Find how many choices were asked for, unless it is the usual one."""
    n = body.get("n")
    return None if n == 1 else n


def event(body: Body, seen: Seen) -> Candidates:
    """Read one chunk: choices end one by one, tool calls begin with a name."""
    for choice in _choices(body):
        index = choice.get("index", 0)
        seen.finished(index, choice.get("finish_reason"))
        delta = choice.get("delta")
        calls = delta.get("tool_calls") if isinstance(delta, Mapping) else None
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, Mapping):
                seen.tool(index, call.get("index", place), call.get("id"), _tool_name(call))
        if not calls and isinstance(delta, Mapping):
            called = delta.get("function_call")
            if isinstance(called, Mapping) and called.get("name"):
                seen.tool(index, 0, None, called["name"])
    return {**read(CHUNK, body), **seen.candidates()}


def _choices(body: Body) -> list[Mapping[str, Any]]:
    choices = body.get("choices")
    if not isinstance(choices, list):
        return []
    if len(choices) == 1 and type(choices[0]) is dict:
        return choices
    return [each for each in choices if type(each) is dict or isinstance(each, Mapping)]


@of("messages")
def user_turn(body: Body) -> bool | None:
    """Whether the last message comes from a person; None without any."""
    messages = body.get("messages")
    return from_person(messages[-1]) if isinstance(messages, list) and messages else None


@of("modalities")
def _spoken(body: Body) -> str | None:
    modalities = body.get("modalities")
    return "speech" if isinstance(modalities, list) and "audio" in modalities else None


@of("response_format")
def _format(body: Body) -> str | None:
    chosen = body.get("response_format")
    kind = chosen.get("type") if isinstance(chosen, Mapping) else None
    return OUTPUT_TYPES.get(kind) if isinstance(kind, str) else None


def _chosen(body: Body) -> Candidates:
    """Find why the choices of a whole answer ended, and which tools they call."""
    choices = _choices(body)
    found: Candidates = {}
    if len(choices) == 1 and choices[0].get("index", 0) == 0:
        # Nearly always: one choice, and its reason.
        reason = choices[0].get("finish_reason")
        if isinstance(reason, str):
            found["finish_reasons"] = [reason[:MAX_INDEX]]
    else:
        seen = Seen()
        for choice in choices:
            seen.finished(choice.get("index", 0), choice.get("finish_reason"))
        found.update(seen.candidates())
    calls: list[Any] = []
    for choice in choices:
        message = choice.get("message")
        if type(message) is dict or isinstance(message, Mapping):
            several = message.get("tool_calls")
            if isinstance(several, list):
                calls.extend(several)
                continue
            called = message.get("function_call")
            if called is not None and isinstance(called, Mapping):
                # What one call was before there were several; some local servers write both.
                calls.append({"function": called})
    if calls:
        found["tool_call_count"] = len(calls)
        found["tool_names"] = names(*map(_tool_name, calls))
    return found


def _tool_name(call: Any) -> Any:
    """Find what a tool call calls: a function, or a tool that takes any text."""
    if not isinstance(call, Mapping):
        return None
    called = call.get("function") or call.get("custom")
    return called.get("name") if isinstance(called, Mapping) else None


SAMPLING: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", at("stream")),
    ("request_temperature", at("temperature")),
    ("request_top_p", at("top_p")),
    ("request_top_k", at("top_k")),
    ("request_frequency_penalty", at("frequency_penalty")),
    ("request_presence_penalty", at("presence_penalty")),
    ("request_choice_count", choice_count),
    ("request_stop_count", stop_count),
)

ASKED: Final[Table] = SAMPLING + rows(
    ("request_max_tokens", at("max_completion_tokens")),
    ("request_max_tokens", at("max_tokens")),
    ("request_reasoning_level", at("reasoning_effort")),
    ("request_service_tier", at("service_tier")),
    ("request_tool_count", length("tools")),
    ("request_tool_count", length("functions")),
    ("output_type", _spoken),
    ("output_type", _format),
    ("user_turn", user_turn),
)

CHUNK: Final[Table] = (
    rows(
        ("response_model", at("model")),
        ("response_service_tier", at("service_tier")),
        ("response_service_tier", at("usage", "service_tier")),  # Mistral
        ("input_tokens", at("usage", "prompt_tokens")),
        ("output_tokens", at("usage", "completion_tokens")),
        ("cache_read_tokens", at("usage", "prompt_tokens_details", "cached_tokens")),
        ("cache_read_tokens", at("usage", "prompt_cache_hit_tokens")),  # DeepSeek
        ("cache_read_tokens", at("usage", "cached_tokens")),  # Moonshot
        ("cache_write_tokens", at("usage", "prompt_tokens_details", "cache_write_tokens")),
        ("reasoning_tokens", at("usage", "completion_tokens_details", "reasoning_tokens")),
        ("input_audio_tokens", used("usage", "prompt_tokens_details", "audio_tokens")),
        ("input_image_tokens", used("usage", "prompt_tokens_details", "image_tokens")),
        ("input_video_tokens", used("usage", "prompt_tokens_details", "video_tokens")),
        ("output_audio_tokens", used("usage", "completion_tokens_details", "audio_tokens")),
        ("output_image_tokens", used("usage", "completion_tokens_details", "image_tokens")),
        ("input_tokens", at("x_groq", "usage", "prompt_tokens")),  # Groq's streams
        ("output_tokens", at("x_groq", "usage", "completion_tokens")),
    )
    + TIMINGS
)

ANSWERED: Final[Table] = CHUNK + together(
    "choices", _chosen, "finish_reasons", "tool_call_count", "tool_names"
)

MAY_HOLD_FACT: Final = re.compile(
    rb'"(?:finish_reason"\s*:\s*"|usage"\s*:\s*\{|name"\s*:\s*"|error"\s*:\s*[{"]'
    rb'|object"\s*:\s*"error")'
)
"""A reason, token counts, the beginning of a tool call, an error. The model and the service
tier are in every chunk: the reader parses the first ones for them."""

OPENAI_CHAT: Final = Protocol(
    name="openai_chat",
    asked=ASKED,
    answered=ANSWERED,
    event=event,
    error=find_error,
    may_hold_fact=MAY_HOLD_FACT,
    tail_keys=("usage", "timings"),
)

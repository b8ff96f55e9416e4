"""OpenAI responses: typed items in and out, events that carry the whole response at the end.

Wire: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, Seen, error_code, names
from sottovoce.protocols.tables import Body, Candidates, Table, at, length, of, read, rows, together
from sottovoce.protocols.timings import TIMINGS

REASONS: Final = {"max_output_tokens": "length"}
"""Why a response is incomplete, in the words of chat's finish reasons where they differ."""

HANDED_OVER: Final = frozenset({"function_call", "custom_tool_call"})
"""Items that ask the app to run a tool; other calls ran at the provider."""


@of("text")
def _output_type(body: Body) -> str | None:
    text = body.get("text")
    chosen = text.get("format") if isinstance(text, Mapping) else None
    kind = chosen.get("type") if isinstance(chosen, Mapping) else None
    return openai_chat.OUTPUT_TYPES.get(kind) if isinstance(kind, str) else None


@of("input")
def _user_turn(body: Body) -> bool | None:
    given = body.get("input")
    if isinstance(given, str):
        return True
    return openai_chat.from_person(given[-1]) if isinstance(given, list) and given else None


def _items(body: Body) -> list[Mapping[str, Any]]:
    output = body.get("output")
    items = output if isinstance(output, list) else ()
    return [item for item in items if type(item) is dict or isinstance(item, Mapping)]


def _called(body: Body) -> Candidates:
    calls = [item for item in _items(body) if str(item.get("type")).endswith("_call")]
    if not calls:
        return {}
    return {
        "tool_call_count": len(calls),
        "tool_names": names(*(call.get("name") for call in calls)),
    }


@of("status")
def _reasons(body: Body) -> list[Any] | None:
    status = body.get("status")
    if status == "completed" and isinstance(body.get("output"), list):
        for item in _items(body):
            if str(item.get("type")) in HANDED_OVER:
                return ["tool_calls"]
        return ["stop"]
    if status == "incomplete":
        why = at("incomplete_details", "reason")(body)
        return [REASONS.get(why, why) if isinstance(why, str) else "incomplete"]
    return ["error"] if status == "failed" else None


def _find_error(body: Body) -> str | None:
    if body.get("type") == "error":
        if isinstance(body.get("error"), Mapping):
            return openai_chat.find_error(body)
        return error_code(body.get("code"))
    if body.get("type") == "response.failed":
        return error_code(at("response", "error", "code")(body))
    if body.get("status") == "failed":
        return error_code(at("error", "code")(body))
    return openai_chat.find_error(body)


def _event(body: Body, seen: Seen) -> Candidates:
    item = body.get("item")
    if isinstance(item, Mapping):
        if str(item.get("type")).endswith("_call"):
            seen.tool(0, body.get("output_index"), item.get("id"), item.get("name"))
        return seen.candidates()
    response = body.get("response")
    if isinstance(response, Mapping):
        # llama.cpp's own timings lie beside what everybody's events hold.
        return {**read(TIMINGS, body), **seen.candidates(), **read(ANSWERED, response)}
    return {}


ASKED: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", at("stream")),
    ("request_temperature", at("temperature")),
    ("request_top_p", at("top_p")),
    ("request_max_tokens", at("max_output_tokens")),
    ("request_reasoning_level", at("reasoning", "effort")),
    ("request_service_tier", at("service_tier")),
    ("request_tool_count", length("tools")),
    ("output_type", _output_type),
    ("user_turn", _user_turn),
)

ANSWERED: Final[Table] = together("output", _called, "tool_call_count", "tool_names") + rows(
    ("response_model", at("model")),
    ("response_service_tier", at("service_tier")),
    ("input_tokens", at("usage", "input_tokens")),
    ("output_tokens", at("usage", "output_tokens")),
    ("cache_read_tokens", at("usage", "input_tokens_details", "cached_tokens")),
    ("cache_write_tokens", at("usage", "input_tokens_details", "cache_write_tokens")),
    ("reasoning_tokens", at("usage", "output_tokens_details", "reasoning_tokens")),
    ("finish_reasons", _reasons),
)

OPENAI_RESPONSES: Final = Protocol(
    name="openai_responses",
    asked=ASKED,
    answered=ANSWERED,
    event=_event,
    error=_find_error,
    may_hold_fact=re.compile(
        rb'"type"\s*:\s*"(?:response\.(?:created|completed|failed|incomplete|output_item\.added)'
        rb'|error)"|"error"\s*:\s*\{'
    ),
    last_types=frozenset({"response.completed", "response.failed", "response.incomplete"}),
)

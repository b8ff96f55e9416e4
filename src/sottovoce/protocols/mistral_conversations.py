"""Mistral's conversations: begun, gone on with, or begun again from an entry, whole or streamed.

Wire: https://docs.mistral.ai/api, ``POST /v1/conversations``, ``…/ID`` and ``…/ID/restart``. An
agent may stand for the model, which the answer names then. Tools that the service runs itself
are calls of the model as well; why an answer ended is not said and follows from its entries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, error_code, names
from sottovoce.protocols.tables import at, length, of, read, rows

if TYPE_CHECKING:
    from sottovoce.protocols.protocol import Seen
    from sottovoce.protocols.tables import Body, Candidates, Table

_CALLS: Final = frozenset({"function.call", "tool.execution"})
_HANDED_OVER: Final = "function.call"


@of("completion_args")
def _stop_count(body: Body) -> int | None:
    given = body.get("completion_args")
    return openai_chat.stop_count(given) if isinstance(given, Mapping) else None


@of("completion_args")
def _output_type(body: Body) -> str | None:
    kind = at("completion_args", "response_format", "type")(body)
    return openai_chat.OUTPUT_TYPES.get(kind) if isinstance(kind, str) else None


@of("inputs")
def _user_turn(body: Body) -> bool | None:
    inputs = body.get("inputs")
    if isinstance(inputs, str):
        return True
    last = inputs[-1] if isinstance(inputs, list) and inputs else None
    # The results of functions have no role.
    return last.get("role") == "user" if isinstance(last, Mapping) else None


def _entries(body: Body) -> list[Mapping[str, Any]]:
    outputs = body.get("outputs")
    entries = outputs if isinstance(outputs, list) else []
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _is_call(entry: Mapping[str, Any]) -> bool:
    kind = entry.get("type")
    return isinstance(kind, str) and kind in _CALLS


@of("outputs")
def _model(body: Body) -> Any:
    return next((entry["model"] for entry in _entries(body) if entry.get("model")), None)


@of("outputs")
def _reasons(body: Body) -> list[str] | None:
    kinds = [entry.get("type") for entry in _entries(body)]
    if not kinds:
        return None
    return ["tool_calls" if _HANDED_OVER in kinds else "stop"]


@of("outputs")
def _tool_calls(body: Body) -> int | None:
    return sum(map(_is_call, _entries(body))) or None


@of("outputs")
def _tool_names(body: Body) -> list[str] | None:
    return names(*(entry.get("name") for entry in _entries(body) if _is_call(entry)))


def _event(body: Body, seen: Seen) -> Candidates:
    kind = body.get("type")
    if kind in ("function.call.delta", "tool.execution.started"):
        handed_over = kind == "function.call.delta"
        identity = body.get("tool_call_id" if handed_over else "id")
        seen.tool(0, body.get("output_index"), identity, body.get("name"))
        seen.counted(_HANDED_OVER, int(handed_over))
    elif kind == "conversation.response.done":
        seen.finished(0, "tool_calls" if seen.counts.get(_HANDED_OVER) else "stop")
    return {**read(CHUNK, body), **seen.candidates()}


def _find_error(body: Body) -> str | None:
    if body.get("type") == "conversation.response.error":
        return error_code(body.get("code"))
    return openai_chat.find_error(body)


ASKED: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", at("stream")),
    ("request_temperature", at("completion_args", "temperature")),
    ("request_top_p", at("completion_args", "top_p")),
    ("request_max_tokens", at("completion_args", "max_tokens")),
    ("request_frequency_penalty", at("completion_args", "frequency_penalty")),
    ("request_presence_penalty", at("completion_args", "presence_penalty")),
    ("request_reasoning_level", at("completion_args", "reasoning_effort")),
    ("request_stop_count", _stop_count),
    ("output_type", _output_type),
    ("request_tool_count", length("tools")),
    ("user_turn", _user_turn),
)

CHUNK: Final[Table] = rows(
    ("response_model", at("model")),
    ("input_tokens", at("usage", "prompt_tokens")),
    ("output_tokens", at("usage", "completion_tokens")),
)

ANSWERED: Final[Table] = CHUNK + rows(
    ("response_model", _model),
    ("finish_reasons", _reasons),
    ("tool_call_count", _tool_calls),
    ("tool_names", _tool_names),
)

MISTRAL_CONVERSATIONS: Final = Protocol(
    name="mistral_conversations",
    asked=ASKED,
    answered=ANSWERED,
    event=_event,
    error=_find_error,
    may_hold_fact=re.compile(
        rb'"type"\s*:\s*"(?:conversation\.response\.(?:done|error)|function\.call\.delta'
        rb'|tool\.execution\.started)"|"error"\s*:\s*[{"]'
    ),
    last_types=frozenset({"conversation.response.done"}),
)

"""LM Studio's own API: a message in, items and the engine's statistics out, again at a stream's end.

Wire: https://lmstudio.ai/docs/developer/rest/chat and …/streaming-events. Tools that an answer
calls have run at the server; why it stopped is not told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, Seen, names
from sottovoce.protocols.tables import Body, Candidates, Table, at, of, read, rows


@of("input")
def _user_turn(body: Body) -> bool | None:
    # What was said before is the server's to know.
    return True if body.get("input") else None


def _calls(body: Body) -> list[Mapping[str, Any]]:
    output = body.get("output")
    items = output if isinstance(output, list) else ()
    return [item for item in items if isinstance(item, Mapping) and item.get("type") == "tool_call"]


@of("output")
def _tool_calls(body: Body) -> int | None:
    return len(_calls(body)) or None


@of("output")
def _tool_names(body: Body) -> list[str] | None:
    return names(*(call.get("tool") for call in _calls(body)))


def _event(body: Body, seen: Seen) -> Candidates:
    kind = body.get("type")
    if kind == "chat.end":
        result = body.get("result")
        return read(ANSWERED, result) if isinstance(result, Mapping) else {}
    if kind == "tool_call.start":
        seen.tool(0, len(seen.tool_places), None, body.get("tool"))
        return seen.candidates()
    return read(NAMED, body)


ASKED: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", at("stream")),
    ("request_temperature", at("temperature")),
    ("request_top_p", at("top_p")),
    ("request_top_k", at("top_k")),
    ("request_max_tokens", at("max_output_tokens")),
    ("request_reasoning_level", at("reasoning")),
    ("user_turn", _user_turn),
)

NAMED: Final[Table] = rows(("response_model", at("model_instance_id")))

ANSWERED: Final[Table] = NAMED + rows(
    ("input_tokens", at("stats", "input_tokens")),
    ("output_tokens", at("stats", "total_output_tokens")),
    ("reasoning_tokens", at("stats", "reasoning_output_tokens")),
    ("decode_rate", at("stats", "tokens_per_second")),
    ("load_s", at("stats", "model_load_time_seconds")),
    ("tool_call_count", _tool_calls),
    ("tool_names", _tool_names),
)

LM_STUDIO_CHAT: Final = Protocol(
    name="lm_studio_chat",
    asked=ASKED,
    answered=ANSWERED,
    event=_event,
    error=openai_chat.find_error,
    may_hold_fact=re.compile(
        rb'"type"\s*:\s*"(?:chat\.(?:start|end)|tool_call\.start|error)"|"error"\s*:\s*\{'
    ),
    last_types=frozenset({"chat.end"}),
    tail_keys=("stats",),
)

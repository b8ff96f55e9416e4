"""Gemini's interactions: steps in and out, events that carry the counts at the end.

Wire: https://ai.google.dev/api/interactions-api
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, Seen, error_code
from sottovoce.protocols.tables import (
    Body,
    Candidates,
    Find,
    Table,
    at,
    length,
    of,
    read,
    rows,
    summed,
)

PERSON_CONTENTS: Final = frozenset({"text", "image", "audio", "video", "document", "user_input"})
"""Types of contents and steps that come from a person; results of functions are none of them."""

REASONS: Final = frozenset(
    {
        "completed",
        "failed",
        "cancelled",
        "incomplete",
        "requires_action",
        "budget_exceeded",
        "requires_continuation",
    }
)
"""Statuses of an interaction that goes on no more."""


@of("input")
def _user_turn(body: Body) -> bool | None:
    given = body.get("input")
    if isinstance(given, str):
        return True
    last = given[-1] if isinstance(given, list) and given else given
    if not isinstance(last, Mapping):
        return None
    kind = last.get("type")
    return isinstance(kind, str) and kind in PERSON_CONTENTS


@of("generation_config")
def _stop_count(body: Body) -> int | None:
    stop = at("generation_config", "stop_sequences")(body)
    return len(stop) if isinstance(stop, list) and stop else None


def _steps(body: Body) -> list[Mapping[str, Any]]:
    steps = body.get("steps")
    return [s for s in steps if isinstance(s, Mapping)] if isinstance(steps, list) else []


def _called(steps: list[Mapping[str, Any]], seen: Seen) -> None:
    for step in steps:
        if step.get("type") == "function_call":
            seen.tool(0, len(seen.tool_places), step.get("id"), step.get("name"))


@of("status")
def _reasons(body: Body) -> list[str] | None:
    status = body.get("status")
    return [status] if isinstance(status, str) and status in REASONS else None


def _tools(fact: str) -> Find:
    @of("steps")
    def find(body: Body) -> Any:
        seen = Seen()
        _called(_steps(body), seen)
        return seen.candidates().get(fact)

    return find


def _modality(modality: str, *names: str) -> Find:
    @of("usage")
    def count(body: Body) -> Any:
        lists = [at("usage", name)(body) for name in names]
        counts = [
            item.get("tokens", 0)
            for given in lists
            for item in (given if isinstance(given, list) else ())
            if isinstance(item, Mapping) and item.get("modality") == modality
        ]
        return sum(counts) if counts else None

    return count


def _event(body: Body, seen: Seen) -> Candidates:
    step = body.get("step")
    if isinstance(step, Mapping):
        _called([step], seen)
    inner = body.get("interaction")
    found = read(ANSWERED, inner) if isinstance(inner, Mapping) else {}
    return {**found, **seen.candidates()}


def _find_error(body: Body) -> str | None:
    inner = body.get("interaction", body)
    if isinstance(inner, Mapping) and inner.get("status") == "failed":
        errors = inner.get("errors")
        first = errors[0] if isinstance(errors, list) and errors else None
        return error_code(first.get("code") if isinstance(first, Mapping) else None)
    return openai_chat.find_error(body)


ASKED: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", at("stream")),
    ("request_temperature", at("generation_config", "temperature")),
    ("request_top_p", at("generation_config", "top_p")),
    ("request_max_tokens", at("generation_config", "max_output_tokens")),
    ("request_stop_count", _stop_count),
    ("request_reasoning_level", at("generation_config", "thinking_level")),
    ("request_service_tier", at("service_tier")),
    ("request_tool_count", length("tools")),
    ("user_turn", _user_turn),
)

ANSWERED: Final[Table] = rows(
    ("response_model", at("model")),
    ("response_service_tier", at("service_tier")),
    # As in Gemini's other API, neither includes the other's part.
    ("input_tokens", summed(("usage", "total_input_tokens"), ("usage", "total_tool_use_tokens"))),
    ("output_tokens", summed(("usage", "total_output_tokens"), ("usage", "total_thought_tokens"))),
    ("cache_read_tokens", at("usage", "total_cached_tokens")),
    ("reasoning_tokens", at("usage", "total_thought_tokens")),
    *(
        (f"{fact}_{modality}_tokens", _modality(modality, *names))
        for fact, names, modalities in (
            (
                "input",
                ("input_tokens_by_modality", "tool_use_tokens_by_modality"),
                ("text", "image", "audio", "video"),
            ),
            ("output", ("output_tokens_by_modality",), ("text", "image", "audio")),
            ("cache_read", ("cached_tokens_by_modality",), ("text", "image", "audio")),
        )
        for modality in modalities
    ),
    ("finish_reasons", _reasons),
    ("tool_call_count", _tools("tool_call_count")),
    ("tool_names", _tools("tool_names")),
)

GEMINI_INTERACTIONS: Final = Protocol(
    name="gemini_interactions",
    asked=ASKED,
    answered=ANSWERED,
    event=_event,
    error=_find_error,
    may_hold_fact=re.compile(
        rb'"(?:event_type"\s*:\s*"interaction\.(?:created|completed)"|type"\s*:\s*"function_call"'
        rb'|error"\s*:\s*\{)'
    ),
    last=lambda body: body.get("event_type") == "interaction.completed",
    tail_keys=("usage", "status", "service_tier"),
)

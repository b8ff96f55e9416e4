"""Anthropic messages: blocks in and out, counts at both ends of a stream.

Wire: https://platform.claude.com/docs/en/api/messages and …/build-with-claude/streaming; the
same bodies travel through Bedrock's ``invoke`` and Vertex's ``rawPredict``, which have the
model in the path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.protocols import openai_chat
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
    summed,
    together,
)

PERSON_BLOCKS: Final = frozenset({"text", "image", "document", "search_result"})
"""Types of content blocks that a person's turn is made of."""

_INPUT: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def from_person(message: Any) -> bool | None:
    """Tell whether a message comes from a person, by its role and its blocks' types.

    Results of tools come in role ``user``; text beside them is nearly always the app's own.
    """
    if not isinstance(message, Mapping):
        return None
    if message.get("role") != "user":
        return False
    content = message.get("content")
    if isinstance(content, str):
        return True
    if not isinstance(content, (list, tuple)):
        return False
    kinds = [block.get("type") for block in content if isinstance(block, Mapping)]
    if any(isinstance(kind, str) and kind.endswith("tool_result") for kind in kinds):
        return False
    return any(isinstance(kind, str) and kind in PERSON_BLOCKS for kind in kinds)


@of("messages")
def _user_turn(body: Body) -> bool | None:
    messages = body.get("messages")
    return from_person(messages[-1]) if isinstance(messages, list) and messages else None


@of("output_config")
def _output_type(body: Body) -> str | None:
    return openai_chat.OUTPUT_TYPES.get(at("output_config", "format", "type")(body))


@of("output_format")
def _beta_output_type(body: Body) -> str | None:
    return openai_chat.OUTPUT_TYPES.get(at("output_format", "type")(body))


@of("stop_reason")
def _reasons(body: Body) -> list[Any] | None:
    reason = body.get("stop_reason")
    return [reason] if isinstance(reason, str) and reason else None


def _called(body: Body) -> Candidates:
    content = body.get("content")
    calls = (
        [block for block in content if _is_tool_call(block)] if isinstance(content, list) else ()
    )
    if not calls:
        return {}
    return {
        "tool_call_count": len(calls),
        "tool_names": names(*(block.get("name") for block in calls)),
    }


def _is_tool_call(block: Any) -> bool:
    """Whether a block calls a tool: the app's, the provider's own or an MCP server's."""
    mapping = type(block) is dict or isinstance(block, Mapping)
    kind = block.get("type") if mapping else None
    return isinstance(kind, str) and kind.endswith("tool_use")


def find_error(body: Body) -> str | None:
    """Find an error's code in ``{"type": "error", "error": {"type": …, "message": …}}``."""
    if body.get("type") != "error" and "error" not in body:
        return None
    error = body.get("error")
    if isinstance(error, Mapping):
        return error_code(error.get("type"), error.get("code"))
    return error_code() if error or body.get("type") == "error" else None


def _event(body: Body, seen: Seen) -> Candidates:
    """Read one event: a message begins, a block begins, the message's reason and counts come."""
    block = body.get("content_block")
    if isinstance(block, Mapping):
        if _is_tool_call(block):
            seen.tool(0, body.get("index"), block.get("id"), block.get("name"))
        return seen.candidates()
    message = body.get("message")
    if not isinstance(message, Mapping):
        message = {}
    found = read(NAMED, message)
    delta = body.get("delta")
    if isinstance(delta, Mapping):
        seen.finished(0, delta.get("stop_reason"))
    usage = message.get("usage") if message else body.get("usage")
    if isinstance(usage, Mapping):
        usage = dict(usage)
        if message:
            # What is written before anything was said is no count of it: who leaves has none.
            usage.pop("output_tokens", None)
        # Later events repeat some of the counts, grown, and leave out others.
        for name in (*_INPUT, "output_tokens"):
            seen.counted(name, usage.get(name))
        found.update(read(COUNTED, {"usage": {**usage, **seen.counts}}))
    return {**found, **seen.candidates()}


ASKED: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", at("stream")),
    ("request_temperature", at("temperature")),
    ("request_top_p", at("top_p")),
    ("request_top_k", at("top_k")),
    ("request_max_tokens", at("max_tokens")),
    ("request_stop_count", length("stop_sequences")),
    ("request_reasoning_level", at("output_config", "effort")),
    ("request_service_tier", at("service_tier")),
    ("request_tool_count", length("tools")),
    ("output_type", _output_type),
    ("output_type", _beta_output_type),
    ("user_turn", _user_turn),
)

COUNTED: Final[Table] = rows(
    # `input_tokens` has no token that was read from the cache or written to it.
    ("input_tokens", summed(*(("usage", name) for name in _INPUT))),
    ("output_tokens", at("usage", "output_tokens")),
    ("cache_read_tokens", at("usage", "cache_read_input_tokens")),
    ("cache_write_tokens", at("usage", "cache_creation_input_tokens")),
    ("reasoning_tokens", at("usage", "output_tokens_details", "thinking_tokens")),
    ("response_service_tier", at("usage", "service_tier")),
)

NAMED: Final[Table] = rows(("response_model", at("model")))

ANSWERED: Final[Table] = (
    COUNTED
    + NAMED
    + rows(("finish_reasons", _reasons))
    + together("content", _called, "tool_call_count", "tool_names")
)

ANTHROPIC_MESSAGES: Final = Protocol(
    name="anthropic_messages",
    asked=ASKED,
    answered=ANSWERED,
    event=_event,
    error=find_error,
    may_hold_fact=re.compile(
        rb'"type"\s*:\s*"(?:message_(?:start|delta|stop)|error|[a-z_]{0,40}tool_use)"'
    ),
    last_data=b"\0",  # every event is JSON
    last_types=frozenset({"message_stop"}),
    tail_keys=("usage", "stop_reason"),
)

"""Amazon Bedrock's Converse: one format for the models of every family that it serves.

Wire: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html, and
`…ConverseStream.html`, whose events `eventstream.py` turns into ``{"TYPE": PAYLOAD}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.protocols.openai_chat import find_error
from sottovoce.protocols.protocol import Protocol, Seen, names
from sottovoce.protocols.tables import Body, Candidates, Find, Table, at, of, read, rows, summed

PERSON_BLOCKS: Final = frozenset({"audio", "document", "guardContent", "image", "text", "video"})
"""Keys of content blocks that a person's turn is made of; results of tools are not among them."""


def length_at(*path: str) -> Find:
    """Find how many items the list at `path` has; None when it is absent or no list."""
    inner = at(*path)

    def find(body: Body) -> int | None:
        value = inner(body)
        return len(value) if isinstance(value, (list, tuple)) else None

    return of(path[0])(find)


@of("toolConfig")
def _tools(body: Body) -> int | None:
    tools = at("toolConfig", "tools")(body)
    if not isinstance(tools, (list, tuple)):
        return None
    # A mark of how far to cache stands among the tools.
    return sum(not (isinstance(tool, Mapping) and "cachePoint" in tool) for tool in tools)


@of("outputConfig")
def _output_type(body: Body) -> str | None:
    return "json" if at("outputConfig", "textFormat", "type")(body) == "json_schema" else None


@of("messages")
def user_turn(body: Body) -> bool | None:
    """Tell whether the last message comes from a person, by its role and its blocks' keys."""
    messages = body.get("messages")
    if not isinstance(messages, (list, tuple)) or not messages:
        return None
    last = messages[-1]
    if not isinstance(last, Mapping):
        return None
    content = last.get("content")
    blocks = content if isinstance(content, (list, tuple)) else ()
    keys = {key for block in blocks if isinstance(block, Mapping) for key in block}
    # Text beside the results of tools is nearly always the app's own.
    return (
        last.get("role") == "user"
        and "toolResult" not in keys
        and not PERSON_BLOCKS.isdisjoint(keys)
    )


@of("stopReason")
def _reasons(body: Body) -> list[Any] | None:
    reason = body.get("stopReason")
    return None if reason is None else [reason]


def _tool_uses(body: Body) -> list[Any]:
    content = at("output", "message", "content")(body)
    blocks = content if isinstance(content, (list, tuple)) else ()
    return [each["toolUse"] for each in blocks if isinstance(each, Mapping) and "toolUse" in each]


@of("output")
def _tool_calls(body: Body) -> int | None:
    return len(_tool_uses(body)) or None


@of("output")
def _tool_names(body: Body) -> list[str] | None:
    return names(*(each.get("name") for each in _tool_uses(body) if isinstance(each, Mapping)))


def counted(*above: str) -> Table:
    """Make the rows of the token counts in the ``usage`` at `above`."""
    usage = (*above, "usage")
    read_, written = (*usage, "cacheReadInputTokens"), (*usage, "cacheWriteInputTokens")
    return rows(
        # `inputTokens` has no token that was read from a cache or written to one:
        # https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html
        ("input_tokens", summed((*usage, "inputTokens"), read_, written)),
        ("output_tokens", at(*usage, "outputTokens")),
        ("cache_read_tokens", at(*read_)),
        ("cache_write_tokens", at(*written)),
        ("response_service_tier", at(*above, "serviceTier", "type")),
    )


ASKED: Final[Table] = rows(
    ("request_model", at("modelId")),  # in the path on the wire, here in boto3's arguments
    ("request_temperature", at("inferenceConfig", "temperature")),
    ("request_top_p", at("inferenceConfig", "topP")),
    ("request_max_tokens", at("inferenceConfig", "maxTokens")),
    ("request_stop_count", length_at("inferenceConfig", "stopSequences")),
    ("request_top_k", at("additionalModelRequestFields", "top_k")),
    ("request_reasoning_level", at("outputConfig", "effort")),
    ("request_service_tier", at("serviceTier", "type")),
    ("request_tool_count", _tools),
    ("output_type", _output_type),
    ("user_turn", user_turn),
)

ANSWERED: Final[Table] = counted() + rows(
    ("finish_reasons", _reasons),
    ("tool_call_count", _tool_calls),
    ("tool_names", _tool_names),
)

_METADATA: Final = counted("metadata")


def event(body: Body, seen: Seen) -> Candidates:
    """Read one event: tool calls begin with a block, the reason and the counts come at the end."""
    start = body.get("contentBlockStart")
    if isinstance(start, Mapping):
        tool = at("start", "toolUse")(start)
        if isinstance(tool, Mapping):
            seen.tool(0, start.get("contentBlockIndex"), tool.get("toolUseId"), tool.get("name"))
    seen.finished(0, at("messageStop", "stopReason")(body))
    return {**seen.candidates(), **read(_METADATA, body)}


def is_last(body: Body) -> bool:
    """Tell the last event: the counts."""
    return "metadata" in body


OPENED: Final = rb"(?:\A ?\{|(?<=data:\{)|(?<=data: \{))"
"""The brace that opens an event: what is looked at may be a line of server-sent events."""

BEDROCK_CONVERSE: Final = Protocol(
    name="bedrock_converse",
    asked=ASKED,
    answered=ANSWERED,
    event=event,
    error=find_error,
    may_hold_fact=re.compile(OPENED + rb'"(?:contentBlockStart|messageStop|metadata|error)"'),
    last=is_last,
    tail_keys=("usage", "stopReason"),
)

"""Cohere: chat in two versions, one of typed events, embeddings, rankings.

Wire: https://docs.cohere.com/reference/chat, …/embed, …/rerank; version 1 as far as it is still
answered. The conventions want billed tokens where they differ from those that were used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, Seen, error_code
from sottovoce.protocols.tables import Body, Candidates, Find, Table, at, length, of, read, rows


def _tokens(*path: str) -> Find:
    """Find a count at `path`: the wire calls it a number, and it may come as ``12.0``."""
    find = at(*path)

    def count(body: Body) -> Any:
        value = find(body)
        return int(value) if type(value) is float and value.is_integer() else value

    return of(path[0])(count)


def _usage(*path: str) -> Table:
    """Make the rows of the counts at `path`."""
    return rows(
        ("input_tokens", _tokens(*path, "billed_units", "input_tokens")),
        ("output_tokens", _tokens(*path, "billed_units", "output_tokens")),
        ("input_tokens", _tokens(*path, "tokens", "input_tokens")),
        ("output_tokens", _tokens(*path, "tokens", "output_tokens")),
        ("cache_read_tokens", _tokens(*path, "cached_tokens")),
    )


_CLIPPED: Final = rows(
    ("input_tokens", _tokens("billed_units", "input_tokens")),
    ("output_tokens", _tokens("billed_units", "output_tokens")),
)
"""What is found at the end of a long answer stands for itself."""


METRICS: Final = "amazon-bedrock-invocationMetrics"
"""Where Amazon Bedrock counts, in the last event of a stream."""


@of("finish_reason")
def _reasons(body: Body) -> list[Any] | None:
    reason = body.get("finish_reason")
    return [reason] if reason else None


@of("generations")
def _generated(body: Body) -> list[Any] | None:
    generations = body.get("generations")
    seen = Seen()
    for index, item in enumerate(generations if isinstance(generations, list) else ()):
        if isinstance(item, Mapping):
            seen.finished(index, item.get("finish_reason"))
    return seen.candidates().get("finish_reasons")


def _called(calls: Any, seen: Seen) -> Candidates:
    """Tell of calls of tools, as both versions write them."""
    for place, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, Mapping):
            name = call.get("name") or at("function", "name")(call)
            seen.tool(0, place, call.get("id"), name)
    return seen.candidates()


def _of_calls(fact: str, *path: str) -> Find:
    find = at(*path)
    return of(path[0])(lambda body: _called(find(body), Seen()).get(fact))


@of("message")
def _user_turn_v1(body: Body) -> bool | None:
    # With results of tools a message is only said again, or empty.
    return not body.get("tool_results") if isinstance(body.get("message"), str) else None


@of("response_format")
def _output_type(body: Body) -> str | None:
    kind = at("response_format", "type")(body)
    return openai_chat.OUTPUT_TYPES.get(kind) if isinstance(kind, str) else None


def _find_error(body: Body) -> str | None:
    """An answer that is an error has a message and nothing else that could be told apart."""
    if body.get("type") == "message-end":
        delta = body.get("delta")
        return error_code() if isinstance(delta, Mapping) and delta.get("error") else None
    return openai_chat.find_error(body)


def _event(body: Body, seen: Seen) -> Candidates:
    kind = body.get("type")
    delta = body.get("delta")
    if kind == "tool-call-start":
        call = at("delta", "message", "tool_calls")(body)
        if isinstance(call, Mapping):
            seen.tool(0, body.get("index"), call.get("id"), at("function", "name")(call))
        return seen.candidates()
    if kind == "message-end" and isinstance(delta, Mapping):
        return {**seen.candidates(), **read(ANSWERED, delta)}
    if body.get("event_type") == "stream-end":
        response = body.get("response")  # version 1: the whole answer again
        whole = read(ANSWERED, response) if isinstance(response, Mapping) else {}
        return {**whole, **read(ENDED, body)}
    return {}


def _last(body: Body) -> bool:
    return body.get("event_type") == "stream-end"


ASKED: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", at("stream")),
    ("request_temperature", at("temperature")),
    ("request_top_p", at("p")),
    ("request_top_k", at("k")),
    ("request_frequency_penalty", at("frequency_penalty")),
    ("request_presence_penalty", at("presence_penalty")),
    ("request_max_tokens", at("max_tokens")),
    ("request_choice_count", at("num_generations")),
    ("request_stop_count", length("stop_sequences")),
    ("request_reasoning_level", at("thinking", "type")),
    ("request_tool_count", length("tools")),
    ("output_type", _output_type),
    ("user_turn", openai_chat.user_turn),
    ("user_turn", _user_turn_v1),
)

ANSWERED: Final[Table] = (
    rows(
        ("finish_reasons", _reasons),
        ("finish_reasons", _generated),
        ("tool_call_count", _of_calls("tool_call_count", "message", "tool_calls")),
        ("tool_call_count", _of_calls("tool_call_count", "tool_calls")),
        ("tool_names", _of_calls("tool_names", "message", "tool_calls")),
        ("tool_names", _of_calls("tool_names", "tool_calls")),
    )
    + _usage("usage")
    + _usage("meta")
    + _CLIPPED
)

ENDED: Final[Table] = rows(
    ("finish_reasons", _reasons),
    ("input_tokens", at(METRICS, "inputTokenCount")),
    ("output_tokens", at(METRICS, "outputTokenCount")),
)

COHERE_CHAT: Final = Protocol(
    name="cohere_chat",
    asked=ASKED,
    answered=ANSWERED,
    event=_event,
    error=_find_error,
    may_hold_fact=re.compile(
        rb'"(?:type"\s*:\s*"(?:tool-call-start|message-end)"'
        rb'|event_type"\s*:\s*"stream-end"|error"\s*:\s*[{"])'
    ),
    last_types=frozenset({"message-end"}),
    last=_last,
    tail_keys=("finish_reason", "billed_units"),
)

COHERE_EMBED: Final = Protocol(
    name="cohere_embed",
    asked=rows(
        ("request_model", at("model")),
        ("request_encoding_formats", at("embedding_types")),
        ("request_dimensions", at("output_dimension")),
    ),
    answered=_usage("meta") + _CLIPPED,
    event=_event,
    error=_find_error,
    may_hold_fact=COHERE_CHAT.may_hold_fact,
    tail_keys=("billed_units",),
    parse_up_to=4096,
    flat=True,
)

RERANK: Final = Protocol(
    name="rerank",
    asked=rows(("request_model", at("model"))),
    # Cohere counts searches, not tokens; others that have the path count both words.
    answered=rows(
        ("response_model", at("model")),
        ("input_tokens", at("usage", "prompt_tokens")),
        ("input_tokens", at("usage", "total_tokens")),
    )
    + _usage("meta"),
    event=_event,
    error=_find_error,
    may_hold_fact=COHERE_CHAT.may_hold_fact,
    tail_keys=("usage",),
)

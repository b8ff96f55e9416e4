"""Ollama's own API: options apart from the rest, JSON lines as streams, counts in the last line.

Wire: https://docs.ollama.com/api. A stream is what one gets unless one asks for a whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.protocols import openai_chat, openai_embeddings, timings
from sottovoce.protocols.protocol import Protocol, Seen
from sottovoce.protocols.tables import Body, Candidates, Find, Table, at, of, read, rows


@of("model")
def _streamed(body: Body) -> Any:
    return body.get("stream") is not False


@of("tools")
def _tool_count(body: Body) -> int | None:
    tools = body.get("tools")
    return (len(tools) or None) if isinstance(tools, list) else None  # the SDK always sends a list


@of("options")
def _stop_count(body: Body) -> int | None:
    options = body.get("options")
    return openai_chat.stop_count(options) if isinstance(options, Mapping) else None


@of("format")
def _output_type(body: Body) -> str | None:
    # "json", or a JSON schema.
    return "json" if body.get("format") else None


@of("think")
def _reasoning_level(body: Body) -> Any:
    level = body.get("think")
    return str(level).lower() if isinstance(level, bool) else level


@of("messages")
def _user_turn(body: Body) -> bool | None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], Mapping):
        return None
    # Images come beside the text, and what a tool gave has a role of its own.
    return messages[-1].get("role") == "user"


@of("prompt")
def _prompted(body: Body) -> bool | None:
    # The server makes a user's message of it, unless it is raw or the text before a gap. Without
    # a prompt a model is loaded or unloaded.
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        return None
    return not (body.get("raw") or body.get("suffix"))


def _called(body: Body, seen: Seen) -> Candidates:
    """Tell of the calls in a message: they come whole, often without an id, numbered or not."""
    calls = at("message", "tool_calls")(body)
    for call in calls if isinstance(calls, list) else ():
        name = at("function", "name")(call) if isinstance(call, Mapping) else None
        seen.tool(0, len(seen.tool_places), None, name)
    return seen.candidates()


def _of_calls(fact: str) -> Find:
    return of("message")(lambda body: _called(body, Seen()).get(fact))


@of("done_reason")
def _reasons(body: Body) -> list[Any] | None:
    reason = body.get("done_reason")
    return [reason] if reason else None


def _event(body: Body, seen: Seen) -> Candidates:
    return {**read(ANSWERED, body), **_called(body, seen)}


def _last(body: Body) -> bool:
    return body.get("done") is True


SAMPLING: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", _streamed),
    ("request_temperature", at("options", "temperature")),
    ("request_top_p", at("options", "top_p")),
    ("request_top_k", at("options", "top_k")),
    ("request_frequency_penalty", at("options", "frequency_penalty")),
    ("request_presence_penalty", at("options", "presence_penalty")),
    ("request_max_tokens", at("options", "num_predict")),  # below 0: no limit
    ("request_stop_count", _stop_count),
    ("request_reasoning_level", _reasoning_level),
    ("output_type", _output_type),
)

ANSWERED: Final[Table] = (
    rows(
        ("response_model", at("model")),
        ("input_tokens", at("prompt_eval_count")),
        ("output_tokens", at("eval_count")),
        ("finish_reasons", _reasons),
        ("tool_call_count", _of_calls("tool_call_count")),
        ("tool_names", _of_calls("tool_names")),
    )
    + timings.DURATIONS
)

MAY_HOLD_FACT: Final = re.compile(
    rb'"(?:done"\s*:\s*true|tool_calls"\s*:\s*\[\s*\{|error"\s*:\s*[{"])'
)

DURATIONS: Final = tuple(key for _, key, _ in timings.DURATIONS)

TAIL_KEYS: Final = ("done_reason", "prompt_eval_count", "eval_count", *DURATIONS)

OLLAMA_CHAT: Final = Protocol(
    name="ollama_chat",
    asked=SAMPLING + rows(("request_tool_count", _tool_count), ("user_turn", _user_turn)),
    answered=ANSWERED,
    event=_event,
    error=openai_chat.find_error,
    may_hold_fact=MAY_HOLD_FACT,
    last=_last,
    tail_keys=TAIL_KEYS,
    streams_as="application/x-ndjson",
)

OLLAMA_GENERATE: Final = Protocol(
    name="ollama_generate",
    asked=SAMPLING + rows(("user_turn", _prompted)),
    answered=ANSWERED,
    event=_event,
    error=openai_chat.find_error,
    may_hold_fact=MAY_HOLD_FACT,
    last=_last,
    tail_keys=TAIL_KEYS,
    streams_as="application/x-ndjson",
)

OLLAMA_EMBED: Final = Protocol(
    name="ollama_embed",
    asked=rows(("request_model", at("model")), ("request_dimensions", at("dimensions"))),
    # Gateways answer in OpenAI's form at Ollama's path.
    answered=rows(("response_model", at("model")), ("input_tokens", at("prompt_eval_count")))
    + openai_embeddings.ANSWERED
    + timings.DURATIONS,
    event=_event,
    error=openai_chat.find_error,
    may_hold_fact=MAY_HOLD_FACT,
    tail_keys=("prompt_eval_count", "usage", *DURATIONS),
    parse_up_to=openai_embeddings.OPENAI_EMBEDDINGS.parse_up_to,
    flat=True,
)

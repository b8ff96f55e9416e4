"""Amazon Bedrock's InvokeModel: every family of models in the format of its own makers.

Wire: https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html. The families'
keys do not contradict one another, so one table serves all, and what it is that answers need not
be known: an inference profile does not say. Streams are of `eventstream.py`; whatever the family,
their last chunk brings the counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from sottovoce.protocols import anthropic_messages, bedrock_converse, openai_chat
from sottovoce.protocols.bedrock_converse import OPENED, length_at
from sottovoce.protocols.protocol import Protocol, Seen
from sottovoce.protocols.tables import Body, Candidates, Find, Table, at, of, read, rows, summed

METRICS: Final = "amazon-bedrock-invocationMetrics"
"""Key of the counts in the last chunk of a stream."""


def _reason(key: str) -> Find:
    """Find the one reason at `key`."""

    def find(body: Body) -> list[Any] | None:
        reason = body.get(key)
        return None if reason is None else [reason]

    return of(key)(find)


def _reasons(key: str, *path: str) -> Find:
    """Find the reason of each of the answers in the list at `key`, once all have one."""
    reason_of = at(*path)

    def find(body: Body) -> list[Any] | None:
        answers = body.get(key)
        if not isinstance(answers, (list, tuple)):
            return None
        reasons = [reason_of(each) if isinstance(each, Mapping) else None for each in answers]
        return reasons if all(reason is not None for reason in reasons) else None

    return of(key)(find)


@of("results")
def _titan_output(body: Body) -> int | None:
    results = body.get("results")
    counts = [each.get("tokenCount") for each in results] if isinstance(results, list) else []
    return sum(counts) if counts else None


@of("messages")
def _user_turn(body: Body) -> bool | None:
    messages = body.get("messages")
    if not isinstance(messages, (list, tuple)) or not messages:
        return None
    if "anthropic_version" in body:
        return anthropic_messages.from_person(messages[-1])
    # Whose blocks they are is told by nothing else; another family's are no person's.
    return openai_chat.from_person(messages[-1]) or bedrock_converse.user_turn(body)


@of("message")
def _cohere_turn(body: Body) -> bool | None:
    return True if isinstance(body.get("message"), str) else None


_METRICS_INPUT: Final = summed(
    (METRICS, "inputTokenCount"),
    (METRICS, "cacheReadInputTokenCount"),
    (METRICS, "cacheWriteInputTokenCount"),
)

ASKED: Final[Table] = (
    rows(
        # Cohere, AI21, Meta, Amazon's Titan and Nova, where they differ from everyone.
        ("request_top_p", at("p")),
        ("request_top_k", at("k")),
        ("request_choice_count", at("num_generations")),
        ("request_stop_count", length_at("stop_sequences")),
        ("user_turn", _user_turn),
        ("user_turn", _cohere_turn),
        ("request_max_tokens", at("maxTokens")),
        ("request_top_p", at("topP")),
        ("request_stop_count", length_at("stopSequences")),
        ("request_max_tokens", at("max_gen_len")),
        ("request_temperature", at("textGenerationConfig", "temperature")),
        ("request_top_p", at("textGenerationConfig", "topP")),
        ("request_max_tokens", at("textGenerationConfig", "maxTokenCount")),
        ("request_stop_count", length_at("textGenerationConfig", "stopSequences")),
        ("request_max_tokens", at("inferenceConfig", "max_new_tokens")),
        ("request_top_p", at("inferenceConfig", "top_p")),
        ("request_top_k", at("inferenceConfig", "top_k")),
        ("request_top_k", at("inferenceConfig", "topK")),
        ("request_dimensions", at("dimensions")),
        ("request_dimensions", at("output_dimension")),
        ("request_encoding_formats", at("embeddingTypes")),
        ("request_encoding_formats", at("embedding_types")),
    )
    + anthropic_messages.ASKED
    + openai_chat.ASKED
    + bedrock_converse.ASKED
)

_NATIVE: Final[Table] = rows(
    ("input_tokens", at("inputTextTokenCount")),
    ("output_tokens", at("totalOutputTextTokenCount")),
    ("input_tokens", at("prompt_token_count")),
    ("output_tokens", at("generation_token_count")),
    ("input_tokens", _METRICS_INPUT),
    ("output_tokens", at(METRICS, "outputTokenCount")),
    ("cache_read_tokens", at(METRICS, "cacheReadInputTokenCount")),
    ("cache_write_tokens", at(METRICS, "cacheWriteInputTokenCount")),
    ("finish_reasons", _reason("completionReason")),
    ("finish_reasons", _reason("stop_reason")),
    ("finish_reasons", _reason("finish_reason")),
    ("finish_reasons", _reasons("outputs", "stop_reason")),
    ("finish_reasons", _reasons("choices", "stop_reason")),
    ("finish_reasons", _reasons("results", "completionReason")),
    ("finish_reasons", _reasons("generations", "finish_reason")),
    ("finish_reasons", _reasons("completions", "finishReason", "reason")),
)

ANSWERED: Final[Table] = (
    _NATIVE
    + rows(("output_tokens", _titan_output))
    + anthropic_messages.ANSWERED
    + openai_chat.ANSWERED
    + bedrock_converse.ANSWERED
)


def _event(body: Body, seen: Seen) -> Candidates:
    if isinstance(body.get("type"), str):
        return anthropic_messages.ANTHROPIC_MESSAGES.event(body, seen)
    return {
        **read(_NATIVE, body),
        **openai_chat.event(body, seen),
        **bedrock_converse.event(body, seen),
    }


def _is_last(body: Body) -> bool:
    return METRICS in body


_MAY_HOLD_FACT = (
    rb'"(?:stop_reason|stopReason|finish_reason|completionReason)"\s*:\s*"'
    rb'|"(?:usage|toolUse)"\s*:\s*\{|"tool_calls"|"%s"|%s"error"|%s'
)


BEDROCK_INVOKE: Final = Protocol(
    name="bedrock_invoke",
    asked=ASKED,
    answered=ANSWERED,
    event=_event,
    error=openai_chat.find_error,
    may_hold_fact=re.compile(
        _MAY_HOLD_FACT
        % (METRICS.encode(), OPENED, anthropic_messages.ANTHROPIC_MESSAGES.may_hold_fact.pattern)
    ),
    last=_is_last,
    tail_keys=("usage", "inputTextTokenCount", "stop_reason", "stopReason", "finish_reason"),
)

BEDROCK_EMBEDDINGS: Final = BEDROCK_INVOKE.but(
    name="bedrock_embeddings",
    # One vector costs as many float objects as it has numbers when parsed; the count comes last.
    parse_up_to=4096,
    tail_keys=("inputTextTokenCount",),
)

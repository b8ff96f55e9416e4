"""Hugging Face: text generation as its servers speak it, and features of texts.

Wire: https://huggingface.co/docs/text-generation-inference, /generate and /generate_stream, and
https://huggingface.co/docs/inference-providers for ``models/NAME``. Chat is spoken in OpenAI's
words. Neither the request nor the answer names the model: the path does, or the client.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sottovoce.protocols.protocol import Protocol, as_answered, error_code
from sottovoce.protocols.tables import Body, Table, at, of, rows


@of("parameters")
def _stop_count(body: Body) -> int | None:
    stop = at("parameters", "stop")(body)
    return len(stop) if isinstance(stop, list) else None


@of("parameters")
def _output_type(body: Body) -> str | None:
    kind = at("parameters", "grammar", "type")(body)
    return "json" if isinstance(kind, str) and kind.startswith("json") else None


@of("details")
def _reasons(body: Body) -> list[Any] | None:
    reason = at("details", "finish_reason")(body)
    return [reason] if reason else None


@of("details")
def _prefilled(body: Body) -> int | None:
    # Only when the tokens of the prompt were asked for, too.
    prefill = at("details", "prefill")(body)
    return (len(prefill) or None) if isinstance(prefill, list) else None


def _find_error(body: Body) -> str | None:
    return error_code(body.get("error_type")) if body.get("error") else None


def _last(body: Body) -> bool:
    return isinstance(body.get("generated_text"), str)


ASKED: Final[Table] = rows(
    ("request_model", at("model")),  # never sent: put there by who knows it
    ("request_stream", at("stream")),
    ("request_temperature", at("parameters", "temperature")),
    ("request_top_p", at("parameters", "top_p")),
    ("request_top_k", at("parameters", "top_k")),
    ("request_frequency_penalty", at("parameters", "frequency_penalty")),
    ("request_max_tokens", at("parameters", "max_new_tokens")),
    ("request_stop_count", _stop_count),
    ("output_type", _output_type),
)

ANSWERED: Final[Table] = rows(
    ("finish_reasons", _reasons),
    ("input_tokens", at("details", "input_length")),
    ("input_tokens", _prefilled),
    ("output_tokens", at("details", "generated_tokens")),
)

HF_TEXT_GENERATION: Final = Protocol(
    name="hf_text_generation",
    asked=ASKED,
    answered=ANSWERED,
    event=as_answered(ANSWERED),
    error=_find_error,
    may_hold_fact=re.compile(rb'"(?:generated_text"\s*:\s*"|error"\s*:\s*")'),
    last=_last,
    tail_keys=(),
    batch=True,
)

HF_FEATURES: Final = Protocol(
    name="hf_features",
    asked=rows(("request_model", at("model")), ("request_dimensions", at("dimensions"))),
    answered=(),
    event=as_answered(ANSWERED),
    error=_find_error,
    may_hold_fact=HF_TEXT_GENERATION.may_hold_fact,
    tail_keys=(),
    parse_up_to=4096,
    batch=True,
)
"""Answers are numbers alone."""

"""OpenAI embeddings: answers are long lists of numbers, of which only the edges matter.

Wire: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

from typing import Any, Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, as_answered
from sottovoce.protocols.tables import Body, Table, at, of, rows


@of("encoding_format")
def _encoding_formats(body: Body) -> list[Any] | None:
    encoding = body.get("encoding_format")
    return None if encoding is None else [encoding]


ASKED: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_encoding_formats", _encoding_formats),
    ("request_dimensions", at("dimensions")),
    ("request_dimensions", at("output_dimension")),  # Mistral
)

ANSWERED: Final[Table] = rows(
    ("response_model", at("model")),
    ("input_tokens", at("usage", "prompt_tokens")),
)

OPENAI_EMBEDDINGS: Final = Protocol(
    name="openai_embeddings",
    asked=ASKED,
    answered=ANSWERED,
    event=as_answered(ANSWERED),
    error=openai_chat.find_error,
    may_hold_fact=openai_chat.MAY_HOLD_FACT,
    # One vector of 1536 numbers is 30 KB and costs as many float objects when parsed.
    parse_up_to=4096,
    flat=True,
)

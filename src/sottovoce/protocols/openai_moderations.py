"""OpenAI moderations: what was judged, and how, is content; which model judged is not.

Wire: https://platform.openai.com/docs/api-reference/moderations
"""

from __future__ import annotations

from typing import Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, as_answered
from sottovoce.protocols.tables import Table, at, rows

ASKED: Final[Table] = rows(("request_model", at("model")))

ANSWERED: Final[Table] = rows(
    ("response_model", at("model")),
    ("input_tokens", at("usage", "prompt_tokens")),  # of others that speak this wire
)

OPENAI_MODERATIONS: Final = Protocol(
    name="openai_moderations",
    asked=ASKED,
    answered=ANSWERED,
    event=as_answered(ANSWERED),
    error=openai_chat.find_error,
    may_hold_fact=openai_chat.MAY_HOLD_FACT,
)

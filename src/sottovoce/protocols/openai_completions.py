"""OpenAI text completions: a prompt in, text out; answers have the shape of chat's.

Wire: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from typing import Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol
from sottovoce.protocols.tables import Table, at, rows

ASKED: Final[Table] = openai_chat.SAMPLING + rows(("request_max_tokens", at("max_tokens")))

OPENAI_COMPLETIONS: Final = Protocol(
    name="openai_completions",
    asked=ASKED,
    answered=openai_chat.ANSWERED,
    event=openai_chat.event,
    error=openai_chat.find_error,
    may_hold_fact=openai_chat.MAY_HOLD_FACT,
    tail_keys=openai_chat.OPENAI_CHAT.tail_keys,
)

"""What Mistral has besides OpenAI's wire: the reading of documents.

Wire: https://docs.mistral.ai/api. Chat, agents, code completion and embeddings are OpenAI's.
"""

from __future__ import annotations

from typing import Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol
from sottovoce.protocols.tables import at, rows

MISTRAL_OCR: Final = Protocol(
    name="mistral_ocr",
    asked=rows(("request_model", at("model"))),
    answered=rows(("response_model", at("model"))),
    event=lambda _body, _seen: {},
    error=openai_chat.find_error,
    may_hold_fact=openai_chat.MAY_HOLD_FACT,
    tail_keys=("usage_info",),
    # Whole documents with their images come back.
    parse_up_to=4096,
    flat=True,
)

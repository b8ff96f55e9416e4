"""What Mistral has besides OpenAI's wire: its paths on Vertex AI, and the reading of documents.

Wire: https://docs.mistral.ai/api. Chat, agents, code completion and embeddings are OpenAI's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, at, rows

if TYPE_CHECKING:
    from sottovoce.call import Facts

_PATH: Final = r"(?:^|/publishers/mistralai/models/([^/:]{1,256}):|^/)\w+$"


def on_vertex(path: str) -> Facts | None:
    """Read the model of ``publishers/mistralai/models/NAME:rawPredict``.

    The SDK itself begins with ``/rawPredict`` alone and writes the rest late.
    """
    found = re.search(_PATH, path)
    if found is None:
        return None
    return {"request_model": unquote(found[1])} if found[1] else {}


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

"""OpenAI images: words in, pictures out, of which only what they cost is looked at.

Wire: https://platform.openai.com/docs/api-reference/images; edits are uploaded as forms, which
are never read. A picture in JSON is megabytes of text, so the counts are found at its end.
"""

from __future__ import annotations

import re
from typing import Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, as_answered
from sottovoce.protocols.tables import Table, at, rows

ASKED: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", at("stream")),
    ("request_choice_count", openai_chat.choice_count),
)

ANSWERED: Final[Table] = rows(
    ("response_model", at("model")),  # others that speak this wire say it
    ("input_tokens", at("usage", "input_tokens")),
    ("output_tokens", at("usage", "output_tokens")),
    ("input_text_tokens", at("usage", "input_tokens_details", "text_tokens")),
    ("input_image_tokens", at("usage", "input_tokens_details", "image_tokens")),
    ("output_text_tokens", at("usage", "output_tokens_details", "text_tokens")),
    ("output_image_tokens", at("usage", "output_tokens_details", "image_tokens")),
)

OPENAI_IMAGES: Final = Protocol(
    name="openai_images",
    asked=ASKED,
    answered=ANSWERED,
    event=as_answered(ANSWERED),
    error=openai_chat.find_error,
    may_hold_fact=re.compile(
        rb'"usage"\s*:\s*\{|"type"\s*:\s*"(?:image_(?:generation|edit)\.completed|error)"'
        rb'|"error"\s*:\s*[{"]'
    ),
    last_types=frozenset({"image_generation.completed", "image_edit.completed"}),
    parse_up_to=4096,
    flat=True,
)

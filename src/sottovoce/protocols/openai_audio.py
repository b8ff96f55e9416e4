"""OpenAI audio: speech out of words, words out of speech; neither is ever looked at.

Wire: https://platform.openai.com/docs/api-reference/audio. Recordings are uploaded as forms,
which are never read; answers are sound, or text, or JSON or a stream whose last event has the
counts.
"""

from __future__ import annotations

import re
from typing import Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol, as_answered
from sottovoce.protocols.tables import Body, Table, at, of, rows


@of("stream_format")
def _streamed(body: Body) -> bool | None:
    """Speech is streamed as events only by this name; sound that comes in pieces is no stream of them."""
    return True if body.get("stream_format") == "sse" else None


ASKED: Final[Table] = rows(
    ("request_model", at("model")),
    ("request_stream", at("stream")),
    ("request_stream", _streamed),
    ("request_temperature", at("temperature")),
)

ANSWERED: Final[Table] = rows(
    ("response_model", at("model")),
    ("input_tokens", at("usage", "input_tokens")),
    ("output_tokens", at("usage", "output_tokens")),
    ("input_tokens", at("usage", "prompt_tokens")),  # Mistral
    ("output_tokens", at("usage", "completion_tokens")),
    ("input_text_tokens", at("usage", "input_token_details", "text_tokens")),
    ("input_audio_tokens", at("usage", "input_token_details", "audio_tokens")),
)

OPENAI_AUDIO: Final = Protocol(
    name="openai_audio",
    asked=ASKED,
    answered=ANSWERED,
    event=as_answered(ANSWERED),
    error=openai_chat.find_error,
    may_hold_fact=re.compile(
        rb'"usage"\s*:\s*\{|"type"\s*:\s*"(?:speech\.audio|transcript\.text)\.done"'
        rb'|"type"\s*:\s*"error"|"error"\s*:\s*[{"]'
    ),
    last_types=frozenset({"speech.audio.done", "transcript.text.done"}),
    opaque=True,
)

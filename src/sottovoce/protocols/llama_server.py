"""llama-server's own routes: a prompt as it is in, text out; vectors of a text.

Wire: `tools/server/README.md` of https://github.com/ggml-org/llama.cpp, ``POST /completion``,
``POST /infill`` and ``POST /embedding``. Its answers repeat the prompt; of them only counts, timings and why it
stopped are looked at.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sottovoce.protocols import openai_chat
from sottovoce.protocols.protocol import Protocol
from sottovoce.protocols.tables import at, of, read, rows
from sottovoce.protocols.timings import TIMINGS

if TYPE_CHECKING:
    from sottovoce.protocols.protocol import Seen
    from sottovoce.protocols.tables import Body, Candidates, Table

STOPS: Final = {"eos": "stop", "word": "stop", "limit": "length"}
"""Why it stopped, in the words of the same server's other routes."""


@of("stop_type")
def _reasons(body: Body) -> list[str] | None:
    kind = body.get("stop_type")
    reason = STOPS.get(kind) if isinstance(kind, str) else None
    return [reason] if reason else None


@of("json_schema")
def _output_type(body: Body) -> str | None:
    return "json" if body.get("json_schema") else None


@of("n_predict")
def _most(body: Body) -> Any:
    most = body.get("n_predict")
    return None if most == -1 else most  # no limit


def _event(body: Body, _seen: Seen) -> Candidates:
    # What the events on the way count is a part.
    return read(ANSWERED, body) if body.get("stop") is True else {}


ASKED: Final[Table] = openai_chat.SAMPLING + rows(
    ("request_max_tokens", _most),
    ("output_type", _output_type),
)

ANSWERED: Final[Table] = (
    rows(
        ("response_model", at("model")),
        ("finish_reasons", _reasons),
        ("input_tokens", at("tokens_evaluated")),
        ("output_tokens", at("tokens_predicted")),
    )
    + TIMINGS
)

LLAMA_COMPLETION: Final = Protocol(
    name="llama_completion",
    asked=ASKED,
    answered=ANSWERED,
    event=_event,
    error=openai_chat.find_error,
    may_hold_fact=re.compile(rb'"(?:stop"\s*:\s*true|error"\s*:\s*[{"])'),
    tail_keys=("stop_type", "timings"),
    batch=True,
)

LLAMA_EMBEDDING: Final = Protocol(
    name="llama_embedding",
    asked=rows(("request_model", at("model"))),
    answered=(),
    event=_event,
    error=openai_chat.find_error,
    may_hold_fact=LLAMA_COMPLETION.may_hold_fact,
    tail_keys=(),
    parse_up_to=4096,
    batch=True,
)
"""Answers are numbers alone."""

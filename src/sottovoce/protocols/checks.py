"""What type each fact has: the one place where values that anybody sent are judged.

A value of another type sets nothing, whatever a provider sends. Nothing that could be content has
a type here.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.call import Facts

MAX_COUNT: Final = (1 << 63) - 1
MAX_INDEX: Final = 128
"""How many choices, words of a list and characters of a reason are looked at."""

_MAX_MODEL = 512  # model ids can be paths; the gate never lets them through as they are
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,63}").fullmatch

_USUAL: Final = frozenset(
    {"stop", "length", "tool_calls", "end_turn", "tool_use", "STOP", "base64"}
)
"""Words that are nearly always the only one of a list."""


def count(value: Any) -> int | None:
    """Keep a whole number that counts something."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def _number(value: Any) -> float | None:
    if type(value) is int and -MAX_COUNT <= value <= MAX_COUNT:
        return float(value)
    return value if type(value) is float and math.isfinite(value) else None


def _amount(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number >= 0 else None


def _share(value: Any) -> float | None:
    number = _amount(value)
    return number if number is not None and number <= 1 else None


def _flag(value: Any) -> bool | None:
    return value if type(value) is bool else None


def word(value: Any) -> str | None:
    """Keep what looks like an identifier."""
    if type(value) is str:
        return value if _WORD(value) else None
    return str.__str__(value) if isinstance(value, str) and _WORD(value) else None


def _model(value: Any) -> str | None:
    # The characters themselves: a subclass of the app's answers what it likes.
    text = str.__str__(value) if isinstance(value, str) else ""
    return text if 0 < len(text) <= _MAX_MODEL and text.isprintable() else None


def _words(value: Any) -> list[str] | None:
    if type(value) is list and len(value) == 1 and type(value[0]) is str and value[0] in _USUAL:
        return [value[0]]
    if not isinstance(value, list) or not 0 < list.__len__(value) <= MAX_INDEX:
        return None
    words: list[str] = []
    for item in list.__iter__(value):
        good = word(item)
        if good is None:
            return None
        words.append(good)
    return words


CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "request_model": _model,
    "request_stream": _flag,
    "request_temperature": _number,
    "request_top_p": _number,
    "request_top_k": count,
    "request_max_tokens": count,
    "request_frequency_penalty": _number,
    "request_presence_penalty": _number,
    "request_choice_count": count,
    "request_stop_count": count,
    "request_reasoning_level": word,
    "request_encoding_formats": _words,
    "request_dimensions": count,
    "request_service_tier": word,
    "request_tool_count": count,
    "output_type": word,
    "response_model": _model,
    "response_service_tier": word,
    "finish_reasons": _words,
    "input_tokens": count,
    "output_tokens": count,
    "cache_read_tokens": count,
    "cache_write_tokens": count,
    "reasoning_tokens": count,
    "input_text_tokens": count,
    "input_image_tokens": count,
    "input_audio_tokens": count,
    "input_video_tokens": count,
    "output_text_tokens": count,
    "output_image_tokens": count,
    "output_audio_tokens": count,
    "cache_read_text_tokens": count,
    "cache_read_image_tokens": count,
    "cache_read_audio_tokens": count,
    "tool_call_count": count,
    "tool_names": _words,
    "user_turn": _flag,
    "prefill_rate": _amount,
    "decode_rate": _amount,
    "draft_accepted_share": _share,
    "load_s": _amount,
}
"""By fact. None for a value that is not of its type."""


def checked(
    candidates: Mapping[str, Any], on_malformed: Callable[[str], None] | None = None
) -> Facts:
    """Keep the values that have the type of their fact.

    Anything else sets nothing; `on_malformed` is told ``type`` once however many there were.
    """
    facts: dict[str, Any] = {}
    wrong = False
    for fact, value in candidates.items():
        good = CHECKS[fact](value)
        if good is None:
            wrong = wrong or is_wrong(value)
        else:
            facts[fact] = good
    if wrong and on_malformed is not None:
        on_malformed("type")
    return facts  # type: ignore[return-value]


def is_wrong(value: Any) -> bool:
    """Whether a value that is not of its fact's type is worth telling of.

    Servers send "" for what they do not know (Azure's first event: the model).
    """
    return not (isinstance(value, str) and str.__len__(value) == 0)

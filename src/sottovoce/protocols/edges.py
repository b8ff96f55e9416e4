"""What can be known of a long JSON body from its beginning and its end alone.

No quote inside a JSON string stands without a backslash, so what is looked for by its key
cannot be found in text, wherever the end begins.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sottovoce.protocols.skeleton import skeleton

if TYPE_CHECKING:
    from sottovoce.protocols.protocol import Protocol

_REASON = re.compile(rb'"finish_reason"\s*:\s*"([A-Za-z_]{1,64})"')
_MODEL = re.compile(rb'"model"\s*:\s*("[^"\\]{1,512}")')
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,63}").fullmatch
_MOST_FINDS = 8
_MOST_VALUE_BYTES = 4096

_parse_first: Any = vars(json.JSONDecoder())["scan_once"]
"""Gives the value at a place of a text and where it ends; raises `StopIteration` where none is."""


def shape(protocol: Protocol, head: bytes, tail: bytes, *, several: bool) -> dict[str, Any]:
    """Give what `protocol` can read of a body.

    Args:
        protocol: says which keys are looked for at the end.
        head: the beginning.
        tail: the end.
        several: more than one choice was asked for: which of them a reason belongs to is unknown.
    """
    known, complete = ending(protocol, tail)
    if complete:
        # Nearly always: numbers, and then all that matters.
        return known
    body = skeleton(head)
    inner = body.get("response")
    if protocol.flat and "model" in body:
        known.pop("model", None)
    (inner if isinstance(inner, dict) else body).update(known)
    reasons = _REASON.findall(tail) or _REASON.findall(head)
    if reasons and "choices" not in body and not several:
        body["choices"] = [{"finish_reason": reasons[-1].decode()}]
    return body


def ending(protocol: Protocol, tail: bytes) -> tuple[dict[str, Any], bool]:
    """Give what `protocol` looks for at the end of a body, and whether that is all that it can read.

    Args:
        protocol: says which keys are looked for.
        tail: the end; more of it can only bring what is not found yet.
    """
    told = {key: _last_value(key, tail) for key in protocol.tail_keys}
    found = {key: value for key, value in told.items() if value is not None}
    if not protocol.flat:
        return found, False
    model = _MODEL.match(tail, max(0, tail.rfind(b'"model"')))
    if model is None:
        return found, False
    found["model"], _ = _parse_first(model[1].decode("utf-8", "surrogatepass"), 0)
    return found, len(found) == len(told) + 1


@lru_cache(maxsize=64)
def _value_of(key: str) -> re.Pattern[bytes]:
    return re.compile(rb'"%s"\s*:\s*(?=[{"0-9])' % re.escape(key.encode()))


def _last_value(key: str, tail: bytes) -> dict[str, Any] | str | int | None:
    """Find the last value of `key` that says something: a count, a word, an object of counts."""
    end = len(tail)
    quoted = b'"%s"' % key.encode()
    for _ in range(_MOST_FINDS):
        end = tail.rfind(quoted, 0, end)
        if end < 0:
            return None
        match = _value_of(key).match(tail, end)
        if match is None:
            continue
        text = tail[match.end() : match.end() + _MOST_VALUE_BYTES].decode("utf-8", "replace")
        try:
            value, _ = _parse_first(text, 0)
        except (ValueError, RecursionError, StopIteration):
            continue
        # A tool's schema may have a property of this name; it holds no numbers.
        if type(value) is int or (isinstance(value, dict) and _counts(value)):
            return value
        if isinstance(value, str) and _WORD(value):
            return value
    return None


def _counts(value: dict[str, Any]) -> bool:
    for item in value.values():
        if type(item) is int:
            return True
        if isinstance(item, dict) and any(type(inner) is int for inner in item.values()):
            return True
    return False

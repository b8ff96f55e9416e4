"""The shape of a large JSON body without its content: what `Protocol` tables can be read from.

Parsing a large body to learn a handful of facts would make an object of every word in it.
Here strings are skipped where they stand: only those under a few keys that never hold
content become objects; of a list only the length and the last items do. Linear in the
length of the body, whatever is in it; a body that breaks off gives what stood before.
"""

from __future__ import annotations

import json
import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS: Final = frozenset(
    {
        b"code", b"effort", b"encoding_format", b"finish_reason", b"id", b"modalities",
        b"model", b"object", b"reason", b"reasoning_effort", b"role", b"service_tier",
        b"status", b"type",
    }
)  # fmt: skip
"""Keys whose strings are kept; every other string is replaced by an empty one."""

_KEPT_ITEMS = 8
_KEPT_LENGTH = 100_000
_MAX_DEPTH = 6
_MAX_SCALAR = 1024

_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR = re.compile(rb"[^,\]}\s]*")
_PLAIN_KEY = re.compile(rb'"([^"\\]{0,128})"[ \t\r\n]*:[ \t\r\n]*')
# Every alternative begins differently and repetitions are bounded, so no input makes these
# go back over what they have read, nor lets the engine's stack grow.
_NO_BRACKETS = re.compile(rb'(?:[^"{}\[\]]+|"[^"\\]*"){0,512}')
_IN_STRING = re.compile(rb'(?:[^"\\]+|\\.){0,512}', re.DOTALL)

_QUOTE = ord('"')
_OPEN, _CLOSE = frozenset(b"{["), frozenset(b"}]")
_NOWHERE = -1


def skeleton(body: bytes) -> dict[str, Any]:
    """Give the outermost object of `body` without its content; {} when there is none."""
    start = _skip_space(body, 3 if body.startswith(b"\xef\xbb\xbf") else 0)
    shape = _value(body, start, b"", 0)
    return shape if isinstance(shape, dict) else {}


def _value(body: bytes, at: int, key: bytes, depth: int) -> Any:
    first = body[at : at + 1]
    if first == b"{":
        return _object(body, at, depth) if depth < _MAX_DEPTH else {}
    if first == b"[":
        return _list(body, at, key, depth) if depth < _MAX_DEPTH else []
    if first == b'"' and key not in WORDS:
        return ""
    end = _end_of_value(body, at)
    if end == _NOWHERE or end - at > _MAX_SCALAR:
        return "" if first == b'"' else None
    try:
        return json.loads(body[at:end])
    except ValueError:
        return None


def _object(body: bytes, at: int, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at = _skip_space(body, at + 1)
    while body[at : at + 1] == b'"':
        match = _PLAIN_KEY.match(body, at)
        if match is None:
            # No key that we look for is written with an escape.
            at = _end_of_string(body, at)
            at = _skip_space(body, at) if at != _NOWHERE else len(body)
            if body[at : at + 1] != b":":
                return found
            key, start = b"", _skip_space(body, at + 1)
        else:
            key, start = match[1], match.end()
        if start >= len(body):
            return found
        end = _end_of_value(body, start)
        # A list that breaks off has no length, and what it lacks could be what matters.
        if key and (end != _NOWHERE or body[start : start + 1] == b"{"):
            found[key.decode("utf-8", "replace")] = _value(body, start, key, depth + 1)
        if end == _NOWHERE:
            return found
        at = _skip_space(body, end)
        if body[at : at + 1] != b",":
            return found
        at = _skip_space(body, at + 1)
    return found


def _list(body: bytes, at: int, key: bytes, depth: int) -> list[Any]:
    count = 0
    last: deque[int] = deque(maxlen=_KEPT_ITEMS)
    for start in _items(body, at):
        count += 1
        last.append(start)
    kept = [_value(body, start, key, depth + 1) for start in last]
    return [None] * min(count - len(kept), _KEPT_LENGTH) + kept


def _items(body: bytes, at: int) -> Iterator[int]:
    """Give the places at which the items of a list begin."""
    at = _skip_space(body, at + 1)
    while at < len(body) and body[at] not in _CLOSE:
        yield at
        at = _end_of_value(body, at)
        if at == _NOWHERE:
            return
        at = _skip_space(body, at)
        if body[at : at + 1] != b",":
            return
        at = _skip_space(body, at + 1)


def _end_of_value(body: bytes, at: int) -> int:
    """Give the place after the value that begins at `at`; `_NOWHERE` when it breaks off."""
    if at >= len(body):
        return _NOWHERE
    first = body[at]
    if first == _QUOTE:
        return _end_of_string(body, at)
    if first not in _OPEN:
        match = _SCALAR.match(body, at)
        return match.end() if match is not None and match.end() > at else _NOWHERE
    depth = 1
    at += 1
    while depth:
        match = _NO_BRACKETS.match(body, at)
        at = match.end() if match is not None else at
        if at >= len(body):
            return _NOWHERE
        byte = body[at]
        if byte in _OPEN:
            depth += 1
            at += 1
        elif byte in _CLOSE:
            depth -= 1
            at += 1
        elif byte == _QUOTE:
            at = _end_of_string(body, at)
            if at == _NOWHERE:
                return _NOWHERE
    return at


def _end_of_string(body: bytes, at: int) -> int:
    """Give the place after the string whose quote is at `at`."""
    at += 1
    quote = at - 1
    while True:
        if quote < at:  # else it is still the next one: looking again would not be linear
            quote = body.find(b'"', at)
            if quote == _NOWHERE:
                return _NOWHERE
        if body.find(b"\\", at, quote) == _NOWHERE:
            return quote + 1
        match = _IN_STRING.match(body, at)
        at = match.end() if match is not None else len(body)
        if at < len(body) and body[at] == _QUOTE:
            return at + 1


def _skip_space(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return match.end() if match is not None else at

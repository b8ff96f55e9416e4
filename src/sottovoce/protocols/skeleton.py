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
from typing import Any, Final

WORDS: Final = frozenset(
    {
        b"code", b"effort", b"embedding_types", b"encoding_format", b"finish_reason", b"id",
        b"modalities", b"model", b"object", b"reason", b"reasoning_effort", b"responseMimeType",
        b"responseModalities", b"response_mime_type", b"response_modalities", b"role",
        b"serviceTier", b"service_tier", b"status", b"think", b"thinkingLevel", b"thinking_level",
        b"type",
    }
)  # fmt: skip
"""Keys whose strings are kept; every other string is replaced by an empty one."""

WALKED: Final = frozenset(
    {
        b"choices", b"completion_args", b"completion_tokens_details", b"content", b"contents",
        b"details",
        b"embedContentConfig", b"error", b"format", b"generationConfig", b"generation_config",
        b"grammar", b"incomplete_details", b"inferenceConfig", b"input", b"inputs",
        b"input_tokens_details",
        b"item", b"messages", b"meta", b"options", b"output", b"output_config", b"output_format",
        b"output_tokens_details", b"parameters", b"parts", b"prompt_tokens_details", b"reasoning",
        b"requests", b"response", b"response_format", b"text", b"textGenerationConfig",
        b"thinking", b"thinkingConfig", b"thinking_config", b"toolConfig", b"tools", b"usage",
    }
)  # fmt: skip
"""Keys whose objects, and whose lists' last objects, are looked into; others are empty."""

COUNTED: Final = frozenset(
    {
        b"embedding_types", b"functionDeclarations", b"function_declarations", b"functions",
        b"modalities", b"responseModalities", b"response_modalities", b"stop", b"stopSequences",
        b"stop_sequences", b"tools",
    }
)  # fmt: skip
"""Keys whose lists are counted item by item; so are those above when they hold objects."""

_KEPT_ITEMS = 8
_KEPT_LENGTH = 100_000
_MAX_DEPTH = 6
_MAX_SCALAR = 1024

_SPACE = re.compile(rb"[ \t\r\n]*")
_SCALAR = re.compile(rb"[^,\]}\s]*")
_PLAIN_KEY = re.compile(rb'"([^"\\]{0,128})"[ \t\r\n]*:[ \t\r\n]*')
# Every alternative begins differently and repetitions are bounded, so no input makes these
# go back over what they have read, nor lets the engine's stack grow.
_NO_BRACKETS = re.compile(rb'(?:[^"{}\[\]]+|"[^"\\]{0,256}"){0,512}')
_IN_STRING = re.compile(rb'(?:[^"\\]+|\\.){0,32}', re.DOTALL)

_QUOTE, _BACKSLASH = b'"\\'
_OPEN, _CLOSE = frozenset(b"{["), frozenset(b"}]")
_NOWHERE = -1


def skeleton(body: bytes) -> dict[str, Any]:
    """Give the outermost object of `body` without its content; {} when there is none."""
    if b"\\" in body:
        body = _Blanked.of(body)
    start = _skip_space(body, 3 if body.startswith(b"\xef\xbb\xbf") else 0)
    return _object(body, start, 0)[0] if body[start : start + 1] == b"{" else {}


class _Blanked(bytes):
    """A body without escaped quotes, so that the end of a string is the next quote.

    JSON inside JSON is dense with them. Of the same length: places are those of `given`.
    """

    given: bytes

    @classmethod
    def of(cls, given: bytes) -> _Blanked:
        # Pairs first, from the left: what then stands before a quote escapes it.
        made = cls(given.replace(rb"\\", b"  ").replace(rb"\"", b"  "))
        made.given = given
        return made


def _value(body: bytes, at: int, key: bytes, depth: int) -> tuple[Any, int]:
    """Give what is kept of the value at `at`, and the place after it (`_NOWHERE`: it breaks off)."""
    first = body[at : at + 1]
    if first == b"{" and key in WALKED and depth < _MAX_DEPTH:
        return _object(body, at, depth)
    if first == b"[" and depth < _MAX_DEPTH:
        item = _skip_space(body, at + 1)
        if key in COUNTED or (key in WALKED and body[item : item + 1] == b"{"):
            return _list(body, at, key, depth)
    end = _end_of_value(body, at)
    if first == b"{":
        return {}, end
    if first == b"[":
        return [], end
    if first == b'"' and (key not in WORDS or not 0 <= end - at <= _MAX_SCALAR):
        return "", end
    if not 0 <= end - at <= _MAX_SCALAR:
        return None, end
    try:
        return json.loads((body.given if isinstance(body, _Blanked) else body)[at:end]), end
    except ValueError:
        return None, end


def _object(body: bytes, at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _skip_space(body, at + 1)
    while body[at : at + 1] == b'"':
        match = _PLAIN_KEY.match(body, at)
        if match is None:
            # No key that we look for is long or written with an escape.
            end = _end_of_string(body, at)
            colon = _skip_space(body, end) if end != _NOWHERE else len(body)
            if body[colon : colon + 1] != b":":
                return found, _NOWHERE
            key, start = b"", _skip_space(body, colon + 1)
        else:
            key, start = match[1], match.end()
        if start >= len(body):
            return found, _NOWHERE
        value, end = _value(body, start, key, depth + 1)
        # A list that breaks off has no length, and what it lacks could be what matters.
        if key and (end != _NOWHERE or isinstance(value, dict)):
            found[key.decode("utf-8", "replace")] = value
        if end == _NOWHERE:
            return found, _NOWHERE
        at = _skip_space(body, end)
        if body[at : at + 1] == b",":
            at = _skip_space(body, at + 1)
    return found, at + 1 if body[at : at + 1] == b"}" else _NOWHERE


def _list(body: bytes, at: int, key: bytes, depth: int) -> tuple[list[Any], int]:
    count = 0
    last: deque[int] = deque(maxlen=_KEPT_ITEMS)
    at = _skip_space(body, at + 1)
    while at < len(body) and body[at] not in _CLOSE:
        count += 1
        last.append(at)
        at = _end_of_value(body, at)
        if at == _NOWHERE:
            return [], _NOWHERE
        at = _skip_space(body, at)
        if body[at : at + 1] == b",":
            at = _skip_space(body, at + 1)
    if body[at : at + 1] != b"]":
        return [], _NOWHERE
    kept = [_value(body, start, key, depth + 1)[0] for start in last]
    return [None] * min(count - len(kept), _KEPT_LENGTH) + kept, at + 1


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
    while True:
        quote = body.find(b'"', at)
        if quote == _NOWHERE:
            return _NOWHERE
        before = body[at:quote] if body[quote - 1] == _BACKSLASH else b""
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return quote + 1
        # Where one quote is escaped more tend to follow: a few at the engine's speed.
        match = _IN_STRING.match(body, quote + 1)
        at = match.end() if match is not None else len(body)


def _skip_space(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return match.end() if match is not None else at

"""The shape of a large JSON body without its content: what `Protocol` tables can be read from.

Parsing a large body to learn a handful of facts would make an object of every word in it.
Here strings are skipped where they stand: only those under a few keys that never hold
content become objects; of a list only the length and the last items do. Linear in the
length of the body, whatever is in it, unless `Work` bounds it; a body that breaks off gives
what stood before.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from typing import Any, Final

WORDS: Final = frozenset(
    {
        b"code", b"effort", b"embedding_types", b"encoding_format", b"finish_reason", b"id",
        b"modalities", b"model", b"model_instance_id", b"object", b"reason", b"reasoning_effort",
        b"responseMimeType",
        b"responseModalities", b"response_mime_type", b"response_modalities", b"role",
        b"serviceTier", b"service_tier", b"status", b"think", b"thinkingLevel", b"thinking_level",
        b"type",
    }
)  # fmt: skip
"""Keys whose strings are kept; every other is replaced by `TEXT`, or stays empty."""

TEXT: Final = "\0"
"""Stands for a text that is not empty: no word and no name of a model."""

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
        b"stop_sequences", b"tool_results", b"tools",
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

_QUOTE, _BACKSLASH = b'"\\'
_OPEN, _CLOSE = frozenset(b"{["), frozenset(b"}]")
_DIGITS = frozenset(b"%c" % byte for byte in b"-0123456789")
_NOWHERE = -1

_STEP = 32
"""What a key or an item costs, in bytes of brackets and short strings walked over."""
_FIRST_PIECE, _LARGEST_PIECE = 1 << 9, 1 << 16


class Work:
    """How much may still be walked, and where the walk ended.

    What is looked for at the speed of memory, the end of a string without quotes, is free.

    Args:
        structure: bytes of brackets and short strings, or what takes as long.
        text: bytes of strings with escaped quotes.

    Attributes:
        structure: what is left of it.
        text: what is left of it.
        done: one of them was too little.
        key: of the outermost object's value in which the walk ended.
        start: where that value begins, or its last item that was reached.
        in_list: it is an item.
        ends: of strings that took long, by where they begin: what is kept is walked over twice.
    """

    __slots__ = ("done", "ends", "in_list", "key", "start", "structure", "text")

    def __init__(self, structure: float = math.inf, text: float = math.inf) -> None:
        self.structure = structure
        self.text = text
        self.done = False
        self.key = b""
        self.start = 0
        self.in_list = False
        self.ends: dict[int, int] = {}

    def walk(self, structure: int) -> bool:
        """Take a part of it; say whether there was as much."""
        self.structure -= structure
        if self.structure < 0:
            self.done = True
        return not self.done


def skeleton(body: bytes, work: Work | None = None) -> dict[str, Any]:
    """Give the outermost object of `body` without its content; {} when there is none.

    With `work` it may be what stands before the place where that ran out.
    """
    start = _skip_space(body, 3 if body.startswith(b"\xef\xbb\xbf") else 0)
    if body[start : start + 1] != b"{":
        return {}
    return _object(body, start, 0, Work() if work is None else work)[0]


def _value(body: bytes, at: int, key: bytes, depth: int, work: Work) -> tuple[Any, int]:
    """Give what is kept of the value at `at`, and the place after it (`_NOWHERE`: it breaks off)."""
    first = body[at : at + 1]
    if first == b"{" and key in WALKED and depth < _MAX_DEPTH:
        return _object(body, at, depth, work)
    if first == b"[" and depth < _MAX_DEPTH:
        item = _skip_space(body, at + 1)
        if key in COUNTED or (key in WALKED and body[item : item + 1] == b"{"):
            return _list(body, at, key, depth, work)
    end = _end_of_value(body, at, work)
    if first == b"{":
        return {}, end
    if first == b"[":
        return [], end
    if first == b'"' and (key not in WORDS or not 0 <= end - at <= _MAX_SCALAR):
        return "" if end - at == len(b'""') else TEXT, end
    if not 0 <= end - at <= _MAX_SCALAR:
        return None, end
    try:
        return json.loads(body[at:end]), end
    except ValueError:
        return None, end


def _object(body: bytes, at: int, depth: int, work: Work) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _skip_space(body, at + 1)
    while body[at : at + 1] == b'"':
        work.walk(_STEP)
        match = _PLAIN_KEY.match(body, at)
        if match is None:
            # No key that we look for is long or written with an escape.
            end = _end_of_string(body, at, work)
            colon = _skip_space(body, end) if end != _NOWHERE else len(body)
            if body[colon : colon + 1] != b":":
                return found, _NOWHERE
            key, start = b"", _skip_space(body, colon + 1)
        else:
            key, start = match[1], match.end()
        if not depth:
            work.key, work.start, work.in_list = key, start, False
        if start >= len(body) or work.done:
            return found, _NOWHERE
        value, end = _value(body, start, key, depth + 1, work)
        # A list that breaks off has no length, and what it lacks could be what matters.
        if key and (end != _NOWHERE or isinstance(value, dict)):
            found[key.decode("utf-8", "replace")] = value
        if end == _NOWHERE:
            return found, _NOWHERE
        at = _skip_space(body, end)
        if body[at : at + 1] == b",":
            at = _skip_space(body, at + 1)
    return found, at + 1 if body[at : at + 1] == b"}" else _NOWHERE


def _list(body: bytes, at: int, key: bytes, depth: int, work: Work) -> tuple[list[Any], int]:
    count = 0
    last: deque[int] = deque(maxlen=_KEPT_ITEMS)
    at = _skip_space(body, at + 1)
    while at < len(body) and body[at] not in _CLOSE:
        count += 1
        last.append(at)
        work.walk(_STEP)
        if depth == 1:
            work.start, work.in_list = at, True
        at = _end_of_value(body, at, work)
        if at == _NOWHERE:
            return [], _NOWHERE
        at = _skip_space(body, at)
        if body[at : at + 1] == b",":
            at = _skip_space(body, at + 1)
    if body[at : at + 1] != b"]":
        return [], _NOWHERE
    kept = [_value(body, start, key, depth + 1, work) for start in last]
    if any(end == _NOWHERE for _, end in kept):
        return [], _NOWHERE
    items = [item for item, _ in kept]
    return [None] * min(count - len(items), _KEPT_LENGTH) + items, at + 1


def _end_of_value(body: bytes, at: int, work: Work) -> int:
    """Give the place after the value that begins at `at`; `_NOWHERE` when it breaks off."""
    if at >= len(body) or work.done:
        return _NOWHERE
    first = body[at]
    if first == _QUOTE:
        return _end_of_string(body, at, work)
    if first not in _OPEN:
        match = _SCALAR.match(body, at)
        return match.end() if match is not None and match.end() > at else _NOWHERE
    end = _end_of_numbers(body, at) if body[at + 1 : at + 2] in _DIGITS else _NOWHERE
    return _end_of_brackets(body, at + 1, work) if end == _NOWHERE else end


def _end_of_brackets(body: bytes, at: int, work: Work) -> int:
    """Give the place after the object or list whose first byte but one is at `at`."""
    depth = 1
    while depth:
        match = _NO_BRACKETS.match(body, at)
        after = match.end() if match is not None else at
        if not work.walk(after - at + 1) or after >= len(body):
            return _NOWHERE
        at = after
        byte = body[at]
        if byte == _QUOTE:
            at = _end_of_string(body, at, work)
            if at == _NOWHERE:
                return _NOWHERE
        elif byte in _OPEN or byte in _CLOSE:
            depth += 1 if byte in _OPEN else -1
            at += 1
    return at


def _end_of_numbers(body: bytes, at: int) -> int:
    """Give the place after a list of nothing but numbers; `_NOWHERE` when it is no such list."""
    end = body.find(b"]", at)
    inner = (body.find(other, at + 1, end) for other in (b'"', b"{", b"["))
    return end + 1 if end != _NOWHERE and all(place == _NOWHERE for place in inner) else _NOWHERE


def _end_of_string(body: bytes, at: int, work: Work) -> int:
    """Give the place after the string whose quote is at `at`."""
    quote = body.find(b'"', at + 1)
    if quote == _NOWHERE:
        return _NOWHERE
    if body[quote - 1] != _BACKSLASH:
        return quote + 1
    if at not in work.ends:
        work.ends[at] = _end_of_escaped(body, at + 1, work)
    return work.ends[at]


def _end_of_escaped(body: bytes, at: int, work: Work) -> int:
    """Give the place after a string with escaped quotes, whose text begins at `at`.

    Where one is escaped more tend to follow, JSON inside JSON is dense with them: all of a piece
    are blanked at once, pairs of backslashes first, so that what then stands before a quote
    escapes it.
    """
    size = _FIRST_PIECE
    while work.text > 0:
        piece = body[at : at + size]
        blanked = piece.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
        quote = blanked.find(b'"')
        work.text -= len(piece) if quote == _NOWHERE else quote + _STEP
        if quote != _NOWHERE:
            return at + quote + 1
        if len(piece) < size:
            return _NOWHERE
        # A backslash at the end escapes what comes next.
        at += size - blanked.endswith(b"\\")
        size = min(size * 2, _LARGEST_PIECE)
    work.done = True
    return _NOWHERE


def _skip_space(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return match.end() if match is not None else at

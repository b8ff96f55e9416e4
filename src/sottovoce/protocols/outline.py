"""What is known of a large request at a bounded cost: its beginning and its end.

The shape of the body (`skeleton.py`) is walked over until that has taken too long, which is
seldom: long texts are skipped at the speed of memory, unless they are full of quotes. Then the
end is read backwards, where state is unambiguous: no quote inside a string stands without a
backslash, and outside of strings there are none. So both ends are known, and of what lies
between that nothing is: it is left out, and so is every fact that it could have changed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sottovoce.protocols.skeleton import Work, skeleton

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_STRUCTURE: Final = 2 * 1024
"""Bytes of brackets and short strings that are walked over, some 25 ns each: enough for a few
long texts. Twice as many of a body that is not parsed then."""

MOST_TEXT: Final = 128 * 1024
"""Bytes of text with quotes that are walked over, some 3 ns each; half of a body that is not parsed."""

MOST_PARSED: Final = 256 * 1024
"""Bytes of a body up to which it is parsed after all, some 1 to 4 ns each."""

TAIL: Final = 16 * 1024
"""Bytes before the last list of tools that are looked at."""

_MOST_TOOLS: Final = 64 * 1024
"""Bytes of the end in which that list is looked for."""

TALKS: Final = frozenset({b"contents", b"input", b"messages"})
"""Keys of lists of which only the last item matters."""

_MOST_QUOTES = 256
_LONGEST_BETWEEN = 512
_FIRST_CLOSINGS = 256
_MOST_BETWEEN = 1 << 21

_OF_MEMBERS, _OF_VALUE = 1, 2
"""Depth of brackets among the outermost object's members, and within the value of one."""

_COLONS = frozenset({b":", b": "})
_MARKS = re.compile(rb"[{}\[\],]")
_NEXT_KEY = re.compile(rb"\][ \t\r\n]*,[ \t\r\n]*\"")

_parse = json.JSONDecoder().decode


class Outline(NamedTuple):
    """What is known of a body.

    Attributes:
        body: its outermost object, of which nothing but facts may be taken.
        complete: everything that facts are made of is in it.
        lacks: the one key whose value is not known, where all others are.
    """

    body: dict[str, Any]
    complete: bool
    lacks: str | None = None


class _Ending(NamedTuple):
    """The end of a body, as places in it.

    Attributes:
        members: where the outermost object's members begin that are there as a whole.
        item: where the last item begins of the list that is cut, if it is there as a whole.
        closing: where the value that is cut has its closing bracket, if that is a list's.
    """

    members: int | None
    item: int | None
    closing: int | None


def outline(
    body: bytes,
    most_structure: int = MOST_STRUCTURE,
    most_text: int = MOST_TEXT,
    most_parsed: int = MOST_PARSED,
    tail: int = TAIL,
) -> Outline:
    """Give what is known of a JSON object in `body`. May raise for what is no JSON."""
    parses = len(body) <= most_parsed
    work = Work(*(most_structure, most_text) if parses else (2 * most_structure, most_text // 2))
    found = skeleton(body, work)
    if not work.done:
        return Outline(found, complete=True)
    if parses:
        return Outline(_object(body), complete=True)
    tools = _tools(body, work.start)
    last = len(body) if tools is None else tools
    end = _ending(body[max(work.start, last - tail) : last], max(work.start, last - tail), tools)
    if end.members is not None:
        found.update(_object(b"{" + body[end.members :]))
    # Both ends are of one list if none was closed between them for another member to begin.
    joined = work.in_list and work.key in TALKS and end.closing is not None
    if not joined or _goes_on(body, work.start, end.item or end.closing or 0):
        return Outline(found, complete=False)
    key = work.key.decode()
    item = {} if end.item is None else _object(body[end.item : end.closing])
    if not item:
        return Outline(found, complete=False, lacks=key)
    return Outline({**found, key: [item]}, complete=True)


def _object(text: bytes) -> dict[str, Any]:
    value = _parse(text.decode("utf-8", "replace").lstrip("\ufeff"))
    return value if isinstance(value, dict) else {}


def _tools(body: bytes, start: int) -> int | None:
    """Find the outermost object's last list of tools, which is too full of brackets to be walked over.

    What begins with its key and ends with the body is the outermost object's, or it would end
    sooner; and inside of a string no quote stands without a backslash.
    """
    key = body.rfind(b'"tools"', max(start, len(body) - _MOST_TOOLS))
    if key < 0:
        return None
    try:
        _parse("{" + body[key:].decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return key


def _goes_on(body: bytes, at: int, end: int) -> bool:
    """Whether a list may have been closed between `at` and `end`, and a key have followed."""
    for _ in range(_FIRST_CLOSINGS):
        at = body.find(b"]", at, end)
        if at < 0:
            return False
        if _NEXT_KEY.match(body, at):
            return True
        at += 1
    return end - at > _MOST_BETWEEN or _NEXT_KEY.search(body, at, end) is not None


def _ending(text: bytes, start: int, members: int | None) -> _Ending:
    """Read the last part of a body backwards.

    Args:
        text: the part; it begins anywhere.
        start: the place of its first byte.
        members: where the members after it begin; ``None`` when it is the very end.
    """
    # Every quote is then one end of a string, but for one at the very beginning, before which
    # nothing stands, where an escape was cut in two.
    blanked = text.rstrip(b" \t\r\n").replace(rb"\\", b"  ").replace(rb"\"", b"  ")
    depth = 0 if members is None else _OF_MEMBERS
    item = closing = None
    for mark, at in _outside(blanked, start):
        if mark in b"}]":
            depth += 1
            if depth == _OF_VALUE:
                item, closing = None, at if mark == b"]" else None
        elif mark in b"{[":
            depth -= 1
            if depth < _OF_VALUE:
                item = closing = None
        elif depth == _OF_MEMBERS:
            members = at + 1
        elif depth == _OF_VALUE and item is None:
            item = at + 1
        if depth < _OF_MEMBERS:
            # It does not end as an object does.
            break
    return _Ending(members, item, closing)


def _outside(text: bytes, start: int) -> Iterator[tuple[bytes, int]]:
    """Give brackets and commas outside of strings, last first, of a text that ends outside.

    Args:
        text: without escaped quotes; it begins anywhere.
        start: the place of its first byte.
    """
    pieces = text.rsplit(b'"', _MOST_QUOTES)
    place = start + len(text)
    # The first is what was not split.
    for number in range(len(pieces) - 1, 0 if len(pieces) > _MOST_QUOTES else -1, -1):
        piece = pieces[number]
        place -= len(piece)
        if (len(pieces) - number) % 2 and piece not in _COLONS:
            if len(piece) > _LONGEST_BETWEEN:
                return
            for mark in reversed(list(_MARKS.finditer(piece))):
                yield mark[0], place + mark.start()
        place -= 1

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

MOST_STRUCTURE: Final = 8 * 1024
"""Bytes of brackets and short strings that are walked over: some 200 µs."""

MOST_TEXT: Final = 256 * 1024
"""Bytes of text with quotes that are walked over, 3 µs a KiB at most; of a body that is more
than twice as long a quarter, since the walk would hardly come to its end."""

TAIL: Final = 16 * 1024
"""Bytes of the end that are looked at."""

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
    """

    body: dict[str, Any]
    complete: bool


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
    tail: int = TAIL,
) -> Outline:
    """Give what is known of a JSON object in `body`. May raise for what is no JSON."""
    work = Work(most_structure, most_text // 4 if len(body) > 2 * most_text else most_text)
    found = skeleton(body, work)
    if not work.done:
        return Outline(found, complete=True)
    end = _ending(body, max(work.start, len(body) - tail))
    if end.members is not None:
        found.update(_object(b"{" + body[end.members :]))
    if end.item is None or end.closing is None or work.key not in TALKS:
        return Outline(found, complete=False)
    # Both ends are of one list if none was closed between them for another member to begin.
    item = _object(body[end.item : end.closing])
    if not item or not work.in_list or _goes_on(body, work.start, end.item):
        return Outline(found, complete=False)
    return Outline({**found, work.key.decode(): [item]}, complete=True)


def _object(text: bytes) -> dict[str, Any]:
    value = _parse(text.decode("utf-8", "replace"))
    return value if isinstance(value, dict) else {}


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


def _ending(body: bytes, start: int) -> _Ending:
    """Read `body` backwards, no further than to `start`."""
    # Every quote is then one end of a string, but for one at the very beginning, before which
    # nothing stands, where an escape was cut in two.
    blanked = body[start:].rstrip(b" \t\r\n").replace(rb"\\", b"  ").replace(rb"\"", b"  ")
    depth = 0
    members = item = closing = None
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

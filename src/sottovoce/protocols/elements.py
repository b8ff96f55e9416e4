"""A stream that is one JSON array: its bytes in any pieces → each object in it, once complete.

Google streams so where nobody asked for server-sent events. Objects are told apart by their
brackets alone, outside strings; nothing is parsed here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNKNOWN: Final = b"{}"

# Alternatives begin differently and repetitions are bounded: nothing is read twice.
_NO_BRACKETS = re.compile(rb'(?:[^"{}\[\]]+|"[^"\\]{0,256}"){0,512}')
_IN_STRING = re.compile(rb'(?:[^"\\]+|\\.){0,32}', re.DOTALL)

_QUOTE, _BACKSLASH = b'"\\'
_OPEN: Final = frozenset(b"{[")
_MAX_DEPTH: Final = 200  # what deserves to be read is not nested deeper


class Elements:
    """Splits one array. Holds at most `limit` bytes and a chunk.

    Args:
        limit: bytes up to which an object is given; a larger one counts as an event that
            says nothing.

    Attributes:
        counted: its pieces begin with their length.
        broken: brackets are nested too deeply; none is looked at any more.
        oversized: an object was larger than `limit`.
    """

    __slots__ = ("_depth", "_escaped", "_held", "_in_string", "_limit", "broken", "oversized")

    counted: Final = False

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()
        self._depth = 0  # of brackets within the object that has begun
        self._in_string = False
        self._escaped = False  # the next byte belongs to a backslash
        self.broken = False
        self.oversized = False

    @property
    def whole(self) -> bool:
        """Whether the stream may end here: no object has begun."""
        return not self._depth

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Give the objects that `chunk` completes, outermost or in the outermost array."""
        at = 0
        while not self.broken:
            if not self._depth:
                at = chunk.find(b"{", at)
                if at < 0:
                    return
            end = self._end(chunk, at)
            if self.broken:
                return
            if len(self._held) <= self._limit:
                self._held += chunk[at:end]
            if self._depth:
                return
            element, self._held = bytes(self._held), bytearray()
            at = end
            if len(element) > self._limit:
                self.oversized = True
                element = _UNKNOWN
            yield element

    def _end(self, chunk: bytes, at: int) -> int:
        """Give the place after the object that goes on, or begins, at `at`."""
        size = len(chunk)
        while at < size:
            if self._in_string:
                at = self._end_of_string(chunk, at)
                continue
            match = _NO_BRACKETS.match(chunk, at)
            at = match.end() if match is not None else at
            if at >= size:
                break
            byte = chunk[at]
            at += 1
            if byte == _QUOTE:
                self._in_string = True
            elif byte in _OPEN:
                self._depth += 1
                if self._depth > _MAX_DEPTH:
                    self.broken = True
                    break
            else:
                self._depth -= 1
                if not self._depth:
                    break
        return at

    def _end_of_string(self, chunk: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            at += 1
        size = len(chunk)
        while at < size:
            match = _IN_STRING.match(chunk, at)
            at = match.end() if match is not None else at
            if at >= size:
                break
            if chunk[at] == _QUOTE:
                self._in_string = False
                return at + 1
            if chunk[at] == _BACKSLASH and at + 1 == size:
                self._escaped = True
                return size
        return at

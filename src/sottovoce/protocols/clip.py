"""A buffer whose size has a bound: what is too long keeps its beginning and its end."""

from __future__ import annotations

from typing import Final

HEAD: Final = 8 * 1024
"""Bytes kept of the beginning."""
TAIL: Final = 64 * 1024
"""Bytes kept of the end."""


class Clip:
    """Bytes that arrive in pieces: all of them up to a limit, else their beginning and end."""

    __slots__ = ("_head", "_rest", "clipped", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._head = b""
        self._rest = bytearray()
        self.size = 0
        self.clipped = False

    def add(self, piece: bytes) -> None:
        """Take the next piece."""
        self.size += len(piece)
        if not self.clipped:
            if self.size <= self.limit:
                self._rest += piece
                return
            self.clipped = True
            self._head = bytes(self._rest[:HEAD])
            self._head += piece[: HEAD - len(self._head)]
        if len(piece) >= TAIL:
            self._rest[:] = piece[-TAIL:]
            return
        self._rest += piece
        if len(self._rest) > 2 * TAIL:
            del self._rest[:-TAIL]

    def absorb(self, other: Clip, skip: int) -> None:
        """Take what `other`, which is clipped, holds, but for its first `skip` bytes."""
        if not self.clipped:
            self._head = bytes(self._rest[:HEAD])
        self._head += other._head[skip : skip + HEAD - len(self._head)]
        self._rest = other._rest
        self.size += other.size - skip
        self.clipped = True

    def edges(self) -> tuple[bytes, bytes]:
        """Give the beginning and the end; all in the end where nothing was left out."""
        return self._head, bytes(self._rest[-TAIL:] if self.clipped else self._rest)

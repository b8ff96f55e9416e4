"""Content codings undone in passing: gzip, deflate, br, zstd, and several on one another.

What a few compressed bytes grow to is unbounded, and the app may never ask for it: bodies are
undone in pieces, and no further than `MOST_PLAIN`. For br and zstd we use what the app's HTTP
library has loaded itself; what it cannot undo, we cannot either.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

Decompress = Callable[[bytes], Iterable[bytes]]
"""Undoes a content coding: gets the next bytes, gives what can be told by now, in pieces."""

_PIECE: Final = 1 << 16
"""How many bytes are decompressed at a time."""

_SMALL: Final = 256
"""Bytes of zstd that are fed at a time where its output cannot be limited: 3 bytes make a block
of at most 128 KiB."""

MOST_PLAIN: Final = 1 << 28
"""Bytes that a body may grow to. The largest answers, thousands of long vectors, are half as long;
an app that passes compressed bytes on unread must not wait while we undo a bomb."""

_MOST_CODINGS: Final = 3


def decompress(coding: str | None) -> Decompress | None:
    """Give what undoes the codings of a ``Content-Encoding`` header; ``None`` when there is none.

    Raises:
        LookupError: when nothing in this process can undo one of them.
        ValueError: when there are absurdly many.
    """
    # In the order in which they were applied: undone from the last to the first.
    names = [name.strip().lower() for name in (coding or "").split(",")]
    chain = [_CODINGS[name]() for name in reversed(names) if name not in {"", "identity"}]
    if not chain:
        return None
    if len(chain) > _MOST_CODINGS:
        raise ValueError
    return chain[0] if len(chain) == 1 else _Chain(chain)


class _Chain:
    """Several codings, the outermost first."""

    def __init__(self, chain: list[Decompress]) -> None:
        self._chain = chain

    def __call__(self, data: bytes) -> Iterable[bytes]:
        return self._through(data, 0)

    def _through(self, data: bytes, depth: int) -> Iterator[bytes]:
        if depth == len(self._chain):
            yield data
            return
        for piece in self._chain[depth](data):
            yield from self._through(piece, depth + 1)


class _Limited:
    """Counts what came out.

    Raises:
        ValueError: when it is more than `MOST_PLAIN`.
    """

    def __init__(self) -> None:
        self._left = MOST_PLAIN

    def _count(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError
        return piece


class _Inflate(_Limited):
    """Undo ``gzip`` or ``deflate``."""

    def __init__(self, *window_bits: int) -> None:
        super().__init__()
        self._choices = list(window_bits)
        self._state = zlib.decompressobj(self._choices.pop(0))

    def __call__(self, data: bytes) -> Iterable[bytes]:
        try:
            piece = self._state.decompress(data, _PIECE)
        except zlib.error:
            if not self._choices:
                raise
            # "deflate" is sent with and without the zlib header.
            self._state = zlib.decompressobj(self._choices.pop(0))
            piece = self._state.decompress(data, _PIECE)
        self._choices.clear()
        while piece:
            yield self._count(piece)
            piece = self._state.decompress(self._state.unconsumed_tail, _PIECE)


class _Brotli(_Limited):
    """Undo ``br`` with brotli or brotlicffi, whose output can be limited since 1.2."""

    def __init__(self) -> None:
        super().__init__()
        state = _loaded("brotli", "brotlicffi").Decompressor()
        self._process = getattr(state, "process", None) or state.decompress
        try:
            self._process(b"", output_buffer_limit=_PIECE)
        except TypeError:
            raise LookupError("br") from None

    def __call__(self, data: bytes) -> Iterable[bytes]:
        piece = self._process(data, output_buffer_limit=_PIECE)
        while piece:
            yield self._count(piece)
            piece = self._process(b"", output_buffer_limit=_PIECE)


class _Zstandard(_Limited):
    """Undo ``zstd`` with zstandard, or with what Python 3.14 and its backport bring."""

    def __init__(self) -> None:
        super().__init__()
        self._library = _loaded("compression.zstd", "backports.zstd", "zstandard")
        self._state = self._make()

    def _make(self) -> Any:
        state = self._library.ZstdDecompressor()
        return state.decompressobj() if hasattr(state, "decompressobj") else state

    def __call__(self, data: bytes) -> Iterable[bytes]:
        for start in range(0, len(data), _SMALL):
            yield from self._feed(data[start : start + _SMALL])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._state.eof:
                # Several frames may follow one another.
                self._state = self._make()
            yield self._count(self._state.decompress(data))
            data = self._state.unused_data if self._state.eof else b""


def _loaded(*names: str) -> Any:
    for name in names:
        module = sys.modules.get(name)
        if module is not None:
            return module
    raise LookupError(names[0])


_CODINGS: Final[Mapping[str, Callable[[], Decompress]]] = {
    "gzip": lambda: _Inflate(zlib.MAX_WBITS | 16),
    "x-gzip": lambda: _Inflate(zlib.MAX_WBITS | 16),
    "deflate": lambda: _Inflate(zlib.MAX_WBITS, -zlib.MAX_WBITS),
    "br": _Brotli,
    "zstd": _Zstandard,
}

"""Responses of http.client, and of all that sits on it: their bytes are read in passing.

`HTTPResponse.fp` is the buffered reader of the socket that every way of reading ends at: `read`,
`read1`, `readinto`, `readline`, `peek` and iteration of http.client itself, and urllib3's and
requests' streams above it. `tap` puts another buffered reader before it, of the same type, whose
raw side takes what the first one has, no more than was asked for, and shows it to a `Watch`. So
the response, its type and its methods stay as they are, and no reference cycle is made.

What passes is HTTP's framing as well: `Framing` takes it off.

Seen in CPython 3.10 to 3.13.
"""

from __future__ import annotations

import http.client
import io
from typing import TYPE_CHECKING, Any, Final

from sottovoce import guard
from sottovoce.transports import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.exchange import HTTPCall
    from sottovoce.protocols.routes import Route
    from sottovoce.transports.wire import Watch

_MOST_LINE: Final = 1 << 16
"""Bytes of a line between chunks; http.client takes no longer ones either."""

_MOST_DIGITS: Final = 16
_SHORT_LINE: Final = 12


def tap(call: HTTPCall, route: Route, response: Any) -> bool:
    """Watch the body of a response of which nothing has been read yet.

    Args:
        call: the call that it answers.
        route: of its request.
        response: an `http.client.HTTPResponse`, or whatever stands in for it.

    Returns:
        Whether there is a body to watch. May raise.
    """
    reader: Any = getattr(response, "fp", None)
    if not isinstance(reader, io.BufferedReader):
        # A stand-in that a test put there, or a socket of another kind.
        return False
    length = None if response.chunked else response.length
    if length == 0:
        return False
    framing = Framing(None if response.chunked else length, chunked=bool(response.chunked))
    headers = response.headers
    watch = wire.watch(
        call,
        route,
        headers.get("content-type"),
        headers.get("content-encoding"),
        open_ended=framing.open_ended,
    )
    response.fp = io.BufferedReader(_Tap(reader, framing, watch))
    return True


class _Tap(io.RawIOBase):
    """What a buffered reader has, as the raw side of another one."""

    def __init__(self, reader: io.BufferedReader, framing: Framing, watch: Watch) -> None:
        self._reader = reader
        self._framing = framing
        self._watch = watch
        self._feed = watch.feeder()

    # No `__getattr__`: every read asks whether this is closed, which is an attribute not there.

    @property
    def _sock(self) -> Any:
        """Where programs find the socket: `response.fp.raw._sock`."""
        return self._raw._sock

    @property
    def name(self) -> Any:
        return self._raw.name

    @property
    def mode(self) -> Any:
        return self._raw.mode

    @property
    def _raw(self) -> Any:
        return self._reader.raw

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._reader.fileno()

    def readinto(self, buffer: Any) -> int | None:
        try:
            # As the raw side of a socket: what is there, or one read of it.
            count: int | None = self._reader.readinto1(buffer)
        except BaseException as error:
            self._watch.broken(error)
            raise
        if count is not None:  # `None`: a socket that does not block has nothing yet
            self._seen(bytes(memoryview(buffer)[:count]))
        return count

    @guard.never_raise("tap.seen")
    def _seen(self, data: bytes) -> None:
        framing = self._framing
        if framing.ended:
            return
        if data:
            try:
                framing.take(data, self._feed)
            except ValueError:
                self._broken_off()
        if framing.ended or (not data and framing.open_ended):
            self._watch.exhausted()
        elif not data:
            self._broken_off()

    def _broken_off(self) -> None:
        """Say what http.client will, in most ways of reading."""
        self._framing.ended = True
        self._watch.broken(http.client.IncompleteRead(b""))

    def close(self) -> None:
        if not self.closed:
            self._watch.closed()
            try:
                self._reader.close()
            finally:
                super().close()


class Framing:
    """Takes off what HTTP/1.1 puts around a body's bytes.

    Args:
        length: of the body, in bytes; ``None`` when it goes on until the server closes.
        chunked: it comes in chunks, with their sizes before them.

    Attributes:
        ended: the body is complete.
    """

    __slots__ = ("_after", "_chunked", "_left", "_line", "ended")

    def __init__(self, length: int | None, *, chunked: bool) -> None:
        self._chunked = chunked
        self._left = length
        self._line = b""
        self._after = False  # the line end after a chunk's data comes next
        if chunked:
            self._left = 0
        self.ended = False

    @property
    def open_ended(self) -> bool:
        """The end of the connection is the end of the body."""
        return self._left is None

    def take(self, data: bytes, feed: Callable[[bytes], None]) -> None:
        """Give what is of the body in the next bytes of the connection to `feed`.

        Raises:
            ValueError: when that cannot be told; the library that reads them says so, too.
        """
        if self._left is None:
            feed(data)
        elif self._chunked:
            self._chunks(data, feed)
        else:
            feed(data if len(data) <= self._left else data[: self._left])
            self._left -= len(data)
            self.ended = self._left <= 0

    def _chunks(self, data: bytes, feed: Callable[[bytes], None]) -> None:
        at, size = 0, len(data)
        while at < size and not self.ended:
            left = self._left
            if not left and not self._line and not self._after:
                # Nearly always a chunk comes whole, and is an event.
                start = data.find(b"\n", at, at + _SHORT_LINE) + 1
                if start and data.find(b";", at, start) < 0:
                    length = int(data[at:start], 16)
                    stop = start + length
                    if length > 0 and data[stop : stop + 2] == b"\r\n":
                        feed(data[start:stop])
                        at = stop + 2
                        continue
            if left:
                piece = data[at : at + left]
                feed(piece)
                self._left = left - len(piece)
                at += len(piece)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                if len(self._line) > _MOST_LINE:
                    raise ValueError
                return
            line = data[at:end]
            if self._line:
                line, self._line = self._line + line, b""
            at = end + 1
            if self._after:
                self._after = False
            else:
                self._size(line)

    def _size(self, line: bytes) -> None:
        digits = line.partition(b";")[0].strip()
        if len(digits) > _MOST_DIGITS:
            raise ValueError
        self._left = int(digits, 16)
        if self._left < 0:
            raise ValueError
        # Trailers may follow the last chunk, of no size: nobody needs them.
        self.ended = not self._left
        self._after = True

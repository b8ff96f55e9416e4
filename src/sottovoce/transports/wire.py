"""What every transport does with the answer to a request: its facts are read in passing.

A transport knows where its library sends a request and where the bytes of a response come by.
A body that is already there is read by `read_whole`; one that the app is going to read is
watched: a `Watch` is fed every chunk just before the app gets it, never reads ahead, keeps
nothing of what was said, and ends its call at the protocol's last event, at the end of the body,
when the app closes or drops the response, or when reading fails.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Final, cast

from sottovoce import dropped, exchange, guard
from sottovoce.protocols.reader import Reader
from sottovoce.protocols.whole import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sottovoce.call import Call
    from sottovoce.exchange import HTTPCall
    from sottovoce.protocols.routes import Route
    from sottovoce.transports.codings import Decompress

_UNTOLD: Final = frozenset({"", "text/plain", "application/octet-stream"})
"""Content types that say nothing, as simple servers and some gateways send them."""

_CLOSING: Final = frozenset({"HTTP/1.0", "HTTP/1.1"})


class Watch:
    """Reads one response's body in passing, and ends its call exactly once, however it ends.

    Args:
        call: whose facts the body holds.
        reader: turns the body's bytes into facts.
        decompress: undoes the body's content coding; ``None`` when it has none.
        open_ended: the body ends when the server closes the connection.
    """

    __slots__ = (
        "_answered_ns",
        "_call",
        "_decompress",
        "_given_up",
        "_open_ended",
        "_over",
        "_reader",
    )

    def __init__(
        self,
        call: HTTPCall,
        reader: Reader | None,
        decompress: Decompress | None,
        *,
        open_ended: bool,
    ) -> None:
        self._answered_ns = perf_counter_ns()
        self._call = call
        self._reader = reader
        self._decompress = decompress
        self._given_up = False
        self._over = False  # the call has ended, or is left to its SDK
        self._open_ended = open_ended
        dropped.keep(call)

    def feeder(self) -> Callable[[bytes], None]:
        """Give what is to be called with each chunk, as it came off the wire. It never raises."""
        if self._decompress is None and self._reader is not None:
            return self._reader.feed
        return self._feed_compressed

    def _feed_compressed(self, chunk: bytes) -> None:
        reader, decompress = self._reader, self._decompress
        if reader is None or decompress is None:
            return
        try:
            for piece in decompress(chunk):
                reader.feed(piece)
        except Exception:  # noqa: BLE001 - runs between the network and the app
            # Only the decompression can fail, and what follows makes no sense without it.
            self._reader = None
            guard.let_through()
            guard.undecodable["encoding"] += 1

    @guard.never_raise("wire.exhausted")
    def exhausted(self) -> None:
        """The body has been read to its end."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.finish(by_closing=self._open_ended)
            if reader.error is not None:
                self._call.fail(reader.error)
        self._call.end()
        self._over = True

    @guard.never_raise("wire.broken")
    def broken(self, error: BaseException) -> None:
        """Reading the body raised `error`, a task's cancellation included."""
        if self._leaves_it_to_the_sdk():
            self._call.broken = type(error)
        else:
            exchange.end_cut_short(self._call, error)
        self._let_go()

    def closed(self) -> None:
        """The app closed the response; it need not have read all of it."""
        # What was read to its end is closed all the same, more than once.
        if not self._over:
            self._close()

    @guard.never_raise("wire.closed")
    def _close(self) -> None:
        self._over = True
        if not self._leaves_it_to_the_sdk():
            dropped.stop(self._call, self._answered_ns)
        self._let_go()

    def _leaves_it_to_the_sdk(self) -> bool:
        """Whether the SDK that opened the call reads this in it: it may try again, or fail."""
        if self._call.entered:
            self._given_up = True
            self._call.watched = False
        return self._given_up

    def _let_go(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def __del__(self) -> None:
        try:
            if not self._over and not self._given_up:
                dropped.stop(self._call, self._answered_ns)
        except Exception:  # noqa: BLE001, S110 - half-built, or the interpreter is going away
            pass


def watch(
    call: HTTPCall,
    route: Route,
    content_type: str | None,
    coding: str | None,
    *,
    open_ended: bool = False,
) -> Watch:
    """Watch the body of a response that the app is going to read; that ends the call.

    Args:
        call: the call that it answers.
        route: of its request.
        content_type: its header.
        coding: its ``Content-Encoding`` header, unless the library has undone it.
        open_ended: it ends when the server closes the connection, see `open_ended`.
    """
    reader: Reader | None = Reader(
        call, route.protocol, _kind(call, route, content_type), _malformed
    )
    decompress = None
    try:
        decompress = _decompress(coding)
    except Exception:  # noqa: BLE001 - it is a module of the app's choice that is asked
        guard.let_through()
        guard.undecodable["encoding"] += 1
        reader = None
    found = Watch(call, reader, decompress, open_ended=open_ended)
    call.watched = True
    return found


def open_ended(headers: Mapping[str, str], version: str) -> bool:
    """Whether a body ends when the server closes the connection: HTTP/1 with no length told.

    Args:
        headers: of the response.
        version: of HTTP, as ``HTTP/1.0``; empty when it cannot be told.
    """
    return (
        version in _CLOSING
        and "content-length" not in headers
        and "transfer-encoding" not in headers
    )


_JSON: Final = {
    "application/json",
    "application/json; charset=utf-8",
    "application/json;charset=utf-8",
    "application/json; charset=UTF-8",
}


def read_whole(
    call: Call, route: Route, content_type: str | None, body: bytes, coding: str | None = None
) -> str | None:
    """Read the facts of a body that is already there.

    Args:
        call: the call that it answers.
        route: of its request.
        content_type: its header.
        body: all of it.
        coding: its ``Content-Encoding`` header, unless the library has undone it.

    Returns:
        The code of the error that the body is, else ``None``.
    """
    if not body:
        return None
    if content_type in _JSON and not coding and not route.protocol.array:
        # Nearly always.
        return read_json(call, route.protocol, body, _malformed)
    kind = _kind(call, route, content_type)
    stand_in = _Buffered(call)
    reader = Reader(cast("Call", stand_in), route.protocol, kind, _malformed)
    try:
        decompress = _decompress(coding)
        if reader.json and decompress is None:
            reader.whole(body)
            return reader.error
        for piece in (body,) if decompress is None else decompress(body):
            reader.feed(piece)
    except Exception:  # noqa: BLE001 - only undoing the coding can fail
        guard.let_through()
        guard.undecodable["encoding"] += 1
        return None
    reader.finish()
    call.stream = call.stream or stand_in.stream
    return reader.error


def _decompress(coding: str | None) -> Decompress | None:
    if not coding:
        return None
    from sottovoce.transports import codings  # noqa: PLC0415 - most libraries undo them

    return codings.decompress(coding)


class _Buffered:
    """Stands in for the call of a stream that was read before anyone saw it: facts, no times."""

    def __init__(self, call: Call) -> None:
        self.facts = call.facts
        self.stream = False
        # What the reader writes for each event; thrown away, because all came at once.
        self.chunks = self.last_chunk_ns = self.shortest = 0
        self.longest = float("inf")

    def chunk(self) -> None:
        """Count nothing: the gaps between events that came at once say nothing."""

    def end(self) -> None:
        """Who opened the call ends it."""

    def fail(self, error: str) -> None:
        """Same: the reader tells the error."""


def _kind(call: Call, route: Route, content_type: str | None) -> str:
    if route.protocol.opaque and not call.stream:
        return content_type or ""
    if content_type and content_type.partition(";")[0].strip().lower() not in _UNTOLD:
        return content_type
    return route.protocol.streams_as if call.stream else "application/json"


def _malformed(reason: str) -> None:
    if reason == "reader":
        # What is being handled was raised while it read.
        guard.let_through()
    guard.undecodable[reason] += 1

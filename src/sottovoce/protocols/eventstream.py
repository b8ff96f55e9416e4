"""Amazon's binary event streams: frames in any pieces → each event as the bytes of a JSON object.

Wire: https://smithy.io/2.0/aws/amazon-eventstream.html. A frame is a length, the length of its
headers and a checksum of both; the headers; the payload; a checksum of all. The first checksum is
checked, because with a wrong length nothing that follows makes sense. The second is left to the
app's SDK: it would be paid for on every chunk, to find out what the SDK will say anyway.

botocore's own parser is not used: it is not there when other HTTP libraries read such a stream,
and it holds on to up to 24 MiB of a frame.
"""

from __future__ import annotations

import binascii
import re
from struct import unpack_from
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT_TYPE: Final = "application/vnd.amazon.eventstream"

_PRELUDE: Final = 12
_AROUND: Final = 16  # bytes of a frame besides headers and payload
_SIZES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a header's value by its type; 6 and 7, bytes and strings, say their length."""
_SIZED: Final = frozenset({6, 7})
_UNKNOWN: Final = b"{}"
_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9_.\-]{0,63}").fullmatch
# A model's answer in its own format, as Base64. No quote stands unescaped inside a JSON string.
_WRAPPED = re.compile(rb'"bytes"\s*:\s*"([A-Za-z0-9+/=]*)"').search


class Desynchronised(ValueError):
    """The bytes are no event stream, or no longer."""


class Frames:
    """Splits one event stream. Holds at most `limit` bytes and a chunk.

    Args:
        limit: bytes up to which a frame is looked at; a larger one counts as an event that
            says nothing.
    """

    __slots__ = ("_held", "_limit", "_skip", "oversized")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()
        self._skip = 0
        self.oversized = False

    @property
    def whole(self) -> bool:
        """Whether the stream may end here: no frame has begun."""
        return not self._held and not self._skip

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Give the events that `chunk` completes, each as ``{"TYPE": PAYLOAD}``.

        An exception is ``{"error": {"code": "TYPE"}}`` without its message. The chunks of a
        model's own format (``InvokeModelWithResponseStream``) are given as they are.

        Raises:
            Desynchronised: when the bytes are no event stream.
        """
        if self._skip:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            chunk = chunk[skipped:]
        held = self._held
        held += chunk
        while len(held) >= _PRELUDE:
            total, of_headers, checksum = unpack_from(">III", held)
            if binascii.crc32(held[:8]) != checksum or of_headers + _AROUND > total:
                raise Desynchronised
            if total > self._limit:
                self.oversized = True
                self._skip = max(0, total - len(held))
                del held[:total]
                yield _UNKNOWN
            elif len(held) < total:
                return
            else:
                frame = bytes(held[:total])
                del held[:total]
                yield _event(frame, _PRELUDE + of_headers)


def _event(frame: bytes, payload_at: int) -> bytes:
    """Give the event in `frame` as the bytes of a JSON object."""
    headers = _headers(frame[_PRELUDE:payload_at])
    payload = frame[payload_at:-4]
    failed = headers.get(b":exception-type") or headers.get(b":error-code")
    if failed is not None:
        # Errors of HTTP and of streams differ in their first letter only.
        code = failed[:1].upper() + failed[1:] if _NAME(failed) else b""
        return b'{"error": {"code": "%s"}}' % code
    kind = headers.get(b":event-type", b"")
    if kind == b"chunk":
        wrapped = _WRAPPED(payload)
        if wrapped is not None:
            return _decoded(wrapped[1])
    return b'{"%s":%s}' % (kind, payload or b"{}") if _NAME(kind) else _UNKNOWN


def _decoded(wrapped: bytes) -> bytes:
    try:
        return binascii.a2b_base64(wrapped)
    except binascii.Error:
        return _UNKNOWN


def _headers(data: bytes) -> dict[bytes, bytes]:
    """Read the headers whose values are strings; what cannot be read ends them."""
    found: dict[bytes, bytes] = {}
    at = 0
    try:
        while at < len(data):
            name = data[at + 1 : at + 1 + data[at]]
            at += 1 + data[at]
            kind = data[at]
            at += 1
            size = _SIZES.get(kind)
            if size is None:
                if kind not in _SIZED:
                    break
                size = data[at] << 8 | data[at + 1]
                at += 2
                if at + size <= len(data):
                    found[name] = data[at : at + size]
            at += size
    except IndexError:
        pass
    return found

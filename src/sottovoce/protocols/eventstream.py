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
from functools import lru_cache
from struct import Struct
from typing import Final

_PRELUDE: Final = 12
_AROUND: Final = 16  # bytes of a frame besides headers and payload
_SIZES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Bytes of a header's value by its type; 6 and 7, bytes and strings, say their length."""
_SIZED: Final = frozenset({6, 7})
_MOST_HEADERS: Final = 4096
"""Bytes of headers up to which they are read; those of an event are a tenth of a kilobyte."""
_MOST_REMEMBERED: Final = 256
"""Bytes of headers up to which what they say is remembered: it is nearly always the same."""
_UNKNOWN: Final = b"{}"
_CHUNK: Final = b"chunk"
_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9_.\-]{0,63}").fullmatch
# A model's answer in its own format, as Base64. No quote stands unescaped inside a JSON string.
_WRAPPED = re.compile(rb'"bytes"\s*:\s*"([A-Za-z0-9+/=]*)"').search
_read_prelude = Struct(">III").unpack_from


class Frames:
    """Splits one event stream. Holds at most `limit` bytes and a chunk.

    Args:
        limit: bytes up to which a frame is looked at; a larger one counts as an event that
            says nothing.

    Attributes:
        counted: its pieces begin with their length.
        broken: the bytes are no event stream, or no longer; none is looked at any more.
        oversized: a frame was larger than `limit`.
    """

    __slots__ = ("_held", "_limit", "_need", "_skip", "broken", "oversized")

    counted: Final = True

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()
        self._need = _PRELUDE  # bytes that are held before they are looked at again
        self._skip = 0
        self.broken = False
        self.oversized = False

    @property
    def whole(self) -> bool:
        """Whether the stream may end here: no frame has begun."""
        return not self._held and not self._skip

    def feed(self, chunk: bytes) -> list[bytes]:
        """Give the events that `chunk` completes, each as ``{"TYPE": PAYLOAD}``.

        An exception is ``{"error": {"code": "TYPE"}}`` without its message. The chunks of a
        model's own format (``InvokeModelWithResponseStream``) are given as they are.
        """
        if self.broken:
            return []
        if self._skip:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            chunk = chunk[skipped:]
        if self._held:
            self._held += chunk
            if len(self._held) < self._need:
                return []
            chunk = bytes(self._held)
            self._held = bytearray()
        found: list[bytes] = []
        at, size = 0, len(chunk)
        self._need = _PRELUDE
        while size - at >= _PRELUDE:
            total, of_headers, checksum = _read_prelude(chunk, at)
            if binascii.crc32(chunk[at : at + 8]) != checksum or of_headers + _AROUND > total:
                self.broken = True
                return found
            end = at + total
            if total > self._limit:
                self.oversized = True
                self._skip = max(0, end - size)
                found.append(_UNKNOWN)
            elif end > size:
                self._need = total
                break
            else:
                payload_at = at + _PRELUDE + of_headers
                found.append(_event(chunk[at + _PRELUDE : payload_at], chunk[payload_at : end - 4]))
            at = end
        if at < size:
            self._held += chunk[at:]
        return found


def _event(headers: bytes, payload: bytes) -> bytes:
    """Give one event as the bytes of a JSON object."""
    if len(headers) > _MOST_HEADERS:
        return _UNKNOWN
    read = _kind if len(headers) <= _MOST_REMEMBERED else _kind.__wrapped__
    kind, code = read(headers)
    if code is not None:
        return b'{"error": {"code": "%s"}}' % code
    if kind is None:
        return _UNKNOWN
    if kind == _CHUNK:
        wrapped = _WRAPPED(payload)
        if wrapped is not None:
            return _decoded(wrapped[1])
    return b'{"%s":%s}' % (kind, payload or b"{}")


def _decoded(wrapped: bytes) -> bytes:
    try:
        return binascii.a2b_base64(wrapped)
    except binascii.Error:
        return _UNKNOWN


@lru_cache(maxsize=64)
def _kind(data: bytes) -> tuple[bytes | None, bytes | None]:
    """Read an event's type off its headers, and the code of an error or exception."""
    headers = _headers(data)
    failed = headers.get(b":exception-type") or headers.get(b":error-code")
    if failed is not None:
        # Errors of HTTP and of streams differ in their first letter only.
        return None, (failed[:1].upper() + failed[1:] if _NAME(failed) else b"")
    kind = headers.get(b":event-type", b"")
    return (kind if _NAME(kind) else None), None


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

"""Does a text occur in bytes that left? As itself, or in the forms that wires give it.

Telemetry is protobuf or JSON, whose strings are found as they are; what made the attribute
may have encoded them first. So the text is looked for as UTF-8, UTF-16, JSON-escaped,
percent-encoded, HTML-escaped, hexadecimal and base64 (at every alignment), ignoring case
where the form allows that.
"""

from __future__ import annotations

import html
import json
from base64 import b64encode, urlsafe_b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus, unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sottovoce.cli.kept import Request

_MIN_BASE64: Final = 6  # fewer characters than this are found anywhere by chance


@dataclass(frozen=True)
class Hit:
    """Where a text was found.

    Attributes:
        request: the request's id.
        signal: ``traces``, ``metrics`` or ``logs``.
        place: ``body`` or ``head`` (request line and headers).
        form: the form it was found in.
        offset: byte offset in that place, after decompression.
    """

    request: int
    signal: str
    place: str
    form: str
    offset: int


@dataclass(frozen=True)
class Report:
    """What a search saw: `plain` bytes after decompression, in `requests` requests."""

    hits: list[Hit]
    requests: int
    plain: int


class Needle:
    """A text in all its forms.

    Args:
        text: what to look for; at least one character.

    Raises:
        ValueError: the text is empty.
    """

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("there is no text to look for")
        raw = text.encode(errors="surrogatepass")
        self._folded = _distinct(
            {
                "UTF-8": raw,
                "UTF-16": text.encode("utf-16-le", "surrogatepass"),
                "UTF-16 BE": text.encode("utf-16-be", "surrogatepass"),
                "JSON": json.dumps(text)[1:-1].encode(),
                "JSON without ASCII escapes": json.dumps(text, ensure_ascii=False)[1:-1].encode(
                    errors="surrogatepass"
                ),
                "JSON in JSON": json.dumps(json.dumps(text)[1:-1])[1:-1].encode(),
                "percent-encoded": quote(raw, safe="").encode(),
                "percent-encoded path": quote(raw, safe="/").encode(),
                "percent-encoded URL": quote(raw, safe="/:").encode(),
                "form-encoded": quote_plus(raw).encode(),
                "HTML": html.escape(text).encode(errors="surrogatepass"),
                "hexadecimal": raw.hex().encode(),
            },
            fold=True,
        )
        self._exact = _distinct(
            {
                f"{name} at {shift}": _base64_core(raw, shift, url=name.endswith("url"))
                for name in ("base64", "base64url")
                for shift in (0, 1, 2)
            },
            fold=False,
        )

    def find(self, data: bytes) -> tuple[str, int] | None:
        """The first form of the text in `data` and its offset, or None."""
        lowered = data.lower()
        for form, needle in self._folded.items():
            offset = lowered.find(needle)
            if offset >= 0:
                return form, offset
        for form, needle in self._exact.items():
            offset = data.find(needle)
            if offset >= 0:
                return form, offset
        if b"%" in data:
            # Encoders differ in what they leave alone, so the rest is found by decoding.
            plain = unquote_to_bytes(data).lower()
            for needle in (self._folded["UTF-8"], self._folded["UTF-8"].replace(b" ", b"+")):
                offset = plain.find(needle)
                if offset >= 0:
                    return "percent-encoded", offset
        return None


def search(requests: Iterable[Request], text: str) -> Report:
    """Look for `text` in everything that was received.

    Raises:
        ValueError: the text is empty.
    """
    needle = Needle(text)
    hits: list[Hit] = []
    count = plain = 0
    for request in requests:
        count += 1
        for place, data in (("body", request.text()), ("head", request.head.encode())):
            plain += len(data)
            found = needle.find(data)
            if found is not None:
                hits.append(Hit(request.id, request.signal, place, *found))
    return Report(hits, count, plain)


def _base64_core(raw: bytes, shift: int, *, url: bool) -> bytes:
    """The characters that encode `raw` wherever it lies `shift` bytes into a group of three."""
    encode = urlsafe_b64encode if url else b64encode
    encoded = encode(bytes(shift) + raw)
    start = (0, 2, 3)[shift]
    # Characters that share bits with a neighbouring byte say nothing.
    end = (shift + len(raw)) * 8 // 6
    core = encoded[start:end]
    return core if len(core) >= _MIN_BASE64 else b""


def _distinct(forms: dict[str, bytes], *, fold: bool) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for form, needle in forms.items():
        shown = needle.lower() if fold else needle
        if shown and shown not in found.values():
            found[form] = shown
    return found

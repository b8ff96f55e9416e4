"""Whole JSON bodies, of requests and answers → the object that is read for facts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal

from sottovoce.guard import let_through

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.call import Facts
    from sottovoce.protocols.protocol import Protocol

Reason = Literal["json", "utf8", "size", "sse", "type", "reader"]
"""What `on_malformed` is told: not JSON, not UTF-8, too large to learn from, a stream that
breaks off, a value of a wrong type, a fault of the reader itself."""

MAX_PARSED_REQUEST: Final = 64 * 1024
"""Bytes of a request's body up to which it is parsed."""

_decoder = json.JSONDecoder()
_scan: Any = vars(_decoder)["scan_once"]


def _parse(text: str) -> Any:
    """Do what `json.loads` does; most bodies have nothing around their value."""
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        return _decoder.decode(text)
    return value if end == len(text) else _decoder.decode(text)


def request_facts(
    protocol: Protocol, body: bytes, on_malformed: Callable[[str], None] | None = None
) -> Facts:
    """Read the facts of a request's body: parsed when small, else its shape alone.

    Never raises: bytes that are not a JSON object give no facts. Of a large body that takes long
    to walk over a fact may be left out; none is another than the whole body's.
    """
    try:
        if len(body) > MAX_PARSED_REQUEST:
            from sottovoce.protocols.outline import outline  # noqa: PLC0415 - heavy, and seldom

            known, complete, lacks = outline(body)
            if complete:
                return protocol.request(known)
            if on_malformed is not None:
                on_malformed("size")
            return protocol.certain(known, lacks)
        found = _parse(body.decode("utf-8", "replace").lstrip("\ufeff"))
        return protocol.request(found) if isinstance(found, dict) else {}
    except Exception:  # noqa: BLE001 - the app may send what it likes
        let_through()
        if on_malformed is not None:
            on_malformed("json")
        return {}


def parsed(
    protocol: Protocol, data: bytes, on_malformed: Callable[[str], None] | None
) -> dict[str, Any] | None:
    """Parse a JSON object; `on_malformed` is told why there is none."""
    reason: Reason
    try:
        text = data.decode()
    except UnicodeDecodeError:
        if on_malformed is not None:
            on_malformed("utf8")
        text = data.decode("utf-8", "replace")
    try:
        body = _parse(text.removeprefix("\ufeff"))
        reason = "type"
    except (ValueError, RecursionError):
        body = None
        reason = "json"
    if isinstance(body, dict):
        return body
    if protocol.batch and isinstance(body, list):
        return body[0] if body and isinstance(body[0], dict) else {}
    if on_malformed is not None:
        on_malformed(reason)
    return None

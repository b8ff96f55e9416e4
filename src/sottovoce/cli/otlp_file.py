"""Files of OTLP → export requests: what the Collector's file exporter writes, or raw protobuf.

JSON may be one document or many after one another (JSON lines). In protobuf, the three export
requests have no marker that tells them apart; the one is taken that the bytes fit without a
remainder, or the one that the caller names.

Source: the OTLP specification 1.x, and what the Collector's file exporter 0.161 wrote.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.unknown_fields import UnknownFieldSet

from sottovoce.cli import otlp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GZIP: Final = b"\x1f\x8b"
_SPACE: Final = " \t\r\n"
_KEYS: Final = {
    "resourceSpans": "traces",
    "resource_spans": "traces",
    "resourceMetrics": "metrics",
    "resource_metrics": "metrics",
    "resourceLogs": "logs",
    "resource_logs": "logs",
}


def read(content: bytes, signal: str | None = None) -> list[tuple[str, Any]]:
    """The export requests in the content of a file, each with its signal.

    Args:
        content: of the file; gzip is undone.
        signal: what a protobuf file holds: ``traces``, ``metrics`` or ``logs``.

    Raises:
        otlp.Malformed: it is none; the message says where and why, without a word of it.
    """
    if content.startswith(_GZIP):
        try:
            content = otlp.decompress(content, "gzip")
        except otlp.TooLarge:
            raise otlp.Malformed("unpacked, the file is too large") from None
    if not content.strip():
        raise otlp.Malformed("the file is empty")
    if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in {b"{", b"["}:
        # A protobuf request begins with a newline (field 1), and then a length: `{` may be one.
        try:
            return list(_documents(content))
        except otlp.Malformed:
            if not content.startswith(b"\n"):
                raise
    return [_protobuf(content, signal)]


def _documents(content: bytes) -> Iterator[tuple[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise otlp.Malformed("the file is not UTF-8") from None
    decoder, place = json.JSONDecoder(), 0
    while True:
        while place < len(text) and text[place] in _SPACE:
            place += 1
        if place == len(text):
            return
        where = f"line {text.count(chr(10), 0, place) + 1}"
        try:
            document, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            raise otlp.Malformed(f"{where}: is not JSON") from None
        yield from _requests(document, where)


def _requests(document: Any, where: str) -> Iterator[tuple[str, Any]]:
    keys = [key for key in document if key in _KEYS] if isinstance(document, dict) else []
    if not keys:
        raise otlp.Malformed(
            f"{where}: is no OTLP request: it has no resourceSpans, resourceMetrics, resourceLogs"
        )
    for key in keys:
        yield _KEYS[key], _request(key, document[key], where)


def _request(key: str, groups: Any, where: str) -> Any:
    try:
        body = json.dumps({key: groups}).encode()
        return otlp.parse(_KEYS[key], body, as_json=True)
    except (otlp.Malformed, ValueError, RecursionError):
        raise otlp.Malformed(f"{where}: {key} is not OTLP in JSON") from None


def _protobuf(content: bytes, signal: str | None) -> tuple[str, Any]:
    if signal is not None:
        return signal, otlp.parse(signal, content, as_json=False)
    for name, fits in _FITS.items():
        try:
            message = otlp.parse(name, content, as_json=False)
        except otlp.Malformed:
            continue
        if not _remainder(message) and fits(message):
            return name, message
    raise otlp.Malformed(
        "the file is neither JSON nor an export request in protobuf; "
        "if it is one of a newer version, say of which signal"
    )


def _remainder(message: Any) -> bool:
    """Whether bytes were left over that no field of the message has."""
    if len(UnknownFieldSet(message)):
        return True
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        repeated = hasattr(value, "__len__") and not hasattr(value, "ListFields")
        if any(map(_remainder, value if repeated else [value])):
            return True
    return False


def _spans(message: Any) -> bool:
    return all(
        len(span.trace_id) == 16 and len(span.span_id) == 8  # noqa: PLR2004 - lengths of the ids
        for group in message.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    )


_FITS: Final[dict[str, Callable[[Any], bool]]] = {
    "traces": _spans,
    "metrics": lambda message: all(
        metric.name
        for group in message.resource_metrics
        for scope in group.scope_metrics
        for metric in scope.metrics
    ),
    "logs": lambda _message: True,
}

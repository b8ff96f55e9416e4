"""OTLP/HTTP bodies → rows: what a request says, whoever sent it, flattened for the store.

Nothing here trusts its input. What cannot be understood raises `Malformed`; numbers that
SQLite cannot hold are clamped and long strings are clipped, because the body itself is kept
beside the rows.

Source: the OTLP specification 1.x (``opentelemetry.io/docs/specs/otlp``): in JSON, trace and
span ids are hexadecimal where protobuf's own mapping has base64.
"""

from __future__ import annotations

import json
import math
import zlib
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_service
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_PLAIN: Final = 16 * 1024 * 1024
"""Bytes that a body may have, as sent and after decompression."""

MAX_RECORDS: Final = 20_000
"""Spans, points or log records that one request may bring; the rest is reported as rejected."""

_MAX_TEXT: Final = 1024
_MAX_INT: Final = 2**63 - 1
_BINARY_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})
_EXPONENTIAL_SCALES: Final = range(-10, 21)  # the range that the data model allows


class Malformed(ValueError):
    """A body that is no OTLP; the message says why, without a word of the body."""


class TooLarge(ValueError):
    """A body over `MAX_PLAIN` after decompression."""


@dataclass(frozen=True)
class Rows:
    """What one request brought: column values in the order of `store.SCHEMA`."""

    spans: list[tuple[Any, ...]] = field(default_factory=list)
    points: list[tuple[Any, ...]] = field(default_factory=list)
    logs: list[tuple[Any, ...]] = field(default_factory=list)
    service: str = ""
    rejected: int = 0

    @property
    def count(self) -> int:
        """Records that were understood."""
        return len(self.spans) + len(self.points) + len(self.logs)


def decompress(body: bytes, encoding: str) -> bytes:
    """Undo a content encoding: ``gzip``, ``deflate``, or none.

    Raises:
        Malformed: the bytes are not what the encoding promises, or end too early.
        TooLarge: there would be more than `MAX_PLAIN` bytes.
        LookupError: an encoding that OTLP does not know.
    """
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "deflate"}:
        raise LookupError(encoding)
    plain = bytearray()
    rest = body
    while rest:
        # 32: take the gzip or the zlib header that is there.
        inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            plain += inflate.decompress(rest, MAX_PLAIN + 1 - len(plain))
        except zlib.error as error:
            raise Malformed(f"the body is not {encoding}") from error
        if len(plain) > MAX_PLAIN:
            raise TooLarge
        if not inflate.eof:
            raise Malformed(f"the {encoding} body ends too early")
        rest = inflate.unused_data
    return bytes(plain)


def parse(signal: str, body: bytes, *, as_json: bool) -> Any:
    """Read a body as the export request of `signal`.

    Raises:
        Malformed: it is none.
    """
    message = _REQUESTS[signal]()
    try:
        if as_json:
            json_format.ParseDict(_document(body), message, ignore_unknown_fields=True)
        else:
            message.ParseFromString(body)
    except (
        DecodeError, json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        kind = "JSON" if as_json else "protobuf"
        raise Malformed(f"the body is not an OTLP {signal} request in {kind}") from error
    return message


def response(signal: str, rejected: int, *, as_json: bool) -> bytes:
    """The body of an answer that took everything but `rejected` records."""
    message = _RESPONSES[signal]()
    if rejected:
        partial = message.partial_success
        setattr(partial, _REJECTED[signal], rejected)
        partial.error_message = f"at most {MAX_RECORDS} records are taken of one request"
    if as_json:
        return str(json_format.MessageToJson(message, indent=None)).encode()
    return bytes(message.SerializeToString())


def rows(signal: str, message: Any) -> Rows:
    """Flatten an export request."""
    found: list[tuple[Any, ...]] = []
    rejected = 0
    service = ""
    for resource, scope, record in _records(signal, message):
        if len(found) >= MAX_RECORDS:
            rejected += 1
            continue
        if not found:
            service = str(resource.get("service.name", ""))
        found.append(_FLATTEN[signal](_dump(resource), scope, record))
    return Rows(
        spans=found if signal == "traces" else [],
        points=found if signal == "metrics" else [],
        logs=found if signal == "logs" else [],
        service=service,
        rejected=rejected,
    )


def _records(signal: str, message: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    by_resource, by_scope, leaf = _PATHS[signal]
    for group in getattr(message, by_resource):
        resource = _mapping(group.resource.attributes)
        for scoped in getattr(group, by_scope):
            scope = _clip(scoped.scope.name)
            for record in getattr(scoped, leaf):
                if signal == "metrics":
                    for point in _points(record):
                        yield resource, scope, (record, *point)
                else:
                    yield resource, scope, record


def _points(metric: Any) -> Iterator[tuple[str, Any, Any]]:
    kind = metric.WhichOneof("data")
    if kind is not None:
        data = getattr(metric, kind)
        for point in data.data_points:
            yield kind, data, point


def _span(resource: str, scope: str, span: Any) -> tuple[Any, ...]:
    events = [
        {"name": _clip(event.name), "attributes": _mapping(event.attributes)}
        for event in span.events
    ]
    return (
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _clip(span.name),
        span.kind,
        _int(span.start_time_unix_nano),
        _int(span.end_time_unix_nano),
        span.status.code,
        _clip(span.status.message),
        scope,
        _dump(_mapping(span.attributes)),
        resource,
        _dump(events),
    )


def _log(resource: str, scope: str, record: Any) -> tuple[Any, ...]:
    return (
        _int(record.time_unix_nano or record.observed_time_unix_nano),
        _clip(record.severity_text) or str(record.severity_number),
        _clip(record.event_name),
        _clip(_dump(_value(record.body))) if record.HasField("body") else "",
        record.trace_id.hex(),
        record.span_id.hex(),
        scope,
        _dump(_mapping(record.attributes)),
        resource,
    )


def _point(resource: str, scope: str, found: tuple[Any, str, Any, Any]) -> tuple[Any, ...]:
    metric, kind, data, point = found
    count, total, low, high = 0, 0.0, None, None
    bounds: Sequence[float] = ()
    buckets: Sequence[int] = ()
    if kind in {"sum", "gauge"}:
        total = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
    else:
        count, total = point.count, point.sum
    if kind in {"histogram", "exponential_histogram"}:
        low = _float(point.min) if point.HasField("min") else None
        high = _float(point.max) if point.HasField("max") else None
        exponential = kind == "exponential_histogram"
        bounds, buckets = _exponential(point) if exponential else _explicit(point)
    return (
        _clip(metric.name),
        kind,
        _clip(metric.unit),
        int(getattr(data, "aggregation_temporality", 0)),
        int(getattr(data, "is_monotonic", False)),
        _int(point.start_time_unix_nano),
        _int(point.time_unix_nano),
        _int(count),
        _float(total),
        low,
        high,
        _dump([_float(bound) for bound in bounds]),
        _dump([_int(bucket) for bucket in buckets]),
        scope,
        _dump(_mapping(point.attributes)),
        resource,
    )


def _explicit(point: Any) -> tuple[Sequence[float], Sequence[int]]:
    bounds, buckets = list(point.explicit_bounds), list(point.bucket_counts)
    return (bounds, buckets) if len(buckets) == len(bounds) + 1 else ((), ())


def _exponential(point: Any) -> tuple[Sequence[float], Sequence[int]]:
    """The positive range as explicit buckets; what is zero or below comes first."""
    counts = list(point.positive.bucket_counts)
    if point.scale not in _EXPONENTIAL_SCALES or not counts:
        return (), ()
    try:
        base = 2.0 ** (2.0**-point.scale)
        edges = [base ** (point.positive.offset + step) for step in range(len(counts) + 1)]
    except OverflowError:
        return (), ()
    below = point.zero_count + sum(point.negative.bucket_counts)
    return edges, [below, *counts, 0]


def _mapping(attributes: Any) -> dict[str, Any]:
    return {_clip(item.key): _value(item.value) for item in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _mapping(value.kvlist_value.values)
    plain = getattr(value, kind)
    if isinstance(plain, bytes):
        return _clip(b64encode(plain[:_MAX_TEXT]).decode())
    return _clip(plain) if isinstance(plain, str) else plain


def _dump(value: Any) -> str:
    # Sorted, so that equal attribute sets are equal texts.
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _clip(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _int(number: int) -> int:
    return min(number, _MAX_INT)


def _float(number: float) -> float:
    return float(number) if math.isfinite(number) else 0.0


def _document(body: bytes) -> Any:
    """The JSON object in `body`, its hexadecimal ids as protobuf's JSON mapping wants them."""
    document = json.loads(body)
    if not isinstance(document, dict):
        raise TypeError("no object")
    todo: list[Any] = [document]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo.extend(node)
        elif isinstance(node, dict):
            for key, value in node.items():
                if key in _BINARY_IDS:
                    node[key] = b64encode(bytes.fromhex(value)).decode()
                elif isinstance(value, (dict, list)):
                    todo.append(value)
    return document


_REQUESTS: Final[dict[str, Callable[[], Any]]] = {
    "traces": trace_service.ExportTraceServiceRequest,
    "metrics": metrics_service.ExportMetricsServiceRequest,
    "logs": logs_service.ExportLogsServiceRequest,
}
_RESPONSES: Final[dict[str, Callable[[], Any]]] = {
    "traces": trace_service.ExportTraceServiceResponse,
    "metrics": metrics_service.ExportMetricsServiceResponse,
    "logs": logs_service.ExportLogsServiceResponse,
}
_REJECTED: Final = {
    "traces": "rejected_spans",
    "metrics": "rejected_data_points",
    "logs": "rejected_log_records",
}
_PATHS: Final = {
    "traces": ("resource_spans", "scope_spans", "spans"),
    "metrics": ("resource_metrics", "scope_metrics", "metrics"),
    "logs": ("resource_logs", "scope_logs", "log_records"),
}
_FLATTEN: Final[dict[str, Callable[[str, str, Any], tuple[Any, ...]]]] = {
    "traces": _span,
    "metrics": _point,
    "logs": _log,
}

SIGNALS: Final = tuple(_REQUESTS)

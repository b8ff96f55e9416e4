"""What the receiver keeps, as its store hands it out: requests, spans, metric points, log records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sottovoce.cli.otlp import decompress


@dataclass(frozen=True)
class Request:
    """One request as it came.

    Attributes:
        id: grows with every request.
        at_ns: when it came, Unix time in nanoseconds.
        signal: ``traces``, ``metrics`` or ``logs``.
        head: request line and headers, secrets masked.
        encoding: content encoding of `body`.
        body: the bytes received; empty when they were refused for their size.
        size: length of the body in bytes as received (as announced, when refused).
        plain: length after decompression, 0 when that failed.
        status: HTTP status of the answer.
        service: `service.name` of the first resource in it.
        records: spans, points or log records understood.
    """

    id: int
    at_ns: int
    signal: str
    head: str
    encoding: str
    body: bytes
    size: int
    plain: int
    status: int
    service: str
    records: int

    def text(self) -> bytes:
        """The body without its compression; the body itself where that cannot be undone."""
        try:
            return decompress(self.body, self.encoding)
        except (ValueError, LookupError):
            return self.body


@dataclass(frozen=True)
class Span:
    """One span; times in nanoseconds of Unix time, kind and status as OTLP numbers them."""

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    start_ns: int
    end_ns: int
    status: int
    message: str
    scope: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[dict[str, Any]]


@dataclass(frozen=True)
class Point:
    """One metric point; `total` is the sum of a histogram or the value of anything else."""

    name: str
    kind: str
    unit: str
    temporality: int
    monotonic: int
    start_ns: int
    at_ns: int
    count: int
    total: float
    low: float | None
    high: float | None
    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    scope: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass(frozen=True)
class Log:
    """One log record."""

    at_ns: int
    severity: str
    event: str
    body: str
    trace: str
    span: str
    scope: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Totals:
    """What the store holds; `unseen` were refused for their size, `purged` made room."""

    requests: int
    size: int
    plain: int
    unseen: int
    purged: int
    spans: int
    points: int
    logs: int
    last_id: int

"""What the gate would do to telemetry that was made elsewhere, item by item.

Each record of an export request becomes the SDK's own object and passes the real gate; what
comes out is compared with what went in. The rule that dropped or replaced an attribute is
found by asking the policy about that attribute alone and looking at what it counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import ReadWriteLogRecord
from opentelemetry.sdk.metrics._internal.point import Buckets
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from sottovoce.privacy.logs import LogGate
from sottovoce.privacy.metrics import MetricGate
from sottovoce.privacy.origin import Origins
from sottovoce.privacy.policy import Policy
from sottovoce.privacy.spans import SpanCleaner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sottovoce.settings import Settings

KEPT: Final = "kept"
CHANGED: Final = "changed"
DROPPED: Final = "dropped"
ADDED: Final = "added"

_KINDS: Final = dict(enumerate(SpanKind, 1))
_DIALECT: Final = "dialect"
"""Not the policy's word: the key says what another, declared one says, and leaves as that."""


@dataclass(frozen=True)
class Finding:
    """What becomes of one item of a record."""

    place: str
    """Where it is: ``attribute``, ``event``, ``point 2``, …; empty for what is no attribute."""
    name: str
    verdict: str
    rule: str = ""
    given: Any = None
    becomes: Any = None


@dataclass(frozen=True)
class Record:
    """One span, metric, log record, resource or scope."""

    title: str
    findings: tuple[Finding, ...]


class Judge:
    """Passes export requests through the gate of `settings`, whose profile is not off."""

    def __init__(self, settings: Settings) -> None:
        self._policy = Policy(settings)
        # Asked about single items, so that what it counts is about them alone.
        self._probe = Policy(settings)
        self._spans = SpanCleaner(self._policy)
        self._logs = LogGate(self._policy)
        self._metrics = MetricGate(self._policy, lambda *_: None)
        self._asked = MetricGate(self._probe, lambda *_: None)
        self._origins = Origins(self._policy, "span")

    def judge(self, signal: str, message: Any) -> Iterator[Record]:
        """The verdicts on every record of an export request, origins first."""
        groups, scopes, records, judge = {
            "traces": ("resource_spans", "scope_spans", "spans", self._span),
            "metrics": ("resource_metrics", "scope_metrics", "metrics", self._metric),
            "logs": ("resource_logs", "scope_logs", "log_records", self._log),
        }[signal]
        for group in getattr(message, groups):
            given = _mapping(group.resource.attributes)
            yield Record("resource", tuple(self._attributes("attribute", given, "resource")))
            for scoped in getattr(group, scopes):
                scope = InstrumentationScope(scoped.scope.name, scoped.scope.version or None)
                yield Record("scope", tuple(self._scope(scope, _mapping(scoped.scope.attributes))))
                for record in getattr(scoped, records):
                    yield judge(record, scope)

    def _rule(self, signal: str, ask: Callable[[], Any]) -> str:
        """The rule under which the policy counts something of `signal` when asked so."""
        before = self._probe.dropped
        after = ask()
        for (counted, rule), times in self._probe.dropped.items():
            if counted == signal and times > before[counted, rule]:
                return rule
        return _DIALECT if after and isinstance(after, dict) else "unknown"

    def _attributes(
        self,
        place: str,
        given: Mapping[str, Any],
        signal: str,
        after: Mapping[str, Any] | None = None,
    ) -> Iterator[Finding]:
        if after is None:
            after = self._policy.attributes(given, signal)
        for key, value in given.items():
            becomes = after.get(key)
            if key in after and becomes == value and type(becomes) is type(value):
                yield Finding(place, key, KEPT, becomes=becomes)
                continue
            rule = self._rule(signal, partial(self._probe.attributes, {key: value}, signal))
            if key in after:
                yield Finding(place, key, CHANGED, rule, value, becomes)
            else:
                yield Finding(place, key, DROPPED, rule, value)
        for key, becomes in after.items():
            if key not in given:
                yield Finding(place, key, ADDED, becomes=becomes)

    def _scope(self, scope: InstrumentationScope, given: Mapping[str, Any]) -> Iterator[Finding]:
        after = self._origins.scope(scope)
        if scope.name:
            yield _compared("name", scope.name, after.name, "unknown")
        if scope.version:
            yield _compared("version", scope.version, after.version, "unknown")
        for key, value in given.items():
            yield Finding("attribute", key, DROPPED, "drop", value)

    def _span(self, span: Any, scope: InstrumentationScope) -> Record:
        title = f"span {span.span_id.hex()[:16]}"
        state = TraceState.from_header([span.trace_state]) if span.trace_state else None
        events = [Event(e.name, _mapping(e.attributes), e.time_unix_nano) for e in span.events]
        links = [Link(_context(link), _mapping(link.attributes)) for link in span.links]
        given = _mapping(span.attributes)
        after = self._spans.clean(
            ReadableSpan(
                name=span.name,
                context=_context(span, state),
                resource=Resource.get_empty(),
                attributes=given,
                events=events,
                links=links,
                kind=_KINDS.get(span.kind, SpanKind.INTERNAL),
                status=Status(StatusCode.ERROR, span.status.message)
                if span.status.message
                else Status(),
                start_time=span.start_time_unix_nano,
                end_time=span.end_time_unix_nano,
                instrumentation_scope=scope,
            )
        )
        if after is None:
            return Record(title, (Finding("", "span", DROPPED, "off"),))
        found = [_compared("name", span.name, after.name, "name")]
        if span.status.message:
            becomes = after.status.description
            found.append(
                _compared("status description", span.status.message, becomes, "status_description")
            )
        if span.trace_state:
            becomes = after.context.trace_state.to_header() or None if after.context else None
            found.append(_compared("trace state", span.trace_state, becomes, "trace_state"))
        found += self._attributes("attribute", given, "span", dict(after.attributes or {}))
        found += self._events(events, list(after.events))
        for link, kept in zip(links, after.links, strict=False):
            left = dict(kept.attributes or {})
            found += self._attributes("link", dict(link.attributes or {}), "link", left)
        return Record(title, tuple(found))

    def _events(self, given: list[Event], after: list[Event]) -> Iterator[Finding]:
        for event in given:
            if after and after[0].name == event.name:
                yield Finding("", "event", KEPT, becomes=event.name)
                left = dict(after.pop(0).attributes or {})
                yield from self._attributes("event", dict(event.attributes or {}), "event", left)
            else:
                yield Finding("", "event", DROPPED, "unknown", event.name)

    def _log(self, record: Any, scope: InstrumentationScope) -> Record:
        title = f"log record {record.time_unix_nano or record.observed_time_unix_nano}"
        body = _value(record.body) if record.HasField("body") else None
        given = ReadWriteLogRecord(
            LogRecord(
                timestamp=record.time_unix_nano,
                context=Context(),
                severity_text=record.severity_text or None,
                severity_number=SeverityNumber(record.severity_number)
                if record.severity_number in set(SeverityNumber)
                else None,
                body=body,
                event_name=record.event_name or None,
            ),
            Resource.get_empty(),
            scope,
        )
        # Set afterwards: the SDK's limits on their number are not what is asked for here.
        attributes = given.log_record.attributes = _mapping(record.attributes)
        after = self._logs.clean(given).log_record
        found = [
            _compared(name, before, becomes, rule)
            for name, before, becomes, rule in (
                ("body", body, after.body, "body"),
                ("event name", record.event_name or None, after.event_name, "name"),
                ("severity text", record.severity_text or None, after.severity_text, "enum"),
            )
            if before is not None
        ]
        found += self._attributes("attribute", attributes, "log", dict(after.attributes or {}))
        return Record(title, tuple(found))

    def _metric(self, metric: Any, scope: InstrumentationScope) -> Record:
        found: list[Finding] = []
        kind = metric.WhichOneof("data")
        points = getattr(metric, kind).data_points if kind else ()
        for number, point in enumerate(points, 1):
            given = _METRICS[kind](metric, point) if kind in _METRICS else None
            after = None if given is None else self._clean(self._metrics, given, scope)
            if given is None or after is None:
                rule = "type"
                if given is not None:
                    rule = self._rule("metric", partial(self._clean, self._asked, given, scope))
                found.append(Finding("", "name", DROPPED, rule, metric.name))
                break
            if not found:
                found.append(_compared("name", metric.name, after.name, "unknown"))
                for field in ("description", "unit"):
                    text = getattr(metric, field)
                    if text:
                        found.append(_compared(field, text, getattr(after, field) or None, "name"))
            (left,) = after.data.data_points
            place = f"point {number}"
            attributes = _mapping(point.attributes)
            found += self._attributes(place, attributes, "metric", dict(left.attributes or {}))
            for exemplar in () if kind == "summary" else point.exemplars:
                if self._policy.choice.now.coarse:
                    found.append(Finding("", "exemplar", DROPPED, "exemplar"))
                    continue
                found += (
                    Finding("exemplar", key, DROPPED, "drop", value)
                    for key, value in _mapping(exemplar.filtered_attributes).items()
                )
        return Record("metric", tuple(found))

    def _clean(self, gate: MetricGate, given: Metric, scope: InstrumentationScope) -> Metric | None:
        scoped = ScopeMetrics(scope, [given], "")
        after = gate.clean(MetricsData([ResourceMetrics(Resource.get_empty(), [scoped], "")]))
        return after.resource_metrics[0].scope_metrics[0].metrics[0] if after else None


def _compared(name: str, given: Any, becomes: Any, rule: str) -> Finding:
    if becomes == given:
        return Finding("", name, KEPT, becomes=becomes)
    if becomes is None:
        return Finding("", name, DROPPED, rule, given)
    return Finding("", name, CHANGED, rule, given, becomes)


def _context(item: Any, state: TraceState | None = None) -> SpanContext:
    return SpanContext(
        int.from_bytes(item.trace_id[:16], "big"),
        int.from_bytes(item.span_id[:8], "big"),
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=state,
    )


def _mapping(attributes: Iterable[Any]) -> dict[str, Any]:
    return {item.key: _value(item.value) for item in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if kind == "kvlist_value":
        return _mapping(value.kvlist_value.values)
    return getattr(value, kind)


def _number(point: Any) -> NumberDataPoint:
    kind = point.WhichOneof("value")
    return NumberDataPoint(
        _mapping(point.attributes),
        point.start_time_unix_nano,
        point.time_unix_nano,
        getattr(point, kind) if kind else 0,
    )


def _distribution(point: Any) -> dict[str, Any]:
    return {
        "attributes": _mapping(point.attributes),
        "start_time_unix_nano": point.start_time_unix_nano,
        "time_unix_nano": point.time_unix_nano,
        "count": point.count,
        "sum": point.sum,
        "min": point.min,
        "max": point.max,
    }


def _histogram(point: Any) -> HistogramDataPoint:
    return HistogramDataPoint(
        bucket_counts=list(point.bucket_counts),
        explicit_bounds=list(point.explicit_bounds),
        **_distribution(point),
    )


def _exponential(point: Any) -> ExponentialHistogramDataPoint:
    return ExponentialHistogramDataPoint(
        scale=point.scale,
        zero_count=point.zero_count,
        positive=Buckets(point.positive.offset, list(point.positive.bucket_counts)),
        negative=Buckets(point.negative.offset, list(point.negative.bucket_counts)),
        flags=point.flags,
        **_distribution(point),
    )


def _temporality(data: Any) -> AggregationTemporality:
    delta = data.aggregation_temporality == AggregationTemporality.DELTA.value
    return AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE


def _metric(metric: Any, data: Any) -> Metric:
    return Metric(metric.name, metric.description, metric.unit, data)


_METRICS: Final[dict[str, Callable[[Any, Any], Metric]]] = {
    "gauge": lambda metric, point: _metric(metric, Gauge([_number(point)])),
    "sum": lambda metric, point: _metric(
        metric, Sum([_number(point)], _temporality(metric.sum), metric.sum.is_monotonic)
    ),
    "histogram": lambda metric, point: _metric(
        metric, Histogram([_histogram(point)], _temporality(metric.histogram))
    ),
    "exponential_histogram": lambda metric, point: _metric(
        metric,
        ExponentialHistogram([_exponential(point)], _temporality(metric.exponential_histogram)),
    ),
}
"""The SDK's metric of one point; it has none for a summary, which none of its readers makes."""

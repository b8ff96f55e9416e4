"""Check emitted telemetry against the registry: what is not declared, or not as declared.

Every function returns a list of violations, empty when all is well, one sentence each:

* `violations(*items)` takes what the SDK's in-memory exporter and reader give (`ReadableSpan`,
  `MetricsData`) and OTLP messages (`Export…ServiceRequest`, `TracesData`, …), mixed at will;
* `violations_in_json(text)` takes lines of OTLP/JSON, as a Collector's file exporter writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from opentelemetry.sdk.metrics import export as sdk_metrics
from opentelemetry.sdk.trace import ReadableSpan

from sottovoce.registry import ATTRIBUTES, EVENTS, METRICS, SCHEMA_URLS, SCOPES, SPANS

OUR_SCOPE = "sottovoce"
OPERATION = "gen_ai.operation.name"
METHOD = "mcp.method.name"
HTTP_METHOD = "http.request.method"
TARGETS = {
    "execute_tool": "gen_ai.tool.name",
    "invoke_agent": "gen_ai.agent.name",
    "prompts/get": "gen_ai.prompt.name",
    "POST": "http.route",
}
INFERENCE = {"chat", "text_completion", "generate_content"}
NOT_OF_INFERENCE = ("gen_ai.client.operation.duration", "latest")
LONGEST = 128
PLACEHOLDERS = {"enum": "_OTHER", "error": "_OTHER", "scope": "_OTHER"}
_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*|[1-5]\d\d")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "double": (float,),
    "boolean": (bool,),
}


@dataclass(frozen=True)
class Scope:
    """Who wrote an item, and where."""

    name: str
    schema_url: str
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    name: str
    kind: str
    attributes: Mapping[str, Any]
    status: str
    description: str
    events: list[tuple[str, Mapping[str, Any]]]
    links: list[Mapping[str, Any]]
    states: list[str]


@dataclass(frozen=True)
class Metric:
    name: str
    instrument: str
    unit: str
    description: str
    points: list[Point]


@dataclass(frozen=True)
class Point:
    attributes: Mapping[str, Any]
    boundaries: tuple[float, ...] | None = None
    leaked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Log:
    event: str
    body: Any
    attributes: Mapping[str, Any]


def violations(*items: Any, vocabulary: str = "both") -> list[str]:
    """What of `items` disagrees with the registry; `vocabulary`: which metrics are expected."""
    found: list[str] = []
    for scope, item in _read(items):
        found += _scope(scope)
        if isinstance(item, Span):
            found += _span(scope, item)
        elif isinstance(item, Metric):
            found += _metric(scope, item, vocabulary)
        else:
            found += _log(item)
    return list(dict.fromkeys(found))


def violations_in_json(text: str, *, vocabulary: str = "both") -> list[str]:
    """The same for lines of OTLP/JSON."""
    messages = {
        "resourceSpans": TracesData,
        "resourceMetrics": metrics_pb2.MetricsData,
        "resourceLogs": LogsData,
    }
    items = []
    for line in filter(str.strip, text.splitlines()):
        kind = next(key for key in messages if key in json.loads(line))
        items.append(json_format.Parse(line, messages[kind](), ignore_unknown_fields=True))
    return violations(*items, vocabulary=vocabulary)


def _attributes(where: str, attributes: Mapping[str, Any], signal: str) -> Iterator[str]:
    for key, value in attributes.items():
        declared = ATTRIBUTES.get(key)
        if declared is None:
            yield f"{where}: attribute {key} is not declared"
        elif signal not in declared.signals:
            yield f"{where}: attribute {key} is not declared for a {signal}"
        elif declared.rule in {"drop", "count", "seal"}:
            yield f"{where}: attribute {key} should have been dropped"
        elif not _has_type(declared.type, value):
            yield f"{where}: attribute {key} is {value!r}, not a {declared.type}"
        else:
            for text in [value] if isinstance(value, str) else list(_listed(value)):
                yield from _text(where, key, text)


def _has_type(declared: str, value: Any) -> bool:
    if declared.endswith("[]"):
        element = declared.removesuffix("[]")
        return isinstance(value, (tuple, list)) and all(_has_type(element, one) for one in value)
    return type(value) in _TYPES[declared]


def _listed(value: Any) -> Iterable[str]:
    return (
        filter(lambda one: isinstance(one, str), value) if isinstance(value, (tuple, list)) else ()
    )


def _text(where: str, key: str, text: str) -> Iterator[str]:
    declared = ATTRIBUTES[key]
    placeholder = "custom" if key == "gen_ai.provider.name" else PLACEHOLDERS.get(declared.rule)
    if len(text) > LONGEST:
        yield f"{where}: attribute {key} has {len(text)} characters"
    if declared.rule in {"hash_rot", "hash_user"}:
        if not re.fullmatch("[0-9a-f]{16}", text):
            yield f"{where}: attribute {key} has the id {text!r}"
        return
    if declared.rule == "allow12":
        if text not in (declared.values or ()) and not re.fullmatch("[0-9a-f]{12}", text):
            yield f"{where}: attribute {key} has the name {text!r}"
        return
    if declared.values is None or text in declared.values or text == placeholder:
        return
    if declared.rule == "error" and _CLASS.fullmatch(text):
        return
    yield f"{where}: attribute {key} has the unknown value {text!r}"


def _scope(scope: Scope) -> Iterator[str]:
    where = f"scope {scope.name}"
    if scope.name not in SCOPES and scope.name != "_OTHER":
        yield f"{where}: is not known"
    if scope.attributes:
        yield f"{where}: has attributes"
    if scope.name == OUR_SCOPE and scope.schema_url not in SCHEMA_URLS.values():
        yield f"{where}: has the schema URL {scope.schema_url!r}"
    yield from _attributes("resource", scope.resource, "resource")


def _span(scope: Scope, span: Span) -> Iterator[str]:
    where = f"span {span.name!r}"
    yield from _attributes(where, span.attributes, "span")
    if span.description:
        yield f"{where}: has a status description"
    if any(span.states):
        yield f"{where}: has a trace state"
    for name, attributes in span.events:
        if name not in EVENTS:
            yield f"{where}: event {name!r} is not declared"
        yield from _attributes(f"{where}, event {name}", attributes, "event")
    for attributes in span.links:
        yield from _attributes(f"{where}, link", attributes, "link")
    if (span.status == "ERROR") != ("error.type" in span.attributes) and scope.name == OUR_SCOPE:
        yield f"{where}: an error has a status and an error.type, or neither"
    operation = span.attributes.get(OPERATION, span.attributes.get(METHOD))
    if operation is None and scope.name == OUR_SCOPE:
        operation = span.attributes.get(HTTP_METHOD)
    if operation is None:
        if scope.name == OUR_SCOPE:
            yield f"{where}: {OPERATION} is missing"
        return
    yield from _call(scope, where, span, str(operation))


def _call(scope: Scope, where: str, span: Span, operation: str) -> Iterator[str]:
    declared = SPANS.get(operation)
    attributes = span.attributes
    if declared is None:
        if scope.name == OUR_SCOPE:
            yield f"{where}: no span is declared for the operation {operation!r}"
        return
    if span.kind not in declared.kinds:
        yield f"{where}: has the kind {span.kind}"
    yield from (f"{where}: {key} is missing" for key in declared.required - attributes.keys())
    if scope.name != OUR_SCOPE:
        return
    for key in attributes.keys() & ATTRIBUTES.keys() - declared.attributes:
        yield f"{where}: attribute {key} is not declared for {operation}"
    what = attributes.get(TARGETS.get(operation, "gen_ai.request.model"))
    named = attributes.get(METHOD, operation)
    if span.name != (f"{named} {what}" if what not in {None, "_OTHER"} else named):
        yield f"{where}: is not named after its operation and model"
    if "server.port" in attributes and "server.address" not in attributes:
        yield f"{where}: has a server.port without a server.address"
    if span.kind == "INTERNAL" and "server.address" in attributes:
        yield f"{where}: is in process and has a server.address"
    if attributes.get("gen_ai.request.stream") is False:
        yield f"{where}: gen_ai.request.stream is set on a call that is not streamed"
    if "gen_ai.response.time_to_first_chunk" in attributes and not attributes.get(
        "gen_ai.request.stream"
    ):
        yield f"{where}: has a first chunk without being streamed"
    if attributes.get("gen_ai.request.choice.count") == 1:
        yield f"{where}: gen_ai.request.choice.count is set though it is 1"


def _metric(scope: Scope, metric: Metric, vocabulary: str) -> Iterator[str]:
    where = f"metric {metric.name}"
    declared = METRICS.get(metric.name)
    if declared is None:
        yield f"{where}: is not declared"
        return
    for name in ("instrument", "unit", "description"):
        seen, wanted = getattr(metric, name), getattr(declared, name)
        if seen != wanted:
            yield f"{where}: {name} is {seen!r}, not {wanted!r}"
    if scope.name == OUR_SCOPE and not declared.vocabulary:
        yield f"{where}: is not ours to record"
    if vocabulary != "both" and declared.vocabulary and vocabulary not in declared.vocabulary:
        yield f"{where}: is not of the vocabulary {vocabulary}"
    for point in metric.points:
        attributes = point.attributes
        if (metric.name, vocabulary) == NOT_OF_INFERENCE and attributes.get(OPERATION) in INFERENCE:
            yield f"{where}: is not for {attributes[OPERATION]} in the vocabulary {vocabulary}"
        if declared.boundaries is not None and point.boundaries != declared.boundaries:
            yield f"{where}: boundaries are {point.boundaries}, not {declared.boundaries}"
        if point.leaked:
            yield f"{where}: an exemplar carries {', '.join(sorted(point.leaked))}"
        yield from _attributes(where, attributes, "metric")
        if attributes.get("otel.metric.overflow") is True:
            continue
        for key in attributes.keys() & ATTRIBUTES.keys() - declared.attributes:
            yield f"{where}: attribute {key} is not declared for it"
        for key in declared.required - attributes.keys():
            yield f"{where}: {key} is missing"


def _log(log: Log) -> Iterator[str]:
    where = f"log record {log.event!r}"
    if log.event and log.event not in EVENTS:
        yield f"{where}: is not declared"
    if log.body:
        yield f"{where}: has a body"
    yield from _attributes(where, log.attributes, "log")


def _read(items: Iterable[Any]) -> Iterator[tuple[Scope, Span | Metric | Log]]:
    for item in items:
        if isinstance(item, ReadableSpan):
            yield _sdk_span(item)
        elif isinstance(item, sdk_metrics.MetricsData):
            yield from _sdk_metrics(item)
        elif hasattr(item, "resource_spans"):
            yield from _otlp(item.resource_spans, "scope_spans", "spans", _otlp_span)
        elif hasattr(item, "resource_metrics"):
            yield from _otlp(item.resource_metrics, "scope_metrics", "metrics", _otlp_metric)
        elif hasattr(item, "resource_logs"):
            yield from _otlp(item.resource_logs, "scope_logs", "log_records", _otlp_log)
        else:
            raise TypeError(f"neither the SDK's nor OTLP: {type(item)}")


def _sdk_scope(scope: Any, resource: Any) -> Scope:
    return Scope(
        name=scope.name,
        schema_url=scope.schema_url or "",
        attributes=dict(scope.attributes or {}),
        resource=dict(resource.attributes),
    )


def _sdk_span(span: ReadableSpan) -> tuple[Scope, Span]:
    contexts = [span.context, span.parent, *(link.context for link in span.links)]
    return _sdk_scope(span.instrumentation_scope, span.resource), Span(
        name=span.name,
        kind=span.kind.name,
        attributes=dict(span.attributes or {}),
        status=span.status.status_code.name,
        description=span.status.description or "",
        events=[(event.name, dict(event.attributes or {})) for event in span.events],
        links=[dict(link.attributes or {}) for link in span.links],
        states=[context.trace_state.to_header() for context in contexts if context is not None],
    )


def _sdk_metrics(data: sdk_metrics.MetricsData) -> Iterator[tuple[Scope, Metric]]:
    for resource in data.resource_metrics:
        for part in resource.scope_metrics:
            scope = _sdk_scope(part.scope, resource.resource)
            for metric in part.metrics:
                yield (
                    scope,
                    Metric(
                        name=metric.name,
                        instrument=_sdk_instrument(metric.data),
                        unit=metric.unit or "",
                        description=metric.description or "",
                        points=[
                            Point(
                                attributes=dict(point.attributes or {}),
                                boundaries=(
                                    tuple(point.explicit_bounds)
                                    if hasattr(point, "explicit_bounds")
                                    else None
                                ),
                                leaked=[
                                    key
                                    for exemplar in getattr(point, "exemplars", ())
                                    for key in exemplar.filtered_attributes or ()
                                ],
                            )
                            for point in metric.data.data_points
                        ],
                    ),
                )


def _sdk_instrument(data: Any) -> str:
    if isinstance(data, sdk_metrics.Sum):
        return "counter" if data.is_monotonic else "updowncounter"
    return "gauge" if isinstance(data, sdk_metrics.Gauge) else "histogram"


def _otlp(resources: Any, scopes: str, items: str, read: Any) -> Iterator[tuple[Scope, Any]]:
    for resource in resources:
        for part in getattr(resource, scopes):
            scope = Scope(
                name=part.scope.name,
                schema_url=part.schema_url,
                attributes=_pairs(part.scope.attributes),
                resource=_pairs(resource.resource.attributes),
            )
            for item in getattr(part, items):
                yield scope, read(item)


def _pairs(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(one) for one in value.array_value.values)
    return getattr(value, kind) if kind else None


def _otlp_span(span: Any) -> Span:
    return Span(
        name=span.name,
        kind=SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        attributes=_pairs(span.attributes),
        status=("UNSET", "OK", "ERROR")[span.status.code],
        description=span.status.message,
        events=[(event.name, _pairs(event.attributes)) for event in span.events],
        links=[_pairs(link.attributes) for link in span.links],
        states=[span.trace_state, *(link.trace_state for link in span.links)],
    )


def _otlp_metric(metric: Any) -> Metric:
    kind = metric.WhichOneof("data")
    data = getattr(metric, kind)
    instrument = {"gauge": "gauge", "sum": "updowncounter"}.get(kind, "histogram")
    if kind == "sum" and data.is_monotonic:
        instrument = "counter"
    return Metric(
        name=metric.name,
        instrument=instrument,
        unit=metric.unit,
        description=metric.description,
        points=[
            Point(
                attributes=_pairs(point.attributes),
                boundaries=tuple(point.explicit_bounds) if kind == "histogram" else None,
                leaked=[
                    pair.key
                    for exemplar in point.exemplars
                    for pair in exemplar.filtered_attributes
                ],
            )
            for point in data.data_points
        ],
    )


def _otlp_log(record: Any) -> Log:
    return Log(
        event=record.event_name, body=_value(record.body), attributes=_pairs(record.attributes)
    )

"""Where an app, or an instrumentation, can write a secret: `PLACES`, by the real SDK.

`leaks.py` says which secrets; each place takes a case and writes its value there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from opentelemetry import baggage, context, trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.privacy.gate import (
    gated_logger_provider,
    gated_meter_provider,
    gated_tracer_provider,
)
from sottovoce.registry import EVENTS, METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    from privacy.leaks import Case
    from sottovoce.privacy.policy import Policy

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"}
GENAI = "opentelemetry.instrumentation.openai_v2"
DURATION = "gen_ai.client.operation.duration"


class Process:
    """The gated providers of one process, and what its exporters were given."""

    def __init__(self, policy: Policy | None) -> None:
        # Without a policy nothing is gated: what the finder must find.
        self.policy = policy
        self.spans = InMemorySpanExporter()
        self.logs = InMemoryLogRecordExporter()
        self.readers: list[InMemoryMetricReader] = []
        self.of(None)

    def of(self, attributes: dict[str, Any] | None, schema: str = "") -> None:
        """Go on with providers of a resource of its own."""
        resource = Resource({"service.name": "shop", **(attributes or {})}, schema)
        options: dict[str, Any] = {"resource": resource, "shutdown_on_exit": False}
        self.tracers = self._made(gated_tracer_provider, TracerProvider, **options)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.loggers = self._made(gated_logger_provider, LoggerProvider, **options)
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs))
        self.readers.append(InMemoryMetricReader())
        self.meters = self._made(
            gated_meter_provider,
            MeterProvider,
            metric_readers=self.readers[-1:],
            exemplar_filter=AlwaysOnExemplarFilter(),
            views=[View(instrument_name="gen_ai.client.token.usage", attribute_keys={"none"})],
            **options,
        )

    def _made(self, gated: Callable[..., Any], plain: Callable[..., Any], **options: Any) -> Any:
        return plain(**options) if self.policy is None else gated(self.policy, **options)

    def span(self, attributes: Any = None, name: str = "chat", **options: Any) -> None:
        scope = options.pop("scope", (GENAI,))
        tracer = self.tracers.get_tracer(*scope)
        tracer.start_span(name, attributes={**CHAT, **(attributes or {})}, **options).end()

    def log(self, scope: Any = (GENAI,), **fields: Any) -> None:
        self.loggers.get_logger(*scope).emit(
            LogRecord(**{"severity_number": SeverityNumber.WARN, **fields})
        )

    def metric(
        self, attributes: Any = None, name: str = DURATION, scope: Any = (GENAI,), **options: Any
    ) -> None:
        unit = options.pop("unit", METRICS[name].unit if name in METRICS else "1")
        self.meters.get_meter(*scope).create_histogram(name, unit, **options).record(
            0.5, {**CHAT, **(attributes or {})}
        )

    def messages(self) -> list[Any]:
        """What an exporter would send, as protobuf messages."""
        collected = [reader.get_metrics_data() for reader in self.readers]
        return [
            encode_spans(self.spans.get_finished_spans()),
            encode_logs(self.logs.get_finished_logs()),
            *(encode_metrics(data) for data in collected if data is not None),
        ]


def _remote(value: str) -> trace.SpanContext:
    return trace.SpanContext(
        7, 8, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=_state(value)
    )


def _state(value: str) -> trace.TraceState:
    """Trace state as another system wrote it, which need not keep to the rules."""
    state = trace.TraceState()
    state._dict = {"vendor": value}  # the constructor refuses what is not printable ASCII
    return state


def _in_remote(value: str) -> Any:
    return trace.set_span_in_context(trace.NonRecordingSpan(_remote(value)), context.Context())


def _exception(process: Process, case: Case) -> None:
    span = process.tracers.get_tracer(GENAI).start_span("chat", attributes=CHAT)
    try:
        raise ValueError(case.value)
    except ValueError as error:
        span.record_exception(error)
        span.set_status(trace.StatusCode.ERROR, "failed")
    span.end()


def _described(process: Process, case: Case) -> None:
    span = process.tracers.get_tracer(GENAI).start_span("chat", attributes=CHAT)
    span.set_status(trace.StatusCode.ERROR, f"RateLimitError: {case.value}")
    span.end()


def _event(process: Process, name: str, attributes: Any) -> None:
    span = process.tracers.get_tracer(GENAI).start_span("chat", attributes=CHAT)
    span.add_event(name, attributes)
    span.end()


def _captured_span(process: Process, case: Case) -> None:
    given = case.value
    process.tracers.get_tracer(given["scope"]).start_span(
        given["name"], attributes=given["attributes"]
    ).end()


def _resource(process: Process, case: Case) -> None:
    process.of({case.key: case.value})
    process.span()
    process.log()
    process.metric()


def _resource_key(process: Process, case: Case) -> None:
    process.of({str(case.value): "x"})
    process.span()


def _resource_schema(process: Process, case: Case) -> None:
    process.of(None, f"https://opentelemetry.io/schemas/{case.value}")
    process.span()


def _scoped(place: int, make: Callable[[Any], Any]) -> Callable[[Process, Case], None]:
    """Writes a secret into one of the things that an instrumentation says of itself."""

    def write(process: Process, case: Case) -> None:
        scope: list[Any] = [GENAI, "1.0", "https://opentelemetry.io/schemas/1.40.0", None]
        scope[place] = make(case.value)
        process.span(scope=tuple(scope))
        process.log(tuple(scope))
        process.metric(scope=tuple(scope))

    return write


def _baggage(process: Process, case: Case) -> None:
    inside = baggage.set_baggage(case.key, case.value, context.Context())
    inside = baggage.set_baggage(str(case.value), "x", inside)
    process.span(context=inside)
    process.log(context=inside)


_EVENT = min(EVENTS)

PLACES: dict[str, Callable[[Process, Case], None]] = {
    "span attribute": lambda p, c: p.span({c.key: c.value}),
    "span attribute key": lambda p, c: p.span({str(c.value): "x"}),
    "span name": lambda p, c: p.span({"gen_ai.operation.name": None}, str(c.value)),
    "span list": lambda p, c: p.span({"gen_ai.response.finish_reasons": ["stop", c.value]}),
    "span status": _described,
    "exception": _exception,
    "event name": lambda p, c: _event(p, str(c.value), {}),
    "event attribute": lambda p, c: _event(p, "exception", {c.key: c.value}),
    "event attribute key": lambda p, c: _event(p, _EVENT, {str(c.value): 1}),
    "link attribute": lambda p, c: p.span(links=[trace.Link(_remote(""), {c.key: c.value})]),
    "link trace state": lambda p, c: p.span(links=[trace.Link(_remote(c.value))]),
    "parent trace state": lambda p, c: p.span(context=_in_remote(c.value)),
    "scope name": _scoped(0, str),
    "scope version": _scoped(1, str),
    "scope schema": _scoped(2, lambda value: f"https://opentelemetry.io/schemas/{value}"),
    "scope attribute": _scoped(3, lambda value: {"owner": value}),
    "resource": _resource,
    "resource key": _resource_key,
    "resource schema": _resource_schema,
    "baggage": _baggage,
    "log body": lambda p, c: p.log(body=c.value),
    "log event name": lambda p, c: p.log(event_name=str(c.value)),
    "log severity": lambda p, c: p.log(severity_text=str(c.value)),
    "log attribute": lambda p, c: p.log(attributes={c.key: c.value}),
    "log attribute key": lambda p, c: p.log(attributes={str(c.value): "x"}),
    "log exception": lambda p, c: p.log(exception=ValueError(c.value)),
    "metric name": lambda p, c: p.metric(name="acme." + re.sub(r"[^\w.]", "_", c.value)[:200]),
    "metric description": lambda p, c: p.metric(description=str(c.value)),
    "metric unit": lambda p, c: p.metric(
        name="orders", scope=("shop",), unit=f"{{{c.value}}}"[:63]
    ),
    "metric attribute": lambda p, c: p.metric({c.key: c.value}),
    "metric attribute key": lambda p, c: p.metric({str(c.value): "x"}),
    "exemplar": lambda p, c: p.metric({c.key: c.value}, name="gen_ai.client.token.usage"),
    "dialect": _captured_span,
    "event of dialect": lambda p, c: _event(p, c.value["name"], c.value["attributes"]),
}

UNSENT = frozenset({"baggage", "link trace state"})
"""Places that the SDK's OTLP encoder does not send by itself."""

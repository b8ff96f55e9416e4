"""The gate for spans: every span is rebuilt from what the policy lets through.

The gate takes the place of the provider's own multi-processor, so no processor that anyone
adds, before or after, can see anything else. At start and while ending, a processor gets a
facade of the live span: it can write to it, and reads only what the gate would let leave. Its
context it gets as it is, with baggage and the parent's live span: any code of the process can
ask for those, and processors that copy baggage to spans need them. What they write is judged.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    Event,
    ReadableSpan,
    SynchronousMultiSpanProcessor,
)
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from sottovoce import guard
from sottovoce.privacy import buckets
from sottovoce.privacy.gated import ignores
from sottovoce.privacy.origin import Origins, emptied, is_time
from sottovoce.privacy.rules import OTHER
from sottovoce.registry import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context

    from sottovoce.privacy.policy import Policy

_STATUS: Final = {code: Status(code) for code in StatusCode}
_UNSET: Final = ReadableSpan("", resource=Resource.get_empty()).status
"""What the SDK says of a span whose status nobody has set."""

OPERATION: Final = "gen_ai.operation.name"
MODEL: Final = "gen_ai.request.model"
LASTED: Final = "sottovoce.duration.bucket"
_SOME: Final = "?"
_NAMED_BY: Final = (
    ("db.operation.name", ""),
    ("db.system.name", ""),
    ("rpc.system.name", ""),
    ("messaging.operation.type", "messaging.system"),
    ("messaging.system", ""),
)
"""What names a span that calls neither a model nor a URL, and what is said after it."""

_METHOD: Final = "mcp.method.name"
_WHAT_IT_DOES: Final = {
    "execute_tool": "gen_ai.tool.name",
    "create_agent": "gen_ai.agent.name",
    "invoke_agent": "gen_ai.agent.name",
    "tools/call": "gen_ai.tool.name",
    "prompts/get": "gen_ai.prompt.name",
}
"""Operation or method → what is said after it in a span's name, where that is no model."""


class SpanGate(SynchronousMultiSpanProcessor):
    """Hands every processor clean spans only; ``TracerProvider(active_span_processor=…)``.

    A span whose rebuilding fails is dropped and counted. An exception of a processor reaches
    neither the app nor the processors after it.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.policy = policy
        policy.choice.gates.add(self)
        self._clean = SpanCleaner(policy).clean
        # What a facade is asked for has not left: it is not counted.
        self._peek = SpanCleaner(policy.quiet()).clean
        # Of which processors it was found, and who does anything when a span starts, or ends.
        self._heeding: tuple[Any, tuple[Any, ...], tuple[Any, ...]] = (None, (), ())

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        """Show every processor a facade of the span that was started."""
        if not self._span_processors or not self.policy.choice.now.spans:
            return
        told = self.policy.frames
        if told:
            from sottovoce.privacy.frames import told_by  # noqa: PLC0415 - loaded where asked for

            told_by(span, told)
        heeding = self._heeds()[1]
        if heeding:
            facade = self._facade(span)
            for processor in heeding:
                _safely("on_start", processor.on_start, facade, parent_context)

    def _on_ending(self, span: Any) -> None:
        # A private hook of the SDK (1.30 to 1.45): most processors do nothing then.
        if not self.policy.choice.now.spans:
            return
        heeding = self._heeds()[2]
        if heeding:
            facade = self._facade(span)
            for processor in heeding:
                _safely("_on_ending", processor._on_ending, facade)

    def _facade(self, span: Any) -> Any:
        from sottovoce.privacy.facade import Facade  # noqa: PLC0415 - few processors look so early

        return Facade(span, self._peek)

    def is_seen_ending(self) -> bool:
        """Whether a processor does anything while a span ends."""
        known = self._heeding
        return bool((known if known[0] is self._span_processors else self._heeds())[2])

    def _heeds(self) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        # The SDK replaces the tuple when a processor is added.
        known, processors = self._heeding, self._span_processors
        if known[0] is not processors:
            starting, ending = (
                tuple(each for each in processors if not ignores(each, hook))
                for hook in ("on_start", "_on_ending")
            )
            known = self._heeding = processors, starting, ending
        return known

    def on_end(self, span: ReadableSpan) -> None:
        """Rebuild `span` and hand it on; never raises."""
        if not self._span_processors:
            return
        compiled = self.policy.choice.now
        try:
            clean = self._clean(span)
            if self.policy.choice.now is not compiled:
                # Tightened meanwhile: what was judged before must not be queued after.
                clean = self._clean(span)
        except Exception:  # noqa: BLE001 - fail closed
            self.policy.count("span", "gate_error")
            guard.failed("span gate")
            return
        if clean is None:
            return
        for processor in self._span_processors:
            _safely("on_end", processor.on_end, clean)

    def discard(self) -> None:
        """Forget spans that wait to be sent: they were let through by a looser profile."""
        forgotten = emptied(self._span_processors)
        if forgotten:
            self.policy.count("span", "off", forgotten)

    def shutdown(self) -> None:
        """Shut every processor down, whatever the ones before it do."""
        for processor in self._span_processors:
            _safely("shutdown", processor.shutdown)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """As the SDK does it, but false rather than an exception."""
        try:
            return super().force_flush(timeout_millis)
        except Exception:  # noqa: BLE001 - as in `_safely`
            guard.failed("span processor force_flush")
            return False


class SpanCleaner:
    """Rebuilds spans from what a policy lets through."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._origins = Origins(policy, "span")

    def clean(self, span: ReadableSpan) -> ReadableSpan | None:
        """`span`, rebuilt from what may leave; None when nothing may. May raise."""
        policy, origins, compiled = self.policy, self._origins, self.policy.choice.now
        if not compiled.spans:
            policy.count("span", "off")
            return None
        name, context, parent, resource, said, kind, status, started, ended, scope = _fields(span)
        attributes = policy.attributes(_plain(said), "span")
        # Most have none, and the SDK copies either item by item (1.30 to 1.45).
        events = span.events if len(getattr(span, "_events", _SOME)) else ()
        links = span.links if len(getattr(span, "_links", _SOME)) else ()
        if status is _UNSET:
            code = StatusCode.UNSET
        else:
            code = status.status_code
            if status.description:
                policy.count("span", "status_description")
        context = origins.context(context)
        if context is None:
            return None
        if type(kind) is not SpanKind:
            policy.count("span", "type")
            kind = SpanKind.INTERNAL
        # As `is_time`, for every span.
        if not (type(started) is type(ended) is int and 0 <= started <= ended < 1 << 63):
            started, ended = self._time(started), self._time(ended)
        if compiled.coarse and started is not None and ended is not None:
            attributes[LASTED] = buckets.lasted(ended - started)
            if self.policy.coarse_span_times:
                started, ended = buckets.instant(started), buckets.instant(ended)
        return ReadableSpan(
            name=self._name(name, attributes),
            context=context,
            parent=None if parent is None else origins.context(parent),
            resource=origins.resource(resource),
            attributes=attributes,
            events=self._events(events) if events else (),
            links=self._links(links) if links else (),
            kind=kind,
            status=_STATUS[code],
            start_time=started,
            end_time=ended,
            instrumentation_scope=None if scope is None else origins.scope(scope),
        )

    def _name(self, name: str, attributes: Mapping[str, Any]) -> str:
        # A model call is never named by anyone: its name would hold the model's raw id.
        if OPERATION not in attributes and self.policy.allows("span", name):
            return name
        template = _from_template(attributes)
        if template is not None:
            if template != name:
                self.policy.count("span", "name")
            return template
        self.policy.count("span", "name")
        return OTHER

    def _time(self, given: int | None) -> int | None:
        if given is None or is_time(given):
            return given
        self.policy.count("span", "type")
        return time_ns()

    def _at(self, given: int | None) -> int | None:
        """The time of an event, which must not say what the span's own times do not."""
        time = self._time(given)
        if time is None or not (self.policy.coarse_span_times and self.policy.choice.now.coarse):
            return time
        return buckets.instant(time)

    def _events(self, events: Sequence[Event]) -> tuple[Event, ...]:
        kept = []
        for event in events:
            if type(event.name) is str and event.name in EVENTS:
                attributes = self.policy.attributes(_plain(event.attributes), "event")
                kept.append(Event(event.name, attributes, self._at(event.timestamp)))
            else:
                self.policy.count("event", "unknown")
        return tuple(kept)

    def _links(self, links: Sequence[Link]) -> tuple[Link, ...]:
        kept = []
        for link in links:
            context = self._origins.context(link.context)
            if context is not None:
                attributes = self.policy.attributes(_plain(link.attributes), "link")
                kept.append(Link(context, attributes))
        return tuple(kept)


def _fields(span: ReadableSpan) -> tuple[Any, ...]:
    """What a span says of itself, but for its events and links. May raise."""
    if type(span) in _KNOWN:
        own = vars(span)
        try:
            return (
                own["_name"],
                own["_context"],
                own["_parent"],
                own["_resource"],
                own["_attributes"],
                own["_kind"],
                own["_status"],
                own["_start_time"],
                own["_end_time"],
                own["_instrumentation_scope"],
            )
        except KeyError:
            pass  # another SDK
    return (
        span.name,
        span.context,
        span.parent,
        span.resource,
        span.attributes,
        span.kind,
        span.status,
        span.start_time,
        span.end_time,
        span.instrumentation_scope,
    )


_KNOWN: Final = {ReadableSpan, getattr(trace, "_Span", ReadableSpan)}
"""Spans whose fields are their own, as read in opentelemetry-sdk 1.30 to 1.45: each of their
properties takes a call."""


def _safely(place: str, method: Callable[..., Any], *args: Any) -> None:
    """Call a processor's method: its error is neither the app's nor the next processor's."""
    try:
        method(*args)
    except Exception:  # noqa: BLE001 - see above
        guard.failed(f"span processor {place}")


def _plain(attributes: Any) -> Mapping[str, Any]:
    # The SDK's mapping pays a Python call for every item. What it holds is as it stays once
    # nothing can be set any more; its copy is a dict, made in C.
    if type(attributes) is BoundedAttributes:
        own = vars(attributes)
        if own.get("_immutable") is True and type(own.get("_dict")) is dict:
            return own["_dict"]  # type: ignore[no-any-return]
    copy = getattr(attributes, "copy", None)
    return copy() if copy is not None else dict(attributes or {})


def _from_template(attributes: Mapping[str, Any]) -> str | None:
    """The name of a span of a known kind, made of attributes that passed the policy."""
    method = attributes.get(_METHOD)
    # The name of a tool call over MCP is its method's, whoever says besides that a tool runs.
    operation = attributes.get(OPERATION) if method is None or method == OTHER else method
    if operation is not None:
        what = attributes.get(_WHAT_IT_DOES.get(operation, MODEL))
        if what is None or what == OTHER:
            what = attributes.get(MODEL)
        return f"{operation} {what}" if what else str(operation)
    method = attributes.get("http.request.method")
    if method is not None:
        method = "HTTP" if method == OTHER else method
        route = attributes.get("http.route") or attributes.get("url.template")
        return f"{method} {route}" if route else str(method)
    for what, where in _NAMED_BY:
        name = attributes.get(what)
        if name is not None and name != OTHER:
            place = attributes.get(where)
            return f"{name} {place}" if place else str(name)
    return None

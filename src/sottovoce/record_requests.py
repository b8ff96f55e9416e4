"""Request that this process answers → one span of kind SERVER, by the conventions for HTTP.

Its parent is the caller's span, as the request's headers name it. Where another instrumentation
of the server made a span for the request already, none is added: that one is the parent of the
model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from sottovoce import dropped, guard
from sottovoce.privacy import propagation
from sottovoce.record import ERROR_TYPE, OUTCOME, Handle, Recording

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from sottovoce.call import Call
    from sottovoce.runtimes.asgi import ServedRequest

METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
SCHEME: Final = "url.scheme"
STATUS: Final = "http.response.status_code"


class RequestRecorder(Recording):
    """Implements `call.Recorder` for requests that are answered here, with a tracer."""

    @guard.never_raise("record_requests.opened")
    def opened(self, call: Call) -> None:
        """Start the span, unless there is one."""
        request = cast("ServedRequest", call)
        parent = _parent(request)
        if parent is None:
            return
        said = self._policy.attributes(
            {METHOD: request.method, ROUTE: request.route, SCHEME: request.scheme}, "span"
        )
        name = " ".join(said[key] for key in (METHOD, ROUTE) if key in said) or "HTTP"
        span, context = self._spans.begin(
            name, said, parent, kind=SpanKind.SERVER, start_ns=request.start_unix_ns
        )
        request.handle = Handle(span, context, {})
        dropped.keep(request)

    @guard.never_raise("record_requests.ended")
    def ended(self, call: Call) -> None:
        """Say how it was answered and end the span."""
        request = cast("ServedRequest", call)
        handle: Handle | None = request.handle
        if handle is None:
            return
        request.handle = None
        attributes: dict[str, Any] = {OUTCOME: request.outcome}
        if type(request.status) is int:
            attributes[STATUS] = request.status
        try:
            attributes = self._policy.attributes(attributes, "span")
            if request.error is not None:
                attributes[ERROR_TYPE] = self._policy.error(request.error)
                handle.span.set_status(Status(StatusCode.ERROR))
            handle.span.set_attributes(attributes)
        finally:
            self._spans.end(handle.span, request.start_unix_ns, request.duration_ns)


def _parent(request: ServedRequest) -> Context | None:
    """Find what the request is a child of; ``None`` where somebody else made its span."""
    current = otel_context.get_current()
    span = trace.get_current_span(current)
    kind = getattr(span, "kind", None)
    if kind is SpanKind.SERVER:
        return None
    caller = propagation.caller(request.headers)
    if not caller.get_span_context().is_valid:
        return current
    # Asked in process, the caller's own span is the current one.
    joined = span.get_span_context().trace_id == caller.get_span_context().trace_id
    if joined and kind is not SpanKind.CLIENT:
        return None
    return trace.set_span_in_context(caller, current)

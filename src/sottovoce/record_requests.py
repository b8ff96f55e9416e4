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
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from sottovoce.call import Call
    from sottovoce.runtimes.asgi import ServedRequest
    from sottovoce.settings import Settings

METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
SCHEME: Final = "url.scheme"
STATUS: Final = "http.response.status_code"

_MOST_SAID: Final = 64


class RequestRecorder(Recording):
    """Implements `call.Recorder` for requests that are answered here, with a tracer."""

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        settings_: Settings | None = None,
    ) -> None:
        super().__init__(tracer_provider, meter_provider, settings_)
        self._said: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}

    @guard.never_raise("record_requests.opened")
    def opened(self, call: Call) -> None:
        """Start the span, unless there is one."""
        request = cast("ServedRequest", call)
        parent = _parent(request)
        if parent is None:
            return
        # A tightened policy says less.
        asked = request.method, request.route, request.scheme, self._policy.choice.now
        name, said = self._said.get(asked) or self._say(request, asked)
        span, context = self._spans.begin(
            name, said, parent, kind=SpanKind.SERVER, start_ns=request.start_unix_ns
        )
        request.handle = Handle(span, context, said)
        dropped.keep(request)

    def _say(self, request: ServedRequest, asked: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
        """Give the name and the first attributes of a request's span, and remember them."""
        given = {METHOD: request.method, ROUTE: request.route, SCHEME: request.scheme}
        said = self._policy.attributes(given, "span")
        name = " ".join(said[key] for key in (METHOD, ROUTE) if key in said) or "HTTP"
        # What the policy drops it counts each time.
        if said == given and len(self._said) < _MOST_SAID:
            self._said[asked] = name, said
        return name, said

    @guard.never_raise("record_requests.ended")
    def ended(self, call: Call) -> None:
        """Say how it was answered and end the span."""
        request = cast("ServedRequest", call)
        handle: Handle | None = request.handle
        if handle is None:
            return
        request.handle = None
        attributes: dict[str, Any] = {}
        try:
            if handle.span.is_recording():
                attributes[OUTCOME] = request.outcome
                if type(request.status) is int:
                    attributes[STATUS] = request.status
                if request.error is not None:
                    attributes[ERROR_TYPE] = self._policy.error(request.error)
                    handle.span.set_status(Status(StatusCode.ERROR))
        finally:
            self._spans.end(
                handle.span,
                attributes,
                handle.attributes,
                request.start_unix_ns,
                request.duration_ns,
            )


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

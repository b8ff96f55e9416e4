"""Step → one span and one histogram, by the conventions for tools, agents and MCP.

Names pass the policy before they become part of a span's name, an attribute or a metric's
series. Arguments and results are never here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sottovoce import dropped, guard
from sottovoce.instruments import measured_as
from sottovoce.pages import Book
from sottovoce.points import NOWHERE, Point
from sottovoce.privacy import propagation
from sottovoce.record import ERROR_TYPE, OPERATION, OUTCOME, Handle, Recording
from sottovoce.steps import Step, current_conversation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import SpanContext, TracerProvider

    from sottovoce.call import Call
    from sottovoce.settings import Settings

TOOL: Final = "gen_ai.tool.name"
AGENT: Final = "gen_ai.agent.name"
PROMPT: Final = "gen_ai.prompt.name"
CONVERSATION: Final = "gen_ai.conversation.id"
METHOD: Final = "mcp.method.name"
SESSION: Final = "mcp.session.id"
VERSION: Final = "mcp.protocol.version"
TRANSPORT: Final = "network.transport"
CODE: Final = "rpc.response.status_code"

_OTHER: Final = "_OTHER"
_NS: Final = 1e-9

_KINDS: Final = {
    "tool": SpanKind.INTERNAL,
    "agent": SpanKind.INTERNAL,
    "mcp_client": SpanKind.CLIENT,
    "mcp_server": SpanKind.SERVER,
}
_DURATIONS: Final = {
    "tool": "gen_ai.execute_tool.duration",
    "agent": "gen_ai.invoke_agent.duration",
    "mcp_client": "mcp.client.operation.duration",
    "mcp_server": "mcp.server.operation.duration",
}
_NAMED: Final = {"tool": TOOL, "agent": AGENT, "tools/call": TOOL, "prompts/get": PROMPT}
"""Kind or method → what its name is the name of."""

_is_code: Final = re.compile(r"-?[0-9]{1,9}").fullmatch
_PARENT: Final = TraceContextTextMapPropagator()


class StepRecorder(Recording):
    """Implements `call.Recorder` for steps, with OpenTelemetry's tracer and meter."""

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        settings_: Settings | None = None,
    ) -> None:
        super().__init__(tracer_provider, meter_provider, settings_)
        self._durations = {
            kind: Book(measured_as(self._meter, name, self._policy.choice))
            for kind, name in _DURATIONS.items()
        }

    @guard.never_raise("record_steps.opened")
    def opened(self, call: Call) -> None:
        """Start the span; the outcome follows when the step ends."""
        step = cast("Step", call)
        said = self._policy.attributes(_said(step) | _conversation(step), "span")
        said.update(self._where(step))
        parent = _parent(step)
        around = _around(parent) if step.carrier else None
        begun = step.start_unix_ns
        span, context = self._spans.begin(
            _name(step, said), said, parent, kind=_KINDS[step.kind], start_ns=begun
        )
        if around is not None:
            span.add_link(around)
        step.handle = Handle(span, context, {})
        dropped.keep(step)

    @guard.never_raise("record_steps.ended")
    def ended(self, call: Call) -> None:
        """Say how it ended, end the span, record how long it took."""
        step = cast("Step", call)
        handle: Handle | None = step.handle
        if handle is None:
            return
        step.handle = None
        attributes: dict[str, Any] = {OUTCOME: step.outcome}
        if step.error is not None:
            attributes[ERROR_TYPE] = self._policy.error(step.error)
            handle.span.set_status(Status(StatusCode.ERROR))
        try:
            late = _late(step)
            if step.session is not None:
                late[SESSION] = step.session
            attributes.update(self._policy.attributes(late, "span"))
            handle.span.set_attributes(attributes)
        finally:
            self._spans.end(handle.span, {}, {}, step.start_unix_ns, step.duration_ns)
        now = self._policy.choice.now
        if now.off:
            return
        told = _said(step) | _late(step) | self._where(step)
        measured = self._policy.attributes(told, "metric")
        if ERROR_TYPE in attributes:
            measured[ERROR_TYPE] = attributes[ERROR_TYPE]
        point = Point(measured, NOWHERE if now.coarse else handle.context)
        self._durations[step.kind].write((step.duration_ns * _NS,), point, point)

    def drop(self, step: Step) -> None:
        """End a step that the app dropped; also while garbage is collected. Never raises."""
        dropped.stop(step)


def _said(step: Step) -> dict[str, Any]:
    """What is known of a step when it begins, not yet judged."""
    said: dict[str, Any] = {}
    if step.method is None or step.method == "tools/call":
        said[OPERATION] = step.operation
    if step.method is not None:
        said[METHOD] = step.method
    named = _NAMED.get(step.method or step.kind)
    if step.name is not None and named is not None:
        said[named] = step.name
    return said


def _conversation(step: Step) -> dict[str, Any]:
    """The app's conversation that an agent runs in: for its span, too many for a metric."""
    conversation = current_conversation.get() if step.kind == "agent" else None
    return {} if conversation is None else {CONVERSATION: conversation}


def _late(step: Step) -> dict[str, Any]:
    """What of a request over MCP may be known only when it ends, not yet judged."""
    code = step.error if isinstance(step.error, str) and _is_code(step.error) else None
    values = {VERSION: step.version, TRANSPORT: step.transport, CODE: code}
    return {key: value for key, value in values.items() if value is not None}


def _name(step: Step, said: Mapping[str, Any]) -> str:
    method = said.get(METHOD, _OTHER)
    first = said.get(OPERATION, _OTHER) if method == _OTHER else method
    what = said.get(_NAMED.get(step.method or step.kind, ""), _OTHER)
    return str(first) if what == _OTHER else f"{first} {what}"


def _parent(step: Step) -> Context:
    """Find what the step's span is a child of: the other side's span, else what is current."""
    current = otel_context.get_current()
    if not step.carrier:
        return current
    remote = propagation.caller(step.carrier, _PARENT)
    valid = remote.get_span_context().is_valid
    return trace.set_span_in_context(remote, current) if valid else current


def _around(parent: Context) -> SpanContext | None:
    """Give the span in which a request is answered, where the other side's is the parent.

    One of HTTP's may carry several requests, so it is linked; the other side's own, where both
    are in one process, is no other.
    """
    asking = trace.get_current_span(parent).get_span_context()
    around = trace.get_current_span().get_span_context()
    return around if around.is_valid and around.span_id != asking.span_id else None

"""Spans of ours as the profile wants them, also where nobody gates their provider.

Where the gate follows it judges everything; what is judged here for other providers it would
have judged alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from sottovoce.measure import put
from sottovoce.privacy.gated import is_gated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Tracer

    from sottovoce.privacy.policy import Policy


def begin(
    tracer: Tracer,
    policy: Policy,
    name: str,
    said: Mapping[str, Any],
    parent: Context,
    *,
    kind: SpanKind,
    start_ns: int,
) -> tuple[Span, Context]:
    """Start a span, where the profile has any; gives it, and the context in which it is current.

    Args:
        tracer: of ours.
        policy: says what leaves.
        name: of the span, already judged.
        said: its first attributes, whose words are already judged.
        parent: the context of its parent.
        kind: of the span.
        start_ns: when it began, in nanoseconds since the epoch.
    """
    now = policy.choice.now
    if not now.spans:
        return trace.INVALID_SPAN, parent
    span = tracer.start_span(
        name,
        context=parent,
        kind=kind,
        attributes=policy.attributes(said, "span") if now.coarse else dict(said),
        start_time=start_ns,
    )
    return span, trace.set_span_in_context(span, parent)


def finish(policy: Policy, span: Span, attributes: dict[str, Any], said: Mapping[str, Any]) -> None:
    """Set the rest of a span's attributes; they are judged here or by the gate, not twice.

    Args:
        policy: says what leaves.
        span: of ours.
        attributes: to set, not yet judged.
        said: its first ones: what a word is worth can depend on them.
    """
    if not is_gated(span):
        attributes = policy.attributes(attributes, "span", {**said, **attributes})
    put(span, attributes)

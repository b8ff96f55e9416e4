"""What becomes of a span, told from its provider's processors; no SDK is imported for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_GATE: Final = ("sottovoce.privacy.spans", "SpanGate")

_IDLE: Final = {
    ("opentelemetry.sdk.trace", "SpanProcessor.on_start"),
    ("opentelemetry.sdk.trace.export", "SimpleSpanProcessor.on_start"),
    ("opentelemetry.sdk.trace.export", "BatchSpanProcessor.on_start"),
}
"""Functions that do nothing, as read in opentelemetry-sdk 1.30 to 1.45."""


def is_gated(span: Span) -> bool:
    """Whether `spans.SpanGate` judges `span`, or nothing becomes of it."""
    # `_span_processor`, as read in opentelemetry-sdk 1.30 to 1.45: its provider's own processor.
    kind = type(getattr(span, "_span_processor", None))
    return (kind.__name__ == _GATE[1] and kind.__module__ == _GATE[0]) or not span.is_recording()


def ignores_start(processor: Any) -> bool:
    """Whether a span processor is one of the SDK's that do nothing when a span starts."""
    start = getattr(type(processor), "on_start", None)
    return (getattr(start, "__module__", ""), getattr(start, "__qualname__", "")) in _IDLE and (
        "on_start" not in getattr(processor, "__dict__", ())
    )

"""What becomes of a span, told from its provider's processors; no SDK is imported for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_GATE: Final = ("sottovoce.privacy.spans", "SpanGate")

_IDLE: Final = {
    (module, f"{processor}.{hook}")
    for module, processor in (
        ("opentelemetry.sdk.trace", "SpanProcessor"),
        ("opentelemetry.sdk.trace.export", "SimpleSpanProcessor"),
        ("opentelemetry.sdk.trace.export", "BatchSpanProcessor"),
    )
    for hook in ("on_start", "_on_ending")
}
"""Functions that do nothing, as read in opentelemetry-sdk 1.30 to 1.45."""


def is_gated(span: Span) -> bool:
    """Whether `spans.SpanGate` judges `span`, or nothing becomes of it."""
    # `_span_processor`, as read in opentelemetry-sdk 1.30 to 1.45: its provider's own processor.
    return _is_gate(getattr(span, "_span_processor", None)) or not span.is_recording()


def gates(tracer: Tracer) -> bool:
    """Whether `spans.SpanGate` judges the spans of `tracer`."""
    # `span_processor`, as read in opentelemetry-sdk 1.30 to 1.45.
    return _is_gate(getattr(tracer, "span_processor", None))


def _is_gate(processor: Any) -> bool:
    kind = type(processor)
    return kind.__name__ == _GATE[1] and kind.__module__ == _GATE[0]


def ignores(processor: Any, hook: str) -> bool:
    """Whether a span processor does nothing in ``on_start``, or ``_on_ending``, as the SDK's do."""
    method = getattr(type(processor), hook, None)
    if method is None:
        # Older SDKs have no `_on_ending`, and call none.
        return True
    return (getattr(method, "__module__", ""), getattr(method, "__qualname__", "")) in _IDLE and (
        hook not in getattr(processor, "__dict__", ())
    )

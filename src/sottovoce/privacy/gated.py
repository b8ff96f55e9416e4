"""Whether a span passes the gate when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_GATE: Final = ("sottovoce.privacy.spans", "SpanGate")
"""Not imported: without an SDK there is none."""


def is_gated(span: Span) -> bool:
    """Whether `spans.SpanGate` judges `span`, or nothing becomes of it."""
    # `_span_processor`, as read in opentelemetry-sdk 1.30 to 1.45: its provider's own processor.
    kind = type(getattr(span, "_span_processor", None))
    return (kind.__name__ == _GATE[1] and kind.__module__ == _GATE[0]) or not span.is_recording()

"""A live span as span processors see it: writes go through, reads give what may leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, SpanContext, Status, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.util.types import Attributes, AttributeValue


class Facade(Span):
    """A live span as processors see it: writes go through, reads give what may leave."""

    __slots__ = ("_clean", "_live")

    def __init__(self, live: Any, clean: Callable[[ReadableSpan], ReadableSpan | None]) -> None:
        self._live = live
        self._clean = clean

    def __repr__(self) -> str:
        return "Facade(<span>)"

    def end(self, end_time: int | None = None) -> None:
        """End the span, at `end_time` nanoseconds since the epoch or now."""
        self._live.end(end_time)

    def get_span_context(self) -> SpanContext:
        """Ids and flags of the span, without trace state."""
        context: SpanContext = self._live.get_span_context()
        return SpanContext(
            context.trace_id, context.span_id, context.is_remote, context.trace_flags
        )

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set attributes of the span; the gate judges them when it ends."""
        self._live.set_attributes(attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one attribute of the span; the gate judges it when it ends."""
        self._live.set_attribute(key, value)

    def add_event(
        self, name: str, attributes: Attributes = None, timestamp: int | None = None
    ) -> None:
        """Add an event to the span; the gate judges it when it ends."""
        self._live.add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Add a link to the span."""
        self._live.add_link(context, attributes)

    def update_name(self, name: str) -> None:
        """Rename the span; the gate judges the name when it ends."""
        self._live.update_name(name)

    def is_recording(self) -> bool:
        """Whether the span is still open."""
        return bool(self._live.is_recording())

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status of the span; a description never leaves."""
        self._live.set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Record an exception; of it only the class leaves."""
        self._live.record_exception(exception, attributes, timestamp, escaped)

    def _readable_span(self) -> ReadableSpan | None:
        return self._clean(self._live._readable_span())

    def __getattr__(self, name: str) -> Any:
        # What a `ReadableSpan` has publicly besides, as the gate would let it leave now.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._readable_span(), name)

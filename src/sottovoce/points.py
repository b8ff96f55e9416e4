"""What the measurements of one call share: their attributes, whose key is found once, and their span."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.context import Context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import SpanContext

REMEMBERED: Final = 2000
"""The SDK's own limit of attribute sets for one instrument."""


NOWHERE: Final = Context({"sottovoce": "nowhere"})
"""Where coarse numbers are measured: no exemplar tells which call it was. Not empty, as the SDK
takes what is empty for absent, and then asks for the current context."""


class Point:
    """What the measurements of one call share.

    Args:
        attributes: the attributes of its metric points, strings and ints only (a key tells
            1 and True apart no better than Python does).
        context: where the call's span is current, for exemplars.
        span: that span's ids; asked of the context when absent.
    """

    __slots__ = ("attributes", "context", "key", "sampled", "span")

    def __init__(
        self, attributes: Mapping[str, Any], context: Context, *, span: SpanContext | None = None
    ) -> None:
        self.attributes = attributes
        self.context = context
        self.key = _key(attributes)
        if span is None:
            span = trace.get_current_span(context).get_span_context()
        self.span = span
        self.sampled = span.trace_flags & 1 == 1

    def saying(self, more: Mapping[str, Any]) -> Point:
        """Give the same point with `more` attributes."""
        return Point({**self.attributes, **more}, self.context, span=self.span)


class _Key:
    """Stands for a set of attributes: told from others, and looked up, by what it is alone."""

    __slots__ = ()


_keys: Final[dict[tuple[Any, ...], _Key]] = {}


def forget() -> None:
    """Forget all keys: what was remembered by one is found no more."""
    _keys.clear()


def _key(attributes: Mapping[str, Any]) -> _Key:
    """The key of a set of attributes, of which the SDK's own limit is remembered at a time."""
    items = tuple(attributes.items())
    key = _keys.get(items)
    if key is None:
        if len(_keys) >= REMEMBERED:
            # What was found by the old ones is found again.
            _keys.clear()
        key = _keys[items] = _Key()
    return key

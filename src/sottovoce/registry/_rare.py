"""What of the registry nothing reads while telemetry is made: commands and tests do."""

from typing import Final, NamedTuple

from . import _tables, read


class Span(NamedTuple):
    """The span of one `gen_ai.operation.name`."""

    kinds: frozenset[str]
    """``CLIENT``, ``INTERNAL`` or both."""
    required: frozenset[str]
    """Attributes that must be there."""
    attributes: frozenset[str]
    """Attributes that may be there."""


PREFIXES: Final = read(_tables.PREFIXES)
"""Attributes whose key ends in a variable part (``http.request.header.<key>``), by what comes
before it. None of them may leave; they are here so that a drop has a name."""

SPANS: Final = {
    operation: Span(*(frozenset(each.split()) for each in row))
    for operation, row in _tables.SPANS.items()
}
"""Spans of ours, by `gen_ai.operation.name`, else by `mcp.method.name`."""

"""Where telemetry comes from, cleaned: resource, instrumentation scope, span context.

Resources and scopes are few and live long, so each is cleaned once and found again by
identity. A fork makes a new resource (the SDK merges its detectors' findings over the old
one), which is therefore cleaned anew, whatever was added.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from sottovoce.privacy import rules
from sottovoce.privacy.patterns import Pattern
from sottovoce.privacy.rules import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sottovoce.privacy.compiled import Choice, Compiled
    from sottovoce.privacy.policy import Policy

T = TypeVar("T")

_SCHEMA: Final = Pattern(
    r"https://opentelemetry\.io/schemas/(?:gen-ai(?:-dev)?/)?\d{1,2}\.\d{1,3}\.\d{1,3}(?:-dev)?"
)
_MOST: Final = 512

_NO_STATE: Final = SpanContext(1, 1, is_remote=False).trace_state

KEY_ID: Final = "sottovoce.key.id"
"""The attribute of a resource that says which secret pseudonyms are made with."""


class _Once(Generic[T]):
    """Remembers what was made of an object, by identity; holds on to it, so that ids last.

    A policy that was tightened since makes it anew.
    """

    __slots__ = ("_choice", "_made", "_make")

    def __init__(self, make: Callable[[T], T], choice: Choice) -> None:
        self._make = make
        self._choice = choice
        self._made: dict[int, tuple[T, T, Compiled]] = {}

    def __call__(self, item: T) -> T:
        compiled = self._choice.now
        found = self._made.get(id(item))
        if found is not None and found[2] is compiled:
            return found[1]
        clean = self._make(item)
        if len(self._made) >= _MOST:
            self._made.clear()
        self._made[id(item)] = (item, clean, compiled)
        return clean


class Origins:
    """Cleans where telemetry says that it comes from. Raises nothing that its input does not."""

    def __init__(self, policy: Policy, signal: str) -> None:
        self._policy = policy
        self._signal = signal
        self.resource: Callable[[Resource], Resource] = _Once(self._resource, policy.choice)
        self.scope: Callable[[InstrumentationScope], InstrumentationScope] = _Once(
            self._scope, policy.choice
        )

    def _resource(self, resource: Resource) -> Resource:
        attributes = self._policy.attributes(resource.attributes, "resource")
        # Whatever somebody else calls so is not it.
        attributes.pop(KEY_ID, None)
        if KEY_ID in self._policy.choice.now.tables["resource"]:
            attributes.update(self._policy.attributes({KEY_ID: self._policy.key_id}, "resource"))
        return Resource(attributes, schema_url(resource.schema_url))

    def _scope(self, scope: InstrumentationScope) -> InstrumentationScope:
        name = self._policy.scope(scope.name)
        if name != scope.name:
            self._policy.count("scope", "unknown")
        if scope.attributes:
            self._policy.count("scope", "drop", len(scope.attributes))
        # The version of a scope that may not be named may be anything.
        known = name == scope.name and is_version(scope.version)
        return InstrumentationScope(
            name, scope.version if known else None, schema_url(scope.schema_url)
        )

    def context(self, context: SpanContext | None) -> SpanContext | None:
        """`context` without trace state, which other systems write what they like into.

        None for one that is no context: an exporter would fail on it, and on the rest of a batch.
        """
        if context is None:
            return None
        trace_id, span_id, remote, flags, state, *_ = context
        # As `is_id`, for every span.
        if not (
            type(trace_id) is type(span_id) is int
            and 0 < trace_id < 1 << 128
            and 0 < span_id < 1 << 64
            and isinstance(flags, int)
        ):
            self._policy.count(self._signal, "type")
            return None
        # That nearly every context has, and none can change: it need not be asked what it holds.
        if type(context) is SpanContext and (state is _NO_STATE or not state):
            return context
        if state:
            self._policy.count(self._signal, "trace_state")
        return SpanContext(trace_id, span_id, bool(remote), TraceFlags(flags & 0xFF))


def emptied(processors: Iterable[Any]) -> int:
    """Forget what waits in the queues of the SDK's batch processors; returns how much it was."""
    forgotten = 0
    for processor in processors:
        # `_batch_processor._queue`, a deque, as read in opentelemetry-sdk 1.45.
        queue = getattr(getattr(processor, "_batch_processor", None), "_queue", None)
        if isinstance(queue, deque):
            forgotten += len(queue)
            queue.clear()
    return forgotten


def is_id(number: Any, bits: int) -> bool:
    """Whether `number` is a trace or span id that can be sent."""
    return type(number) is int and 0 < number < 1 << bits


def is_version(text: Any) -> bool:
    """Whether `text` is a version, and none that an address could be."""
    return type(text) is str and VERSION.fullmatch(text) is not None and rules.text(text) is text


def is_time(number: Any) -> bool:
    """Whether `number` is a time in nanoseconds that can be sent."""
    return type(number) is int and 0 <= number < 1 << 63


def schema_url(url: Any) -> str:
    """`url` if it is one of OpenTelemetry's own schemas, else empty."""
    return url if isinstance(url, str) and _SCHEMA.fullmatch(url) else ""

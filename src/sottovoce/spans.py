"""Spans of ours as the profile wants them, also where nobody gates their provider.

Where the gate follows it judges everything; what is judged here for other providers it would
have judged alike.

A span is started with its first attributes, for samplers and for processors that look at them.
The SDK checks and copies each for long, so where nobody can look `shortcut` starts the span, or
they are `put` there right after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace

from sottovoce.guard import failed
from sottovoce.privacy import buckets
from sottovoce.privacy.gated import gates, ignores, is_gated
from sottovoce.shortcut import shortcut_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Tracer

    from sottovoce.privacy.policy import Policy
    from sottovoce.shortcut import Shortcut

_FANS_OUT: Final = {
    ("opentelemetry.sdk.trace", "SynchronousMultiSpanProcessor"),
    ("sottovoce.privacy.spans", "SpanGate"),
}
"""What a provider hands its spans to, and what it does with them is what its processors do."""


class Spans:
    """Starts and finishes the spans of one tracer.

    Args:
        tracer: of ours.
        policy: says what leaves.
    """

    __slots__ = ("_policy", "_processors", "_sampler", "_shortcut", "_tracer", "_unseen")

    def __init__(self, tracer: Tracer, policy: Policy) -> None:
        self._tracer = tracer
        self._policy = policy
        # Whether nobody sees a span's first attributes, and of whom that was found.
        self._unseen = False
        self._shortcut: Shortcut | None = None
        self._sampler: Any = None
        self._processors: Any = None

    def begin(
        self, name: str, said: Mapping[str, Any], parent: Context, *, kind: SpanKind, start_ns: int
    ) -> tuple[Span, Context]:
        """Start a span, where the profile has any; gives it, and the context in which it is current.

        Args:
            name: of the span, already judged.
            said: its first attributes, whose words are already judged, of types that one can have.
            parent: the context of its parent.
            kind: of the span.
            start_ns: when it began, in nanoseconds since the epoch.
        """
        now = self._policy.choice.now
        if not now.spans:
            return trace.INVALID_SPAN, parent
        first = said
        if now.coarse:
            first = self._policy.attributes(said, "span")
            if self._policy.coarse_span_times and not gates(self._tracer):
                start_ns = buckets.instant(start_ns)
        if not self._are_unseen():
            span = self._tracer.start_span(
                name, context=parent, kind=kind, attributes=dict(first), start_time=start_ns
            )
            return span, trace.set_span_in_context(span, parent)
        shortcut = self._shortcut
        if shortcut is not None:
            begun = shortcut.start(name, first, parent, kind=kind, start_ns=start_ns)
            if begun is not None:
                return begun
        span = self._tracer.start_span(name, context=parent, kind=kind, start_time=start_ns)
        if span.is_recording():
            put(span, first)
        return span, trace.set_span_in_context(span, parent)

    def finish(self, span: Span, attributes: dict[str, Any], said: Mapping[str, Any]) -> None:
        """Set the rest of a span's attributes; they are judged here or by the gate, not twice.

        Args:
            span: of ours.
            attributes: to set, not yet judged.
            said: its first ones: what a word is worth can depend on who answers, and where.
        """
        if is_gated(span):
            put(span, attributes)
        else:
            put(span, self._policy.attributes(attributes, "span", said), clean=True)

    def end(
        self,
        span: Span,
        attributes: dict[str, Any],
        said: Mapping[str, Any],
        start_ns: int,
        duration_ns: int,
    ) -> None:
        """Set the last of a span's attributes, as `finish` does, and end it.

        Args:
            span: of ours; it ends whatever becomes of its attributes.
            attributes: to set, not yet judged.
            said: its first ones.
            start_ns: when it began, in nanoseconds since the epoch.
            duration_ns: how long it lasted, in nanoseconds.
        """
        end_ns, shortcut, done = start_ns + duration_ns, self._shortcut, False
        try:
            try:
                done = shortcut is not None and shortcut.end(span, attributes, end_ns)
            except Exception:  # noqa: BLE001 - a changed SDK
                failed("spans.end")
            if not done and attributes and span.is_recording():
                self.finish(span, attributes, said)
        finally:
            if not done and span.is_recording():
                self._end(span, start_ns, end_ns)

    def _end(self, span: Span, start_ns: int, end_ns: int) -> None:
        """End a span, unless it says what the profile does not let leave any more.

        What it was started with cannot be taken back: where nobody gates it, one that began before
        the policy was tightened is forgotten, as the gate forgets what waits to be sent.
        """
        now = self._policy.choice.now
        if now.coarse and not is_gated(span):
            if now.late and start_ns <= now.since_ns:
                self._policy.count("span", "off")
                return
            if self._policy.coarse_span_times:
                end_ns = buckets.instant(end_ns)
        span.end(end_ns)

    def _are_unseen(self) -> bool:
        try:
            # As read in opentelemetry-sdk 1.30 to 1.45, which replaces both and changes neither.
            tracer: Any = self._tracer
            sampler, processors = tracer.sampler, tracer.span_processor._span_processors  # noqa: SLF001
            if sampler is self._sampler and processors is self._processors:
                return self._unseen
            kind = type(tracer.span_processor)
            unseen = (
                (kind.__module__, kind.__name__) in _FANS_OUT
                and _is_heedless(sampler)
                and all(ignores(processor, "on_start") for processor in processors)
            )
            self._shortcut = shortcut_of(tracer) if unseen else None
            self._unseen, self._sampler, self._processors = unseen, sampler, processors
        except AttributeError:
            # Another SDK, or none yet.
            return False
        except Exception:  # noqa: BLE001 - a changed SDK
            failed("spans.unseen")
            return False
        return unseen


def _is_heedless(sampler: Any) -> bool:
    """Whether a sampler is the SDK's, which decide by the trace alone."""
    kind = type(sampler)
    if kind.__module__ != "opentelemetry.sdk.trace.sampling":
        return False
    if kind.__name__ in {"StaticSampler", "TraceIdRatioBased"}:
        return True
    # Of the others the parts may be anyone's.
    parts = [part for name, part in vars(sampler).items() if name.endswith(("_root", "_sampled"))]
    return kind.__name__ in {"ParentBased", "ParentBasedTraceIdRatio"} and all(
        map(_is_heedless, parts)
    )


_CLEAN: Final = frozenset({str, int, float, bool})


def put(span: Span, attributes: Mapping[str, Any], *, clean: bool = False) -> None:
    """Set attributes of a span, as `Span.set_attributes` does, which looks at each for long.

    Args:
        span: anyone's.
        attributes: to set.
        clean: they are known to be of types that an attribute can have.
    """
    try:
        kept: Any = span._attributes  # type: ignore[attr-defined] # noqa: SLF001
        most = kept.maxlen
        if (
            type(span).__name__ == "_Span"
            and type(kept).__name__ == "BoundedAttributes"
            and kept.max_value_len is None
            and (most is None or len(kept._dict) + len(attributes) <= most)  # noqa: SLF001
            and (clean or _are_clean(attributes))
        ):
            # What the SDK holds while it sets them; a span that has ended keeps what it has.
            with span._lock, kept._lock:  # type: ignore[attr-defined] # noqa: SLF001
                if span._end_time is None and not kept._immutable:  # type: ignore[attr-defined] # noqa: SLF001
                    kept._dict.update(attributes)  # noqa: SLF001
                    return
    except Exception:  # noqa: BLE001 - a changed SDK: nothing was set yet
        failed("spans.put")
    span.set_attributes(attributes)


def _are_clean(attributes: Mapping[str, Any]) -> bool:
    for value in attributes.values():
        if type(value) in _CLEAN:
            continue
        if type(value) is not tuple:
            return False
        for each in value:
            if type(each) is not str:
                return False
    return True

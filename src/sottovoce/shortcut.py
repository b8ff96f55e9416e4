"""The short way to start and to end a span of the SDK: nobody can tell the difference but the clock.

`Tracer.start_span` asks the sampler with a dozen calls, and checks and copies for every span what
is the same for all of a tracer: half of what a span costs. Where the sampler is known to say yes
to what it is asked, and nobody looks at a span when it starts, the rest is filled in here from a
span that the tracer itself has started. When a span ends, the SDK makes a copy of it that says
what it said; our gate makes one that says what may leave, and needs no other.

All of it is private to the SDK (seen in opentelemetry-sdk 1.45): what that span is made of is
compared with what is known, and the SDK starts and ends every span where anything differs.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    TraceFlags,
    set_span_in_context,
)

from sottovoce.privacy.gated import gates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import SpanKind

_SDK: Final = "opentelemetry.sdk.trace"
_SAMPLING: Final = "opentelemetry.sdk.trace.sampling"
_RANDOM: Final = 2
"""`TraceFlags.RANDOM_TRACE_ID`."""

_PARENT: Final = set_span_in_context(
    NonRecordingSpan(
        SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    ),
    Context(),
)
_SPAN: Final = {
    "_name", "_context", "_kind", "_instrumentation_info", "_instrumentation_scope", "_parent",
    "_start_time", "_end_time", "_attributes", "_events", "_links", "_resource", "_status",
    "_sampler", "_trace_config", "_record_exception", "_set_status_on_exception",
    "_span_processor", "_limits", "_lock", "_record_end_metrics",
}  # fmt: skip
_ATTRIBUTES: Final = {"_dict", "maxlen", "dropped", "max_value_len", "_lock", "_immutable"}
_MADE_LATE: Final = {"_dq", "_lock"}
_LIST: Final = {"dropped", *_MADE_LATE}
_NOBODY: Final = SpanContext(0, 0, is_remote=False)
# Past what forbids it, where what is changed is new and nobody's yet.
_tuple, _put = tuple.__new__, dict.__setitem__


class Shortcut:
    """Starts and ends spans of one tracer.

    Args:
        tracer: whose spans nobody looks at when they start.

    Raises:
        ValueError: its spans are not as we know them, or may not all be recorded.
        AttributeError: likewise.
    """

    __slots__ = (
        "_attributes", "_attributes_type", "_current", "_end", "_flags", "_gate", "_lists", "_roots", "_span", "_span_type", "_start_span", "_state", "_tracer",
    )  # fmt: skip

    def __init__(self, tracer: Any) -> None:
        self._roots, children = _recorded(tracer.sampler)
        if (
            not children
            or type(tracer._tracer_metrics).__name__ != "NoOpTracerMetrics"
            or not _is_untouched(getattr(tracer.start_span, "__func__", None))
        ):
            raise ValueError
        # Never ended, so it goes nowhere.
        model = tracer.start_span("", context=_PARENT, start_time=0)
        own, attributes = vars(model), model._attributes
        lists = (model._events, model._links)
        if not (
            type(model).__name__ == "_Span"
            and _is_untouched(type(model).__init__)
            and _is_untouched(type(model).start)
            and _is_untouched(type(model).end)
            and own.keys() == _SPAN
            and type(attributes).__name__ == "BoundedAttributes"
            and vars(attributes).keys() == _ATTRIBUTES
            and attributes.max_value_len is None
            and all(type(each).__name__ == "BoundedList" for each in lists)
            and all(vars(each).keys() == _LIST for each in lists)
            and tuple(model._context) == (1, model._context.span_id, False, 1, {}, True)
        ):
            raise ValueError
        self._tracer, self._start_span = tracer, tracer.start_span
        self._span_type, self._span = type(model), own
        self._attributes_type, self._attributes = type(attributes), vars(attributes)
        self._lists = tuple((name, _later(own[name])) for name in ("_events", "_links"))
        # By whether the trace's id is random.
        sampled = TraceFlags.SAMPLED
        self._flags = TraceFlags(sampled), TraceFlags(sampled | _RANDOM)
        self._state = SpanContext(1, 1, is_remote=False).trace_state
        # Under what a context holds its span.
        (self._current,) = set_span_in_context(model, Context())
        # Whose spans it may end.
        self._gate = tracer.span_processor if gates(tracer) else None
        self._end = type(model).end

    def start(
        self,
        name: str,
        said: Mapping[str, Any],
        context: Context,
        *,
        kind: SpanKind,
        start_ns: int,
    ) -> tuple[Any, Context] | None:
        """Start a span; gives it, and the context in which it is current. None: the tracer has to.

        Args:
            name: of the span.
            said: its first attributes, of types that an attribute can have.
            context: of its parent.
            kind: of the span.
            start_ns: when it began, in nanoseconds since the epoch.
        """
        tracer = self._tracer
        ids = tracer.id_generator
        most = self._attributes["maxlen"]
        around: Any = context.get(self._current)
        parent = _NOBODY
        if around is not None and isinstance(around, Span):
            parent = around.get_span_context()
        if (
            type(parent) is not SpanContext
            or not tracer._tracer_config.is_enabled
            # Somebody put something around it since.
            or tracer.start_span != self._start_span
            or (most is not None and len(said) > most)
        ):
            return None
        above: SpanContext | None = parent
        trace_id, _, _, flags, state, valid = parent
        if valid:
            if not flags & 1:
                return None
            random = flags & _RANDOM
        else:
            if not self._roots:
                return None
            above, state = None, self._state
            trace_id, random = ids.generate_trace_id(), ids.is_trace_id_random()
        attributes = object.__new__(self._attributes_type)
        own = vars(attributes)
        own.update(self._attributes)
        own["_dict"] = dict(said)
        own["_lock"] = Lock()
        span = object.__new__(self._span_type)
        own = vars(span)
        own.update(self._span)
        own["_name"] = name
        span_id = ids.generate_span_id()
        # As `SpanContext.__new__` does it, whose result was compared.
        valid = 0 < trace_id < 1 << 128 and 0 < span_id < 1 << 64
        flags = self._flags[bool(random)]
        own["_context"] = _tuple(SpanContext, (trace_id, span_id, False, flags, state, valid))
        own["_kind"] = kind
        own["_parent"] = above
        own["_start_time"] = start_ns
        own["_attributes"] = attributes
        for kept, kind_of in self._lists:
            own[kept] = object.__new__(kind_of)
        own["_resource"] = tracer.resource
        own["_span_processor"] = tracer.span_processor
        own["_lock"] = Lock()
        inside = Context(context)
        _put(inside, self._current, span)
        return span, inside

    def end(self, span: Any, attributes: Mapping[str, Any], end_ns: int) -> bool:
        """Set the last attributes of a span, end it and show it to the gate.

        Args:
            span: of this tracer.
            attributes: to set; the gate judges them.
            end_ns: when it ended, in nanoseconds since the epoch.

        Returns:
            False: nothing was done, the SDK has to.
        """
        gate = self._gate
        if (
            gate is None
            or type(span) is not self._span_type
            or self._span_type.end is not self._end
        ):
            return False
        own = vars(span)
        if own["_span_processor"] is not gate or "end" in own or gate.is_seen_ending():
            return False
        kept = own["_attributes"]
        said, most = kept._dict, kept.maxlen
        with own["_lock"], kept._lock:
            if own["_end_time"] is not None or (
                most is not None and len(said) + len(attributes) > most
            ):
                return False
            said.update(attributes)
            own["_end_time"] = end_ns
            kept._immutable = True
        for name, kind in self._lists:
            if type(own[name]) is kind and "_dq" not in vars(own[name]):
                # None ever will be: the gate need not ask.
                own[name] = ()
        gate.on_end(span)
        return True


def _later(model: Any) -> Any:
    """`BoundedList`, without the kilobyte that an empty one takes: few spans have events or links.

    Args:
        model: an empty one.
    """
    most = model._dq.maxlen

    class BoundedList(type(model)):  # type: ignore[misc]
        dropped = 0

        def __getattr__(self, name: str) -> Any:
            # Asked for what is not there.
            if name not in _MADE_LATE:
                raise AttributeError(name)
            made: Any = Lock() if name == "_lock" else deque(maxlen=most)
            return self.__dict__.setdefault(name, made)

        def __len__(self) -> int:
            return len(self._dq) if "_dq" in vars(self) else 0

    return BoundedList


def _is_untouched(method: Any) -> bool:
    """Whether a method is the SDK's, and nobody has put anything around it."""
    return type(method) is FunctionType and method.__module__ == _SDK and not vars(method)


def shortcut_of(tracer: Any) -> Shortcut | None:
    """What starts and ends the spans of `tracer`; None: only itself can."""
    try:
        return Shortcut(tracer)
    except (AttributeError, ValueError):
        # Another sampler, another SDK.
        return None


def _recorded(sampler: Any) -> tuple[bool, bool]:
    """Whether a sampler of the SDK records and samples each root; each child of a sampled span."""
    kind = type(sampler)
    if kind.__module__ != _SAMPLING:
        return False, False
    if kind.__name__ == "StaticSampler":
        always = sampler._decision.name == "RECORD_AND_SAMPLE"
        return always, always
    if kind.__name__ not in {"ParentBased", "ParentBasedTraceIdRatio"}:
        return False, False
    parts = sampler._local_parent_sampled, sampler._remote_parent_sampled
    return _recorded(sampler._root)[0], all(_recorded(part)[1] for part in parts)

"""Keeps trace context and baggage from going to hosts that are not the operator's own."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from sottovoce import guard
from sottovoce.privacy.patterns import Pattern

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from opentelemetry.context import Context

    from sottovoce.privacy.policy import Policy

    class Headers(Protocol):
        """A request's, by name; in lower case, unless it does not care."""

        def get(self, name: str, /) -> str | None:
            """Give the value of a header, if it is there. May raise."""


log = logging.getLogger("sottovoce")

_ANYONES: Final = frozenset({"baggage", "tracestate"})
"""Headers that hold what a caller likes; OpenTelemetry's log quotes those that are malformed."""

WITHHOLD: Final = context_api.create_key("sottovoce-withhold")
"""Context key: while it is true nothing is injected, neither `traceparent` nor baggage."""


class GatedPropagator(TextMapPropagator):
    """A propagator that injects nothing into a request that context must not go with.

    Args:
        inner: what injects and extracts otherwise.
        policy: where a withheld injection is counted.
    """

    def __init__(self, inner: TextMapPropagator, policy: Policy) -> None:
        self._inner = inner
        self._policy = policy

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """What `inner` extracts; incoming context is the app's own affair. Never raises."""
        try:
            return self._inner.extract(carrier, context, getter)
        except Exception:  # noqa: BLE001 - see above
            guard.let_through()
            log.debug("sottovoce: extracting trace context failed (%s)", guard.handled())
            return context_api.get_current() if context is None else context

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Inject what `inner` does, unless `WITHHOLD` is set. Never raises."""
        try:
            if self._withholds(context):
                self._policy.count("propagation", "withheld")
                return
            self._inner.inject(carrier, context, setter)
        except Exception:  # noqa: BLE001 - see above
            guard.let_through()
            log.debug("sottovoce: injecting trace context failed (%s)", guard.handled())

    @property
    def fields(self) -> set[str]:
        """The header names that `inner` may set."""
        return self._inner.fields

    @staticmethod
    def _withholds(context: Context | None) -> Any:
        return context_api.get_value(WITHHOLD, context)


def headers(context: Context) -> dict[str, str]:
    """Give what the global propagator says of `context` to a host that may know it. May raise.

    Which span becomes the parent of what is done there, and never baggage: it holds what the app
    says, and to carry it is the affair of the app's own HTTP instrumentation.
    """
    from opentelemetry import propagate  # noqa: PLC0415 - it looks for plugins
    from opentelemetry.baggage import clear, get_all  # noqa: PLC0415 - as above

    carrier: dict[str, str] = {}
    if context_api.get_value(WITHHOLD, context):
        # From another host's call, in whose midst this one is made.
        context = context_api.set_value(WITHHOLD, False, context)
    if get_all(context):
        # Some propagators write it under names of their own (Jaeger's: `uberctx-…`).
        context = clear(context)
    propagate.inject(carrier, context)
    return {name.lower(): value for name, value in carrier.items()}


def caller(headers: Headers, by: TextMapPropagator | None = None) -> trace.Span:
    """Give the span that a request's headers name, and no more of them; may be an invalid one.

    May raise.

    Args:
        headers: of the request.
        by: reads them; the global propagator when absent.
    """
    by = _global()() if by is None else by
    if _reads_traceparent_alone(by):
        return _named(headers.get(_TRACEPARENT))
    found = by.extract(headers, context_api.Context(), _SPAN_ALONE)
    named = trace.get_current_span(found).get_span_context()
    return trace.NonRecordingSpan(
        trace.SpanContext(named.trace_id, named.span_id, named.is_remote, named.trace_flags)
    )


@lru_cache(maxsize=1)
def _global() -> Callable[[], TextMapPropagator]:
    """Give what gives the global propagator."""
    from opentelemetry import propagate  # noqa: PLC0415 - it looks for plugins

    return propagate.get_global_textmap


_TRACEPARENT: Final = "traceparent"
_NAMES_A_SPAN: Final = Pattern(
    r"[ \t]*(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
    r"(?:(-.*)|[ \t]*)$"
)
"""What `traceparent` says, as OpenTelemetry's propagator reads it."""
_LONGEST: Final = 512
_READS_IT: Final = "opentelemetry.trace.propagation.tracecontext.TraceContextTextMapPropagator"
_ALONE: Final = {_READS_IT, "opentelemetry.baggage.propagation.W3CBaggagePropagator"}
_ASKS_SEVERAL: Final = "opentelemetry.propagators.composite.CompositePropagator"
_looked_at: Final[list[tuple[Any, bool]]] = [(None, False)]
"""The propagator that was asked last, and whether it is what nearly every process has."""


def _reads_traceparent_alone(by: TextMapPropagator) -> bool:
    """Whether of a request's headers, but for baggage, a propagator reads `traceparent` alone."""
    known, alone = _looked_at[0]
    if known is by:
        return alone
    inner = by._inner if type(by) is GatedPropagator else by
    # As read in opentelemetry-api 1.30 to 1.45.
    parts = inner._propagators if _name(inner) == _ASKS_SEVERAL else (inner,)  # type: ignore[attr-defined]
    names = set(map(_name, parts))
    alone = _READS_IT in names and names <= _ALONE
    _looked_at[0] = by, alone
    return alone


def _name(of: object) -> str:
    return f"{type(of).__module__}.{type(of).__name__}"


def _named(header: str | None) -> trace.Span:
    """Give the span that a `traceparent` names."""
    found = _NAMES_A_SPAN.match(header) if header and len(header) <= _LONGEST else None
    if found is None:
        return trace.INVALID_SPAN
    version, trace_id, span_id, flags, more = found.groups()
    if more and version == "00":
        return trace.INVALID_SPAN
    return trace.NonRecordingSpan(
        trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16))
        )
    )


class _SpanAlone(Getter["Headers"]):
    """Shows a propagator the headers that name a span."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        if key.lower() in _ANYONES:
            return None
        value = carrier.get(key) or carrier.get(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: Headers) -> list[str]:
        """None: only baggage has names that are not known before."""
        del carrier
        return []


_SPAN_ALONE: Final = _SpanAlone()

"""Keeps trace context and baggage from going to hosts that are not the operator's own."""

from __future__ import annotations

import logging
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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context

    from sottovoce.privacy.policy import Policy

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


def caller(headers: Mapping[str, str], by: TextMapPropagator | None = None) -> trace.Span:
    """Give the span that a request's headers name, and no more of them; may be an invalid one.

    Args:
        headers: by name; in lower case, unless the mapping does not care. May raise.
        by: reads them; the global propagator when absent.
    """
    if by is None:
        from opentelemetry import propagate  # noqa: PLC0415 - it looks for plugins

        by = propagate.get_global_textmap()
    found = by.extract(headers, context_api.Context(), _SPAN_ALONE)
    named = trace.get_current_span(found).get_span_context()
    return trace.NonRecordingSpan(
        trace.SpanContext(named.trace_id, named.span_id, named.is_remote, named.trace_flags)
    )


class _SpanAlone(Getter["Mapping[str, str]"]):
    """Shows a propagator the headers that name a span."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        if key.lower() in _ANYONES:
            return None
        value = carrier.get(key) or carrier.get(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        """None: only baggage has names that are not known before."""
        del carrier
        return []


_SPAN_ALONE: Final = _SpanAlone()

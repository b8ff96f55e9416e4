"""What engines tell beyond a call: their histograms, loading as a span, how many models there are.

Of a load nothing is recorded but what is known of the model that came of it, or the class or
code of its error: what was asked for may be a path.
"""

from __future__ import annotations

import weakref
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from sottovoce import loaded
from sottovoce.instruments import Engine
from sottovoce.pages import Words
from sottovoce.points import NOWHERE, Point
from sottovoce.privacy.propagation import WITHHOLD
from sottovoce.privacy.rules import FRAMES
from sottovoce.record import (
    ATTRIBUTE_OF,
    ERROR_TYPE,
    JUDGED,
    OPERATION,
    OUTCOME,
    PROVIDER,
    REQUEST_MODEL,
)
from sottovoce.registry import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import Span

    from sottovoce.call import Call, Facts
    from sottovoce.privacy.policy import Policy
    from sottovoce.spans import Spans

LOAD: Final = "load_model"
COUNT: Final = "sottovoce.model.count"

_MODEL: Final = ("model_architecture", "model_quantization", "model_parameters")
"""Facts that series are grouped by: the model decides them, so there are no more series."""

_REMEMBERED: Final = 256
_NS: Final = 10**9


class Loading:
    """A load that has begun.

    Attributes:
        span: its span.
        started_ns: when it began, in nanoseconds since the epoch.
        token: what undoes that the span is current.
    """

    __slots__ = ("span", "started_ns", "token")

    def __init__(self, span: Span, started_ns: int, token: Any) -> None:
        self.span = span
        self.started_ns = started_ns
        self.token = token


class Engines:
    """Records for one recorder; made when the first engine is seen.

    Args:
        spans: makes those of loads.
        meters: where the metrics go.
        meter: its meter of ours.
        policy: says what may be told.
        withhold: trace context goes to no host that a model may be downloaded from.
    """

    def __init__(
        self, spans: Spans, meters: MeterProvider, meter: Meter, policy: Policy, *, withhold: bool
    ) -> None:
        self._spans = spans
        self._policy = policy
        self._withhold = withhold
        self._engine = Engine(meter, policy.choice)
        self._words: dict[tuple[Any, ...], Words] = {}
        _observe_models(meters, meter, policy)

    def record(self, call: Call, point: Point, failed: Point) -> None:
        """Record what a call took in its engine; `failed` says its error too, if it has one."""
        words = self._model_words(call.facts, in_process=call.in_process)
        if call.in_process:
            self._engine.record(call, point, failed, words)
        elif call.error is None:
            self._engine.record_pace(call, point, words)

    def begin(self, provider: str) -> Loading:
        """A load begins: start its span and make it current, for what is downloaded."""
        started_ns = time_ns()
        said, current = {OPERATION: LOAD, PROVIDER: provider}, otel_context.get_current()
        span, context = self._spans.begin(
            LOAD, said, current, kind=SpanKind.INTERNAL, start_ns=started_ns
        )
        if self._withhold:
            context = otel_context.set_value(WITHHOLD, True, context)
        return Loading(span, started_ns, otel_context.attach(context))

    def loaded(
        self,
        provider: str,
        facts: Facts,
        seconds: float,
        error: BaseException | str | None,
        loading: Loading | None,
    ) -> None:
        """A load is over: end its span, record how long it took."""
        if loading is not None:
            otel_context.detach(loading.token)
        try:
            attributes: dict[str, Any] = {PROVIDER: provider}
            if "request_model" in facts:
                attributes[REQUEST_MODEL] = self._policy.model(facts["request_model"], local=True)
            attributes.update(self._model_words(facts, in_process=True).said)
            if error is not None:
                kind = type(error) if isinstance(error, BaseException) else error
                attributes[ERROR_TYPE] = self._policy.error(kind)
            context = otel_context.get_current()
            if loading is not None:
                if loading.span.get_span_context().is_valid:
                    context = trace.set_span_in_context(loading.span, context)
                self._finish(loading.span, facts, dict(attributes))
            now = self._policy.choice.now
            if now.off:
                return
            if now.coarse:
                attributes, context = self._policy.attributes(attributes, "metric"), NOWHERE
            self._engine.load_duration.record(seconds, Point(attributes, context))
        finally:
            if loading is not None:
                self._spans.end(loading.span, {}, {}, loading.started_ns, round(seconds * _NS))

    def _finish(self, span: Span, facts: Facts, attributes: dict[str, Any]) -> None:
        if not span.is_recording():
            return
        known: Mapping[str, Any] = facts
        error = attributes.get(ERROR_TYPE)
        attributes[OUTCOME] = "completed" if error is None else "failed"
        words = {JUDGED[fact]: known[fact] for fact in facts if fact in JUDGED}
        attributes.update(self._policy.attributes(words, "span"))
        attributes.update(
            (ATTRIBUTE_OF[fact], known[fact]) for fact in facts if fact in ATTRIBUTE_OF
        )
        if error is not None:
            span.set_status(Status(StatusCode.ERROR))
            told = self._policy.frames
            found = told.handled(error) if told else ()
            if found:
                attributes[FRAMES] = found
        if REQUEST_MODEL in attributes:
            span.update_name(f"{LOAD} {attributes[REQUEST_MODEL]}")
        self._spans.finish(span, attributes, {})

    def _model_words(self, facts: Facts, *, in_process: bool) -> Words:
        """What may be said, on metrics, of the model that ran."""
        known: Mapping[str, Any] = facts
        # Engines behind HTTP have a book of their own. A tightened policy says less: what it made
        # before is not asked for any more.
        key = (in_process, self._policy.choice.now, *map(known.get, _MODEL))
        found = self._words.get(key)
        if found is None:
            if len(self._words) >= _REMEMBERED:
                self._words.clear()
            given = {JUDGED[fact]: known[fact] for fact in _MODEL if fact in facts}
            found = self._words[key] = Words(self._policy.attributes(given, "metric"))
        return found


_observed: weakref.WeakSet[Any] = weakref.WeakSet()


def _observe_models(provider: MeterProvider, meter: Meter, policy: Policy) -> None:
    """Export how many models are loaded, once for each meter provider."""
    if provider in _observed:
        return
    _observed.add(provider)

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [
            metrics.Observation(number, _said(dict(kind), policy))
            for kind, number in loaded.counted().items()
            if not policy.choice.now.off
        ]

    entry = METRICS[COUNT]
    meter.create_observable_up_down_counter(
        COUNT, callbacks=[observe], unit=entry.unit, description=entry.description
    )


def _said(kind: dict[str, str], policy: Policy) -> dict[str, Any]:
    attributes = {PROVIDER: kind["provider"]}
    words = {JUDGED[fact]: kind[fact] for fact in _MODEL if fact in kind}
    attributes.update(policy.attributes(words, "metric"))
    if "request_model" in kind:
        attributes[REQUEST_MODEL] = policy.model(kind["request_model"], local=True)
    return policy.attributes(attributes, "metric") if policy.choice.now.coarse else attributes

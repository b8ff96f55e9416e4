"""What we count of ourselves, as metrics: what the gate dropped, what failed, what was unreadable."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics

from sottovoce import aggregations, guard, pages, points
from sottovoce.registry import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

    from sottovoce.privacy.policy import Policy

SCOPE: Final = "sottovoce"
"""The name of our instrumentation scope."""

_observed: weakref.WeakSet[Any] = weakref.WeakSet()


def observe(provider: MeterProvider, meter: Meter, policy: Policy) -> None:
    """Export our own counters, once for each meter provider."""
    if provider in _observed:
        return
    _observed.add(provider)
    sources: dict[str, Callable[[], Iterable[tuple[int, dict[str, str]]]]] = {
        "sottovoce.gate.dropped": lambda: (
            (count, {"sottovoce.gate.signal": signal, "sottovoce.gate.rule": rule})
            for (signal, rule), count in list(policy.dropped.items())
        ),
        "sottovoce.hook.errors": lambda: (
            (count, {"sottovoce.hook.place": place})
            for place, count in list(guard.failures.items())
        ),
        "sottovoce.decode.errors": lambda: (
            (count, {"sottovoce.decode.reason": reason})
            for reason, count in list(guard.undecodable.items())
        ),
    }
    for name, source in sources.items():
        meter.create_observable_counter(
            name,
            callbacks=[_observer(source, policy)],
            unit=METRICS[name].unit,
            description=METRICS[name].description,
        )


def _forked() -> None:
    """In a child process: count from zero, since the parent exports what it counted."""
    guard.failures.clear()
    guard.undecodable.clear()
    points.forget()
    for meters in list(_observed):
        _begin_anew(meters)


@guard.never_raise("own_counters.forked")
def _begin_anew(meters: Any) -> None:
    if hasattr(meters, "_measurement_consumer"):
        aggregations.begin_anew(meters, SCOPE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _observer(
    source: Callable[[], Iterable[tuple[int, dict[str, str]]]], policy: Policy
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        # Whoever collects asks here first, and is to find what calls have measured.
        pages.add_all()
        told = () if policy.choice.now.off else source()
        return [metrics.Observation(count, attributes) for count, attributes in told]

    return observe

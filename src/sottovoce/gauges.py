"""Memory and accelerators as metrics, while a runtime in this process is instrumented.

Observed when a reader collects, never on a call's way, and read at most every ten seconds
(`hardware.readings`). What this machine does not tell has no point. `strict` and `aggregate`
get the tiers of amounts, and shares in steps of 0.1.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics

from sottovoce import guard
from sottovoce._version import __version__
from sottovoce.hardware import gpu, readings
from sottovoce.privacy import buckets, policy
from sottovoce.record import PROVIDER, SCOPE
from sottovoce.registry import METRICS, SCHEMA_URLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from opentelemetry.metrics import CallbackOptions, Meter, Observation

    from sottovoce.hardware.readings import Readings
    from sottovoce.settings import Settings

    Points = Iterator[tuple[float | None, Mapping[str, str]]]

STATE: Final = "sottovoce.memory.state"

_PATIENCE_S: Final = 20.0
_NOTHING: Final[Mapping[str, str]] = {}
_FREE: Final = {"system.memory.state": "free"}
_MLX: Final = {PROVIDER: "mlx"}


def _process(now: Readings) -> Points:
    yield now.process_memory, _NOTHING


def _process_peak(now: Readings) -> Points:
    yield now.process_peak, _NOTHING


def _available(now: Readings) -> Points:
    yield now.available_memory, _NOTHING


def _free(now: Readings) -> Points:
    yield now.available_memory, _FREE


def _engine(now: Readings) -> Points:
    for state in ("active", "cache"):
        yield now.engine_memory.get(state), {**_MLX, STATE: state}


def _engine_peak(now: Readings) -> Points:
    yield now.engine_memory.get("peak"), _MLX


def _gpu(now: Readings) -> Points:
    yield (now.gpus.utilization if now.gpus else None), _NOTHING


def _gpu_memory(now: Readings) -> Points:
    yield (now.gpus.memory_used if now.gpus else None), _NOTHING


def _gpu_memory_share(now: Readings) -> Points:
    yield (now.gpus.memory_utilization if now.gpus else None), _NOTHING


def sources() -> dict[str, Callable[[Readings], Points]]:
    """Metric → its points, as (value, attributes), of readings; None where nothing was read."""
    return {
        "process.memory.usage": _process,
        "sottovoce.process.memory.peak": _process_peak,
        # The conventions have what is available for Linux alone; elsewhere it is what is free.
        **(
            {"system.memory.linux.available": _available}
            if sys.platform == "linux"
            else {"system.memory.usage": _free}
        ),
        "sottovoce.engine.memory.usage": _engine,
        "sottovoce.engine.memory.peak": _engine_peak,
        "hw.gpu.utilization": _gpu,
        "hw.gpu.memory.usage": _gpu_memory,
        "hw.gpu.memory.utilization": _gpu_memory_share,
    }


class _Users:
    """Who wants the gauges of a meter provider: while there is nobody, they have no points."""

    def __init__(self) -> None:
        self.names: set[str] = set()


_registered: Final[weakref.WeakKeyDictionary[Any, _Users]] = weakref.WeakKeyDictionary()
_PROXY: Final = "_ProxyMeterProvider"
"""Class of OpenTelemetry's API that stands for a global provider that is yet to come."""


@guard.never_raise("gauges.start")
def start(user: str, meter_provider: Any, chosen: Settings) -> None:
    """Observe for `user`, a runtime's instrumentor; instruments are made once for a provider.

    Args:
        user: its name.
        meter_provider: where points go; the global one when None.
        chosen: the settings that hold.
    """
    provider = meter_provider or metrics.get_meter_provider()
    users = _users_of(provider)
    if users is None:
        users = _registered[provider] = _Users()
        schema = SCHEMA_URLS["latest" if chosen.semconv == "latest" else "v1.41"]
        _make(provider.get_meter(SCOPE, __version__, schema_url=schema), users, chosen)
    users.names.add(user)


@guard.never_raise("gauges.stop")
def stop(user: str, meter_provider: Any) -> None:
    """End what `start` began."""
    users = _users_of(meter_provider or metrics.get_meter_provider())
    if users is not None:
        users.names.discard(user)


def _users_of(provider: Any) -> _Users | None:
    users = _registered.get(provider)
    if users is None and provider is metrics.get_meter_provider():
        # What was made of the proxy has become the global provider's.
        users = next((u for p, u in _registered.items() if type(p).__name__ == _PROXY), None)
        if users is not None:
            _registered[provider] = users
    return users


def _make(meter: Meter, users: _Users, chosen: Settings) -> None:
    choice = policy.active(chosen).choice
    for name, source in sources().items():
        known = METRICS[name]
        make = (
            meter.create_observable_gauge
            if known.instrument == "gauge"
            else meter.create_observable_up_down_counter
        )
        coarse = buckets.memory if known.unit == "By" else buckets.score

        def observe(
            _: CallbackOptions,
            source: Callable[[Readings], Points] = source,
            coarse: Callable[[float], float | None] = coarse,
        ) -> Iterable[Observation]:
            if not users.names or choice.now.off:
                return []
            return [
                metrics.Observation(shown, dict(attributes))
                for value, attributes in _observed(source) or ()
                if (shown := coarse(value) if choice.now.coarse else value) is not None
            ]

        make(name, callbacks=[observe], unit=known.unit, description=known.description)


@guard.never_raise("gauges.observe")
def _observed(
    source: Callable[[Readings], Points],
) -> list[tuple[float, Mapping[str, str]]]:
    return [(value, where) for value, where in source(readings.now()) if value is not None]


def told_here() -> tuple[str, ...]:
    """Names of the metrics that this machine has values for; waits for a driver to begin."""
    gpu.wait(_PATIENCE_S)
    return tuple(name for name, source in sources().items() if _observed(source))

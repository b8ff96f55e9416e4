"""The one place through which telemetry leaves: builds providers behind the gate, or gates them.

The seams, and why these: a processor among others sees what it likes but cannot take anything
from the ones before it, and an exporter's wrapper misses the exporters that are added later.
So the gate *is* the multi-processor of a tracer and logger provider, and stands in front of
the one method that every metric reader collects by. Whatever the SDK made before the gate came
(tracers, loggers, live spans, readers) is moved behind it.

A forked child keeps its gates; they are put back if anything of the fork undid them.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import _logs as logs
from opentelemetry import metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs._internal import (
    ConcurrentMultiLogRecordProcessor,
    SynchronousMultiLogRecordProcessor,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics._internal.measurement_consumer import SynchronousMeasurementConsumer
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)

from sottovoce import guard
from sottovoce.privacy.logs import LogGate
from sottovoce.privacy.metrics import MetricGate
from sottovoce.privacy.spans import SpanGate

if TYPE_CHECKING:
    from collections.abc import Callable

    from sottovoce.privacy.policy import Policy

SCOPE: Final = "sottovoce"

# Providers of the API that never export: nothing to gate, nothing to refuse.
_SILENT = (trace.NoOpTracerProvider, metrics.NoOpMeterProvider, logs.NoOpLoggerProvider)

_gated: weakref.WeakKeyDictionary[Any, Policy] = weakref.WeakKeyDictionary()


class CannotGate(Exception):
    """A provider has no seam that we know; the message says which and why."""


def gated_tracer_provider(policy: Policy, **options: Any) -> TracerProvider:
    """A `TracerProvider` whose spans all pass the gate; `options` are those of the class."""
    provider = TracerProvider(active_span_processor=SpanGate(policy), **options)
    _gated[provider] = policy
    return provider


def gated_logger_provider(policy: Policy, **options: Any) -> LoggerProvider:
    """A `LoggerProvider` whose records all pass the gate; `options` are those of the class."""
    provider = LoggerProvider(multi_log_record_processor=LogGate(policy), **options)
    _gated[provider] = policy
    return provider


def gated_meter_provider(policy: Policy, **options: Any) -> MeterProvider:
    """A `MeterProvider` whose readers all read behind the gate; `options` are those of the class.

    Raises:
        CannotGate: this SDK's meter provider is built otherwise than we know.
    """
    provider = MeterProvider(**options)
    _gate_metrics(policy, provider)
    return provider


def gate_in_place(
    policy: Policy,
    tracer_provider: Any = None,
    meter_provider: Any = None,
    logger_provider: Any = None,
) -> None:
    """Put the gate into providers that someone else built; one that has it stays as it is.

    A provider that is absent or does nothing (``NoOp…Provider``) is passed over.

    Raises:
        CannotGate: the seam of one is not there, or the gate could not be verified; the ones
            before it in the order of the arguments are gated.
    """
    for provider, put in (
        (tracer_provider, _gate_spans),
        (meter_provider, _gate_metrics),
        (logger_provider, _gate_logs),
    ):
        if provider is None or is_gated(provider):
            continue
        try:
            put(policy, provider)
        except CannotGate:
            raise
        except Exception as error:
            raise CannotGate(f"{type(provider).__name__}: {type(error).__name__}") from error
        if not is_gated(provider):
            raise CannotGate(f"{type(provider).__name__} cannot be verified to be gated")


def is_gated(provider: Any) -> bool:
    """Whether everything that `provider` makes passes the gate now. Never raises.

    True for one that makes nothing (``NoOp…Provider``).
    """
    try:
        if isinstance(provider, _SILENT):
            return True
        for kind, check in _CHECKS:
            if isinstance(provider, kind):
                return check(provider)
    except Exception:  # noqa: BLE001 - what cannot be verified is not gated
        guard.failed("gate verification")
    return False


# Private names below, all of opentelemetry-sdk, read in 1.45: TracerProvider._active_span_processor,
# ._tracers; LoggerProvider._multi_log_record_processor, ._logger_cache, ._active_loggers;
# MeterProvider._measurement_consumer, ._metric_readers; MetricReader._collect;
# SynchronousMeasurementConsumer._reader_storages; _span_processors and _log_record_processors of
# the multi-processors.


def _spans_are_gated(provider: Any) -> bool:
    gate = provider._active_span_processor
    return isinstance(gate, SpanGate) and all(
        tracer.span_processor is gate for tracer in list(provider._tracers.values())
    )


def _gate_spans(policy: Policy, provider: Any) -> None:
    if not isinstance(provider, TracerProvider):
        raise CannotGate(f"{type(provider).__name__} is not the SDK's tracer provider")
    old = provider._active_span_processor
    if isinstance(old, SpanGate):
        gate = old
    else:
        if type(old) not in {SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor}:
            raise CannotGate(f"the span processor is a {type(old).__name__}")
        gate = SpanGate(policy)
        _take_over(old, gate, "_span_processors", "add_span_processor")
        provider._active_span_processor = gate
    with provider._tracers_lock:
        for tracer in provider._tracers.values():
            tracer.span_processor = gate
    # A subclass may make its tracers in a way of its own.
    if getattr(provider.get_tracer(SCOPE), "span_processor", gate) is not gate:
        raise CannotGate(f"{type(provider).__name__} makes tracers that go round the gate")
    _gated[provider] = policy


def _logs_are_gated(provider: Any) -> bool:
    gate = provider._multi_log_record_processor
    return isinstance(gate, LogGate) and all(
        logger._multi_log_record_processor is gate
        for logger in [*provider._logger_cache.values(), *provider._active_loggers]
    )


def _gate_logs(policy: Policy, provider: Any) -> None:
    if not isinstance(provider, LoggerProvider):
        raise CannotGate(f"{type(provider).__name__} is not the SDK's logger provider")
    old = provider._multi_log_record_processor
    if isinstance(old, LogGate):
        gate = old
    else:
        if type(old) not in {SynchronousMultiLogRecordProcessor, ConcurrentMultiLogRecordProcessor}:
            raise CannotGate(f"the log record processor is a {type(old).__name__}")
        gate = LogGate(policy)
        _take_over(old, gate, "_log_record_processors", "add_log_record_processor")
        provider._multi_log_record_processor = gate
    with provider._active_loggers_lock:
        loggers: list[Any] = [*provider._logger_cache.values(), *provider._active_loggers]
    for logger in loggers:
        logger._multi_log_record_processor = gate
    # A subclass may make its loggers in a way of its own.
    if getattr(provider.get_logger(SCOPE), "_multi_log_record_processor", gate) is not gate:
        raise CannotGate(f"{type(provider).__name__} makes loggers that go round the gate")
    _gated[provider] = policy


def _take_over(old: Any, gate: Any, processors: str, add: str) -> None:
    """Give `gate` the processors of `old`, and let `old` feed nothing but `gate`.

    A span that is live now, and whoever keeps hold of `old`, still calls `old`.
    """
    with old._lock:
        setattr(gate, processors, getattr(old, processors))
        setattr(old, processors, (gate,))
        setattr(old, add, getattr(gate, add))


def _metrics_are_gated(provider: Any) -> bool:
    consumer = provider._measurement_consumer
    gate = vars(consumer).get("collect")
    return isinstance(gate, MetricGate) and all(
        reader._collect is gate for reader in _readers(provider)
    )


def _gate_metrics(policy: Policy, provider: Any) -> None:
    if not isinstance(provider, MeterProvider):
        raise CannotGate(f"{type(provider).__name__} is not the SDK's meter provider")
    consumer: Any = provider._measurement_consumer
    gate = vars(consumer).get("collect")
    if not isinstance(gate, MetricGate):
        if type(consumer) is not SynchronousMeasurementConsumer:
            raise CannotGate(f"the measurement consumer is a {type(consumer).__name__}")
        # Readers that are added later are given this attribute of the consumer.
        gate = MetricGate(policy, consumer.collect)
        vars(consumer)["collect"] = gate
    for reader in _readers(provider):
        reader._set_collect_callback(gate)
    if not _metrics_are_gated(provider):
        raise CannotGate("a metric reader keeps its own way to collect")
    _gated[provider] = policy


def _readers(provider: Any) -> list[Any]:
    return list(provider._measurement_consumer._reader_storages)


_CHECKS: tuple[tuple[type, Callable[[Any], bool]], ...] = (
    (TracerProvider, _spans_are_gated),
    (MeterProvider, _metrics_are_gated),
    (LoggerProvider, _logs_are_gated),
)

_GATES: tuple[tuple[type, Callable[[Policy, Any], None]], ...] = (
    (TracerProvider, _gate_spans),
    (MeterProvider, _gate_metrics),
    (LoggerProvider, _gate_logs),
)


def _forked() -> None:
    for provider, policy in list(_gated.items()):
        for kind, put in _GATES:
            if isinstance(provider, kind) and not is_gated(provider):
                try:
                    put(policy, provider)
                except Exception:  # noqa: BLE001 - nobody could catch it in a fork handler
                    guard.failed("gate after fork")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

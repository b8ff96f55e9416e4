"""The three providers behind the gate, built from `OTEL_*` variables as the SDK builds them.

The SDK's own configurator cannot be told to use other providers, and adds its processors to
providers that are global already. So we build them here, out of the same parts: exporters,
samplers and id generators by entry point, and the SDK's helper functions where it has them.
A part that cannot be had is left out with a warning: the app starts in any case.
"""

from __future__ import annotations

import inspect
import logging
import warnings
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import propagate
from opentelemetry._logs import set_logger_provider
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.metrics import set_meter_provider
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk import _configuration as stock
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_tracer_provider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util._importlib_metadata import entry_points

from sottovoce import settings
from sottovoce._version import __version__
from sottovoce.delivery import adopt
from sottovoce.delivery import exit as ending
from sottovoce.delivery.adopt import Providers
from sottovoce.privacy import gate, policy
from sottovoce.privacy.propagation import GatedPropagator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sottovoce.settings import Settings

log = logging.getLogger("sottovoce")

_BATCH: Final = {
    "max_queue_size": 2048,
    "schedule_delay_millis": 5000,
    "max_export_batch_size": 512,
    "export_timeout_millis": 30000,
}
"""The SDK's own defaults, for when `OTEL_BSP_*` or `OTEL_BLRP_*` contradict each other."""


class Pipeline:
    """Providers of ours, and what has to be done when they end.

    Attributes:
        providers: behind the gate.
        exporters: what they send with, where we know it.
        ending: closes them, once.
    """

    def __init__(
        self, providers: Providers, exporters: tuple[Any, ...], end: ending.Ending
    ) -> None:
        self.providers = providers
        self.exporters = exporters
        self.ending = end

    @property
    def is_open(self) -> bool:
        """Whether it still takes telemetry."""
        return self.ending.is_open


_current: Pipeline | None = None
_ours: weakref.WeakSet[Any] = weakref.WeakSet()


def current() -> Pipeline | None:
    """The pipeline that was configured last, while it is open."""
    return _current if _current is not None and _current.is_open else None


def remember(pipeline: Pipeline) -> Pipeline:
    """Make it the current one, and close it within the deadline when the process ends."""
    global _current  # noqa: PLW0603 - there is one pipeline a process, as there is one SDK
    pipeline.ending.arm()
    _current = pipeline
    return pipeline


def configure(chosen: Settings, *, auto_version: str | None = None) -> Pipeline | None:
    """Build the pipeline that the environment describes and make it global.

    Args:
        chosen: the settings; they have a destination.
        auto_version: version of the launcher, for `telemetry.auto.version`.

    Returns:
        The pipeline; None when a configuration file was refused.
    """
    if chosen.config_file:
        return adopt.from_file(chosen)
    judge = policy.activate(chosen)
    resource = _resource(auto_version)
    _opamp("pre_sdk_init_function", resource)
    exporters: list[Any] = []
    taken = _taken()
    built = Providers(
        *(
            None if occupant is not None else build(judge, chosen, resource, exporters)
            for occupant, build in zip(
                taken, (_tracer_provider, _meter_provider, _logger_provider), strict=True
            )
        )
    )
    _publish(built)
    adopt.watch()
    gate_propagation(judge, chosen)
    if chosen.logging_handler and built.logger is not None:
        _logging_handler(built.logger)
    _opamp("post_sdk_init_function", resource)
    end = ending.Ending(built, tuple(exporters), chosen.exit_timeout)
    return remember(Pipeline(built, tuple(exporters), end))


def _taken() -> Providers:
    """Global providers of someone else, whose signals need no pipeline of ours."""
    return Providers(*(None if provider in _ours else provider for provider in adopt.in_use()))


def _publish(built: Providers) -> None:
    """Make providers global where nothing is: OpenTelemetry lets it be done only once."""
    vacant = adopt.in_use()
    if built.tracer is not None and vacant.tracer is None:
        set_tracer_provider(built.tracer)
    if built.meter is not None and vacant.meter is None:
        set_meter_provider(built.meter)
    if built.logger is not None and vacant.logger is None:
        set_logger_provider(built.logger)
    for provider in built:
        if provider is not None:
            _ours.add(provider)


def gate_propagation(judge: Any, chosen: Settings) -> None:
    """Put the gate before the global propagator.

    `opentelemetry.propagate` reads `OTEL_PROPAGATORS` at import, which is before any distro
    runs: its default, with baggage, is replaced unless the operator asked for baggage.
    """
    inner = propagate.get_global_textmap()
    if isinstance(inner, GatedPropagator):
        return
    asked = (chosen.propagators or "tracecontext").split(",")
    baggage = set(W3CBaggagePropagator().fields) & set(inner.fields)
    if baggage and "baggage" not in {name.strip() for name in asked}:
        inner = CompositePropagator([TraceContextTextMapPropagator()])
    propagate.set_global_textmap(GatedPropagator(inner, judge))


def _resource(auto_version: str | None) -> Resource:
    from sottovoce import hardware  # noqa: PLC0415 - as in `adopt`: of use only here

    ours = {"telemetry.distro.name": "sottovoce", "telemetry.distro.version": __version__}
    if auto_version:
        ours["telemetry.auto.version"] = auto_version
    # What the operator or a detector says of the machine stays.
    return Resource(hardware.profile().attributes()).merge(Resource.create(ours))


def _tracer_provider(
    judge: Any, chosen: Settings, resource: Resource, exporters: list[Any]
) -> TracerProvider:
    sampler = _helped("_import_sampler", "_get_sampler")
    provider = gate.gated_tracer_provider(
        judge,
        resource=resource,
        shutdown_on_exit=False,
        **_present(sampler=sampler, id_generator=_id_generator()),
        **_configurator(TracerProvider, "tracer"),
    )
    for exporter in _made(chosen, "traces"):
        exporters.append(exporter)
        provider.add_span_processor(_batched(BatchSpanProcessor, exporter, "OTEL_BSP_*"))
    return provider


def _meter_provider(
    judge: Any, chosen: Settings, resource: Resource, exporters: list[Any]
) -> MeterProvider:
    readers: list[MetricReader] = []
    for made in _made(chosen, "metrics"):
        if isinstance(made, MetricReader):
            readers.append(made)
            continue
        exporters.append(made)
        readers.append(_periodic(made))
    return gate.gated_meter_provider(
        judge,
        metric_readers=readers,
        resource=resource,
        shutdown_on_exit=False,
        **_configurator(MeterProvider, "meter"),
    )


def _logger_provider(
    judge: Any, chosen: Settings, resource: Resource, exporters: list[Any]
) -> LoggerProvider:
    provider = gate.gated_logger_provider(
        judge,
        resource=resource,
        shutdown_on_exit=False,
        **_configurator(LoggerProvider, "logger"),
    )
    for exporter in _made(chosen, "logs"):
        exporters.append(exporter)
        provider.add_log_record_processor(
            _batched(BatchLogRecordProcessor, exporter, "OTEL_BLRP_*")
        )
    return provider


def _made(chosen: Settings, signal: str) -> Iterator[Any]:
    """The exporters (or readers) of a signal, made; one that cannot be is reported."""
    group = f"opentelemetry_{signal}_exporter"
    variable = settings.variable_of(f"{signal}_exporter")
    for name in chosen.exporters(signal):
        found = next(iter(entry_points(group=group, name=name)), None)
        if found is None:
            known = sorted({"none", "otlp", *(entry.name for entry in entry_points(group=group))})
            log.warning(
                "sottovoce: %s: %r cannot be used; choose of %s. Using none.",
                variable, name, ", ".join(known),
            )  # fmt: skip
            continue
        try:
            yield found.load()()
        except Exception as error:  # noqa: BLE001 - someone else's code, and the app must start
            from sottovoce.delivery import variables  # noqa: PLC0415 - only for what went wrong

            log.warning(
                "sottovoce: %s: exporter %r could not be made (%s). Using none.",
                variable, name, variables.told(error),
            )  # fmt: skip


def _batched(processor: Callable[..., Any], exporter: Any, named: str) -> Any:
    try:
        return processor(exporter)
    except ValueError as error:
        log.warning("sottovoce: %s: %s Using the defaults.", named, error)
        return processor(exporter, **_BATCH)


def _periodic(exporter: Any) -> MetricReader:
    try:
        return PeriodicExportingMetricReader(exporter)
    except ValueError as error:
        message = " ".join(str(error).split())
        log.warning("sottovoce: OTEL_METRIC_EXPORT_INTERVAL: %s. Using 60000.", message)
        return PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)


def _id_generator() -> Any:
    try:
        return _helped("_import_id_generator", "_get_id_generator")
    except Exception as error:  # noqa: BLE001 - see _made
        known = sorted(entry.name for entry in entry_points(group="opentelemetry_id_generator"))
        log.warning(
            "sottovoce: OTEL_PYTHON_ID_GENERATOR: %s; choose of %s. Using 'random'.",
            error, ", ".join(known),
        )  # fmt: skip
        return None


def _configurator(provider: type, signal: str) -> Mapping[str, Any]:
    """`OTEL_PYTHON_{TRACER,METER,LOGGER}_CONFIGURATOR`, of SDKs that have it (1.39 on)."""
    argument = f"_{signal}_configurator"
    if argument not in inspect.signature(provider).parameters:
        return {}
    return _present(**{argument: _helped(f"_import{argument}", f"_get{argument}")})


def _helped(load: str, name: str) -> Any:
    """What the SDK's configuration helpers make of their variable; None without them.

    Private functions of `opentelemetry.sdk._configuration`, there since 1.20 or later; all of
    them report what they cannot use and fall back to the default.
    """
    loader, named = getattr(stock, load, None), getattr(stock, name, None)
    return loader(named()) if loader is not None and named is not None else None


def _opamp(moment: str, resource: Resource) -> None:
    """Run the hook that lets an OpAMP agent configure itself (SDK 1.41 on)."""
    find = getattr(stock, "_import_opamp", None)
    try:
        start = find(moment) if find is not None else None
        if start is not None:
            start(resource)
    except Exception as error:  # noqa: BLE001 - see _made
        log.warning("sottovoce: OpAMP's %s failed (%s).", moment, type(error).__name__)


def _logging_handler(provider: LoggerProvider) -> None:
    """Bridge `logging`, as the SDK does on request; its handler is deprecated but there."""
    handler = getattr(stock, "LoggingHandler", None)
    if handler is None:
        log.warning(
            "sottovoce: this SDK has no handler for logging any more; "
            "install opentelemetry-instrumentation-logging."
        )
        return
    with warnings.catch_warnings():
        # That it is deprecated is no news to whoever asked for it, nor a reason to fail.
        warnings.simplefilter("ignore")
        made = handler(level=logging.NOTSET, logger_provider=provider)
    made.flush = _unless_at_the_end(made.flush)
    logging.getLogger().addHandler(made)
    keep = getattr(stock, "_overwrite_logging_config_fns", None)
    if keep is not None:
        keep(made)


def _unless_at_the_end(flush: Callable[[], None]) -> Callable[[], None]:
    """`flush` of the SDK's handler, which starts a thread.

    `logging` calls it as the last of all, when Python 3.12 and later start none any more (the
    exception would be printed) and everything was exported.
    """

    def flushed() -> None:
        with suppress(RuntimeError):
            flush()

    return flushed


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

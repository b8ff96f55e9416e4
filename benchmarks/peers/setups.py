"""How each instrumentation is set up, on providers that are the same for all.

Nothing here is imported before it is asked for, so that what it takes is counted.
"""

import contextlib
import time
from pathlib import Path

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    InMemoryLogRecordExporter,
    LogRecordExporter,
    LogRecordExportResult,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

with contextlib.suppress(ImportError):  # nobody's own, as the SDK; not where all is by hand
    import opentelemetry.instrumentation.instrumentor
    import opentelemetry.instrumentation.utils  # noqa: F401

HOUR = 3_600_000  # ms: nothing is exported while something is measured


class NoSpans(SpanExporter):
    def export(self, spans):
        return SpanExportResult.SUCCESS


class NoMetrics(MetricExporter):
    def export(self, *args, **kwargs):
        return MetricExportResult.SUCCESS

    def force_flush(self, *args, **kwargs):
        return True

    def shutdown(self, *args, **kwargs):
        pass


class NoLogs(LogRecordExporter):
    def export(self, batch):
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis=0):
        return True

    def shutdown(self):
        pass


class Unended(SpanProcessor):
    """Knows the scopes of the spans that were started and have not ended."""

    def __init__(self):
        self.scopes = {}

    def on_start(self, span, parent_context=None):
        self.scopes[span.context.span_id] = span.instrumentation_scope.name

    def on_end(self, span):
        self.scopes.pop(span.context.span_id, None)


class Pipeline:
    """What an app hangs on its providers: exporters that keep nothing, or, to check, everything.

    Attributes:
        tracers, meters, loggers: the providers; None where an instrumentation brings its own.
        spans, logs: what was exported, when everything is kept.
        unended: which spans were not.
    """

    def __init__(self, keep=False):
        self.tracers = self.meters = self.loggers = None
        self.unended, self.spans, self.logs = Unended(), None, None
        if keep:
            self.spans, self.logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
            self.processors = [self.unended, SimpleSpanProcessor(self.spans)]
            self.log_processor = SimpleLogRecordProcessor(self.logs)
            self.reader = InMemoryMetricReader()
        else:
            queue = {"max_queue_size": 1 << 16, "schedule_delay_millis": HOUR}
            self.processors = [BatchSpanProcessor(NoSpans(), **queue)]
            self.log_processor = BatchLogRecordProcessor(NoLogs(), **queue)
            self.reader = PeriodicExportingMetricReader(NoMetrics(), export_interval_millis=HOUR)

    def provide(self, tracers=TracerProvider, meters=MeterProvider, loggers=LoggerProvider):
        """Make the global providers, with these constructors."""
        self.tracers, self.loggers = tracers(), loggers()
        self.meters = meters(metric_readers=[self.reader])
        for processor in self.processors:
            self.tracers.add_span_processor(processor)
        self.loggers.add_log_record_processor(self.log_processor)
        trace.set_tracer_provider(self.tracers)
        metrics.set_meter_provider(self.meters)
        _logs.set_logger_provider(self.loggers)
        return self

    def flush(self):
        for processor in [*self.processors, self.log_processor]:
            processor.force_flush()


def floor(pipeline, setting):
    import floor

    floor.install(pipeline.provide())


def sottovoce(pipeline, setting):
    from functools import partial

    from sottovoce.instrumentors import ALL
    from sottovoce.settings import Settings

    settings = Settings(key="a key of the benchmark, not a secret")
    if "no gate" in setting:
        pipeline.provide()
    else:
        # As its launcher sets it up: everything passes the gate.
        from sottovoce.privacy import gate
        from sottovoce.privacy.policy import activate

        policy = activate(settings)
        pipeline.provide(
            partial(gate.gated_tracer_provider, policy),
            partial(gate.gated_meter_provider, policy),
            partial(gate.gated_logger_provider, policy),
        )
    for kind in ALL:
        instrument(pipeline, kind, settings=settings)


def official_genai(pipeline, setting):
    pipeline.provide()
    from opentelemetry.instrumentation.genai.anthropic import AnthropicInstrumentor
    from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

    instrument(pipeline, OpenAIInstrumentor)
    instrument(pipeline, AnthropicInstrumentor)


def official_openai_v2(pipeline, setting):
    pipeline.provide()
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

    instrument(pipeline, OpenAIInstrumentor)


def openllmetry(pipeline, setting):
    pipeline.provide()
    from opentelemetry.instrumentation.anthropic import AnthropicInstrumentor
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    instrument(pipeline, OpenAIInstrumentor)
    instrument(pipeline, AnthropicInstrumentor)


def openinference(pipeline, setting):
    pipeline.provide()
    from openinference.instrumentation.anthropic import AnthropicInstrumentor
    from openinference.instrumentation.openai import OpenAIInstrumentor

    instrument(pipeline, OpenAIInstrumentor)
    instrument(pipeline, AnthropicInstrumentor)


def instrument(pipeline, kind, **more):
    kind().instrument(
        tracer_provider=pipeline.tracers,
        meter_provider=pipeline.meters,
        logger_provider=pipeline.loggers,
        **more,
    )


def openlit(pipeline, setting):
    pipeline.provide()
    import openlit

    # It takes the providers that are global already; its prices would come from the network.
    prices = Path(__file__).with_name("no_prices.json")
    openlit.init(capture_message_content="off" not in setting, pricing_json=str(prices))


def logfire(pipeline, setting):
    import logfire

    # Its providers are its own, and global.
    logfire.configure(
        send_to_logfire=False,
        console=False,
        inspect_arguments=False,
        additional_span_processors=pipeline.processors,
        metrics=logfire.MetricsOptions(additional_readers=[pipeline.reader]),
        advanced=logfire.AdvancedOptions(log_record_processors=[pipeline.log_processor]),
    )
    logfire.instrument_openai()
    logfire.instrument_anthropic()


SETUPS = {
    "floor": floor,
    "sottovoce": sottovoce,
    "official genai": official_genai,
    "official openai-v2": official_openai_v2,
    "OpenLLMetry": openllmetry,
    "OpenInference": openinference,
    "OpenLIT": openlit,
    "Logfire": logfire,
}


def pydantic_plugins():
    """Milliseconds of CPU for what a plugin of pydantic loads, before any SDK makes a model."""
    import pydantic  # noqa: F401 - every SDK has it
    from pydantic.plugin import _loader

    begun = time.process_time_ns()
    found = list(_loader.get_plugins())
    return (time.process_time_ns() - begun) / 1e6 if found else 0.0


def set_up(name, setting, keep=False):
    """The pipeline with an instrumentation on it, and the CPU milliseconds over plain providers."""
    # One that is thrown away: what everybody pays once is nobody's.
    for each in (plain() for _ in range(2)):
        bare = each
    begun = time.process_time_ns()
    pipeline = Pipeline(keep)
    SETUPS[name](pipeline, setting)
    return pipeline, (time.process_time_ns() - begun) / 1e6 - bare


def plain():
    begun = time.process_time_ns()
    pipeline = Pipeline()
    providers = TracerProvider(), MeterProvider([pipeline.reader]), LoggerProvider()
    providers[0].add_span_processor(pipeline.processors[0])
    providers[2].add_log_record_processor(pipeline.log_processor)
    took = (time.process_time_ns() - begun) / 1e6
    for provider in providers:
        provider.shutdown()
    return took

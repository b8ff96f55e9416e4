"""A rival distribution, as pip would install it, found before everything in site-packages."""

import textwrap
from pathlib import Path

import pytest

RIVAL = '''
    import os
    from opentelemetry import _logs, metrics, trace
    from opentelemetry.instrumentation.distro import BaseDistro
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    def write(what):
        with open(os.environ["RIVAL_OUT"], "a") as out:
            out.write(what + "\\n")

    class Spans(SpanExporter):
        def export(self, spans):
            for span in spans:
                write(span.to_json(indent=None))

    class Metrics(MetricExporter):
        def export(self, data, timeout_millis=0, **_):
            write(data.to_json(indent=None))
        def force_flush(self, timeout_millis=0):
            return True
        def shutdown(self, timeout_millis=0, **_):
            pass

    class Logs(LogRecordExporter):
        def export(self, batch):
            for record in batch:
                write(record.to_json(indent=None))
        def force_flush(self, timeout_millis=0):
            return True
        def shutdown(self):
            pass

    class Distro(BaseDistro):
        def _configure(self, **_):
            write("rival distro")

    class Odd(trace.TracerProvider):
        """Not the SDK's: what it does with a span nobody knows."""
        def __init__(self):
            self.inner = TracerProvider()
            self.inner.add_span_processor(BatchSpanProcessor(Spans()))
        def get_tracer(self, *args, **kwargs):
            return self.inner.get_tracer(*args, **kwargs)
        def shutdown(self):
            write("rival shut down")
            self.inner.shutdown()

    class Configurator:
        def configure(self, **_):
            write("rival configurator")
            if os.environ.get("RIVAL_IS_ODD"):
                trace.set_tracer_provider(Odd())
                return
            tracers = TracerProvider()
            tracers.add_span_processor(BatchSpanProcessor(Spans()))
            trace.set_tracer_provider(tracers)
            # Used before anybody could gate it.
            tracers.get_tracer("sottovoce")
            metrics.set_meter_provider(
                MeterProvider([PeriodicExportingMetricReader(Metrics())])
            )
            loggers = LoggerProvider()
            loggers.add_log_record_processor(BatchLogRecordProcessor(Logs()))
            _logs.set_logger_provider(loggers)
'''

ENTRY_POINTS = """
    [opentelemetry_distro]
    rival = rival:Distro
    [opentelemetry_configurator]
    rival = rival:Configurator
"""


class Rival:
    def __init__(self, path: Path):
        self.path = path
        self.out = path / "out.jsonl"
        (path / "rival.py").write_text(textwrap.dedent(RIVAL))
        info = path / "rival-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(ENTRY_POINTS))

    @property
    def exported(self):
        return self.out.read_text() if self.out.exists() else ""


@pytest.fixture
def rival(tmp_path):
    return Rival(tmp_path)

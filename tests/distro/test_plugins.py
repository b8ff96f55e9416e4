"""Everything that OpenTelemetry lets an operator plug in by entry point is plugged in."""

import textwrap

import pytest

from delivery.launcher import SPAN, run
from delivery.sink import Sink

pytestmark = pytest.mark.e2e

PLUGS = """
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    from opentelemetry.sdk.trace import _TracerConfig

    class Ids(IdGenerator):
        def generate_span_id(self):
            return 0x5150
        def generate_trace_id(self):
            return 0x7ace

    def sampler(argument):
        print("sampler", argument)
        return ALWAYS_ON

    def quiet(scope):
        return _TracerConfig(is_enabled=scope.name != "noisy")

    class Reader(MetricReader):
        def __init__(self):
            super().__init__()
        def _receive_metrics(self, data, timeout_millis=0, **_):
            names = {m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}
            print("reader", sorted(names))
        def shutdown(self, timeout_millis=0, **_):
            self.collect()

    def early(resource):
        print("opamp before", resource.attributes["telemetry.distro.name"])

    def late(resource):
        from opentelemetry import trace
        print("opamp after", type(trace.get_tracer_provider()).__name__)
"""

ENTRY_POINTS = """
    [opentelemetry_id_generator]
    plug = plugs:Ids
    [opentelemetry_traces_sampler]
    plug = plugs:sampler
    [_opentelemetry_tracer_configurator]
    plug = plugs:quiet
    [opentelemetry_metrics_exporter]
    plug = plugs:Reader
    [_opentelemetry_opamp]
    pre_sdk_init_function = plugs:early
    post_sdk_init_function = plugs:late
"""


@pytest.fixture
def plugs(tmp_path):
    (tmp_path / "plugs.py").write_text(textwrap.dedent(PLUGS))
    info = tmp_path / "plugs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(ENTRY_POINTS))
    return tmp_path


def test_sampler_ids_configurator_reader_and_opamp_are_the_operators(plugs):
    program = (
        SPAN
        + """
trace.get_tracer("noisy").start_span("chat", attributes={"gen_ai.operation.name": "chat"}).end()
from opentelemetry import metrics
metrics.get_meter("sottovoce").create_counter("planted.metric").add(1)
"""
    )
    with Sink() as sink:
        ran = run(
            program,
            path=[plugs],
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
            OTEL_TRACES_SAMPLER="plug",
            OTEL_TRACES_SAMPLER_ARG="7",
            OTEL_PYTHON_ID_GENERATOR="plug",
            OTEL_PYTHON_TRACER_CONFIGURATOR="plug",
            OTEL_METRICS_EXPORTER="otlp,plug",
        )
    assert ran.err == ""
    assert "sampler 7" in ran.out
    assert "opamp before sottovoce" in ran.out
    assert "opamp after TracerProvider" in ran.out
    assert "reader ['sottovoce.gate.dropped']" in ran.out
    assert sink.span_names == ["chat"]
    assert sink.spans[0][2].trace_id == (0x7ACE).to_bytes(16, "big")
    assert sink.spans[0][2].span_id == (0x5150).to_bytes(8, "big")
    assert "sottovoce.gate.dropped" in sink.metric_names
    assert "planted.metric" not in sink.metric_names

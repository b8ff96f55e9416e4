"""Memory and GPUs as metrics: while a runtime is instrumented, in each profile."""

from __future__ import annotations

import sys

import pytest
from opentelemetry import metrics
from opentelemetry.metrics import _internal as metrics_api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, Sum
from opentelemetry.semconv._incubating.metrics import hw_metrics, process_metrics, system_metrics

from sottovoce import gauges, guard
from sottovoce.hardware import gpu, readings, tiers
from sottovoce.instrumentors import LlamaCppInstrumentor, MLXInstrumentor, OpenAIInstrumentor
from sottovoce.privacy import buckets, policy
from sottovoce.privacy.gate import gated_meter_provider
from sottovoce.privacy.policy import Policy
from sottovoce.registry import METRICS
from sottovoce.settings import Settings

GIB = tiers.GIB
READ = readings.Readings(
    process_memory=5 * GIB + 12345,
    process_peak=9 * GIB + 6,
    available_memory=19 * GIB + 54321,
    engine_memory={"active": 3 * GIB + 1, "cache": 0, "peak": 300 * GIB + 7},
    gpus=gpu.Gpus(utilization=0.8734, memory_used=70 * GIB + 3, memory_utilization=0.5512),
)
AVAILABLE = "system.memory.linux.available"
NAMES = {*gauges.sources(), "system.memory.usage"}


@pytest.fixture
def read(monkeypatch):
    """A machine that says what `READ` does."""
    monkeypatch.setattr(readings, "now", lambda: READ)


def points(reader):
    data = reader.get_metrics_data()
    return {
        (metric.name, *point.attributes.values()): point.value
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name in NAMES
        for point in metric.data.data_points
    }


@pytest.fixture
def instrumented(monkeypatch):
    """Applies an instrumentor to a gated provider of a profile; gives its reader."""
    monkeypatch.setattr(policy, "_active", [])
    applied, providers = [], []

    def apply(*kinds, profile="standard", provider=None):
        reader = InMemoryMetricReader()
        chosen = Settings(profile=profile, key="a key of the tests, long enough")
        provider = gated_meter_provider(policy.activate(chosen), metric_readers=[reader])
        providers.append(provider)
        for kind in kinds:
            applied.append(kind())
            applied[-1].instrument(meter_provider=provider, settings=chosen)
        return reader

    yield apply
    for instrumentor in applied:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()
    for provider in providers:
        provider.shutdown()


class TestWhatLeaves:
    @pytest.mark.mlx
    def test_standard_has_the_numbers(self, instrumented, read):
        pytest.importorskip("mlx_lm.generate")
        assert points(instrumented(MLXInstrumentor)) == {
            ("process.memory.usage",): 5 * GIB + 12345,
            ("sottovoce.process.memory.peak",): 9 * GIB + 6,
            (AVAILABLE,): 19 * GIB + 54321,
            ("sottovoce.engine.memory.usage", "mlx", "active"): 3 * GIB + 1,
            ("sottovoce.engine.memory.usage", "mlx", "cache"): 0,
            ("sottovoce.engine.memory.peak", "mlx"): 300 * GIB + 7,
            ("hw.gpu.utilization",): 0.8734,
            ("hw.gpu.memory.usage",): 70 * GIB + 3,
            ("hw.gpu.memory.utilization",): 0.5512,
        }

    @pytest.mark.mlx
    @pytest.mark.parametrize("profile", ["strict", "aggregate"])
    def test_the_tighter_profiles_have_tiers(self, instrumented, read, profile):
        pytest.importorskip("mlx_lm.generate")
        assert points(instrumented(MLXInstrumentor, profile=profile)) == {
            ("process.memory.usage",): 8 * GIB,
            ("sottovoce.process.memory.peak",): 12 * GIB,
            (AVAILABLE,): 24 * GIB,
            ("sottovoce.engine.memory.usage", "mlx", "active"): 4 * GIB,
            ("sottovoce.engine.memory.usage", "mlx", "cache"): 0,
            ("sottovoce.engine.memory.peak", "mlx"): 256 * GIB,
            ("hw.gpu.utilization",): 0.9,
            ("hw.gpu.memory.usage",): 96 * GIB,
            ("hw.gpu.memory.utilization",): 0.6,
        }

    @pytest.mark.mlx
    def test_off_has_nothing(self, instrumented, read):
        pytest.importorskip("mlx_lm.generate")
        assert points(instrumented(MLXInstrumentor, profile="off")) == {}

    @pytest.mark.mlx
    def test_a_provider_that_nobody_gates_gets_tiers_in_strict(self, instrumented, read):
        pytest.importorskip("mlx_lm.generate")
        instrumented(profile="strict")
        reader = InMemoryMetricReader()
        provider, instrumentor = MeterProvider([reader]), MLXInstrumentor()
        instrumentor.instrument(meter_provider=provider)
        try:
            assert points(reader)["process.memory.usage",] == 8 * GIB
        finally:
            instrumentor.uninstrument()
            provider.shutdown()

    @pytest.mark.parametrize("unit", ["By", ""])
    def test_what_others_observe_becomes_tiers_too(self, unit):
        reader = InMemoryMetricReader()
        gate = Policy(Settings(profile="strict", key="a key of the tests, long enough"))
        provider = gated_meter_provider(gate, metric_readers=[reader])
        meter = provider.get_meter("opentelemetry.instrumentation.system_metrics")
        used = meter.create_up_down_counter("system.memory.usage", unit=unit)
        used.add(7 * GIB + 1234567, {"system.memory.state": "used", "host.name": "alice's"})
        used.add(-5, {"system.memory.state": "free"})
        meter.create_gauge("hw.gpu.utilization", unit=unit and "1").set(0.123456)
        assert points(reader) == {
            ("system.memory.usage", "used"): 8 * GIB,
            ("system.memory.usage", "free"): 0,
            ("hw.gpu.utilization",): 0.1,
        }
        provider.shutdown()

    def test_tiers_of_metrics_and_of_attributes_have_the_same_edges(self):
        assert buckets.MEMORY == (0, *(edge * GIB for edge in (*tiers.EDGES, 256)))

    def test_they_are_declared_as_upstream_has_them(self):
        meter = MeterProvider().get_meter("test")
        for module, names in (
            (process_metrics, ["process.memory.usage"]),
            (system_metrics, ["system.memory.linux.available", "system.memory.usage"]),
            (
                hw_metrics,
                ["hw.gpu.utilization", "hw.gpu.memory.usage", "hw.gpu.memory.utilization"],
            ),
        ):
            for name in names:
                create = getattr(module, "create_" + name.replace(".", "_"))
                gauge = METRICS[name].instrument == "gauge"
                made = create(meter, []) if gauge else create(meter)
                assert (made.unit, made.description) == (
                    METRICS[name].unit,
                    METRICS[name].description,
                )

    def test_they_are_of_the_declared_kind(self, instrumented, read):
        pytest.importorskip("llama_cpp.llama")
        reader = instrumented(LlamaCppInstrumentor)
        [resource] = reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name in NAMES:
                    kind = Gauge if METRICS[metric.name].instrument == "gauge" else Sum
                    assert type(metric.data) is kind
                    assert not getattr(metric.data, "is_monotonic", False)


class TestWhen:
    def test_here(self, instrumented):
        pytest.importorskip("llama_cpp.llama")
        found = points(instrumented(LlamaCppInstrumentor))
        assert found["process.memory.usage",] > 1 << 20
        assert found["sottovoce.process.memory.peak",] > 1 << 20
        assert found[AVAILABLE,] > 1 << 20

    def test_not_without_a_runtime(self, instrumented, read):
        pytest.importorskip("openai")
        assert points(instrumented(OpenAIInstrumentor)) == {}

    @pytest.mark.mlx
    def test_two_runtimes_observe_once_and_until_the_last_is_gone(self, instrumented, read):
        pytest.importorskip("mlx_lm.generate")
        pytest.importorskip("llama_cpp.llama")
        reader = instrumented(MLXInstrumentor, LlamaCppInstrumentor)
        assert points(reader)["process.memory.usage",] == 5 * GIB + 12345
        MLXInstrumentor().uninstrument()
        assert points(reader)["process.memory.usage",] == 5 * GIB + 12345
        LlamaCppInstrumentor().uninstrument()
        assert points(reader) == {}

    def test_again_after_they_were_gone(self, instrumented, read):
        pytest.importorskip("llama_cpp.llama")
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        for _ in range(3):
            LlamaCppInstrumentor().instrument(meter_provider=provider)
            assert points(reader)["process.memory.usage",] == 5 * GIB + 12345
            LlamaCppInstrumentor().uninstrument()
            assert points(reader) == {}
        provider.shutdown()

    def test_the_global_provider_may_come_later(self, read, monkeypatch):
        pytest.importorskip("llama_cpp.llama")
        pytest.importorskip("mlx_lm.generate")
        # A process where nobody has set a provider yet.
        monkeypatch.setattr(metrics_api, "_METER_PROVIDER", None)
        monkeypatch.setattr(metrics_api, "_METER_PROVIDER_SET_ONCE", metrics_api.Once())
        proxy = metrics_api._ProxyMeterProvider()
        monkeypatch.setattr(metrics_api, "_PROXY_METER_PROVIDER", proxy)
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)
        LlamaCppInstrumentor().instrument()
        metrics.set_meter_provider(provider)
        proxy.on_set_meter_provider(provider)
        MLXInstrumentor().instrument()
        try:
            assert points(reader)["process.memory.usage",] == 5 * GIB + 12345
        finally:
            LlamaCppInstrumentor().uninstrument()
            MLXInstrumentor().uninstrument()
        assert points(reader) == {}
        provider.shutdown()

    def test_a_machine_that_says_nothing_has_no_points(self, instrumented, monkeypatch):
        pytest.importorskip("llama_cpp.llama")
        monkeypatch.setattr(readings, "now", readings.Readings)
        assert points(instrumented(LlamaCppInstrumentor)) == {}
        assert gauges.told_here() == ()

    def test_a_reading_that_fails_is_counted_and_the_rest_arrives(self, instrumented, monkeypatch):
        pytest.importorskip("llama_cpp.llama")

        def fail():
            raise OSError("/proc/self/statm")

        monkeypatch.setattr(guard, "failures", type(guard.failures)())
        monkeypatch.setattr(readings, "now", fail)
        reader = instrumented(LlamaCppInstrumentor)
        assert points(reader) == {}
        assert set(guard.failures) == {"gauges.observe"}

    def test_other_systems_say_what_is_free(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "darwin")
        told = gauges.sources()
        assert AVAILABLE not in told
        assert list(told["system.memory.usage"](READ)) == [
            (19 * GIB + 54321, {"system.memory.state": "free"})
        ]

"""The committed Collector configurations, run by a real Collector."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

pytestmark = pytest.mark.e2e

CONFIG = Path(__file__).resolve().parents[2] / "collector-config"
# Configuration -> what it is laid over. A new file has to be named here to be committed.
LAYERS = {"local.yaml": (), "backend.yaml": ("local.yaml",), "allow.yaml": ("local.yaml",)}
KINDS = ("receivers", "processors", "exporters", "connectors", "extensions")
CANARY = "canary-4711"


def configs() -> dict[str, dict]:
    return {
        path.name: yaml.safe_load(path.read_text())
        for path in CONFIG.glob("*.yaml")
        if path.name != "builder.yaml"
    }


def unknown_components(otelcol: Path, config: dict) -> set[str]:
    """Components of `config` under a name that this Collector does not give them itself."""
    listing = subprocess.run([otelcol, "components"], capture_output=True, text=True, check=True)
    known = yaml.safe_load(listing.stdout)
    return {
        f"{kind}: {name}"
        for kind in KINDS
        for name in config.get(kind, {})
        if name.split("/")[0] not in {each["name"] for each in known.get(kind, [])}
    }


def test_every_configuration_is_known_to_these_tests():
    assert set(configs()) == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_configuration_validates(otelcol, name):
    done = subprocess.run(
        [otelcol, "validate", *(f"--config={CONFIG / each}" for each in (*LAYERS[name], name))],
        env={**os.environ, "SOTTOVOCE_BACKEND": "http://127.0.0.1:4318"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_backend_must_be_named(otelcol):
    done = subprocess.run(
        [otelcol, "validate", *(f"--config={CONFIG / each}" for each in LAYERS)],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "endpoint" in done.stderr


@pytest.mark.parametrize("name", LAYERS)
def test_no_deprecated_or_unknown_component_name(otelcol, name):
    assert not unknown_components(otelcol, configs()[name])


def test_deprecated_alias_is_noticed(otelcol):
    assert unknown_components(otelcol, {"exporters": {"otlphttp/old": {}}}) == {
        "exporters: otlphttp/old"
    }


def test_manifest_has_every_component_in_use(otelcol):
    modules = " ".join(re.findall(r"gomod: (\S+)", (CONFIG / "builder.yaml").read_text()))
    for config in configs().values():
        for kind in KINDS:
            for name in config.get(kind, {}):
                part = name.split("/")[0].replace("_", "")
                suffix = {"processors": "processor", "extensions": ""}.get(kind, kind[:-1])
                assert f"/{part}{suffix}" in modules


def test_manifest_is_one_line_of_versions():
    manifest = yaml.safe_load((CONFIG / "builder.yaml").read_text())
    version = manifest["dist"]["version"]
    for kind in KINDS:
        for entry in manifest.get(kind, []):
            assert entry["gomod"].endswith(f" v{version}")


def test_every_pipeline_is_scrubbed_and_fails_closed():
    local = configs()["local.yaml"]
    scrub = local["processors"]["transform/scrub"]
    assert scrub["error_mode"] == "propagate"
    for pipeline in local["service"]["pipelines"].values():
        assert pipeline["processors"] == ["memory_limiter", "transform/scrub"]
    for config in configs().values():
        for pipeline in config["service"]["pipelines"].values():
            assert set(pipeline) <= {"receivers", "processors", "exporters"}
            assert pipeline.get("processors", ["memory_limiter", "transform/scrub"])
    statements = [s for key in scrub if key != "error_mode" for s in scrub[key]]
    patterns = {found for s in statements for found in re.findall(r'_keys\(.*, "(\^.*)"\)', s)}
    assert len(patterns) == 1
    assert local["exporters"]["debug"] == {"verbosity": "basic"}


def test_receivers_listen_on_loopback_unless_told_otherwise():
    text = (CONFIG / "local.yaml").read_text()
    endpoints = re.findall(r"endpoint: (\S+)", text)
    assert len(endpoints) == 3
    assert all(re.fullmatch(r"\$\{env:\w+:-127\.0\.0\.1:\d+\}", each) for each in endpoints)


def send(http: str, grpc: str | None = None) -> None:
    """Send each signal as an app without our gate would, canaries wherever text goes."""
    resource = Resource({"service.name": "plain", "user.id": CANARY})
    exporter = (
        GrpcSpans(endpoint=grpc, insecure=True)
        if grpc
        else OTLPSpanExporter(endpoint=f"{http}/v1/traces")
    )
    spans = TracerProvider(resource=resource, shutdown_on_exit=False)
    spans.add_span_processor(SimpleSpanProcessor(exporter))
    remote = trace.SpanContext(
        1, 2, True, trace.TraceFlags(1), trace.TraceState([("vendor", CANARY)])
    )
    with spans.get_tracer("plain", attributes={"input.value": CANARY}).start_as_current_span(
        "chat",
        trace.set_span_in_context(trace.NonRecordingSpan(remote)),
        attributes={"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 7},
    ) as span:
        span.set_attribute("gen_ai.input.messages", f'[{{"content": "{CANARY}"}}]')
        span.set_attribute("gen_ai.prompt.0.content", CANARY)
        span.set_attribute("llm.input_messages.0.message.content", CANARY)
        span.set_attribute("url.full", f"http://127.0.0.1/{CANARY}")
        span.add_event("exception", {"exception.message": CANARY, "exception.type": "ValueError"})
        span.set_status(trace.Status(trace.StatusCode.ERROR, CANARY))
        metrics = MeterProvider(
            [
                PeriodicExportingMetricReader(
                    OTLPMetricExporter(endpoint=f"{http}/v1/metrics"), export_interval_millis=1e9
                )
            ],
            resource=resource,
            # What a view drops comes back as an attribute of the exemplar.
            views=[
                View(
                    instrument_name="calls",
                    attribute_keys={"gen_ai.operation.name", "gen_ai.completion"},
                )
            ],
            shutdown_on_exit=False,
        )
        counter = metrics.get_meter("plain").create_counter("calls")
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.completion": CANARY}
        counter.add(3, {**attributes, "shopper": CANARY})
        metrics.shutdown()
    spans.shutdown()
    logs = LoggerProvider(resource=resource, shutdown_on_exit=False)
    logs.add_log_record_processor(
        SimpleLogRecordProcessor(OTLPLogExporter(endpoint=f"{http}/v1/logs"))
    )
    logs.get_logger("plain").emit(
        body=f"said {CANARY}",
        event_name="app.event",
        attributes={"http.response.status_code": 200, "exception.stacktrace": CANARY},
    )
    logs.shutdown()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_second_line_of_defence(collector, protocol):
    send(collector.http, collector.grpc if protocol == "grpc" else None)
    collector.stop()
    (span,) = collector.spans()
    assert span["attributes"] == {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 7}
    assert span["status"] == {"code": 2}
    assert "traceState" not in span
    assert span["resource"]["service.name"] == "plain"
    assert span["events"][0]["name"] == "exception"
    (point,) = collector.points()["calls"]
    assert point["attributes"] == {"gen_ai.operation.name": "chat"}
    assert point["asInt"] == "3"
    assert point["exemplars"][0].get("filteredAttributes", []) == []
    (record,) = collector.log_records()
    assert record["attributes"] == {"http.response.status_code": 200}
    assert record.get("body", {}).get("stringValue", "") == ""
    assert CANARY not in collector.everything()


def test_backend_gets_what_the_file_gets(collectors):
    backend = collectors()
    front = collectors(
        CONFIG / "local.yaml", CONFIG / "backend.yaml", SOTTOVOCE_BACKEND=backend.http
    )
    send(front.http)
    front.stop()
    backend.stop()
    assert [each["spanId"] for each in backend.spans()] == [
        each["spanId"] for each in front.spans()
    ]
    assert backend.points().keys() == front.points().keys() == {"calls"}
    assert len(backend.log_records()) == len(front.log_records()) == 1

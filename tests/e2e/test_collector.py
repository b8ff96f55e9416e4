"""The committed Collector configurations, run by a real Collector."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
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

from sottovoce import registry
from sottovoce.cli.commands import commands

pytestmark = pytest.mark.e2e

CONFIG = Path(__file__).resolve().parents[2] / "collector-config"
# Configuration -> what it is laid over. A new file has to be named here to be committed.
LAYERS = {"local.yaml": (), "backend.yaml": ("local.yaml",), "allow.yaml": ("local.yaml",)}
KINDS = ("receivers", "processors", "exporters", "connectors", "extensions")
CANARY = "canary-4711"


def mapping(attributes: list[dict]) -> dict:
    """Attributes of an event, which the Collector's reader leaves as they came."""
    found = {}
    for each in attributes:
        ((kind, value),) = each["value"].items()
        if kind == "arrayValue":
            value = [next(iter(item.values())) for item in value["values"]]
        found[each["key"]] = int(value) if kind == "intValue" else value
    return found


def configs() -> dict[str, dict]:
    return {
        path.name: yaml.safe_load(path.read_text())
        for path in CONFIG.glob("*.yaml")
        if path.name != "builder.yaml"
    }


def statements_of(processor: dict) -> list[tuple[int, str]]:
    """Every statement of a transform processor, with the number of its group."""
    groups = [group for key, given in processor.items() if key != "error_mode" for group in given]
    return [(number, s) for number, group in enumerate(groups) for s in group["statements"]]


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
    statements = [s for _, s in statements_of(scrub)]
    patterns = {found for s in statements for found in re.findall(r'_keys\(.*, "(\^.*)"\)', s)}
    assert len(patterns) == 1
    assert local["exporters"]["debug"] == {"verbosity": "basic"}


def test_each_group_of_statements_is_about_one_place():
    """What runs in the context of span events never sees a span that has none."""
    for config in configs().values():
        for name, processor in config.get("processors", {}).items():
            if name.startswith("transform/"):
                places: dict[int, set[str]] = {}
                for group, statement in statements_of(processor):
                    places.setdefault(group, set()).update(
                        re.findall(r"\b(\w+)[.](?:attributes|status|trace_state|name|version|description|body|event_name|severity_text|filtered_attributes)\b", re.sub(r'"[^"]*"', "", statement))
                    )  # fmt: skip
                assert all(len(each) == 1 for each in places.values()), places


def bare(http: str) -> None:
    """Send a span without events and a point without exemplars."""
    spans = TracerProvider(shutdown_on_exit=False)
    spans.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{http}/v1/traces")))
    span = spans.get_tracer("plain").start_span("s", attributes={"input.value": CANARY})
    span.set_status(trace.Status(trace.StatusCode.ERROR, CANARY))
    span.end()
    spans.shutdown()
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=f"{http}/v1/metrics"), export_interval_millis=1e9
    )
    metrics = MeterProvider([reader], shutdown_on_exit=False)
    metrics.get_meter("plain").create_counter("calls").add(1, {"input.value": CANARY})
    metrics.shutdown()


def test_what_has_no_events_and_no_exemplars_is_scrubbed_too(collector):
    bare(collector.http)
    collector.stop()
    assert len(collector.spans()) == len(collector.points()) == 1
    assert CANARY not in collector.everything()


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


ALLOW = (CONFIG / "local.yaml", CONFIG / "allow.yaml")
DECLARED = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
    "gen_ai.request.temperature": 0.5,
    "gen_ai.request.stream": True,
    "gen_ai.usage.input_tokens": 7,
    "gen_ai.response.finish_reasons": ("stop",),
    "server.address": "api.openai.com",
    "http.route": "/v1/things/{id}",
    "error.type": "httpx.ReadTimeout",
}
RESOURCE = {"service.name": "plain", "telemetry.sdk.name": "opentelemetry"}


def said_to(http: str, attributes: dict, resource: dict, scope: str = "sottovoce") -> None:
    """Send `attributes` wherever attributes are, as an app without our gate would."""
    origin = Resource(resource)
    spans = TracerProvider(resource=origin, shutdown_on_exit=False)
    spans.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{http}/v1/traces")))
    remote = trace.SpanContext(
        1, 2, True, trace.TraceFlags(1), trace.TraceState([("vendor", CANARY)])
    )
    with spans.get_tracer(scope, CANARY, attributes={"a": CANARY}).start_as_current_span(
        "as it was",
        trace.set_span_in_context(trace.NonRecordingSpan(remote)),
        attributes=attributes,
    ) as span:
        span.add_event("exception", attributes)
        span.add_event(f"said {CANARY}", attributes)
        span.set_status(trace.Status(trace.StatusCode.ERROR, CANARY))
    spans.shutdown()
    metrics = MeterProvider(
        [
            PeriodicExportingMetricReader(
                OTLPMetricExporter(endpoint=f"{http}/v1/metrics"), export_interval_millis=1e9
            )
        ],
        resource=origin,
        shutdown_on_exit=False,
    )
    meter = metrics.get_meter(scope)
    meter.create_histogram("gen_ai.client.operation.duration", "s", CANARY).record(1, attributes)
    meter.create_counter(CANARY).add(1, attributes)
    metrics.shutdown()
    logs = LoggerProvider(resource=origin, shutdown_on_exit=False)
    logs.add_log_record_processor(
        SimpleLogRecordProcessor(OTLPLogExporter(endpoint=f"{http}/v1/logs"))
    )
    logs.get_logger(scope).emit(
        body={"said": CANARY}, event_name=CANARY, severity_text=CANARY, attributes=attributes
    )
    logs.shutdown()


def attributes_of(collector) -> dict[str, dict]:
    """What came through, by where it was."""
    (span,) = collector.spans()
    (record,) = collector.log_records()
    ((point,),) = collector.points().values()
    return {
        "span": span["attributes"],
        "event": mapping(span["events"][0].get("attributes", [])) if span.get("events") else {},
        "log": record["attributes"],
        "metric": point["attributes"],
        "resource": span["resource"],
    }


def test_allow_list_keeps_what_is_declared(collectors):
    collector = collectors(*ALLOW)
    said_to(collector.http, DECLARED, RESOURCE)
    collector.stop()
    plain = {
        key: list(value) if isinstance(value, tuple) else value for key, value in DECLARED.items()
    }
    for place, found in attributes_of(collector).items():
        expected = RESOURCE if place == "resource" else plain
        declared = {
            key: value
            for key, value in expected.items()
            if place in registry.ATTRIBUTES[key].signals
        }
        assert found == declared, place
    (span,) = collector.spans()
    assert span["name"] == "as it was"
    assert span["scope"] == "sottovoce"
    assert [event["name"] for event in span["events"]] == ["exception"]
    assert set(collector.points()) == {"gen_ai.client.operation.duration"}
    assert CANARY not in collector.everything()


def test_allow_list_takes_what_is_not_declared(collectors):
    collector = collectors(*ALLOW)
    unknown = {
        "shopper": CANARY,
        f"key {CANARY}": 1,
        "Gen_AI.operation.name": CANARY,
        "gen_ai.operation.name ": CANARY,
        "service.name": CANARY,  # declared, for resources
        "http.request.header.cookie": CANARY,
        "gen_ai.tool.definitions": CANARY,
    }
    said_to(
        collector.http, {**unknown, "gen_ai.usage.input_tokens": 7}, {"host.name": CANARY}, CANARY
    )
    collector.stop()
    for place, found in attributes_of(collector).items():
        assert found.keys() <= {"gen_ai.usage.input_tokens"}, place
    assert {span["scope"] for span in collector.spans()} == {"_OTHER"}
    assert CANARY not in collector.everything()


# Key, what was sent, what comes out (None: nothing).
VALUES = [
    ("gen_ai.provider.name", CANARY, "custom"),
    ("gen_ai.operation.name", CANARY, "_OTHER"),
    ("gen_ai.operation.name", 4711, "_OTHER"),
    ("gen_ai.usage.input_tokens", CANARY, None),
    ("gen_ai.request.temperature", CANARY, None),
    ("gen_ai.request.temperature", 1, 1),
    ("gen_ai.request.stream", CANARY, None),
    ("gen_ai.response.finish_reasons", CANARY, None),
    ("gen_ai.request.model", CANARY * 20, None),
    ("gen_ai.request.model", f"two\n{CANARY}", None),
    ("gen_ai.request.model", "h:0123456789ab", "h:0123456789ab"),
    ("gen_ai.conversation.id", CANARY, None),
    ("gen_ai.conversation.id", "0123456789abcdef", "0123456789abcdef"),
    ("gen_ai.tool.name", CANARY, None),
    ("server.address", f"a host of {CANARY}", None),
    ("http.route", f"/a/{CANARY}?q", None),
    ("error.type", f"it said {CANARY}", None),
]


def test_allow_list_looks_at_values(collectors):
    collector = collectors(*ALLOW)
    spans = TracerProvider(shutdown_on_exit=False)
    spans.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{collector.http}/v1/traces"))
    )
    for key, value, _ in VALUES:
        spans.get_tracer("t").start_span("s", attributes={key: value}).end()
    spans.shutdown()
    collector.stop()
    assert [span["attributes"] for span in collector.spans()] == [
        {} if becomes is None else {key: becomes} for key, _, becomes in VALUES
    ]
    assert CANARY not in collector.everything()


def test_what_the_collector_wrote_can_be_checked(collector):
    send(collector.http)
    collector.stop()
    done = CliRunner().invoke(commands, ["policy", "check", str(collector.out)])
    assert done.exit_code == 0, done.output
    assert "kept    gen_ai.usage.input_tokens = 7" in done.output
    assert "kept    name = chat" in done.output
    assert "kept    http.response.status_code = 200" in done.output
    assert "metric" in done.output


@pytest.mark.parametrize("signal", ["span", "event", "metric", "log", "resource"])
def test_allow_list_and_policy_name_the_same_keys(signal):
    """The fragment is generated; this reads it with other eyes."""
    statements = configs()["allow.yaml"]["processors"]["transform/allow"]
    place = {"event": "spanevent", "metric": "datapoint"}.get(signal, signal)
    lines = [line for _, line in statements_of(statements)]
    kept = [line for line in lines if line.startswith(f"keep_keys({place}.attributes, ")]
    assert len(kept) == (3 if signal == "resource" else 1)
    for line in kept:
        keys = set(re.findall(r'"([^"]+)"', line))
        never = {"drop", "seal", "count", "opt_in"}
        assert keys == {
            name
            for name, attribute in registry.ATTRIBUTES.items()
            if signal in attribute.signals and attribute.rule not in never
        }

"""The main job, end to end: an app under `opentelemetry-instrument`, a real Collector, its file.

The Collector runs without its own scrubbing: what it wrote is what left the process.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from servers import provider

pytestmark = pytest.mark.e2e

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KINDS = (
    "api_key baggage completion event exception log metadata meter metric metric_attribute model "
    "path prompt query resource response_model scope span_attribute span_name stop system "
    "tool_arguments tool_description tool_name tool_result user"
).split()
CANARIES = {kind: f"zq{number:02}{kind.replace('_', '')}" for number, kind in enumerate(KINDS)}
PSEUDONYM = re.compile("h:[0-9a-f]{12}")
RESOURCE = {
    "host.arch",
    "sottovoce.accelerator.family",
    "sottovoce.key.id",
    "sottovoce.total_memory_gb",
    "os.type",
    "os.version",
    "process.runtime.name",
    "process.runtime.version",
    "service.instance.id",
    "service.name",
    "telemetry.auto.version",
    "telemetry.distro.name",
    "telemetry.distro.version",
    "telemetry.sdk.language",
    "telemetry.sdk.name",
    "telemetry.sdk.version",
}
# OTLP's numbers.
CLIENT, INTERNAL, ERROR = 3, 1, 2
CANARIES["model"] = f"ft:gpt-4o-mini:{CANARIES['model']}"


def launch(collector, folder, *arguments, **environ):
    """Run talkative.py under the launcher; returns what it printed, after the Collector ended."""
    app = folder / CANARIES["path"] / "talkative.py"
    app.parent.mkdir(exist_ok=True)
    app.write_text((HERE / "talkative.py").read_text())
    done = subprocess.run(
        [Path(sys.executable).with_name("opentelemetry-instrument"), sys.executable]
        + [app, *arguments],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CANARIES": json.dumps(CANARIES),
            "HF_HUB_OFFLINE": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http,
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_RESOURCE_ATTRIBUTES": f"customer.name={CANARIES['resource']}",
            "OTEL_PROPAGATORS": "tracecontext,baggage",
            # On a busy machine too what was recorded arrives.
            "SOTTOVOCE_EXIT_TIMEOUT": "60",
            # One export, at the end.
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
            # Everything that could say something is turned on.
            "OTEL_LOGS_EXPORTER": "otlp",
            "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true",
            "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "process,host,os",
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true",
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    collector.stop()
    assert done.returncode == 0, done.stderr
    assert "sottovoce" not in done.stderr
    told(done.stdout + done.stderr)
    told(collector.everything())
    return json.loads(done.stdout.splitlines()[-1])


def told(text):
    """Fail when `text` holds a canary, saying which and where."""
    for kind, canary in CANARIES.items():
        at = text.find(canary.rpartition(":")[2])
        assert at < 0, f"{kind} leaked: …{text[max(0, at - 200) : at + 100]}…"


def seconds(span):
    return (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) * 1e-9


def total(points, **attributes):
    """Count and sum of the measurements that have `attributes`, `__` for a dot."""
    wanted = {key.replace("__", "."): value for key, value in attributes.items()}
    found = [each for each in points if wanted.items() <= each["attributes"].items()]
    return sum(int(each["count"]) for each in found), sum(each["sum"] for each in found)


def split(collector):
    """The app's own span, and ours in the order in which they began: its children."""
    spans = sorted(collector.spans(), key=lambda span: int(span["startTimeUnixNano"]))
    root, *calls = spans
    assert "parentSpanId" not in root
    assert root["scope"] == root["name"] == "_OTHER"
    assert {span["traceId"] for span in spans} == {root["traceId"]}
    assert {span["parentSpanId"] for span in calls} == {root["spanId"]}
    assert {span["scope"] for span in calls} == {"sottovoce"}
    return root, calls


def assert_nothing_said(collector):
    """What is left of the app's own telemetry is its structure."""
    root, calls = split(collector)
    assert root["attributes"] == {}
    assert root["status"] == {"code": ERROR}
    # The app's own event had a name of its own.
    assert {each["name"] for each in root["events"]} == {"exception"}
    for span in (root, *calls):
        assert "message" not in span["status"]
        assert "traceState" not in span
    for record in collector.log_records():
        assert record["body"] == {}
        assert record["attributes"].keys() <= {"exception.type"}
    (warning,) = (
        each
        for each in collector.log_records()
        if each["severityText"] == "WARN" and each["scope"] == "_OTHER"
    )
    assert (warning["traceId"], warning["spanId"]) == (root["traceId"], root["spanId"])
    for each in (root, warning):
        assert each["resource"]["service.name"] == "shop"
        assert each["resource"]["telemetry.distro.name"] == "sottovoce"
        assert each["resource"].keys() <= RESOURCE
    points = collector.points()
    assert {
        name for name in points if not name.startswith(("gen_ai.", "sottovoce.", "hw.gpu."))
    } <= {"process.memory.usage", "system.memory.linux.available"}
    dropped = points["sottovoce.gate.dropped"]
    assert {"span", "log", "metric", "resource"} <= {
        each["attributes"]["sottovoce.gate.signal"] for each in dropped
    }
    assert "sottovoce.hook.errors" not in points
    assert "sottovoce.decode.errors" not in points


@pytest.fixture
def unscrubbed(collectors, tmp_path):
    """A Collector that writes what it gets."""
    layer = tmp_path / "unscrubbed.yaml"
    pipelines = {signal: {"processors": []} for signal in ("traces", "metrics", "logs")}
    layer.write_text(json.dumps({"service": {"pipelines": pipelines}}))
    return collectors(ROOT / "collector-config" / "local.yaml", layer)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(provider, "ANSWER", CANARIES["completion"])
    monkeypatch.setattr(provider, "MODEL", f"ft:gpt-4o-mini:{CANARIES['response_model']}")
    with provider.ProviderServer() as running:
        running.play("ok", "ok", "400", "500", "ok", "ok", "ok")
        yield running


@pytest.mark.parametrize(("protocol", "semconv"), [("http/protobuf", "v1.41"), ("grpc", "both")])
def test_calls_over_http(unscrubbed, server, tmp_path, protocol, semconv):
    endpoint = f"http://{unscrubbed.grpc}" if protocol == "grpc" else unscrubbed.http
    launch(
        unscrubbed,
        tmp_path,
        "remote",
        server.url,
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        SOTTOVOCE_SEMCONV=semconv,
    )
    assert len(server.requests) == 7
    for _, headers, _ in server.requests:
        headers = {name.lower(): value for name, value in headers.items()}
        assert "baggage" not in headers
        told(json.dumps({**headers, "authorization": ""}))

    assert_nothing_said(unscrubbed)
    _, calls = split(unscrubbed)
    whole, stream, failed, retried, raw, embedded = calls
    common = {
        "gen_ai.provider.name": "openai_compatible",
        "gen_ai.request.model": whole["attributes"]["gen_ai.request.model"],
        "server.address": "127.0.0.1",
        "server.port": server.port,
    }
    assert PSEUDONYM.fullmatch(common["gen_ai.request.model"])
    for span in calls:
        operation = "embeddings" if span is embedded else "chat"
        assert span["kind"] == CLIENT
        assert span["name"] == f"{operation} {common['gen_ai.request.model']}"
        assert (
            span["attributes"].items()
            >= {
                **common,
                "gen_ai.operation.name": operation,
                "sottovoce.call.outcome": "failed" if span is failed else "completed",
            }.items()
        )
        assert span["status"] == ({"code": ERROR} if span is failed else {})
    answered = [whole, stream, retried, raw]
    for span in answered:
        assert (
            span["attributes"].items()
            >= {
                "gen_ai.usage.input_tokens": 11,
                "gen_ai.usage.output_tokens": 7,
                "gen_ai.usage.cache_read.input_tokens": 3,
                "gen_ai.usage.reasoning.output_tokens": 2,
            }.items()
        )
        assert span["attributes"]["gen_ai.response.finish_reasons"] == ["stop"]
        assert PSEUDONYM.fullmatch(span["attributes"]["gen_ai.response.model"])
    for span in (whole, stream, failed, retried):
        assert span["attributes"]["gen_ai.request.temperature"] == 0.5
        assert span["attributes"]["sottovoce.request.tools.count"] == 1
    assert stream["attributes"]["gen_ai.request.stream"] is True
    assert stream["attributes"]["sottovoce.response.chunks"] == provider.WORDS + 3
    assert 0 < stream["attributes"]["gen_ai.response.time_to_first_chunk"] < seconds(stream)
    assert failed["attributes"]["error.type"] == "openai.BadRequestError"
    assert retried["attributes"]["http.request.resend_count"] == 1
    assert embedded["attributes"]["gen_ai.usage.input_tokens"] == 11
    assert "gen_ai.usage.output_tokens" not in embedded["attributes"]

    points = unscrubbed.points()
    name = "gen_ai.client.operation.duration"
    assert total(points[name])[0] == len(calls)
    assert total(points[name])[1] == pytest.approx(sum(map(seconds, calls)), rel=1e-6)
    assert total(points[name], error__type="openai.BadRequestError") == (
        1,
        pytest.approx(seconds(failed), rel=1e-6),
    )
    for kind, count, tokens in (("input", 5, 55), ("output", 4, 28)):
        usage = points["gen_ai.client.token.usage"]
        assert total(usage, gen_ai__token__type=kind) == (count, tokens)
    assert {each["unit"] for each in points[name]} == {"s"}
    first = points["gen_ai.client.operation.time_to_first_chunk"]
    assert total(first) == (
        1,
        pytest.approx(stream["attributes"]["gen_ai.response.time_to_first_chunk"], abs=2e-6),
    )
    gaps = points["gen_ai.client.operation.time_per_output_chunk"]
    assert total(gaps)[0] == provider.WORDS + 2
    for name in ("gen_ai.client.operation.duration", "gen_ai.client.token.usage"):
        for each in points[name]:
            assert common.items() <= each["attributes"].items()
    latest = {name for name in points if name.startswith("gen_ai.client.inference.")}
    if semconv == "v1.41":
        assert not latest
    else:
        name = "gen_ai.client.inference.duration"
        assert total(points[name])[0] == 5
        tokens = points["gen_ai.client.inference.usage.input_tokens"]
        assert sum(float(each.get("asInt", 0)) for each in tokens) == 44
        assert latest >= {
            "gen_ai.client.inference.time_to_first_chunk",
            "gen_ai.client.inference.usage.output_tokens",
            "gen_ai.client.inference.operation.output_tokens",
        }


def is_call(span):
    return span["attributes"]["gen_ai.operation.name"] != "load_model"


@pytest.mark.mlx
def test_calls_in_process(unscrubbed, tmp_path):
    model = tmp_path / CANARIES["path"] / "model"
    subprocess.run([sys.executable, ROOT / "examples" / "tiny_mlx.py", model], check=True)
    known = launch(unscrubbed, tmp_path, "local", str(model))

    assert_nothing_said(unscrubbed)
    _, calls = split(unscrubbed)
    load, failed, whole, stream = sorted(calls, key=is_call)
    described = {
        "sottovoce.model.architecture": "llama",
        "sottovoce.model.quantization": "f32",
        "sottovoce.model.parameters": "lt_1M",
    }
    common = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": whole["attributes"]["gen_ai.request.model"],
    }
    assert load["name"] == f"load_model {common['gen_ai.request.model']}"
    assert load["attributes"].items() >= described.items()
    assert (failed["name"], failed["status"]) == ("load_model", {"code": ERROR})
    for span, tokens in ((whole, 12), (stream, 9)):
        assert span["kind"] == INTERNAL
        assert span["name"] == f"text_completion {common['gen_ai.request.model']}"
        assert span["status"] == {}
        assert (
            span["attributes"].items()
            >= {
                **common,
                **described,
                "sottovoce.call.outcome": "completed",
                "gen_ai.request.max_tokens": tokens,
                "gen_ai.usage.input_tokens": known["prompt_tokens"],
                "gen_ai.usage.output_tokens": tokens,
            }.items()
        )
        assert span["attributes"]["gen_ai.response.finish_reasons"] == ["length"]
        assert "server.address" not in span["attributes"]
    assert stream["attributes"]["sottovoce.response.chunks"] == 9

    points = unscrubbed.points()
    both = pytest.approx(sum(map(seconds, (whole, stream))), rel=1e-6)
    assert total(points["gen_ai.client.operation.duration"]) == (2, both)
    for kind, tokens in (("input", 2 * known["prompt_tokens"]), ("output", 12 + 9)):
        usage = points["gen_ai.client.token.usage"]
        assert total(usage, gen_ai__token__type=kind) == (2, tokens)
    for name in ("request.duration", "time_to_first_token", "time_per_output_token"):
        assert total(points[f"gen_ai.server.{name}"])[0] == 2
        for each in points[f"gen_ai.server.{name}"]:
            assert common.items() <= each["attributes"].items()
    loaded, missing = sorted(
        points["sottovoce.model.load.duration"], key=lambda each: "error.type" in each["attributes"]
    )
    assert loaded["attributes"].items() >= described.items()
    for name in ("process.memory.usage", "sottovoce.engine.memory.peak"):
        [memory] = points[name]
        assert int(memory["asInt"]) > 0
    assert missing["attributes"].keys() <= {
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "error.type",
    }


@pytest.mark.llama_cpp
def test_calls_of_llama_cpp(unscrubbed, tmp_path):
    model = tmp_path / CANARIES["path"] / f"{CANARIES['model'].rpartition(':')[2]}.gguf"
    model.parent.mkdir()
    subprocess.run([sys.executable, ROOT / "examples" / "tiny_gguf.py", model], check=True)
    known = launch(unscrubbed, tmp_path, "llama", str(model))

    assert_nothing_said(unscrubbed)
    _, calls = split(unscrubbed)
    load, completion, chat = sorted(calls, key=is_call)
    assert load["attributes"]["gen_ai.operation.name"] == "load_model"
    model_id = completion["attributes"]["gen_ai.request.model"]
    for span, operation, tokens in ((completion, "text_completion", 6), (chat, "chat", 5)):
        assert span["kind"] == INTERNAL
        assert span["name"] == f"{operation} {model_id}"
        assert span["status"] == {}
        assert (
            span["attributes"].items()
            >= {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "llama_cpp",
                "gen_ai.request.model": model_id,
                "gen_ai.request.max_tokens": tokens,
                "gen_ai.usage.output_tokens": tokens,
                "sottovoce.model.architecture": "llama",
                "sottovoce.model.quantization": "f32",
                "sottovoce.model.context_size": 256,
                "sottovoce.call.outcome": "completed",
            }.items()
        )
        assert span["attributes"]["gen_ai.response.finish_reasons"] == ["length"]
    assert completion["attributes"]["gen_ai.usage.input_tokens"] == known["prompt_tokens"]
    assert chat["attributes"]["sottovoce.request.user_turn"] is True
    assert chat["attributes"]["sottovoce.request.stop_sequences.count"] == 1
    assert chat["attributes"]["sottovoce.response.chunks"] == known["chunks"]

    points = unscrubbed.points()
    output = total(points["gen_ai.client.token.usage"], gen_ai__token__type="output")
    assert output == (2, 6 + 5)
    both = pytest.approx(sum(map(seconds, (completion, chat))), rel=1e-6)
    assert total(points["gen_ai.client.operation.duration"]) == (2, both)
    for name in ("request.duration", "time_to_first_token", "time_per_output_token"):
        assert total(points[f"gen_ai.server.{name}"])[0] == 2
    assert total(points["sottovoce.model.load.duration"])[0] == 1


def test_exporters_that_the_app_adds_and_a_forked_child_are_gated_too(unscrubbed, tmp_path):
    launch(unscrubbed, tmp_path, "added", unscrubbed.http)
    spans = unscrubbed.spans()
    assert {each["name"] for each in spans} == {"_OTHER"}
    # The app's span twice, by our exporter and by its own; the child's by its own at least.
    (root,) = {each["spanId"] for each in spans if "parentSpanId" not in each}
    children = [each for each in spans if each.get("parentSpanId") == root]
    assert len(spans) - len(children) == 2
    assert children
    assert all(each["attributes"] == {} for each in spans)
    records = unscrubbed.log_records()
    assert {each["severityText"] for each in records} >= {"WARN", "ERROR"}
    assert all(each["body"] == {} and each["attributes"] == {} for each in records)


def test_what_leaves_would_be_noticed(unscrubbed, tmp_path):
    with pytest.raises(AssertionError, match="user leaked"):
        launch(unscrubbed, tmp_path, "added", unscrubbed.http, OTEL_SERVICE_NAME=CANARIES["user"])

"""Other instrumentations, their capture of content on, in one process with us: nothing said leaves.

They live in an environment of their own, made by uv from `requirements/peers.txt`. The same app
without us is the control: there, what it says does arrive.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from e2e import environments
from servers import provider

pytestmark = pytest.mark.e2e

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG = ROOT / "collector-config"
KINDS = (
    "api_key completion log metadata model prompt query response_model stop system "
    "tool_description tool_name user"
).split()
CANARIES = {kind: f"zp{number:02}{kind.replace('_', '')}" for number, kind in enumerate(KINDS)}
USAGE = {"input_tokens": 13, "output_tokens": 5}
PEERS = {
    "openinference.instrumentation.openai",
    "opentelemetry.instrumentation.openai.v1",
    "opentelemetry.instrumentation.genai.openai",
    "com.anthropic.sdk.python",
    "opentelemetry.instrumentation.httpx",
}
PSEUDONYM = re.compile("h:[0-9a-f]{12}")
COUNTS = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
BAD_REQUEST = {"BadRequestError", "openai.BadRequestError"}
# Scope -> input tokens that were used, answered calls, calls that name their failure.
SPANS = {
    "sottovoce": (11, 4, 1),
    "openinference.instrumentation.openai": (11, 4, 0),
    "opentelemetry.instrumentation.openai.v1": (11, 4, 1),
    "opentelemetry.instrumentation.genai.openai": (11, 4, 1),
    "com.anthropic.sdk.python": (USAGE["input_tokens"], 1, 0),
}
SAY_EVERYTHING = {
    "ANTHROPIC_OPEN_TELEMETRY": "true",
    "ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE": "content",
    "OPENAI_LOG": "debug",
    "ANTHROPIC_LOG": "debug",
    "OPENINFERENCE_HIDE_INPUTS": "false",
    "OPENINFERENCE_HIDE_OUTPUTS": "false",
    "TRACELOOP_TRACE_CONTENT": "true",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_AND_EVENT",
    "OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT": "true",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST": ".*",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE": ".*",
    "OTEL_PYTHON_LOG_CODE_ATTRIBUTES": "true",
    "OTEL_PYTHON_LOG_CORRELATION": "true",
    "OTEL_PYTHON_LOG_LEVEL": "debug",
    "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental,http",
}


@pytest.fixture(scope="session")
def peers(tmp_path_factory):
    """The `bin` folder of an environment with the peers and this checkout of the package."""
    return environments.made(tmp_path_factory.mktemp("peers") / "env", "peers")


@pytest.fixture
def unscrubbed(collectors, tmp_path):
    """A Collector that writes what it gets."""
    layer = tmp_path / "unscrubbed.yaml"
    pipelines = {signal: {"processors": []} for signal in ("traces", "metrics", "logs")}
    layer.write_text(json.dumps({"service": {"pipelines": pipelines}}))
    return collectors(CONFIG / "local.yaml", layer)


@pytest.fixture
def url(monkeypatch):
    """A provider that says canaries, and refuses requests that have metadata."""

    def messages(body):
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": CANARIES["response_model"],
            "content": [{"type": "text", "text": CANARIES["completion"]}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": USAGE,
        }

    monkeypatch.setattr(provider, "ANSWER", CANARIES["completion"])
    monkeypatch.setattr(provider, "MODEL", CANARIES["response_model"])
    monkeypatch.setitem(provider.WHOLE, "messages", messages)
    with provider.ProviderServer() as server:
        # In the order in which peers_app.py asks.
        server.play("ok", "ok", "ok", "ok", "400")
        yield server.url


def launch(collector, folder, command, **environ):
    done = subprocess.run(
        [*command],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CANARIES": json.dumps(CANARIES),
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
            "SOTTOVOCE_EXIT_TIMEOUT": "60",
            **SAY_EVERYTHING,
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    collector.stop()
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"asked": True}


def said(collector):
    """The kinds of canaries in what the Collector got."""
    text = collector.everything().lower()
    return {kind for kind, canary in CANARIES.items() if canary in text}


def test_nothing_that_peers_capture_leaves_and_their_facts_arrive(peers, unscrubbed, url, tmp_path):
    launch(
        unscrubbed,
        tmp_path,
        [peers / "opentelemetry-instrument", peers / "python", HERE / "peers_app.py", url, "gated"],
        OTEL_EXPORTER_OTLP_ENDPOINT=unscrubbed.http,
        OTEL_LOGS_EXPORTER="otlp",
        SOTTOVOCE_RIVALS="run",
    )
    assert said(unscrubbed) == set()
    spans = unscrubbed.spans()
    assert {span["scope"] for span in spans} == {"sottovoce", *PEERS}
    for scope, (given, answered, failed) in SPANS.items():
        mine = [span["attributes"] for span in spans if span["scope"] == scope]
        counted = [each for each in mine if each.get(COUNTS[0]) == given]
        assert len(counted) >= answered, scope
        assert sum(1 for each in counted if each.get(COUNTS[1])) >= answered - 1, scope
        for each in counted:
            assert each["gen_ai.operation.name"] in {"chat", "embeddings"}
            assert PSEUDONYM.fullmatch(each["gen_ai.request.model"])
        assert sum(1 for each in mine if each.get("error.type") in BAD_REQUEST) == failed, scope
    logs = unscrubbed.log_records()
    levels = {log.get("severityText") for log in logs}
    assert levels >= {"DEBUG", "INFO", "ERROR"}
    assert not any(log.get("body") for log in logs)
    assert any("traceId" in log for log in logs)
    points = unscrubbed.points()
    assert sum(point["sum"] for point in points["gen_ai.client.token.usage"]) > 0
    assert "http.client.request.duration" in points


def test_the_launcher_leaves_rivals_out(peers, unscrubbed, url, tmp_path):
    launch(
        unscrubbed,
        tmp_path,
        [peers / "opentelemetry-instrument", peers / "python", HERE / "peers_app.py", url, "gated"],
        OTEL_EXPORTER_OTLP_ENDPOINT=unscrubbed.http,
    )
    scopes = {span["scope"] for span in unscrubbed.spans()}
    # What is no instrumentation of a client, or an SDK's own by the app's wish, stays.
    assert scopes == {
        "sottovoce",
        "com.anthropic.sdk.python",
        "opentelemetry.instrumentation.httpx",
    }


def test_without_us_what_peers_capture_does_arrive(peers, unscrubbed, url, tmp_path):
    launch(
        unscrubbed,
        tmp_path,
        [peers / "python", HERE / "peers_app.py", url, unscrubbed.http],
    )
    assert said(unscrubbed) == set(CANARIES)

"""The spans that anthropic's SDK makes of its own accord pass the gate like any others."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.privacy.gate import gated_tracer_provider

PROMPT = "the sentence of the prompt"
ANSWER = "the sentence of the answer"
MODEL = "claude-acme-tuned"


class Messages(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": MODEL,
                "content": [{"type": "text", "text": ANSWER}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 11, "output_tokens": 7},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("request-id", "req_secret")
        self.send_header("anthropic-organization-id", "org_secret")
        self.send_header("anthropic-workspace-id", "wrk_secret")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    http = ThreadingHTTPServer(("127.0.0.1", 0), Messages)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_anthropics_own_spans_leave_without_account_url_model_or_content(
    policy, server, monkeypatch
):
    monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY", "true")
    monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE", "content")
    provider = gated_tracer_provider(
        policy, resource=Resource({"service.name": "app"}), shutdown_on_exit=False
    )
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with anthropic.Anthropic(api_key="sk-ant-secret", base_url=server) as client:
        client.messages.create(
            model=MODEL, max_tokens=16, messages=[{"role": "user", "content": PROMPT}]
        )
    (span,) = exporter.get_finished_spans()
    shown = policy.model(MODEL, local=False)
    assert span.name == f"chat {shown}"
    assert span.kind is trace.SpanKind.CLIENT
    assert span.instrumentation_scope.name == "com.anthropic.sdk.python"
    attributes = dict(span.attributes)
    assert attributes["gen_ai.request.model"] == attributes["gen_ai.response.model"] == shown
    assert attributes["gen_ai.provider.name"] == "anthropic"
    assert attributes["gen_ai.usage.input_tokens"] == 11
    assert attributes["http.route"] == "/v1/messages"
    wire = encode_spans([span]).SerializeToString()
    for secret in (
        PROMPT,
        ANSWER,
        MODEL,
        "org_secret",
        "wrk_secret",
        "req_secret",
        server,
        "msg_1",
        "sk-ant",
    ):
        assert secret.encode() not in wire
    assert policy.dropped[("span", "drop")] >= 5

"""Servers and apps that say something where words are expected: only known words leave.

Through real SDKs and a real server, into a provider behind the gate and into one that has none.
"""

import json

import anthropic
import httpx
import openai
import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from servers import anthropic as claude
from servers import provider as gpt
from sottovoce import instrumentors
from sottovoce.privacy import gate
from sottovoce.privacy import policy as policies
from sottovoce.settings import Settings

CANARY = "kanarienvogel"
ASKED = [{"role": "user", "content": CANARY}]


class Hostile(gpt.Handler):
    """Says one word wherever a word may stand."""

    def do_POST(self):
        asked = json.loads(self.body())
        answer = claude.message(asked) if self.path.endswith("/messages") else gpt.chat(asked)
        answer.update(model=CANARY, service_tier=CANARY, stop_reason=CANARY)
        answer["usage"] = {**answer["usage"], "service_tier": CANARY}
        for choice in answer.get("choices", ()):
            choice["finish_reason"] = CANARY
            choice["message"]["tool_calls"] = [
                {
                    "id": CANARY,
                    "type": "function",
                    "function": {"name": CANARY, "arguments": CANARY},
                }
            ]
        if CANARY in asked.get("metadata", ()):
            self.answer_json(200, {"error": {"code": CANARY, "type": CANARY, "message": CANARY}})
        else:
            self.answer(200, json.dumps(answer).encode(), X_Request_Id=CANARY)


@pytest.fixture(params=["behind the gate", "not gated"])
def sent(request):
    """Everything that leaves, as bytes; and what the spans say."""
    settings = Settings(key="a key of these tests", semconv="both", remote_model_ids="catalogue")
    before = list(policies._active)
    policy = policies.activate(settings)
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    if request.param == "not gated":
        tracers = TracerProvider(shutdown_on_exit=False)
        meters = MeterProvider([reader], shutdown_on_exit=False)
    else:
        tracers = gate.gated_tracer_provider(policy, shutdown_on_exit=False)
        meters = gate.gated_meter_provider(policy, metric_readers=[reader], shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    names = ("OpenAI", "Anthropic", "HTTPX")
    kinds = [getattr(instrumentors, f"{name}Instrumentor")() for name in names]
    for kind in kinds:
        kind.instrument(tracer_provider=tracers, meter_provider=meters, settings=settings)

    def everything():
        spans = exporter.get_finished_spans()
        wire = encode_spans(spans).SerializeToString()
        wire += encode_metrics(reader.get_metrics_data()).SerializeToString()
        assert CANARY.encode() not in wire
        return spans

    yield everything
    for kind in kinds:
        kind.uninstrument()
    policies._active[:] = before


@pytest.fixture
def server():
    with gpt.ProviderServer(Hostile) as running:
        yield running


WORDS = {
    "service_tier": CANARY,
    "reasoning_effort": CANARY,
    "response_format": {"type": CANARY},
    "modalities": [CANARY],
    "user": CANARY,
}


def test_openai(server, sent):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=CANARY) as client:
        answer = client.chat.completions.create(model=CANARY, messages=ASKED, **WORDS)
    assert answer.choices[0].finish_reason == CANARY
    (span,) = sent()
    assert span.attributes["gen_ai.response.finish_reasons"] == ("_OTHER",)
    assert span.attributes["openai.request.service_tier"] == "_OTHER"
    assert span.attributes["openai.response.service_tier"] == "_OTHER"
    assert span.attributes["gen_ai.request.reasoning.level"] == "_OTHER"
    assert span.attributes["gen_ai.usage.input_tokens"] == gpt.USAGE["prompt_tokens"]


def test_anthropic(server, sent):
    with anthropic.Anthropic(base_url=server.url, api_key=CANARY) as client:
        client.messages.create(
            model=CANARY, messages=ASKED, max_tokens=5, extra_body={"service_tier": CANARY}
        )
    spans = [span for span in sent() if span.instrumentation_scope.name == "sottovoce"]
    assert [span.attributes["gen_ai.response.finish_reasons"] for span in spans] == [("_OTHER",)]


def test_no_sdk_and_an_error(server, sent):
    body = {"model": CANARY, "messages": ASKED, "metadata": {CANARY: CANARY}, **WORDS}
    url = f"{server.url}/openai/deployments/{CANARY}/chat/completions?key={CANARY}"
    httpx.post(url, json=body)
    (span,) = sent()
    assert span.attributes["error.type"] == "_OTHER"


class Boastful(str):
    """What an app may take for a model's id: it answers for itself, and badly."""

    __slots__ = ()

    def _refuse(self, *_):
        raise RuntimeError(CANARY)

    __len__ = __str__ = __format__ = isprintable = _refuse


def test_an_id_that_answers_for_itself_is_an_id(server, sent, failures):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
        client.chat.completions.create(model=Boastful(CANARY), messages=ASKED)
    (span,) = sent()
    assert span.attributes["gen_ai.request.model"].startswith("h:")
    assert not failures

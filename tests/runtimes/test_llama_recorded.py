"""What of llama-cpp-python's doings leaves the process: spans and metrics of a real SDK."""

from __future__ import annotations

import contextlib

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sottovoce.instrumentors import LlamaCppInstrumentor

llama_cpp = pytest.importorskip("llama_cpp")
from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

pytestmark = pytest.mark.llama_cpp

PLANTED = "a planted sentence"
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": PLANTED, "parameters": {"type": "object"}},
    }
]


@pytest.fixture
def exported():
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([reader])
    LlamaCppInstrumentor().instrument(tracer_provider=tracers, meter_provider=meters)
    yield exporter, reader
    LlamaCppInstrumentor().uninstrument()
    meters.shutdown()


def loaded(path, **kwargs):
    return contextlib.closing(
        Llama(
            str(path),
            **{"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False} | kwargs,
        )
    )


def test_every_path_tells_its_counts_and_nothing_that_was_said(exported, gguf_path):
    exporter, reader = exported
    draft = LlamaPromptLookupDecoding(num_pred_tokens=4)
    with loaded(gguf_path, draft_model=draft, chat_format="chatml-function-calling") as llama:
        llama.create_chat_completion(
            [{"role": "user", "content": PLANTED}], tools=TOOLS, tool_choice="auto", temperature=0
        )
        list(llama.create_completion(PLANTED, max_tokens=9, logit_bias={"72": 99.0}, stream=True))
        with pytest.raises(ValueError, match="exceed"):
            llama.create_completion(PLANTED * 99)
    with loaded(gguf_path, embedding=True) as embedder:
        embedder.create_embedding([PLANTED, PLANTED])
    load, chat, text, failed, again, embedding = exporter.get_finished_spans()
    assert [span.name for span in (load, chat, text, embedding)] == [
        f"{operation} llama-lt_1M-f32"
        for operation in ("load_model", "chat", "text_completion", "embeddings")
    ]
    assert again.name == load.name
    assert load.attributes["sottovoce.model.offload"] == "none"
    assert load.attributes["sottovoce.model.size"] == "lt_1GiB"
    assert chat.attributes["sottovoce.response.tool_calls.count"] == 1
    for span in (chat, text):
        assert 0 <= span.attributes["sottovoce.draft.acceptance_rate"] <= 1
        assert 0 < span.attributes["sottovoce.context.utilization"] < 1
        assert span.attributes["sottovoce.prefill.throughput"] > 0
        assert span.attributes["sottovoce.decode.throughput"] > 0
    assert failed.attributes["error.type"] == "context_length_exceeded"
    assert embedding.attributes["sottovoce.request.batch.size"] == 2
    assert "gen_ai.usage.output_tokens" not in embedding.attributes

    metrics = reader.get_metrics_data().to_json()
    assert "sottovoce.engine.context.utilization" in metrics
    everything = metrics + "".join(span.to_json() for span in exporter.get_finished_spans())
    for word in ("planted", "alice", ".gguf", "/tmp"):
        assert word not in everything

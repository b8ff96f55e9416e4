"""The instrumentors with a real SDK: the spans and server metrics that in-process calls become."""

from __future__ import annotations

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from sottovoce.instrumentors import LlamaCppInstrumentor, MLXInstrumentor

PROMPT = "a planted sentence"


@pytest.mark.mlx
def test_a_stream_of_mlx(record, mlx_model):
    mlx_lm = pytest.importorskip("mlx_lm")
    recorded = record(MLXInstrumentor)
    with recorded.tracer.start_as_current_span("turn") as turn:
        for _ in mlx_lm.stream_generate(*mlx_model, PROMPT, max_tokens=5):
            pass
    span, _ = recorded.exporter.get_finished_spans()
    assert span.name == "text_completion llama-lt_1M-f32"
    assert span.kind is SpanKind.INTERNAL
    assert span.parent.span_id == turn.get_span_context().span_id
    attributes = dict(span.attributes)
    assert attributes.pop("gen_ai.response.time_to_first_chunk") > 0
    assert attributes.pop("sottovoce.prefill.throughput") > 0
    assert attributes.pop("sottovoce.decode.throughput") > 0
    filled = attributes.pop("sottovoce.context.utilization")
    assert filled == round((len(PROMPT) + 5) / 2048, 6)
    assert attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": "llama-lt_1M-f32",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": len(PROMPT),
        "gen_ai.usage.output_tokens": 5,
        "sottovoce.call.outcome": "completed",
        "sottovoce.memory.peak": "lt_1GiB",
        "sottovoce.model.adapted": False,
        "sottovoce.model.architecture": "llama",
        "sottovoce.model.context_size": 2048,
        "sottovoce.model.parameters": "lt_1M",
        "sottovoce.model.quantization": "f32",
        "sottovoce.model.size": "lt_1GiB",
        "sottovoce.response.chunks": 5,
    }
    points = recorded.points()
    for name in (
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    ):
        (point,) = points[name]
        assert point.count == 1 and point.sum > 0
        assert point.attributes["gen_ai.provider.name"] == "mlx"
    (duration,) = points["gen_ai.server.request.duration"]
    (first,) = points["gen_ai.server.time_to_first_token"]
    (each,) = points["gen_ai.server.time_per_output_token"]
    assert each.sum == pytest.approx((duration.sum - first.sum) / 4)


@pytest.mark.llama_cpp
def test_a_chat_of_llama_cpp_that_fails(record, llama):
    recorded = record(LlamaCppInstrumentor)
    with pytest.raises(ValueError, match="exceed context window"):
        llama.create_chat_completion([{"role": "user", "content": PROMPT * 20}])
    (span,) = recorded.exporter.get_finished_spans()
    assert span.name == "chat llama-lt_1M-f32"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert not span.events
    assert span.attributes["error.type"] == "context_length_exceeded"
    assert PROMPT not in span.to_json()


@pytest.mark.llama_cpp
def test_loading_and_completing_in_llama_cpp(record, gguf_q8_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    recorded = record(LlamaCppInstrumentor)
    llama = llama_cpp.Llama(str(gguf_q8_path), n_ctx=64, n_threads=1, verbose=False)
    llama(PROMPT, max_tokens=3)
    loading, span = recorded.exporter.get_finished_spans()
    assert loading.name == "load_model llama-lt_1M-q8_0"
    assert span.attributes["sottovoce.model.context_size"] == llama.n_ctx()
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    points = recorded.points()
    (load,) = points["sottovoce.model.load.duration"]
    assert dict(load.attributes) == {
        "gen_ai.provider.name": "llama_cpp",
        "gen_ai.request.model": "llama-lt_1M-q8_0",
        "sottovoce.model.architecture": "llama",
        "sottovoce.model.parameters": "lt_1M",
        "sottovoce.model.quantization": "q8_0",
    }
    assert "gen_ai.client.operation.time_to_first_chunk" not in points
    assert "alice" not in span.to_json() + loading.to_json()
    llama.close()

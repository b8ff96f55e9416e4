"""Loading with a real SDK: a span, a histogram, the count of loaded models, and why it failed."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sottovoce import loaded
from sottovoce.instrumentors import LlamaCppInstrumentor, MLXInstrumentor
from sottovoce.privacy import policy
from sottovoce.privacy.propagation import GatedPropagator
from sottovoce.runtimes import identity
from sottovoce.settings import read

mlx_utils = pytest.importorskip("mlx_lm.utils")
llama_cpp = pytest.importorskip("llama_cpp")

pytestmark = [pytest.mark.mlx, pytest.mark.llama_cpp]

COUNT = "sottovoce.model.count"


def numbers(recorded, model):
    """How many models of that name are loaded, as exported; None when nothing is said."""
    points = recorded.points().get(COUNT, ())
    found = [p.value for p in points if p.attributes.get("gen_ai.request.model") == model]
    return found[0] if found else None


@pytest.fixture
def mlx(record):
    return record(MLXInstrumentor)


@pytest.fixture
def llama(record):
    return record(LlamaCppInstrumentor)


def open_llama(path, **options):
    return llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False, **options)


def test_a_load_is_a_span_of_what_the_app_does(mlx, mlx_model_path):
    with mlx.tracer.start_as_current_span("turn") as turn:
        mlx_utils.load(str(mlx_model_path))
        assert trace.get_current_span() is turn
    span, _ = mlx.exporter.get_finished_spans()
    assert (span.name, span.kind) == ("load_model llama-lt_1M-f32", SpanKind.INTERNAL)
    assert span.parent.span_id == turn.get_span_context().span_id
    assert span.status.status_code is StatusCode.UNSET
    attributes = dict(span.attributes)
    assert (
        attributes.items()
        >= {
            "gen_ai.operation.name": "load_model",
            "gen_ai.provider.name": "mlx",
            "gen_ai.request.model": "llama-lt_1M-f32",
            "sottovoce.call.outcome": "completed",
            "sottovoce.model.architecture": "llama",
            "sottovoce.model.parameters": "lt_1M",
            "sottovoce.model.quantization": "f32",
        }.items()
    )
    (point,) = mlx.points()["sottovoce.model.load.duration"]
    assert point.sum == pytest.approx((span.end_time - span.start_time) / 1e9, abs=1e-6)
    assert "alice" not in span.to_json() + str(point)


def test_what_happens_while_loading_is_beneath_it(mlx, mlx_model_path):
    def classes(config):
        mlx.tracer.start_span("inside").end()
        return mlx_utils._get_classes(config)

    mlx_utils.load_model(mlx_model_path, get_model_classes=classes)
    inside, load = mlx.exporter.get_finished_spans()
    assert inside.parent.span_id == load.context.span_id


@pytest.mark.parametrize("goes", ["own", "all"])
def test_trace_context_goes_to_no_host_that_a_model_comes_from(
    record, monkeypatch, mlx_model_path, goes
):
    monkeypatch.setenv("SOTTOVOCE_PROPAGATION", goes)
    record(MLXInstrumentor)
    gated = GatedPropagator(TraceContextTextMapPropagator(), policy.active(read()[0]))
    carrier = {}

    def classes(config):
        # As an instrumentation of the HTTP library does that downloads it.
        gated.inject(carrier)
        return mlx_utils._get_classes(config)

    mlx_utils.load_model(mlx_model_path, get_model_classes=classes)
    assert list(carrier) == ([] if goes == "own" else ["traceparent"])


def test_a_load_that_the_app_interrupts_leaves_nothing_open(mlx, mlx_model_path):
    def classes(config):
        raise KeyboardInterrupt

    with mlx.tracer.start_as_current_span("turn") as turn:
        with pytest.raises(KeyboardInterrupt):
            mlx_utils.load_model(mlx_model_path, get_model_classes=classes)
        assert trace.get_current_span() is turn
    load, _ = mlx.exporter.get_finished_spans()
    assert load.attributes["error.type"] == "KeyboardInterrupt"


def test_of_a_load_that_is_suppressed_nothing_is_told(mlx, mlx_model_path):
    with suppress_instrumentation():
        model, _ = mlx_utils.load(str(mlx_model_path))
    assert not mlx.exporter.get_finished_spans()
    mlx_utils.load(str(mlx_model_path))
    (span,) = mlx.exporter.get_finished_spans()
    (point,) = mlx.points()["sottovoce.model.load.duration"]
    assert point.count == 1
    del model


def settings(**changed):
    def change(folder):
        file = folder / "config.json"
        all_ = {**json.loads(file.read_text()), **changed}
        file.write_text(json.dumps({key: each for key, each in all_.items() if each is not None}))

    return change


def weights(change):
    def rewrite(folder):
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return rewrite


def alone(folder):
    """One file where a folder is asked for."""
    shutil.rmtree(folder)
    folder.write_bytes(b"GGUF")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda folder: shutil.rmtree(folder), "model_not_found"),
        (lambda folder: (folder / "config.json").unlink(), "model_not_found"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model_not_found"),
        (lambda folder: (folder / "config.json").write_text("{alice"), "bad_model_file"),
        (lambda folder: (folder / "config.json").write_text("{}"), "bad_model_file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{alice"), "bad_model_file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "bad_model_file"),
        (alone, "bad_model_file"),
        (weights(lambda content: b""), "bad_model_file"),
        (weights(lambda content: content[:500]), "bad_model_file"),
        (weights(lambda content: content[:-500]), "bad_model_file"),
        (weights(lambda content: b"alice" * 100), "bad_model_file"),
        (settings(hidden_size=128), "bad_model_file"),
        (settings(num_hidden_layers=7), "bad_model_file"),
        (settings(num_hidden_layers=1), "bad_model_file"),
        (settings(hidden_size=None), "bad_model_file"),
        (settings(model_type="alice_secret"), "unsupported_architecture"),
        (settings(rope_scaling={"type": "alice_secret"}), "unsupported_architecture"),
    ],
)
def test_why_mlx_could_not_load(mlx, mlx_model_path, tmp_path, spoil, code):
    folder = shutil.copytree(mlx_model_path, tmp_path / "alice" / "model")
    spoil(folder)
    with pytest.raises((OSError, ValueError, RuntimeError, KeyError, TypeError)):
        mlx_utils.load(str(folder))
    check_failed(mlx, code)


def test_an_adapter_of_another_model(mlx, mlx_model_path, tmp_path):
    tuned = {"num_layers": 1, "lora_parameters": {"rank": 2, "scale": 1.0, "dropout": 0.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(tuned))
    alien = {"model.layers.1.self_attn.q_proj.lora_a": mlx_utils.mx.zeros((3, 5))}
    mlx_utils.mx.save_safetensors(str(tmp_path / "adapters.safetensors"), alien)
    with pytest.raises(ValueError, match="incompatible tensors"):
        mlx_utils.load(str(mlx_model_path), adapter_path=str(tmp_path))
    check_failed(mlx, "bad_model_file")


def test_a_model_that_the_hub_has_not(mlx):
    with pytest.raises(OSError):
        mlx_utils.load("alice/no-such-model")
    check_failed(mlx, "model_not_found")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "model_not_found"),
        (lambda content: b"alice" * 100, "bad_model_file"),
        (lambda content: content[: len(content) // 2], "bad_model_file"),
        (lambda content: content.replace(b"llama", b"alice"), "unsupported_architecture"),
    ],
)
def test_why_llama_cpp_could_not_load(llama, gguf_path, tmp_path, content, code):
    file = tmp_path / "alice.gguf"
    if content is not None:
        file.write_bytes(content(gguf_path.read_bytes()))
    with pytest.raises(ValueError):
        open_llama(file)
    check_failed(llama, code)


def check_failed(recorded, code):
    (span,) = recorded.exporter.get_finished_spans()
    assert span.name == "load_model"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert span.attributes["error.type"] == code
    assert span.attributes["sottovoce.call.outcome"] == "failed"
    points = recorded.points()
    (point,) = points["sottovoce.model.load.duration"]
    assert point.attributes["error.type"] == code
    assert "alice" not in span.to_json() + str(points)


def test_models_are_counted_while_they_live(mlx, mlx_model_4bit_path):
    name = "llama-lt_1M-4bit"
    gc.collect()
    before = numbers(mlx, name) or 0
    one, _ = mlx_utils.load(str(mlx_model_4bit_path))
    other, _ = mlx_utils.load(str(mlx_model_4bit_path))
    assert numbers(mlx, name) == before + 2
    # A hot reload: the new one is there before the old one goes.
    one, _ = mlx_utils.load(str(mlx_model_4bit_path))
    gc.collect()
    assert numbers(mlx, name) == before + 2
    mlx.instrumentor.uninstrument()
    del one, other
    gc.collect()
    assert numbers(mlx, name) == before
    point = next(p for p in mlx.points()[COUNT] if p.attributes["gen_ai.request.model"] == name)
    assert dict(point.attributes) == {
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": name,
        "sottovoce.model.architecture": "llama",
        "sottovoce.model.parameters": "lt_1M",
        "sottovoce.model.quantization": "4bit",
    }


def test_a_closed_model_is_loaded_no_longer_though_it_lives():
    class Model:
        pass

    known = identity.Identities("llama_cpp")
    who = identity.describe("alice/of-this-test", "llama", "f16", 10)
    kind = (
        ("model_architecture", "llama"),
        ("model_parameters", "lt_1M"),
        ("model_quantization", "f16"),
        ("provider", "llama_cpp"),
        ("request_model", "alice/of-this-test"),
    )
    model = Model()
    known.put(model, who)
    assert loaded.counted()[kind] == 1
    known.unloaded(model)
    known.unloaded(model)
    assert known.get(model) is who
    assert loaded.counted()[kind] == 0
    del model
    gc.collect()
    assert loaded.counted()[kind] == 0


def test_a_model_goes_where_the_meter_is_locked(mlx, mlx_model_4bit_path):
    """A finaliser may run where its own thread holds what collecting metrics needs."""
    model, tokenizer = mlx_utils.load(str(mlx_model_4bit_path))
    recorder = mlx.points()
    assert COUNT in recorder
    held = [model, tokenizer]
    held.append(held)
    del model, tokenizer, held
    meters = mlx.meters._measurement_consumer
    done = threading.Event()

    def collect():
        with meters._lock, mlx.reader._lock:
            gc.collect()
        done.set()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    assert done.wait(60)
    thread.join()


FORKED = """
import gc, os, sys
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sottovoce.instrumentors import LlamaCppInstrumentor
import llama_cpp

reader = InMemoryMetricReader()
meters = MeterProvider([reader])
LlamaCppInstrumentor().instrument(meter_provider=meters)

def count():
    data = reader.get_metrics_data()
    return [
        point.value
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics if metric.name == "sottovoce.model.count"
        for point in metric.data.data_points
    ]

open_llama = lambda: llama_cpp.Llama(sys.argv[1], n_ctx=64, n_threads=1, verbose=False)
first, second = open_llama(), open_llama()
child = os.fork()
if child == 0:
    inherited = count()
    del first
    gc.collect()
    print("child", inherited, count(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", count(), flush=True)
"""


def test_a_forked_child_counts_what_it_has_and_the_end_is_silent(gguf_path, tmp_path):
    script = Path(tmp_path / "app.py")
    script.write_text(FORKED)
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", script, gguf_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stdout.splitlines() == ["child [2] [1]", "parent [2]"], done.stderr
    assert "Traceback" not in done.stderr and "sottovoce" not in done.stderr

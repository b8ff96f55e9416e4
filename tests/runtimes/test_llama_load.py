"""Loading of llama-cpp-python: how long, what, where to; what is loaded, and what fails."""

from __future__ import annotations

import contextlib
import gc
import struct
import subprocess
import sys

import pytest

from sottovoce import loaded
from sottovoce.runtimes import llama_models

llama_cpp = pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")
import numpy as np
from llama_cpp import Llama

pytestmark = pytest.mark.llama_cpp


def load(path, **kwargs):
    return Llama(
        str(path), **{"n_ctx": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": False} | kwargs
    )


def living():
    """How many models of llama.cpp are loaded in this process, by quantisation."""
    found = {}
    for kind, count in loaded.counted().items():
        words = dict(kind)
        if words["provider"] == "llama_cpp":
            found[words["model_quantization"]] = found.get(words["model_quantization"], 0) + count
    return found


@pytest.fixture
def more():
    """How many more models are loaded than when the test began."""
    gc.collect()
    before = living()
    return lambda kind="f32": living().get(kind, 0) - before.get(kind, 0)


def test_the_time_and_the_size_of_a_load(llama_hooks, gguf_path):
    with contextlib.closing(load(gguf_path, n_ctx=512)) as llama:
        assert llama.n_ctx() == 512
    ((provider, facts, seconds, error),) = llama_hooks.recorder.loads
    assert (provider, error) == ("llama_cpp", None) and seconds > 0
    assert (facts["model_size"], facts["context_size"]) == ("lt_1GiB", 512)


@pytest.mark.parametrize(
    ("asked", "able", "expected"),
    [
        (0, True, "none"),
        (1, True, "partial"),
        (2, True, "partial"),
        (3, True, "full"),
        (99, True, "full"),
        (-1, True, "full"),
        (-1, False, "none"),
        (1, False, "none"),
    ],
)
def test_how_much_is_offloaded(llama_hooks, gguf_path, monkeypatch, asked, able, expected):
    # What the library says of itself; the model of two layers runs on the processor all the same.
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_supports_gpu_offload", lambda: able)
    load(gguf_path, n_gpu_layers=asked).close()
    ((_, facts, _, _),) = llama_hooks.recorder.loads
    assert facts["model_offload"] == expected


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """An adapter for the first layer of the tiny model."""
    path = tmp_path_factory.mktemp("lora") / "alices-adapter.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)
    for side, shape in (("lora_a", (2, 64)), ("lora_b", (64, 2))):
        writer.add_tensor(f"blk.0.attn_q.weight.{side}", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_that_there_is_an_adapter_is_told_never_which(llama_hooks, gguf_path, lora):
    for adapter in (str(lora), None):
        llama = load(gguf_path, lora_path=adapter)
        llama.create_completion("x", max_tokens=1)
        llama.close()
        call, facts = llama_hooks.recorder.calls[-1], llama_hooks.recorder.loads[-1][1]
        assert call.facts["model_adapter"] is facts["model_adapter"] is (adapter is not None)
        assert "alice" not in repr((facts, call.facts, call.model))


def broken(path, what, gguf_path):
    """Write a file that is no model of this version of llama.cpp."""
    whole = gguf_path.read_bytes()
    if what == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif what == "noise":
        path.write_bytes(b"\x00\x01" * 500)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "of the future":
        path.write_bytes(whole[:4] + struct.pack("<I", 99) + whole[8:])
    elif what == "of an unknown kind":
        path.write_bytes(whole.replace(b"llama", b"klama"))
    return path


@pytest.mark.parametrize(
    "what", ["cut", "noise", "empty", "of the future", "of an unknown kind", "directory"]
)
def test_a_file_that_is_no_model(llama_hooks, gguf_path, tmp_path, more, what):
    path = tmp_path if what == "directory" else broken(tmp_path / "alice.gguf", what, gguf_path)
    with pytest.raises(ValueError, match="Failed to load model"):
        load(path)
    ((_, facts, _, error),) = llama_hooks.recorder.loads
    unknown = what == "of an unknown kind"
    assert (facts, error) == ({}, "unsupported_architecture" if unknown else "bad_model_file")
    assert more() == 0


def test_what_is_not_there(llama_hooks, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "alice.gguf")
    ((_, facts, _, error),) = llama_hooks.recorder.loads
    assert (facts, error) == ({}, "model_not_found")


@pytest.mark.parametrize("settings", [{"type_v": 8}, {"n_batch": 0}])
def test_a_setting_that_is_refused_is_no_lack_of_memory(llama_hooks, gguf_path, settings):
    with pytest.raises(ValueError, match="Failed to create llama_context"):
        load(gguf_path, flash_attn=False, **settings)
    ((_, facts, _, error),) = llama_hooks.recorder.loads
    assert facts == {} and type(error) is ValueError


def test_without_such_a_setting_memory_is_what_lacks():
    said = ValueError("Failed to create llama_context")
    assert llama_models.blame({"n_ctx": 1 << 30, "type_k": 1, "type_v": None}, said) == (
        "out_of_memory"
    )


def test_models_are_counted_while_they_are_loaded(llama_hooks, gguf_path, gguf_q8_path, more):
    one, two = load(gguf_path), load(gguf_path)
    small = load(gguf_q8_path)
    assert (more(), more("q8_0")) == (2, 1)
    one.close()
    one.close()
    assert more() == 1, "closed twice, taken off once"
    del two
    gc.collect()
    assert more() == 0, "dropped"
    small.close()
    del one, small
    gc.collect()
    assert (more(), more("q8_0")) == (0, 0)


def test_a_reload_nets_to_one(llama_hooks, gguf_path, more):
    llama = load(gguf_path)
    for _ in range(3):
        llama = load(gguf_path)
        llama.create_completion("x", max_tokens=1)
    gc.collect()
    assert more() == 1
    assert len(llama_hooks.recorder.loads) == 4
    assert {call.model for call in llama_hooks.recorder.calls} == {"llama-lt_1M-f32"}
    llama.close()


def test_a_model_in_a_cycle_is_taken_off(llama_hooks, gguf_path, more):
    class Holder:
        pass

    holder = Holder()
    holder.llama, holder.itself = load(gguf_path), holder
    holder.stream = holder.llama.create_completion("x", max_tokens=9, stream=True)
    next(holder.stream)
    del holder
    gc.collect()
    assert more() == 0


def test_uninstrumented_models_are_taken_off_all_the_same(instrumented_llama, gguf_path, more):
    hooks = instrumented_llama()
    closed, dropped = load(gguf_path), load(gguf_path)
    hooks.remove()
    assert more() == 2
    closed.close()
    del closed, dropped
    gc.collect()
    assert more() == 0


def test_a_closed_model_is_not_asked_who_it_is(instrumented_llama, gguf_path):
    llama = load(gguf_path)
    llama.close()
    hooks = instrumented_llama()
    # Asking a freed model for anything ends the process.
    assert llama_models.identify(llama, llama_cpp.llama_cpp) is None
    llama.chat_handler = lambda **_: {}
    assert llama.create_chat_completion([]) == {}
    assert hooks.recorder.call.model is None


EXIT = """
import sys
from sottovoce.instrumentors import LlamaCppInstrumentor
LlamaCppInstrumentor().instrument()
from llama_cpp import Llama
llama = Llama(sys.argv[1], n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
class Cycle: pass
cycle = Cycle()
cycle.itself, cycle.llama = cycle, Llama(sys.argv[1], n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
stream = llama.create_completion("x", max_tokens=5, stream=True)
next(stream)
cycle.stream = cycle.llama.create_chat_completion([{"role": "user", "content": "x"}], stream=True)
"""


def test_models_that_live_until_the_exit(gguf_path):
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(gguf_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

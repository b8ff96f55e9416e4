"""Who an MLX model is, and what it holds: every kind of weight, adapter, cache and loader."""

from __future__ import annotations

import gc
import json
import weakref

import pytest

mlx_lm = pytest.importorskip("mlx_lm")
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import cache as caches
from mlx_lm.tuner import utils as tuning

from sottovoce.runtimes import mlx_cache, mlx_models

pytestmark = pytest.mark.mlx

PROMPT = "Grüße aus der Küche"


def changed(path, target, **settings):
    """A model folder with another configuration and the same files."""
    target.mkdir()
    for file in path.iterdir():
        (target / file.name).symlink_to(file)
    config = json.loads((path / "config.json").read_text())
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps({**config, **settings}))
    return target


def adapter(loaded, path, kind="lora"):
    """Write a LoRA adapter for a tiny model, as mlx-lm's own training does."""
    model, _ = loaded
    path.mkdir()
    layers = {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    settings = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": layers}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    tuning.linear_to_lora_layers(model, 2, layers, use_dora=kind == "dora")
    trained = dict(tree_flatten(model.trainable_parameters()))
    kept = {
        name: array
        for name, array in trained.items()
        if name.endswith((".lora_a", ".lora_b", ".m"))
    }
    mx.save_safetensors(str(path / "adapters.safetensors"), kept)
    return path


@pytest.fixture(scope="module")
def wide_model(mlx_maker, tmp_path_factory):
    """A model whose heads are as wide as a group of quantised keys must be."""
    return mlx_lm.load(str(mlx_maker(tmp_path_factory.mktemp("wide"), hidden=128)))


def last_load(hooks):
    return hooks.recorder.loads[-1][1]


@pytest.mark.parametrize(("mode", "bits", "size"), [
    ("affine", 2, 32), ("affine", 3, 32), ("affine", 6, 64), ("mxfp4", 4, 32), ("mxfp8", 8, 32),
    ("nvfp4", 4, 16),
])  # fmt: skip
def test_every_way_to_quantise_has_its_name(mlx_hooks, mlx_model_path, mode, bits, size):
    model, _ = mlx_lm.utils.load_model(mlx_model_path)
    nn.quantize(model, group_size=size, bits=bits, mode=mode)
    list(mlx_lm.stream_generate(model, mlx_lm.load(str(mlx_model_path))[1], "x", max_tokens=1))
    known = mlx_models._identify(model, None, None, adapted=False)
    named = f"{bits}bit" if mode == "affine" else mode
    assert known.facts["model_quantization"] == named
    assert known.name == f"llama-lt_1M-{named}"


def test_half_floats_have_their_names(mlx_hooks, mlx_model_path):
    for dtype, name in ((mx.float16, "f16"), (mx.bfloat16, "bf16")):
        model, _ = mlx_lm.utils.load_model(mlx_model_path)
        model.set_dtype(dtype)
        known = mlx_models._identify(model, None, None, adapted=False)
        assert known.facts["model_quantization"] == name


def test_a_lazy_load_stays_lazy(mlx_hooks, mlx_maker, tmp_path):
    path = mlx_maker(tmp_path / "large", hidden=512, layers=8)
    mx.synchronize()
    gc.collect()
    before = mx.get_active_memory()
    model, _ = mlx_lm.load(str(path), lazy=True)
    assert last_load(mlx_hooks)["model_parameters"] == "10M"
    assert mx.get_active_memory() - before < 8 << 20, "no weight was read"
    mx.eval(model.parameters())
    assert mx.get_active_memory() - before > 8 << 20


def test_sharded_load_is_one_load(mlx_hooks, mlx_model_path):
    model, _ = mlx_lm.utils.sharded_load(str(mlx_model_path))
    ((provider, facts, _, error),) = mlx_hooks.recorder.loads
    assert (provider, error) == ("mlx", None)
    assert facts["request_model"] == "llama-lt_1M-f32"
    assert facts["context_size"] == 2048
    assert mlx_models.models.get(model).facts["model_parameters"] == "lt_1M"


def test_the_context_length_is_the_configurations(mlx_hooks, mlx_model_path, tmp_path):
    for index, (settings, length) in enumerate(
        [
            ({"max_position_embeddings": 96}, 96),
            ({"max_position_embeddings": None}, None),
            ({"max_position_embeddings": "96"}, None),
            ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 7}}, 7),
        ]
    ):
        path = changed(mlx_model_path, tmp_path / str(index), **settings)
        mlx_lm.utils.load_model(path)
        assert last_load(mlx_hooks).get("context_size") == length
    path = changed(mlx_model_path, tmp_path / "whole", max_position_embeddings=96)
    for options in ({}, {"return_config": True}):
        mlx_lm.load(str(path), **options)
        assert last_load(mlx_hooks)["context_size"] == 96


def test_the_context_length_of_code_without_one_is_the_configurations(mlx_hooks, tmp_path):
    # mlx-lm's own code for this architecture does not know the key.
    config = {
        "model_type": "stablelm", "vocab_size": 64, "hidden_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 1, "num_key_value_heads": 4, "intermediate_size": 64,
        "rope_theta": 10000.0, "use_qkv_bias": False, "partial_rotary_factor": 0.25,
        "layer_norm_eps": 1e-5, "max_position_embeddings": 77,
    }  # fmt: skip
    from mlx_lm.models import stablelm

    arguments = stablelm.ModelArgs.from_dict(config)
    assert not hasattr(arguments, "max_position_embeddings")
    model = stablelm.Model(arguments)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    mlx_lm.utils.load_model(tmp_path)
    assert last_load(mlx_hooks)["context_size"] == 77
    assert last_load(mlx_hooks)["model_architecture"] == "stablelm"


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_is_told_and_never_its_name(mlx_hooks, mlx_model_path, tmp_path, kind):
    path = adapter(mlx_lm.load(str(mlx_model_path)), tmp_path / "customer-tone", kind)
    loaded = mlx_lm.load(str(mlx_model_path), adapter_path=str(path))
    assert last_load(mlx_hooks)["model_adapter"] is True
    assert last_load(mlx_hooks)["request_model"] == "llama-lt_1M-f32"
    mlx_lm.generate(*loaded, PROMPT, max_tokens=2)
    facts = mlx_hooks.recorder.calls[-1].facts
    assert facts["model_adapter"] is True
    assert "customer" not in repr(mlx_hooks.recorder.loads)
    assert "customer" not in repr(facts)


def test_adapters_come_and_go(mlx_hooks, mlx_model_path, tmp_path):
    path = adapter(mlx_lm.load(str(mlx_model_path)), tmp_path / "tone")
    model, tokenizer = mlx_lm.load(str(mlx_model_path))

    def adapted():
        mlx_lm.generate(model, tokenizer, "x", max_tokens=1)
        return mlx_hooks.recorder.calls[-1].facts["model_adapter"]

    assert adapted() is False
    tuning.load_adapters(model, str(path))
    assert adapted() is True
    tuning.remove_lora_layers(model)
    assert adapted() is False


def test_an_adapter_that_was_there_before_us_is_found_in_the_modules(
    mlx_model_path, tmp_path, instrumented_mlx
):
    loaded = mlx_lm.load(str(mlx_model_path))
    adapter(loaded, tmp_path / "tone")
    hooks = instrumented_mlx()
    mlx_lm.generate(*loaded, "x", max_tokens=1)
    assert hooks.recorder.call.facts["model_adapter"] is True


class Layer:
    """Stands for a cache layer of a kind that only a large architecture makes."""

    def __init__(self, **held):
        vars(self).update(held)


def test_every_kind_of_cache_tells_what_it_holds(wide_model):
    model, _ = wide_model
    tokens = mx.array([list(range(10, 50))])

    def filled(layers):
        for layer in layers:
            keys = mx.zeros((1, 2, 40, 32))
            layer.update_and_fetch(keys, keys)
        return mlx_cache.held(layers)

    plain = caches.make_prompt_cache(model)
    model(tokens, cache=plain)
    assert mlx_cache.held(plain) == (40, None)
    quantised = [layer.to_quantized(group_size=32, bits=8) for layer in plain]
    assert mlx_cache.held(quantised) == (40, None)
    rotating = [caches.RotatingKVCache(max_size=16) for _ in range(2)]
    assert filled(rotating) == (16, 16), "what a window let go is not held"
    # Sliding windows beside full layers, as in gemma3: the full ones hold all.
    assert filled([caches.RotatingKVCache(max_size=8), caches.KVCache()]) == (40, None)
    assert filled([caches.ConcatenateKVCache()]) == (40, None)
    assert filled([caches.ChunkedKVCache(chunk_size=8)]) == (40, None)
    # State-space layers hold no tokens that could be counted, attention beside them does.
    assert mlx_cache.held([caches.ArraysCache(2)]) == (0, None)
    inner = caches.KVCache()
    assert filled([inner]) == (40, None)
    assert mlx_cache.held([caches.CacheList(caches.ArraysCache(2), inner)]) == (40, None)
    trimmed = caches.make_prompt_cache(model)
    model(tokens, cache=trimmed)
    caches.trim_prompt_cache(trimmed, 15)
    assert mlx_cache.held(trimmed) == (25, None)


@pytest.mark.parametrize(
    "odd",
    [None, 7, "text", {}, [], [None], [7], [Layer(offset="9")], [Layer(offset=True)],
     [Layer(offset=mx.array([3, 4]))], [Layer(caches=7)], [Layer(offset=5, max_size="7")]],
)  # fmt: skip
def test_what_is_no_cache_holds_nothing(odd):
    assert mlx_cache.held(odd) in {(0, None), (5, None)}


def test_a_saved_cache_is_read_again(mlx_hooks, mlx_model, tmp_path):
    cache = caches.make_prompt_cache(mlx_model[0])
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=5, prompt_cache=cache)
    caches.save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    again = caches.load_prompt_cache(str(tmp_path / "cache.safetensors"))
    mlx_lm.generate(*mlx_model, "more", max_tokens=5, prompt_cache=again)
    facts = mlx_hooks.recorder.calls[1].facts
    assert facts["cache_read_tokens"] == cache[0].offset > 0
    assert facts["input_tokens"] == cache[0].offset + 4


def test_a_window_is_the_size_of_the_context(mlx_hooks, mlx_model, monkeypatch):
    def size():
        return mlx_hooks.recorder.calls[-1].facts["context_size"]

    cache = [caches.RotatingKVCache(max_size=8) for _ in range(2)]
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=3, prompt_cache=cache)
    assert size() == 8
    assert mlx_hooks.recorder.calls[-1].facts["context_fill"] == 1
    # A model that makes its own cache does not ask what the app wanted.
    mlx_lm.generate(*mlx_model, PROMPT, max_tokens=3, max_kv_size=8)
    assert size() == 2048
    monkeypatch.delattr(type(mlx_model[0]), "make_cache")
    for window, context in ((8, 8), (4096, 2048), (None, 2048)):
        mlx_lm.generate(*mlx_model, PROMPT, max_tokens=3, max_kv_size=window)
        assert size() == context
        mlx_lm.batch_generate(*mlx_model, [[7, 8, 9]], max_tokens=3, max_kv_size=window)
        assert size() == context


def test_a_quantised_cache_counts_as_another(mlx_hooks, wide_model):
    model, tokenizer = wide_model
    options = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 4}
    cache = caches.make_prompt_cache(model)
    mlx_lm.generate(model, tokenizer, PROMPT, max_tokens=5, prompt_cache=cache, **options)
    held = cache[0].offset
    mlx_lm.generate(model, tokenizer, "more", max_tokens=5, prompt_cache=cache, **options)
    assert mlx_hooks.recorder.calls[1].facts["cache_read_tokens"] == held > 0


def test_a_reload_is_who_is_there_now(mlx_hooks, mlx_model_path, mlx_model_4bit_path):
    gc.collect()
    before = len(mlx_models.models)
    gone = []
    for path in (mlx_model_path, mlx_model_4bit_path, mlx_model_path):
        loaded = mlx_lm.load(str(path))
        mlx_lm.generate(*loaded, "x", max_tokens=1)
        gone.append(weakref.ref(loaded[0]))
        # A model has cycles: until they are found it is there.
        gc.collect()
        assert len(mlx_models.models) == before + 1
    assert [call.model for call in mlx_hooks.recorder.calls] == [
        "llama-lt_1M-f32", "llama-lt_1M-4bit", "llama-lt_1M-f32",
    ]  # fmt: skip
    del loaded
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
    assert len(mlx_models.models) == before

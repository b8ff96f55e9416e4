"""Make a tiny random-weight MLX model: real code paths, no hub, nonsense for answers.

    python examples/tiny_mlx.py /tmp/tiny

writes a two-layer Llama with a byte-level tokenizer and a chat template, about 0.5 MB, the
same bytes every time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx

SPECIAL = ("<unk>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make(path: str | Path, bits: int | None = None, hidden: int = 64, layers: int = 2) -> Path:
    """Write the model into the directory `path` and return it.

    Args:
        path: a directory; made if it is absent.
        bits: quantise the weights to 4 or 8 bits, in groups of 32; ``None`` keeps float32.
        hidden: width of the model, a multiple of 32.
        layers: number of transformer blocks.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    vocabulary, spoken = _write_tokenizer(path)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    weights = _weights(hidden, layers, vocabulary)
    # The best guess is always printable ASCII: never the end of the text, so that a greedy
    # generation has the length that was asked for, and no half characters.
    silent = mx.array([[0.0 if token in spoken else 1.0] for token in range(vocabulary)])
    weights["lm_head.weight"] = weights["lm_head.weight"] * (1 - silent)
    if bits is not None:
        config["quantization"] = {"group_size": 32, "bits": bits}
        weights = _quantised(weights, bits)
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path


def _weights(hidden: int, layers: int, vocabulary: int) -> dict[str, mx.array]:
    key_values = hidden // 2
    shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {
            f"{block}.self_attn.q_proj.weight": (hidden, hidden),
            f"{block}.self_attn.k_proj.weight": (key_values, hidden),
            f"{block}.self_attn.v_proj.weight": (key_values, hidden),
            f"{block}.self_attn.o_proj.weight": (hidden, hidden),
            f"{block}.mlp.gate_proj.weight": (2 * hidden, hidden),
            f"{block}.mlp.up_proj.weight": (2 * hidden, hidden),
            f"{block}.mlp.down_proj.weight": (hidden, 2 * hidden),
        }
    key = mx.random.key(7)
    weights = {}
    for name, shape in shapes.items():
        key, fresh = mx.random.split(key)
        weights[name] = mx.random.normal(shape, scale=0.3, key=fresh)
    ones = mx.ones((hidden,))
    for layer in range(layers):
        weights[f"model.layers.{layer}.input_layernorm.weight"] = ones
        weights[f"model.layers.{layer}.post_attention_layernorm.weight"] = ones
    weights["model.norm.weight"] = ones
    return weights


def _quantised(weights: dict[str, mx.array], bits: int) -> dict[str, mx.array]:
    packed = {}
    for name, weight in weights.items():
        if weight.ndim == 1:
            packed[name] = weight
            continue
        stem = name.removesuffix(".weight")
        packed[name], packed[f"{stem}.scales"], packed[f"{stem}.biases"] = mx.quantize(
            weight, group_size=32, bits=bits
        )
    return packed


def _write_tokenizer(path: Path) -> tuple[int, set[int]]:
    """A byte-level tokenizer, one token for one byte of UTF-8.

    Returns the size of its vocabulary and the tokens of printable ASCII.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL[0],
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return len(vocabulary), {vocabulary[chr(code)] for code in range(33, 127)}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: tiny_mlx.py DIRECTORY")
    print(make(sys.argv[1]))

"""Make a tiny random-weight GGUF model for llama.cpp: real code paths, nonsense for answers.

    python examples/tiny_gguf.py /tmp/tiny.gguf

writes a two-layer Llama with a byte-level tokenizer and a chat template, about 0.5 MB, the
same bytes every time. Needs the `gguf` package.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def make(path: str | Path, kind: str = "f32", hidden: int = 64, layers: int = 2) -> Path:
    """Write the model to the file `path` and return it.

    Args:
        path: a file name; directories are made.
        kind: ``f32`` or ``q8_0``.
        hidden: width of the model, a multiple of 64.
        layers: number of transformer blocks.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    packed, file_type = TYPES[kind]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.BYTE] * 256
    types[0] = gguf.TokenType.UNKNOWN

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("A name that somebody typed")
    writer.add_file_type(file_type)
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in _weights(hidden, layers, len(tokens)).items():
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(hidden: int, layers: int, vocabulary: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * 0.3).astype(np.float32)

    weights = {"token_embd.weight": matrix(vocabulary, hidden)}
    for layer in range(layers):
        block = f"blk.{layer}"
        weights |= {
            f"{block}.attn_norm.weight": np.ones(hidden, np.float32),
            f"{block}.attn_q.weight": matrix(hidden, hidden),
            f"{block}.attn_k.weight": matrix(hidden // 2, hidden),
            f"{block}.attn_v.weight": matrix(hidden // 2, hidden),
            f"{block}.attn_output.weight": matrix(hidden, hidden),
            f"{block}.ffn_norm.weight": np.ones(hidden, np.float32),
            f"{block}.ffn_gate.weight": matrix(2 * hidden, hidden),
            f"{block}.ffn_up.weight": matrix(2 * hidden, hidden),
            f"{block}.ffn_down.weight": matrix(hidden, 2 * hidden),
        }
    output = matrix(vocabulary, hidden)
    # The best guess is always printable ASCII: never the end of the text, so that a greedy
    # generation has the length that was asked for, and no half characters.
    output[: len(SPECIAL) + 33] = 0
    output[len(SPECIAL) + 127 :] = 0
    return weights | {"output_norm.weight": np.ones(hidden, np.float32), "output.weight": output}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: tiny_gguf.py FILE")
    print(make(sys.argv[1]))

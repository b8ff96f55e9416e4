"""What an app does with mlx-lm, whichever version of it there is: asks in each of its ways.

Prints its version, and what it counts itself: input tokens, output tokens, finish reasons, and
what else a way is to tell.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers

PROMPTS = ["a planted sentence", "another, planted as well"]
LAYERS = {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}


def adapted(path):
    """The model at `path` with an adapter that is written for it."""
    model, _ = mlx_lm.load(path)
    linear_to_lora_layers(model, 2, LAYERS)
    kept = [item for item in tree_flatten(model.trainable_parameters()) if "lora_" in item[0]]
    folder = Path("alice-adapter")
    folder.mkdir(exist_ok=True)
    settings = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": LAYERS}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(kept))
    return mlx_lm.load(path, adapter_path=str(folder))


def main():
    path = sys.argv[1]
    model, tokenizer = mlx_lm.load(path)
    first, second = (tokenizer.encode(prompt) for prompt in PROMPTS)
    counted = []

    def count(read, made, reasons=("length",), **more):
        counted.append({"counts": [read, made, list(reasons)], **more})

    mlx_lm.generate(model, tokenizer, PROMPTS[0], max_tokens=5)
    count(len(first), 5)

    *_, response = mlx_lm.stream_generate(model, tokenizer, first, max_tokens=6)
    count(response.prompt_tokens, response.generation_tokens, [response.finish_reason])

    mlx_lm.batch_generate(model, tokenizer, [first, second], max_tokens=7)
    count(len(first) + len(second), 14, ["length", "length"], batch=2)

    generator = BatchGenerator(model, max_tokens=3)
    for prompt in (first, second):
        generator.insert([prompt])
        for _ in range(9):
            generator.next()
        count(len(prompt), 3)

    cache = make_prompt_cache(model)
    for prompt in (first, second):
        held = cache[0].offset
        mlx_lm.generate(model, tokenizer, prompt, max_tokens=4, prompt_cache=cache)
        count(held + len(prompt), 4, cached=held or None)

    # It drafts for itself: every guess is right.
    mlx_lm.generate(model, tokenizer, first, max_tokens=8, draft_model=model)
    count(len(first), 8, draft=1.0)

    del model
    mlx_lm.generate(*adapted(path), PROMPTS[0], max_tokens=2)
    count(len(first), 2, adapted=True)

    print(json.dumps({"version": version("mlx-lm"), "counted": counted}))


if __name__ == "__main__":
    main()

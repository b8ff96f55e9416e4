"""What an app does with mlx-lm, whichever version of it there is: asks in each of its ways.

Prints its version, and what it counts itself: input tokens, output tokens, finish reasons.
"""

import json
import sys
from importlib.metadata import version

import mlx_lm

PROMPTS = ["a planted sentence", "another, planted as well"]


def main():
    model, tokenizer = mlx_lm.load(sys.argv[1])
    first, second = (tokenizer.encode(prompt) for prompt in PROMPTS)
    counted = []

    mlx_lm.generate(model, tokenizer, PROMPTS[0], max_tokens=5)
    counted.append([len(first), 5, ["length"]])

    *_, response = mlx_lm.stream_generate(model, tokenizer, first, max_tokens=6)
    counted.append([response.prompt_tokens, response.generation_tokens, [response.finish_reason]])

    mlx_lm.batch_generate(model, tokenizer, [first, second], max_tokens=7)
    counted.append([len(first) + len(second), 14, ["length", "length"]])

    print(json.dumps({"version": version("mlx-lm"), "counted": counted}))


if __name__ == "__main__":
    main()

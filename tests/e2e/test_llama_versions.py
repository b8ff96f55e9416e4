"""llama-cpp-python in process, the oldest that the hooks were read in and the newest.

Each was built once by tools/environment.sh. What the spans count is what the library's own
tokenizer and answers say.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e import environments

pytestmark = pytest.mark.e2e

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VERSIONS = {"llama-oldest": "0.3.0", "llama": None}
INPUT, OUTPUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"


@pytest.fixture(scope="module", params=VERSIONS)
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    bin_ = environments.llama(folder / "env", request.param, "llama-server-oldest")
    more = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import tiny_gguf; "
    more += "tiny_gguf.make('alice.gguf')"
    subprocess.run([sys.executable, "-c", more], cwd=folder, check=True)
    done = subprocess.run(
        [bin_ / "python", HERE / "llama_app.py", folder / "alice.gguf"],
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for word in ("secret", "alice", str(folder)):
        assert word not in done.stdout
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["version"] == (VERSIONS[request.param] or told["version"])
    assert not told["failures"]
    return told


def one(found, case):
    each = found["cases"][case]
    [span] = each["spans"]
    assert span["kind"] == "INTERNAL"
    told = span["attributes"]
    assert told["gen_ai.provider.name"] == "llama_cpp"
    return told, each["told"]


WHOLE = {
    "whole": 4,
    "called": 4,
    # What only ends the answer is none of it.
    "ended": 0,
    "chat": 4,
    "tool": None,
    "tool or not": None,
    "grammar": None,
    "guessed": 8,
    "cached": 4,
    "restored": 4,
}
"""Whole answers, and how many tokens are asked of them."""


@pytest.mark.parametrize(("case", "made"), WHOLE.items(), ids=WHOLE)
def test_whole_answers(found, case, made):
    told, usage = one(found, case)
    assert told[INPUT] == usage["prompt_tokens"]
    assert told[OUTPUT] == usage["completion_tokens"]
    assert made in {None, told[OUTPUT]}
    assert told["gen_ai.response.finish_reasons"] == [usage["finished"]]
    assert told["gen_ai.request.model"] == "llama-lt_1M-f32"
    assert told["sottovoce.call.outcome"] == "completed"


def test_many_passes_are_one_call(found):
    told, usage = one(found, "tool or not")
    assert told["sottovoce.engine.passes"] == usage["passes"] > 1
    assert "sottovoce.engine.passes" not in one(found, "tool")[0]


@pytest.mark.parametrize("case", ["cached", "restored"])
def test_what_a_state_holds_is_not_read_again(found, case):
    # The last token is, for what follows it.
    assert one(found, case)[0]["gen_ai.usage.cache_read.input_tokens"] == found["prompt"] - 1


def test_what_guesses_are_worth(found):
    told, seen = one(found, "guessed")
    assert told["sottovoce.draft.acceptance_rate"] == seen["share"]
    assert "sottovoce.draft.acceptance_rate" not in one(found, "whole")[0]


@pytest.mark.parametrize(("case", "whole"), [("streamed", "whole"), ("chat streamed", "chat")])
def test_streams_whose_counts_the_library_does_not_tell(found, case, whole):
    told, seen = one(found, case)
    assert told[INPUT] == one(found, whole)[0][INPUT]
    assert told[OUTPUT] == 4
    assert told["sottovoce.response.chunks"] == seen["chunks"]
    assert told["gen_ai.request.stream"] is True


def test_a_generation_that_is_left(found):
    told, _ = one(found, "generated")
    assert (told[INPUT], told[OUTPUT]) == (found["prompt"], 3)
    assert told["sottovoce.call.outcome"] == "abandoned"


def test_embeddings(found):
    told, usage = one(found, "embedded")
    assert told["gen_ai.operation.name"] == "embeddings"
    assert told[INPUT] == usage["prompt_tokens"] == found["prompt"]


def test_loads_and_failures(found):
    told, _ = one(found, "loaded")
    assert told["sottovoce.model.architecture"] == "llama"
    assert told["sottovoce.model.quantization"] == "f32"
    assert told["sottovoce.model.parameters"] == "lt_1M"
    assert one(found, "missing")[0]["error.type"] == "model_not_found"
    assert one(found, "too long")[0]["error.type"] == "context_length_exceeded"

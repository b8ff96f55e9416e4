"""Every provider's SDK, from the oldest that the hooks were read in to the newest: one call each.

The older ones live in environments of their own, made by uv from `requirements/sdks-*.txt`.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e import environments
from servers import anthropic, bedrock, cohere, gemini, huggingface, mistral, ollama, provider

pytestmark = pytest.mark.e2e

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OPENAI = {"openai": "/v1", "groq": "", "together": "/v1", "cerebras": "", "azure": ""}
OTHERS = {
    "anthropic": anthropic.serve,
    "gemini": gemini.gemini_server,
    "mistral": mistral.serve,
    "ollama": ollama.serve,
    "cohere": cohere.serve,
    "huggingface": huggingface.serve,
    "bedrock": bedrock.serve,
}
WAYS = {"whole", "streamed", "async whole", "async streamed"}
# SDK -> provider, input tokens, output tokens, finish reason. OpenAI's streams tell tokens only
# to who asks for them.
SEEN = {
    **dict.fromkeys(OPENAI, ("openai_compatible", 11, 7, "stop")),
    "azure": ("azure.ai.inference", 11, 7, "stop"),
    "huggingface": ("openai_compatible", 11, 7, "stop"),
    "anthropic": ("anthropic", 16, 7, "end_turn"),
    "gemini": ("gcp.gemini", 16, 9, "STOP"),
    "mistral": ("mistral_ai", 11, 7, "stop"),
    "ollama": ("ollama", 26, 298, "stop"),
    "cohere": ("cohere", 5, 418, "COMPLETE"),
    "bedrock": ("aws.bedrock", 16, 7, "end_turn"),
}
UNTOLD = {*OPENAI, "huggingface"}
# Environment -> SDK -> version, and the ways that an old SDK does not have.
VERSIONS = {
    "oldest": {
        "openai": "1.30.0",
        "anthropic": "0.25.0",
        "groq": "0.9.0",
        "together": "2.0.0",
        "cerebras": "1.0.0",
        "gemini": "1.0.0",
        "mistral": "1.0.0",
        "ollama": "0.3.0",
        "cohere": "5.0.0",
        "huggingface": "0.29.0",
        "bedrock": "1.34.116",
        "azure": "1.0.0b1",
    },
    "httpx": {
        "openai": "2.54.0",
        "anthropic": "0.125.0",
        "groq": "1.6.0",
        "together": "3.0.0",
        "gemini": "2.33.0",
        "mistral": "2.10.1",
        "ollama": "0.6.3",
        "cohere": "6.1.0",
        "huggingface": "1.33.0",
        "bedrock": "1.44.5",
        "azure": "1.0.0b9",
    },
    "httpx2": {"openai": "3.0.0", "anthropic": "1.0.0"}
    | ({"gemini": "3.0.0"} if sys.version_info >= (3, 11) else {}),
}
ASYNC = {"async whole", "async streamed"}
MISSING = {"bedrock": ASYNC}
WITHOUT = {("oldest", "cohere"): {"streamed", "async streamed"}, ("httpx", "azure"): ASYNC}
"""What is not asked: cohere's first client says with the address whether it streams; azure's
asynchronous one sends with aiohttp, which that environment has not."""


@pytest.fixture(scope="module")
def urls():
    with ExitStack() as stack:
        openai = stack.enter_context(provider.ProviderServer()).url
        yield {name: openai + path for name, path in OPENAI.items()} | {
            name: stack.enter_context(serve()).url for name, serve in OTHERS.items()
        }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes an environment from a file of requirements; gives its interpreter."""

    def make(name):
        folder = tmp_path_factory.mktemp("versions") / name
        return environments.made(folder, f"sdks-{name}", ours=False) / "python"

    return make


def asked(python, urls):
    done = subprocess.run(
        [python, HERE / "versions_app.py", json.dumps(urls)],
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "secret" not in done.stdout
    return json.loads(done.stdout.splitlines()[-1])


def judge(found, sdk, absent=frozenset()):
    given, tokens_in, tokens_out, reason = SEEN[sdk]
    for way in WAYS - absent - MISSING.get(sdk, set()):
        each = found[f"{sdk} {way}"]
        assert each["error"] is None, (sdk, way, each["error"])
        [span] = each["spans"]
        told = span["attributes"]
        assert (span["scope"], span["status"]) == ("sottovoce", "UNSET"), (sdk, way)
        assert told["gen_ai.provider.name"] == given, (sdk, way)
        assert told["gen_ai.response.finish_reasons"] == [reason], (sdk, way)
        counts = told.get("gen_ai.usage.input_tokens"), told.get("gen_ai.usage.output_tokens")
        untold = sdk in UNTOLD and "streamed" in way
        assert counts == ((None, None) if untold else (tokens_in, tokens_out)), (sdk, way)


@pytest.mark.parametrize("name", VERSIONS)
def test_older_versions(made, urls, name):
    found = asked(made(name), urls)
    expected = VERSIONS[name]
    assert {key.partition(" ")[0]: each["version"] for key, each in found.items()} == expected
    for sdk in expected:
        judge(found, sdk, WITHOUT.get((name, sdk), frozenset()))


def test_the_newest(urls):
    found = asked(sys.executable, urls)
    for sdk in SEEN:
        judge(found, sdk)

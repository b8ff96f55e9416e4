"""Every SDK's hooks are in place whichever comes first, its import or ours, and none fails."""

import json
import os
import subprocess
import sys

import pytest

APP = """
import importlib, json, sys

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from sottovoce import guard
from sottovoce.instrumentors import ALL
from sottovoce.settings import Settings

given = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}
settings = Settings(key="a key of these tests")


def instrument():
    for kind in ALL:
        kind().instrument(settings=settings, skip_dep_check=True, **given)


def hooked():
    return sorted(name for kind in ALL for name in kind().hooked())


instrument()
for name in sys.argv[1:]:
    module, _, attribute = name.partition(":")
    # Some packages load what is asked of them.
    getattr(importlib.import_module(module), attribute)
before = hooked()
for kind in ALL:
    kind().uninstrument()
assert not hooked()
instrument()
print(json.dumps([dict(guard.failures), before, hooked()]))
"""


@pytest.mark.parametrize(
    "imported",
    [
        ["cohere:Client"],
        ["cohere:ClientV2"],
        ["openai:OpenAI", "anthropic:Anthropic", "groq:Groq", "together:Together"],
        ["google.genai:Client", "mistralai.client:Mistral", "ollama:Client"],
        ["huggingface_hub:InferenceClient", "huggingface_hub:AsyncInferenceClient"],
        ["boto3:client", "azure.ai.inference:ChatCompletionsClient", "cerebras.cloud.sdk:Cerebras"],
    ],
    ids=lambda names: names[0],
)
def test_hooks_are_the_same_whoever_comes_first(imported):
    done = subprocess.run(
        [sys.executable, "-c", APP, *imported],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    failures, before, after = json.loads(done.stdout.splitlines()[-1])
    assert failures == {}
    assert before == after != []

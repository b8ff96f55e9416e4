"""Frameworks on top of the SDKs: each model call is one span, child of the app's own.

They live in an environment of their own, made by uv from `requirements/frameworks.txt`, and run
under the launcher; the providers and the receiver are on loopback.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest

from delivery.sink import Sink, mapping
from e2e import environments
from servers import anthropic, bedrock, ollama, provider

pytestmark = pytest.mark.e2e

HERE = Path(__file__).resolve().parent
FRAMEWORKS = ("litellm", "langchain", "llama_index", "instructor", "pydantic_ai", "dspy")
PROVIDERS = {"anthropic": "anthropic", "bedrock": "aws.bedrock", "ollama": "ollama"}
"""Who answers, by the beginning of a case's name; else a server that speaks OpenAI's wire."""
SCENARIOS = {b"refuse me": "400", b"cut me": "cut", b"leave me": "slow"}
OUTCOMES = {"refused": "failed", "cut": "failed", "left": "abandoned"}
"""By the end of a case's name."""
TOKENS = {"anthropic": 16, "bedrock": 16, "ollama": 26}


class Handler(provider.Handler):
    """OpenAI's wire, which answers as it is told to.

    Attributes:
        parents: the ids of the spans that requests named as their parents.
    """

    parents: ClassVar[list] = []

    def body(self):
        self.parents.append(self.headers.get("traceparent", "---").split("-")[2])
        raw = super().body()
        for words, scenario in SCENARIOS.items():
            if words in raw:
                self.provider.play(scenario)
        return raw


@pytest.fixture(scope="session")
def frameworks(tmp_path_factory):
    """The `bin` folder of an environment with the frameworks and this checkout of the package."""
    return environments.made(tmp_path_factory.mktemp("frameworks") / "env", "frameworks")


@pytest.fixture(scope="module")
def urls():
    with (
        provider.ProviderServer(Handler) as openai,
        anthropic.serve() as claude,
        bedrock.serve() as amazon,
        ollama.serve() as llama,
    ):
        yield {
            "openai": openai.url,
            "anthropic": claude.url,
            "bedrock": amazon.url,
            "ollama": llama.url,
        }


def run(frameworks, framework, urls, folder, endpoint):
    """Run the app under the launcher; give its spans by case."""
    done = subprocess.run(
        [
            frameworks / "opentelemetry-instrument",
            frameworks / "python",
            HERE / "frameworks_app.py",
            framework,
            json.dumps(urls),
        ],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
            "SOTTOVOCE_EXIT_TIMEOUT": "60",
            "SOTTOVOCE_KEY": "a key of the tests, of 32 bytes.",
            # No list of prices from the net, no cache of answers.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "DSPY_CACHEDIR": str(folder / "dspy"),
        },
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_model_call_is_one_span(frameworks, framework, urls, tmp_path):
    Handler.parents.clear()
    with Sink() as sink:
        asked = run(frameworks, framework, urls, tmp_path, sink.endpoint)
        spans = [
            (span, mapping(span.attributes))
            for _, scope, span in sink.spans
            if scope.name == "sottovoce"
        ]
        said = sink.bytes
    assert b"secret" not in said
    # Whatever library sends them, requests to this machine bring their span along.
    assert Handler.parents
    assert set(Handler.parents) <= {span.span_id.hex() for span, _ in spans}
    found = {case: _inside(spans, *context) for case, context in asked.items()}
    assert {case: len(each) for case, each in found.items()} == {
        case: 2 if case == "batch of 2" else 1 for case in asked
    }
    for case, [(span, attributes), *_] in found.items():
        _check(case, span, attributes)


def _inside(spans, trace, parent):
    mine = [each for each in spans if each[0].trace_id.hex() == trace]
    assert all(span.parent_span_id.hex() == parent for span, _ in mine)
    return mine


def _check(case, span, attributes):
    outcome = OUTCOMES.get(case.rpartition(" ")[2], "completed")
    expected = {
        "gen_ai.operation.name": "embeddings" if "embeddings" in case else "chat",
        "gen_ai.provider.name": PROVIDERS.get(case.partition(" ")[0], "openai_compatible"),
        "sottovoce.call.outcome": outcome,
    }
    if case == "openai refused":
        expected["error.type"] = "openai.BadRequestError"
    if outcome == "completed" and ("stream" not in case or case.startswith(tuple(PROVIDERS))):
        # OpenAI's streams count when they are asked to, which only some of the frameworks do.
        expected["gen_ai.usage.input_tokens"] = TOKENS.get(case.partition(" ")[0], 11)
    if "stream" in case:
        expected["gen_ai.request.stream"] = True
    assert {**attributes, **expected} == attributes, case
    assert ("error.type" in attributes) is (outcome == "failed")
    assert span.status.code == (2 if outcome == "failed" else 0)

"""mlx-lm from the oldest version that the hooks were read in to the newest: in its ways, once.

The oldest lives in an environment of its own, made by uv from `requirements/mlx-oldest.txt`.
"""

import importlib.metadata
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from delivery.sink import Sink, mapping
from e2e import environments, mlx_processes

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

APP = Path(__file__).with_name("mlx_app.py")
SAID = mlx_processes.SAID
ALSO = {
    "batch": "sottovoce.request.batch.size",
    "cached": "gen_ai.usage.cache_read.input_tokens",
    "draft": "sottovoce.draft.acceptance_rate",
    "adapted": "sottovoce.model.adapted",
}
"""What the app tells of some ways only → the attribute that does."""


@dataclass
class Version:
    """An installed version.

    Attributes:
        programs: the `bin` folder of its environment.
    """

    programs: Path
    version: str


@pytest.fixture(scope="module", params=["oldest", "newest"])
def installed(request, tmp_path_factory):
    if request.param == "newest":
        return Version(Path(sys.executable).parent, importlib.metadata.version("mlx-lm"))
    programs = environments.made(tmp_path_factory.mktemp("versions") / "env", "mlx-oldest")
    return Version(programs, "0.28.0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("alice")
    mlx_processes.make_model(made)
    return made


def spans(sink):
    """Name, kind and attributes, in the order in which they began."""
    found = sorted((span for _, _, span in sink.spans), key=lambda span: span.start_time_unix_nano)
    assert {scope.name for _, scope, _ in sink.spans} == {"sottovoce"}
    return [(span, mapping(span.attributes)) for span in found]


def parted(found):
    """Those of loads, and the others."""
    loads = [each for each in found if each[0].name.startswith("load_model")]
    return loads, [each for each in found if each not in loads]


def counts(told):
    return [
        told["gen_ai.usage.input_tokens"],
        told["gen_ai.usage.output_tokens"],
        told["gen_ai.response.finish_reasons"],
    ]


def test_in_process(installed, folder):
    with Sink() as sink:
        done = mlx_processes.run(installed.programs, ("python", APP, "tiny"), folder, sink)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        loads, calls = parted(spans(sink))
        for secret in (SAID, "alice", "tiny"):
            assert secret.encode() not in sink.bytes
    assert answer["version"] == installed.version
    # The model, and the same without and with an adapter.
    assert [told["sottovoce.model.adapted"] for _, told in loads] == [False, False, True]
    assert {span.name for span, _ in loads} == {"load_model llama-lt_1M-f32"}
    assert {span.name for span, _ in calls} == {"text_completion llama-lt_1M-f32"}
    assert [counts(told) for _, told in calls] == [each["counts"] for each in answer["counted"]]
    for way, attribute in ALSO.items():
        expected = [each.get(way) for each in answer["counted"]]
        assert [told.get(attribute) or None for _, told in calls] == expected, way


def test_the_server(installed, folder):
    server = ("mlx_lm.server", "--draft-model", "tiny")
    with Sink() as sink:
        with mlx_processes.serving(installed.programs, server, folder, sink) as port:
            asked = mlx_processes.CHAT
            [chat] = mlx_processes.ask(port, "/v1/chat/completions", asked)
            text = {"prompt": SAID, "max_tokens": 4, "stream": True}
            assert mlx_processes.ask(port, "/v1/completions", text)
            lacking = asked | {"model": "./alice-lacks-it"}
            assert mlx_processes.ask(port, "/v1/chat/completions", lacking, status=404)
            sink.wait(lambda sink: len(sink.spans) == 6)
        [(load, _), (draft, _), *calls, refused, (failed, told)] = spans(sink)
        for secret in (SAID, "alice", "tiny"):
            assert secret.encode() not in sink.bytes
    assert load.name == draft.name == "load_model llama-lt_1M-f32"
    for span, _ in (*calls, refused):
        assert span.kind == Span.SPAN_KIND_SERVER
        assert span.trace_id.hex() == mlx_processes.TRACE
        assert span.parent_span_id.hex() == mlx_processes.SPAN
    assert [span.name.split()[0] for span, _ in calls] == ["chat", "text_completion"]
    usage = chat["usage"]
    assert [counts(told) for _, told in calls] == [
        [usage["prompt_tokens"], usage["completion_tokens"], ["length"]],
        [len(SAID), 4, ["length"]],
    ]
    # The model is its own draft.
    assert [told["sottovoce.draft.acceptance_rate"] for _, told in calls] == [1, 1]
    assert (failed.name, failed.parent_span_id) == ("load_model", refused[0].span_id)
    assert told["error.type"] == refused[1]["error.type"] == "model_not_found"

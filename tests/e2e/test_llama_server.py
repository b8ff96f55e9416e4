"""One trace from the app to the engine: openai's SDK, llama_cpp.server, llama.cpp.

Both processes run under the launcher and send to one receiver. The oldest and the newest
llama-cpp-python, each built once by tools/environment.sh, on the oldest and the newest FastAPI:
the newest makes a span of its own for each request, and so does OpenTelemetry's instrumentation
of any; ours is for where neither does.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conformance.conformance import violations
from delivery.sink import Sink, mapping
from e2e import environments

pytestmark = pytest.mark.e2e

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INTERNAL, SERVER, CLIENT = 1, 2, 3
CANARIES = (b"secret", b"alice", b".gguf", b"the key", str(Path.home()).encode())
MODULE = ("-m", "llama_cpp.server", "--model", "alice.gguf", "--port", "0", "--n_ctx", "2048")
APP = """
import sys, uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings
models = [ModelSettings(model="alice.gguf", n_ctx=2048, n_threads=1, embedding=False)]
app = create_app(
    server_settings=ServerSettings(api_key="the key", root_path="/alice"), model_settings=models
)
uvicorn.run(app, port=0)
"""
"""A server of the user's own."""


@dataclass
class Kind:
    """A server to be asked.

    Attributes:
        scope: whose the SERVER spans are.
        cannot: what its server does not stand. In 0.3.0 a model that embeds does not answer as
            well; a client that leaves a stream, or two at once, stop the server for ever. So it
            is without us.
        without: instrumentations that are not applied.
    """

    library: str
    requirements: str
    command: tuple
    scope: str = "sottovoce"
    cannot: tuple = ()
    without: str = ""


WHOLE = (*MODULE, "--n_threads", "1", "--embedding", "true", "--api_key", "the key")
KINDS = {
    "oldest": Kind(
        "llama-oldest", "llama-server-oldest", ("-c", APP), cannot=("embeddings", "left", "at once")
    ),
    "newest": Kind("llama", "llama-server-oldest", WHOLE),
    "newest FastAPI": Kind(
        "llama", "llama-server", WHOLE, scope="fastapi", without="fastapi,httpx,httpx2"
    ),
    "instrumented FastAPI": Kind(
        "llama", "llama-server", WHOLE, scope="opentelemetry.instrumentation.fastapi"
    ),
}


@dataclass
class Ran:
    """What an app was told, and every span of both processes."""

    kind: Kind
    asked: dict
    sink: Sink
    spans: dict = field(default_factory=dict)

    def of(self, case):
        """The spans of one case, by kind, the app's own left out; of servers' the SERVER ones."""
        mine = [
            (scope.name, span, mapping(span.attributes))
            for _, scope, span in self.sink.spans
            if span.trace_id.hex() == self.asked[case]["trace"]
        ]
        self.spans = {span.span_id: span for _, span, _ in mine}
        ours = [each for each in mine if each[0] == "sottovoce"]
        clients = [each for each in ours if each[1].kind == CLIENT]
        servers = [each for each in mine if each[1].kind == SERVER]
        models = [each for each in ours if each[1].kind == INTERNAL]
        return clients, servers, models

    def below(self, inner, outer):
        """Whether `outer` is among the parents of `inner`."""
        while inner is not None and inner.span_id != outer.span_id:
            inner = self.spans.get(inner.parent_span_id)
        return inner is not None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes environments, each once."""
    known = {}

    def make(kind):
        key = kind.library, kind.requirements
        if key not in known:
            folder = tmp_path_factory.mktemp("llama") / "env"
            known[key] = environments.llama(folder, *key)
        return known[key]

    return make


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model whose file has a name that says something."""
    folder = tmp_path_factory.mktemp("alice")
    more = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import tiny_gguf; "
    more += "tiny_gguf.make('alice.gguf', hidden=256, layers=6)"
    subprocess.run([sys.executable, "-c", more], cwd=folder, check=True)
    return folder


def environment(home, sink, kind):
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONUNBUFFERED": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": kind.without,
        "SOTTOVOCE_EXIT_TIMEOUT": "60",
        "SOTTOVOCE_KEY": "a key of the tests, of 32 bytes.",
    }


@contextmanager
def running(home, bin_, kind, sink):
    """A server that is ready; gives its URL. It is asked to end as with Ctrl+C."""
    path = home / f"{time.monotonic_ns()}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [bin_ / "opentelemetry-instrument", bin_ / "python", *kind.command],
            cwd=home,
            env=environment(home, sink, kind),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"running on (http://[\w.:]+)", path.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, path.read_text()
            time.sleep(0.05)
        yield found[1]
        process.send_signal(signal.SIGINT)
        process.wait(90)
    finally:
        process.kill()
        process.wait(20)


@pytest.fixture(scope="module", params=KINDS)
def ran(request, made, home):
    kind = KINDS[request.param]
    bin_ = made(kind)
    with Sink() as sink:
        with running(home, bin_, kind, sink) as url:
            app = [bin_ / "opentelemetry-instrument", bin_ / "python"]
            app += [HERE / "llama_server_app.py", url, *kind.cannot]
            done = subprocess.run(
                app,
                cwd=home,
                env=environment(home, sink, kind),
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-4000:]
            # Nor does this ask a model.
            with urllib.request.urlopen(f"{url}/openapi.json") as answer:
                assert answer.status == 200
        yield Ran(kind, json.loads(done.stdout.splitlines()[-1]), sink)


def one_trace(ran, case):
    """The client's, the server's and the model's span, one below the other."""
    [[_, client, asked]], [[scope, server, served]], [[_, model, made]] = ran.of(case)
    assert scope == ran.kind.scope
    assert ran.below(model, server) and ran.below(server, client)
    assert served["http.request.method"] == "POST"
    assert served["url.scheme"] == "http"
    assert server.name == f"POST {served['http.route']}"
    return (client, asked), (server, served), (model, made)


@pytest.mark.parametrize(
    ("case", "operation", "route"),
    [
        ("whole", "chat", "/v1/chat/completions"),
        ("completion", "text_completion", "/v1/completions"),
        ("embeddings", "embeddings", "/v1/embeddings"),
    ],
)
def test_a_whole_answer_is_one_trace_with_equal_counts(ran, case, operation, route):
    if case in ran.kind.cannot:
        return
    told = ran.asked[case]["told"]
    (_, asked), (server, served), (_, made) = one_trace(ran, case)
    assert served["http.route"] == route
    assert served["http.response.status_code"] == 200
    assert server.status.code == 0
    for each in (asked, made):
        assert each["gen_ai.operation.name"] == operation
        assert each["gen_ai.usage.input_tokens"] == told["prompt_tokens"]
        if case != "embeddings":
            assert each["gen_ai.usage.output_tokens"] == told["completion_tokens"] == 5
    assert made["gen_ai.provider.name"] == "llama_cpp"
    assert made["gen_ai.request.model"] == "llama-1M-f32"


def test_so_is_a_stream_whose_counts_only_the_engine_tells(ran):
    (client, asked), (server, served), (model, made) = one_trace(ran, "streamed")
    _, _, [[_, _, whole]] = ran.of("whole")
    assert made["gen_ai.usage.input_tokens"] == whole["gen_ai.usage.input_tokens"]
    assert made["gen_ai.usage.output_tokens"] == 5
    chunks = ran.asked["streamed"]["told"]["chunks"]
    assert asked["sottovoce.response.chunks"] == made["sottovoce.response.chunks"] == chunks
    assert served["http.response.status_code"] == 200
    assert {asked["sottovoce.call.outcome"], made["sottovoce.call.outcome"]} == {"completed"}
    # To the last byte.
    assert server.end_time_unix_nano >= model.end_time_unix_nano


def test_a_prompt_that_is_too_long(ran):
    (_, asked), (server, served), (_, made) = one_trace(ran, "too long")
    assert asked["error.type"] == "openai.BadRequestError"
    assert served["http.response.status_code"] == 400
    # By the conventions it was not the server who failed.
    assert (server.status.code, "error.type" in served) == (0, False)
    assert made["error.type"] == "context_length_exceeded"


def test_a_request_that_asks_no_model_after_all(ran):
    [[_, client, _]], [[_, server, served]], models = ran.of("no key")
    assert not models
    assert ran.below(server, client)
    assert served["http.response.status_code"] == 401


def test_a_client_that_leaves(ran):
    if "left" in ran.kind.cannot:
        return
    (_, asked), (server, served), (_, made) = one_trace(ran, "left")
    assert asked["sottovoce.call.outcome"] == made["sottovoce.call.outcome"] == "abandoned"
    assert made["gen_ai.usage.output_tokens"] < 1500
    if ran.kind.scope == "sottovoce":
        # FastAPI says that it failed.
        assert server.status.code == 0
        assert served["sottovoce.call.outcome"] == "abandoned"


def test_each_of_two_at_once_has_its_own(ran):
    if "at once" in ran.kind.cannot:
        return
    clients, servers, models = ran.of("at once")
    assert len(clients) == len(servers) == len(models) == 2
    for _, model, _ in models:
        [server] = [each for _, each, _ in servers if ran.below(model, each)]
        [_] = [each for _, each, _ in clients if ran.below(server, each)]


def test_ours_are_of_requests_that_ask_a_model_alone(ran):
    clients, servers, models = ran.of("models")
    assert not clients and not models
    ours = [span.name for _, scope, span in ran.sink.spans if scope.name == "sottovoce"]
    assert not [name for name in ours if name.startswith(("GET", "OPTIONS"))]
    assert not [each for each in servers if each[0] == "sottovoce"]


def test_nothing_that_was_said_and_no_path_leaves(ran):
    assert not [each for each in CANARIES if each in ran.sink.bytes]


def test_what_is_ours_is_as_declared(ran):
    messages = [message for _, message in ran.sink.requests]
    found = violations(*messages)
    assert not [each for each in found if "fastapi" not in each]

"""mlx-lm's own commands under the launcher: a span for each generation, the same output."""

import json
import re
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from conformance.conformance import violations
from delivery.sink import Sink, mapping
from e2e import mlx_processes

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

PROGRAMS = Path(sys.executable).parent
APP = Path(__file__).with_name("llama_server_app.py")
OURS = "sottovoce"
SAID = mlx_processes.SAID
GENERATE = ("--model", "tiny", "--prompt", SAID, "--max-tokens", "5")
TIMINGS = re.compile(rb"[\d.]+(?= tok/s| tokens-per-sec)")
SERVERS = {
    "the console script": ("mlx_lm.server",),
    "the package": ("-m", "mlx_lm", "server"),
    "the module": ("-m", "mlx_lm.server"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("alice")
    mlx_processes.make_model(made)
    return made


def generations(sink):
    """The spans but those of loading, in the order in which they began."""
    found = [span for _, _, span in sink.spans if not span.name.startswith("load_model")]
    return sorted(found, key=lambda span: span.start_time_unix_nano)


def of_kind(sink, kind):
    return [span for _, scope, span in sink.spans if (scope.name, span.kind) == (OURS, kind)]


@pytest.mark.parametrize("how", SERVERS.values(), ids=SERVERS)
def test_the_server(folder, how):
    with Sink() as sink:
        with mlx_processes.serving(PROGRAMS, how, folder, sink) as port:
            [chat] = mlx_processes.ask(port, "/v1/chat/completions", mlx_processes.CHAT)
            *_, last = mlx_processes.ask(
                port,
                "/v1/completions",
                {
                    "prompt": SAID,
                    "max_tokens": 4,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                },
            )
            sink.wait(lambda sink: len(generations(sink)) == 2)
        assert sink.span_names.count("load_model llama-lt_1M-f32") == 1
        for span, operation, usage in zip(
            generations(sink),
            ("chat", "text_completion"),
            (chat["usage"], last["usage"]),
            strict=True,
        ):
            told = mapping(span.attributes)
            assert span.name == f"{operation} llama-lt_1M-f32"
            assert span.kind == Span.SPAN_KIND_SERVER
            assert span.trace_id.hex() == mlx_processes.TRACE
            assert span.parent_span_id.hex() == mlx_processes.SPAN
            assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
            assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
        for secret in (SAID, "alice", "tiny"):
            assert secret.encode() not in sink.bytes


def test_one_trace_from_the_sdk_to_the_model(folder):
    unasked = ("too long", "no key", "models", "embeddings")
    with Sink() as sink:
        with mlx_processes.serving(PROGRAMS, SERVERS["the package"], folder, sink) as port:
            app = ("python", APP, f"http://127.0.0.1:{port}", *unasked)
            done = mlx_processes.run(PROGRAMS, app, folder, sink)
            assert done.returncode == 0, done.stderr
            sink.wait(lambda sink: len(of_kind(sink, Span.SPAN_KIND_SERVER)) == 6)
        asked = {
            each["trace"]: (case, each["told"]) for case, each in json.loads(done.stdout).items()
        }
        clients = {span.span_id: span for span in of_kind(sink, Span.SPAN_KIND_CLIENT)}
        servers = of_kind(sink, Span.SPAN_KIND_SERVER)
        for secret in ("a secret question", "alice", "tiny"):
            assert secret.encode() not in sink.bytes
        assert not violations(*(message for _, message in sink.requests))
    assert len(clients) == len(servers) == len({span.parent_span_id for span in servers})
    for span in servers:
        client = clients[span.parent_span_id]
        case, told = asked[span.trace_id.hex()]
        made, seen = mapping(span.attributes), mapping(client.attributes)
        assert client.trace_id == span.trace_id
        assert client.start_time_unix_nano <= span.start_time_unix_nano
        assert span.name.split()[0] == client.name.split()[0]
        outcome = "abandoned" if case == "left" else "completed"
        assert {each["sottovoce.call.outcome"] for each in (made, seen)} == {outcome}
        if case in {"whole", "completion"}:
            for each in (made, seen):
                assert each["gen_ai.usage.input_tokens"] == told["prompt_tokens"]
                assert each["gen_ai.usage.output_tokens"] == told["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("how", "said", "counts"),
    [
        (("mlx_lm.generate", *GENERATE), "", [(22, 5)]),
        (("-m", "mlx_lm.generate", *GENERATE), "", [(22, 5)]),
        (
            ("mlx_lm.chat", "--model", "tiny", "--max-tokens", "5"),
            f"{SAID}\nand more\nq\n",
            # The second turn reads the first one from its cache.
            [(22, 5), (39, 5)],
        ),
    ],
    ids=["generate", "the module", "chat"],
)
def test_a_command_says_what_it_says_without_us(folder, how, said, counts):
    alone = mlx_processes.run(PROGRAMS, how, folder, said=said)
    with Sink() as sink:
        watched = mlx_processes.run(PROGRAMS, how, folder, sink, said=said)
        found = [
            tuple(
                mapping(span.attributes)[f"gen_ai.usage.{kind}_tokens"]
                for kind in ("input", "output")
            )
            for span in generations(sink)
        ]
        assert sink.span_names.count("load_model llama-lt_1M-f32") == 1
        assert found == counts
        for secret in (SAID, "alice", "tiny"):
            assert secret.encode() not in sink.bytes
    assert alone.returncode == watched.returncode == 0, watched.stderr
    for quiet, heard in ((alone.stdout, watched.stdout), (alone.stderr, watched.stderr)):
        assert TIMINGS.sub(b"n", heard) == TIMINGS.sub(b"n", quiet)
